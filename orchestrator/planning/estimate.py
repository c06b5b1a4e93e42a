"""How long things take here, learned from the journal, and the time left that follows: ranges, and never more than is known.

Every passed stage of every node is one measurement, kept per SKU and stage. A node's rest is what its remaining stages usually
take; waves follow each other, and a wave lasts as long as its slowest node. Waiting for watts is not in it.
"""

import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from orchestrator.domain.event import Event
from orchestrator.domain.node import BRING_UP, EQUIPMENT_BRING_UP, NodeRecord, NodeState, bring_up_of
from orchestrator.domain.rollout import RolloutRecord, is_untouched
from orchestrator.planning.site import Site

ENOUGH = 20
"""Measurements that a 99th percentile needs before a node is measured against it."""
ORDER: Mapping[NodeState, int] = {state: index for index, state in enumerate((*BRING_UP, NodeState.READY))}
NEXT = frozenset(pair for path in (BRING_UP, EQUIPMENT_BRING_UP) for pair in pairwise((*path, NodeState.READY)))
"""Moves that pass a stage."""
Key = tuple[str, NodeState]
"""SKU and stage."""


@dataclass(frozen=True, slots=True)
class Range:
    """A time left, in seconds: about `low_s`, and in nine of ten cases at most `high_s`."""

    low_s: float
    high_s: float


@dataclass
class StageTimes:
    """Times nodes stayed in a stage before they passed it, in seconds, per SKU. Filled by `learn`, in the journal's order."""

    by_stage: dict[Key, list[float]] = field(default_factory=dict)
    """Shortest first."""
    _since_s: dict[str, float] = field(default_factory=dict)
    _sku: dict[str, str] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    """Nodes that have answered something: the first stage of the others begins with their first answer."""

    def learn(self, events: Iterable[Event]) -> "StageTimes":
        """Take in further events. A stage that was left for quarantine, or interrupted by a person, teaches nothing."""
        for event in events:
            if event.kind == "spec.applied":
                spec = event.data["spec"]
                self._sku.update({each["name"]: each["sku"] for each in (*spec["nodes"], *spec.get("equipment", ()))})
            elif event.kind == "controller.slept" or (event.kind.startswith("rollout.") and event.kind != "rollout.finished"):
                # Whoever may have been held up by it is measured again from its next stage on.
                self._since_s.clear()
            elif event.kind == "node.ended" and event.subject not in self._known:
                self._known.add(event.subject)
                self._since_s[event.subject] = event.at_s - float(event.data.get("seconds", 0.0))
            elif event.kind == "node.moved":
                self._moved(event)
        return self

    def _moved(self, event: Event) -> None:
        old, new = NodeState(event.data["from"]), NodeState(event.data["to"])
        began_s = self._since_s.pop(event.subject, None)
        sku = self._sku.get(event.subject)
        if began_s is not None and sku and (old, new) in NEXT:
            insort(self.by_stage.setdefault((sku, old), []), event.at_s - began_s)
        if new in BRING_UP and ORDER[new] > ORDER[NodeState.ENROLLED]:
            self._since_s[event.subject] = event.at_s

    def percentile_s(self, sku: str, stage: NodeState, share: float) -> float | None:
        """The time within which `share` of the measured nodes passed the stage; None where nothing was measured.

        Nearest-rank: a time that was really measured. Where the SKU is new, all SKUs together are the best there is.
        """
        found = self.by_stage.get((sku, stage))
        if not found:
            found = sorted(s for (_, each), some in self.by_stage.items() if each is stage for s in some)
        return found[max(0, math.ceil(share * len(found)) - 1)] if found else None

    def count(self, sku: str, stage: NodeState) -> int:
        """How many nodes of the SKU have passed the stage."""
        return len(self.by_stage.get((sku, stage), ()))


def rest_of_node(record: NodeRecord, sku: str, times: StageTimes, now_s: float) -> Range | None:
    """Time until the node is ready, if nothing fails; None where a stage ahead of it was never measured."""
    if record.state not in BRING_UP:
        return Range(0.0, 0.0)
    low_s = high_s = 0.0
    path = bring_up_of(record.kind)
    for stage in path[path.index(record.state) :]:
        usual, slow = times.percentile_s(sku, stage, 0.5), times.percentile_s(sku, stage, 0.9)
        if usual is None or slow is None:
            return None
        spent_s = now_s - max(record.since_s, record.clock_s) if stage is record.state and not is_untouched(record) else 0.0
        low_s += max(usual - spent_s, 0.0)
        high_s += max(slow - spent_s, 0.0)
    return Range(low_s, high_s)


def time_left(
    site: Site, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord], times: StageTimes, now_s: float
) -> Range | None:
    """Time until every wave has ended, if nothing more fails; None where a stage ahead was never measured."""
    return _waves_left(site, rollout.waves, nodes, times, now_s, rollout)


def time_of_plan(
    site: Site, waves: Sequence[Sequence[str]], nodes: Mapping[str, NodeRecord], times: StageTimes, now_s: float
) -> Range | None:
    """Time that waves not begun yet would take; nodes that are not in `nodes` are new."""
    return _waves_left(site, waves, nodes, times, now_s, RolloutRecord())


def _waves_left(
    site: Site,
    waves: Sequence[Sequence[str]],
    nodes: Mapping[str, NodeRecord],
    times: StageTimes,
    now_s: float,
    rollout: RolloutRecord,
) -> Range | None:
    low_s = high_s = 0.0
    known: dict[Key, Range | None] = {}
    for wave in waves:
        lows, highs = [0.0], [0.0]
        for name in wave:
            if name not in site.nodes or rollout.is_resting(record := nodes.get(name) or site.blank(name)):
                continue
            key = (site.nodes[name].sku, record.state)
            if is_untouched(record):
                if key not in known:
                    known[key] = rest_of_node(record, key[0], times, now_s)
                rest = known[key]
            else:
                rest = rest_of_node(record, key[0], times, now_s)
            if rest is None:
                return None
            lows.append(rest.low_s)
            highs.append(rest.high_s)
        low_s, high_s = low_s + max(lows), high_s + max(highs)
    return Range(low_s, high_s)


@dataclass(frozen=True, slots=True)
class Late:
    """A node that has been in its stage for longer than it should."""

    node: str
    stage: NodeState
    spent_s: float
    limit_s: float
    learned: bool
    """Whether `limit_s` is the 99th percentile of this SKU here; else it is half of the stage's limit."""


def late_nodes(
    site: Site, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord], times: StageTimes, now_s: float
) -> list[Late]:
    """Nodes of the rollout that are stuck: over the 99th percentile of their SKU, or, unmeasured, over half the stage's limit."""
    found = []
    for name in (name for wave in rollout.waves for name in wave if name in site.nodes):
        record = nodes[name]
        if record.state not in BRING_UP or rollout.is_resting(record) or is_untouched(record):
            continue
        sku = site.nodes[name].sku
        learned = times.count(sku, record.state) >= ENOUGH
        p99_s = times.percentile_s(sku, record.state, 0.99) if learned else None
        limit_s = p99_s if p99_s is not None else site.spec.rollout.stage_limit_s / 2
        spent_s = now_s - max(record.since_s, record.clock_s, rollout.started_at_s)
        if spent_s > limit_s:
            found.append(Late(name, record.state, spent_s, limit_s, p99_s is not None))
    return sorted(found, key=lambda late: (late.limit_s - late.spent_s, late.node))
