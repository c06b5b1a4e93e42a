"""A bring-up played through by the real controller in virtual time: what to expect, before a machine is touched.

Hands, clock and the times of the machines are handed in: nothing here knows that they are simulated.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.drivers.interfaces import Clock, Hands
from orchestrator.execution.controller import Controller, everything_settled
from orchestrator.execution.journal import Journal
from orchestrator.planning.preview import preview
from orchestrator.planning.rollout import rounds, to_bring_up
from orchestrator.planning.site import Site

SAMPLES_EVERY_S = 10.0
"""Virtual seconds between two samples of the curves."""
LONGEST_S = 30 * 86_400.0
"""A rehearsal that has not come to rest after so many virtual seconds is ended, and says so."""

ChainTime = Callable[[str, Sequence[tuple[Action, str]]], float]
"""(node, its steps: action and reset kind) → the least seconds the node needs for them, one after the other."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment."""

    at_s: float
    """Seconds after the beginning."""
    states: Mapping[str, int]
    """Nodes per state."""
    feed_w: Mapping[str, float]
    """Watts reserved per feed: what admission reckons with."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """How one rehearsal went."""

    seed: int
    nodes: int
    """Compute nodes; equipment is counted apart."""
    equipment: int
    equipment_ready: int
    states: Mapping[str, int]
    """Nodes per state at the end."""
    nodes_by_cause: Mapping[str, tuple[str, ...]]
    """Machines in quarantine, equipment included, per kind of cause; in the spec's order."""
    virtual_s: float
    """From the request to rest."""
    lower_bound_s: float
    """No schedule of the same waves on the same machines is faster."""
    longest_chain_s: float
    """What the slowest node alone needs: the bound if there were no waves."""
    waves: int
    failure_budget: int
    stopped_because: str
    """Why the rollout stopped before its end; empty if it did not."""
    is_at_rest: bool
    """False: it was ended after `LONGEST_S`."""
    events: int
    journal_sha256: str
    samples: tuple[Sample, ...]

    @property
    def title(self) -> str:
        """What happened, in a line."""
        return f"{self.ready} of {self.nodes} nodes ready after {self.virtual_s / 3600:.2f} h (seed {self.seed})"

    @property
    def ready(self) -> int:
        """Nodes that came into service."""
        return self.states.get(NodeState.READY, 0) + self.states.get(NodeState.ALLOCATED, 0)

    @property
    def causes(self) -> Mapping[str, int]:
        """How many machines are in quarantine per kind of cause."""
        return {cause: len(names) for cause, names in self.nodes_by_cause.items()}

    @property
    def spares(self) -> int:
        """Compute nodes that failed and wait for a person: so many spares would fill their places."""
        return self.states.get(NodeState.QUARANTINED, 0)

    @property
    def quarantined(self) -> int:
        """Machines that did not, and wait for a person; equipment counts against the same budget."""
        return sum(self.causes.values())

    @property
    def peak_feed_w(self) -> Mapping[str, float]:
        """The most that was reserved on each feed, in watts."""
        feeds = sorted({feed for sample in self.samples for feed in sample.feed_w})
        return {feed: max(sample.feed_w.get(feed, 0.0) for sample in self.samples) for feed in feeds}


def rehearse(
    journal: Journal, hands: Hands, clock: Clock, home: Path, spec: ClusterSpec, sha256: str, chain_s: ChainTime, seed: int
) -> Rehearsed:
    """Apply `spec` in an empty journal and let the controller run until everything is at rest.

    `sha256` is that of the spec's text. Raises LeaseLost or JournalBroken like the controller.
    """
    begin_s = clock.now_s()
    data = {"spec": spec.model_dump(mode="json"), "text": "", "sha256": sha256, "file": "", "by": "rehearsal"}
    journal.request(Event("request.apply", CLUSTER, data, begin_s))
    controller = Controller(journal, hands, clock, journal.take_lease("rehearsal:0:0:0", begin_s), home)
    curves = Curves(controller, clock, spec)

    def is_over(state: ClusterState) -> bool:
        return everything_settled(state) or clock.now_s() - begin_s > LONGEST_S

    controller.run(is_over, curves.look)
    curves.take()
    state, end_s = controller.state, clock.now_s()
    controller.close()
    bound_s, longest_s = lower_bound_s(spec, chain_s)
    records = [record for record in state.nodes.values() if not record.is_equipment]
    equipment = [record for record in state.nodes.values() if record.is_equipment]
    behind: dict[str, list[str]] = {}
    for name in (machine.name for machine in spec.managed()):
        if (record := state.nodes[name]).state is NodeState.QUARANTINED:
            behind.setdefault(record.cause or "other", []).append(name)
    return Rehearsed(
        seed=seed,
        nodes=len(records),
        equipment=len(equipment),
        equipment_ready=sum(record.state is NodeState.READY for record in equipment),
        states=dict(sorted(Counter(str(record.state) for record in records).items())),
        nodes_by_cause={cause: tuple(names) for cause, names in sorted(behind.items())},
        virtual_s=end_s - begin_s,
        lower_bound_s=bound_s,
        longest_chain_s=longest_s,
        waves=len(state.rollout.waves),
        failure_budget=spec.rollout.failure_budget,
        stopped_because=state.rollout.stopped_because,
        is_at_rest=everything_settled(state),
        events=state.seq,
        journal_sha256=journal.digest(),
        samples=tuple(curves.samples),
    )


def lower_bound_s(spec: ClusterSpec, chain_s: ChainTime) -> tuple[float, float]:
    """(least seconds for the spec's waves, least seconds for the slowest node alone), without faults.

    A wave cannot end before its slowest node has gone through its own stages, nor before every feed and rack has let its
    nodes power on one after the other within its limit; the next wave begins when it has ended.
    """
    site = Site.of(spec)
    steps: dict[str, list[tuple[Action, str]]] = {}
    for planned in preview(site, {}, {}):
        steps.setdefault(planned.step.node, []).append((planned.step.action, str(planned.step.args.get("reset", ""))))
    chains = {name: chain_s(name, taken) for name, taken in steps.items()}
    total_s = 0.0
    on: Counter[tuple[str, str]] = Counter()
    for wave in rounds(to_bring_up(site, {}), site):
        least_s = max(chains[name] for name in wave)
        total_s += max(least_s, min(chains[name] for name in wave) + _power_on_s(site, wave, on))
    return total_s, max(chains.values(), default=0.0)


def _power_on_s(site: Site, wave: Sequence[str], on: Counter[tuple[str, str]]) -> float:
    """How much later than the first the last node of the wave can be powered on, given every rack's and feed's limit.

    `on` counts the watts of nodes that are on already, in whole watts, and is brought up to date. Equipment is not powered on.
    """
    policy = site.spec.rollout
    worst_s = 0.0
    rushes: dict[tuple[str, str], list[float]] = {}
    for name in (name for name in wave if name in site.computes):
        for part in (("rack", site.nodes[name].rack), ("feed", site.rack(name).feed)):
            rushes.setdefault(part, []).append(site.sku(name).max_w)
    for part, watts in rushes.items():
        limit_w = site.spec.racks[part[1]].limit_w if part[0] == "rack" else site.spec.feeds[part[1]].limit_w
        rush_w = max(watts) * (policy.inrush_factor - 1)
        if rush_w > 0:
            at_once = max(1, int((limit_w - on[part]) // (max(watts) + rush_w)), int((limit_w - on[part] - sum(watts)) // rush_w))
            worst_s = max(worst_s, (-(-len(watts) // at_once) - 1) * policy.inrush_s)
        on[part] += round(sum(watts))
    return worst_s


class Curves:
    """Samples of the fleet while it runs."""

    def __init__(self, controller: Controller, clock: Clock, spec: ClusterSpec) -> None:
        self.samples: list[Sample] = []
        self._controller, self._clock, self._feeds = controller, clock, sorted(spec.feeds)
        self._begin_s = self._next_s = clock.now_s()

    def look(self, state: ClusterState) -> None:
        """Take a sample, if one is due."""
        if self._clock.now_s() >= self._next_s and state.nodes:
            self.take()
            self._next_s = self._clock.now_s() + SAMPLES_EVERY_S

    def take(self) -> None:
        """Take a sample now."""
        records = self._controller.state.nodes.values()
        states = Counter(str(record.state) for record in records if not record.is_equipment)
        book = self._controller.book
        feed_w = {feed: book.power.load_w(("feed", feed)) for feed in self._feeds} if book else {}
        self.samples.append(Sample(self._clock.now_s() - self._begin_s, dict(sorted(states.items())), feed_w))
