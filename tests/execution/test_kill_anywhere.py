"""SIGKILL of the controller at every journal write: run it again, and it ends where an undisturbed one ends.

The simulated site lives in this process and goes on when the controller, a forked child, dies: as machines do.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action, Operation, Outcome
from orchestrator.domain.spec import ClusterSpec
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.journal import Journal
from orchestrator.lab.simulated_hands import SimulatedHands, VirtualClock
from orchestrator.lab.simulation import SimulatedSite
from tests.execution.site import a_controller, apply_request, lab_4


def two_nodes() -> ClusterSpec:
    """The lab's two nodes with something planted: every kind of step happens, and as few of them as possible."""
    spec = lab_4()
    return spec.model_copy(update={"nodes": tuple(node for node in spec.nodes if node.name in ("r01-n2", "r02-n2"))})


ONCE_ONLY = (Action.BMC_POWER, Action.BMC_UPDATE, Action.BMC_BOOT_ONCE, Action.BMC_CREDENTIAL, Action.CELL_JOIN)
"""Steps that must not be repeated once they have taken effect."""


class World:
    """The site and the time, served to a controller in another process over a pipe."""

    def __init__(self) -> None:
        self.site = SimulatedSite(two_nodes(), seed=7)

    def serve(self, pipe: Connection) -> None:
        """Answer until the controller is gone."""
        hands, clock = SimulatedHands(self.site), VirtualClock(self.site)
        try:
            while True:
                verb, argument = pipe.recv()
                if verb == "submit":
                    pipe.send(hands.submit([Operation.from_json(each) for each in argument]))
                elif verb == "poll":
                    pipe.send([outcome.to_json() for outcome in hands.poll()])
                elif verb == "wait":
                    pipe.send(clock.wait_s(argument))
                else:
                    pipe.send(clock.now_s())
        except (EOFError, ConnectionError):
            return


class Remote:
    """Hands and Clock of the controller process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def _ask(self, verb: str, argument: object = None) -> object:
        self._pipe.send((verb, argument))
        return self._pipe.recv()

    def submit(self, operations: Sequence[Operation]) -> None:
        self._ask("submit", [operation.to_json() for operation in operations])

    def poll(self) -> list[Outcome]:
        return [Outcome.from_json(each) for each in self._ask("poll")]  # type: ignore[attr-defined]

    def close(self) -> None:
        """The world goes on."""

    boot = "virtual"

    def now_s(self) -> float:
        return float(self._ask("now"))  # type: ignore[arg-type]

    def steady_s(self) -> float:
        return self.now_s()

    def wait_s(self, seconds: float) -> None:
        self._ask("wait", seconds)


class Killer:
    """Kills its own process at the n-th call; counts the calls."""

    def __init__(self, at: int | None) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def control(home: Path, pipe: Connection, before: Callable[[], None], after: Callable[[], None]) -> None:
    journal = Journal(f"sqlite:///{home}/state.db", has_ended=lambda holder: True, before_write=before, after_write=after)
    remote = Remote(pipe)
    controller = a_controller(journal, remote, remote, home)
    controller.run(everything_settled)


def run_once(home: Path, world: World, before_at: int | None, after_at: int | None) -> int | None:
    """One controller process over the world; returns its exit status."""
    ours, theirs = get_context("fork").Pipe()

    def child() -> None:
        ours.close()
        control(home, theirs, Killer(before_at), Killer(after_at))
        os._exit(0)

    process = get_context("fork").Process(target=child)
    process.start()
    theirs.close()
    server = threading.Thread(target=world.serve, args=(ours,))
    server.start()
    process.join(60)
    server.join(60)
    ours.close()
    return process.exitcode


def ask_for_the_lab(home: Path) -> None:
    journal = Journal(f"sqlite:///{home}/state.db")
    journal.request(apply_request(two_nodes()))
    journal.close()


def final_states(home: Path) -> dict[str, NodeState]:
    journal = Journal(f"sqlite:///{home}/state.db")
    states = {name: record.state for name, record in journal.load().nodes.items()}
    journal.close()
    return states


def writes_of_an_undisturbed_run(home: Path) -> int:
    """How many transactions a whole bring-up makes, counted in this process."""
    counter = Killer(None)
    site = SimulatedSite(two_nodes(), seed=7)
    journal = Journal(f"sqlite:///{home}/state.db", before_write=counter)
    journal.request(apply_request(two_nodes()))
    asked = counter.calls
    a_controller(journal, SimulatedHands(site), VirtualClock(site), home).run(everything_settled)
    journal.close()
    return counter.calls - asked


def test_killed_at_every_write_it_resumes_and_repeats_no_completed_disruptive_step(tmp_path: Path) -> None:
    whole = tmp_path / "undisturbed"
    whole.mkdir()
    writes = writes_of_an_undisturbed_run(whole)
    wanted = final_states(whole)
    assert Counter(wanted.values()) == {NodeState.READY: 1, NodeState.QUARANTINED: 1}
    assert writes > 40, "a bring-up of two nodes makes many transactions; if it does not, this test kills nothing"
    killed = 0
    for at in range(1, writes + 1):
        for side in ("before", "after"):
            home = tmp_path / f"{side}-{at}"
            home.mkdir()
            world = World()
            ask_for_the_lab(home)
            status = run_once(home, world, at if side == "before" else None, at if side == "after" else None)
            killed += status == -signal.SIGKILL
            assert run_once(home, world, None, None) == 0, f"killed {side} write {at}, it did not come to an end"
            states = final_states(home)
            assert states == wanted, f"killed {side} write {at}"
            done = Counter((deed.node, deed.action, str(deed.args)) for deed in world.site.deeds if deed.action in ONCE_ONLY)
            assert max(done.values()) == 1, f"killed {side} write {at}, repeated {[key for key, n in done.items() if n > 1]}"
    assert killed >= 2 * writes - 4, f"only {killed} of {2 * writes} runs were really killed"
