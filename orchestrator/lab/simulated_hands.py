"""Hands and a Clock on a simulated site: what a controller holds of it.

`SimulatedHands` carries operations there and answers with outcomes; `VirtualClock` lets time pass only when the controller has
nothing to do.
"""

from collections.abc import Callable, Sequence

from orchestrator.domain.operation import Action, Operation, Outcome, Status
from orchestrator.lab.simulation import SimulatedSite


class VirtualClock:
    """A Clock whose time passes only when somebody waits."""

    def __init__(self, site: SimulatedSite, quantum_s: float = 0.0) -> None:
        """With a quantum, everything that happens within so many seconds is met in one tick, as on a busy controller."""
        self._site, self._quantum_s = site, quantum_s

    boot = "virtual"

    def now_s(self) -> float:
        """Virtual seconds since the epoch."""
        return self._site.now_s

    def steady_s(self) -> float:
        """The same: nobody sets it."""
        return self._site.now_s

    def wait_s(self, seconds: float) -> None:
        """Jump to the next thing that happens, at most `seconds` ahead."""
        self._site.advance(self._site.now_s + seconds)
        if self._quantum_s:
            self._site.pass_to(self._site.now_s + self._quantum_s)


class SimulatedHands:
    """Hands on a simulated site."""

    def __init__(self, site: SimulatedSite, may_act: Callable[[int], bool] = lambda epoch: True) -> None:
        self._site, self._may_act = site, may_act
        self._outcomes: list[Outcome] = []
        self._closed = False

    def submit(self, operations: Sequence[Operation]) -> None:
        """Begin them all; an operation of a passed epoch is fenced. A playbook on several nodes is one run."""
        plays: dict[str, list[Operation]] = {}
        for operation in operations:
            if not self._may_act(operation.epoch):
                fenced = "the epoch has passed"
                self._arrive(Outcome(operation.id, operation.node, operation.action, Status.FENCED, reason=fenced))
            elif operation.action is Action.PLAYBOOK:
                plays.setdefault(operation.args["playbook"], []).append(operation)
            else:
                self._site.submit(operation, self._arrive)
        for together in plays.values():
            self._site.play(together, self._arrive)

    def poll(self) -> list[Outcome]:
        """What has come since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Nothing is left to stop: the site goes on by itself, and what it still answers is lost."""
        self._closed = True
        self._outcomes = []

    def _arrive(self, outcome: Outcome) -> None:
        if not self._closed:
            self._outcomes.append(outcome)
