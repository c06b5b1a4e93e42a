"""How fast a change spreads: waves, the failure budget, power. Pure functions; the controller carries out what they admit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.node import BRING_UP, SETTLED, NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Step
from orchestrator.domain.spec import Rollout
from orchestrator.domain.state import RolloutRecord
from orchestrator.planning.site import Site


def waves(names: Sequence[str], policy: Rollout) -> tuple[tuple[str, ...], ...]:
    """Split `names` (kept in their order) into a canary wave and growing ones; no wave above `max_in_flight`."""
    result: list[tuple[str, ...]] = []
    size, left = float(policy.canary), list(names)
    while left:
        count = max(1, min(int(size), policy.max_in_flight))
        result.append(tuple(left[:count]))
        left = left[count:]
        size = max(size * policy.growth, size + 1)
    return tuple(result)


def to_bring_up(site: Site, nodes: Mapping[str, NodeRecord]) -> list[str]:
    """Nodes of the spec that are still on their way to `ready`, spread over the racks so that no wave sits in one rack."""
    pending = [name for name in site.nodes if name not in nodes or nodes[name].state in BRING_UP]
    by_rack: dict[str, list[str]] = {}
    for name in pending:
        by_rack.setdefault(site.nodes[name].rack, []).append(name)
    depth = max(map(len, by_rack.values()), default=0)
    return [names[i] for i in range(depth) for names in by_rack.values() if i < len(names)]


def failed_in(rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> list[str]:
    """Nodes of the rollout that ended in quarantine, for whatever cause: refused, unreachable, timed out or unknown."""
    return [name for wave in rollout.waves for name in wave if nodes[name].state is NodeState.QUARANTINED]


def open_wave(rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> int:
    """Index of the first wave with a node that is not settled; the number of waves when all are."""
    for index, wave in enumerate(rollout.waves):
        if any(nodes[name].state not in SETTLED for name in wave):
            return index
    return len(rollout.waves)


def why_stop(rollout: RolloutRecord, nodes: Mapping[str, NodeRecord], policy: Rollout) -> str:
    """Why no new wave may start, or an empty string."""
    failed = failed_in(rollout, nodes)
    if len(failed) <= policy.failure_budget:
        return ""
    return f"{len(failed)} nodes failed ({', '.join(failed[:5])}), the failure budget is {policy.failure_budget}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that has to wait, and for what."""

    step: Step
    because: str


def admit(
    steps: Iterable[Step], rollout: RolloutRecord, nodes: Mapping[str, NodeRecord], site: Site
) -> tuple[list[Step], list[Refusal]]:
    """Which steps may go now: those of open waves, within the number of nodes in flight, within every rack's and feed's power."""
    wave_of = {name: index for index, wave in enumerate(rollout.waves) for name in wave}
    current = open_wave(rollout, nodes)
    busy = sum(1 for record in nodes.values() if record.open is not None)
    power = PowerBook.of(nodes, site)
    admitted: list[Step] = []
    refused: list[Refusal] = []
    for step in steps:
        wave = wave_of.get(step.node)
        if wave is not None and wave > current:
            refused.append(Refusal(step, f"wave {wave + 1} waits for wave {current + 1}"))
        elif wave is not None and rollout.stopped_because and nodes[step.node].state is NodeState.ENROLLED:
            refused.append(Refusal(step, f"the rollout is stopped: {rollout.stopped_because}"))
        elif busy >= site.spec.rollout.max_in_flight:
            refused.append(Refusal(step, f"{busy} nodes are being worked on, the limit is {site.spec.rollout.max_in_flight}"))
        elif step.action is Action.BMC_POWER and step.args.get("reset") == "On" and (short := power.short_for(step.node)):
            refused.append(Refusal(step, short))
        else:
            if step.action is Action.BMC_POWER:
                power.charge(step.node)
            admitted.append(step)
            busy += 1
    return admitted, refused


class PowerBook:
    """Watts reserved per rack and feed: the largest draw of every node that is on, or about to be."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._rack_w: dict[str, float] = {}
        self._feed_w: dict[str, float] = {}
        self._charged: set[str] = set()

    @staticmethod
    def of(nodes: Mapping[str, NodeRecord], site: Site) -> "PowerBook":
        """The book as the records stand."""
        book = PowerBook(site)
        for record in nodes.values():
            if record.name in site.nodes and _draws(record):
                book.charge(record.name)
        return book

    def charge(self, name: str) -> None:
        """Reserve the node's largest draw, once."""
        if name in self._charged:
            return
        self._charged.add(name)
        watts, rack, feed = self._site.sku(name).max_w, self._site.nodes[name].rack, self._site.rack(name).feed
        self._rack_w[rack] = self._rack_w.get(rack, 0.0) + watts
        self._feed_w[feed] = self._feed_w.get(feed, 0.0) + watts

    def short_for(self, name: str) -> str:
        """Why the node may not be powered on now, or an empty string."""
        if name in self._charged:
            return ""
        watts, rack_name = self._site.sku(name).max_w, self._site.nodes[name].rack
        rack = self._site.rack(name)
        feed = self._site.spec.feeds[rack.feed]
        for kind, key, used_w, limit_w in (
            ("rack", rack_name, self._rack_w.get(rack_name, 0.0), rack.limit_w),
            ("feed", rack.feed, self._feed_w.get(rack.feed, 0.0), feed.limit_w),
        ):
            if used_w + watts > limit_w:
                return f"{kind} {key} would carry {used_w + watts:.0f} W of {limit_w:.0f} W"
        return ""


def _draws(record: NodeRecord) -> bool:
    """Whether the node must be reckoned as drawing power: unless its BMC said Off after the last power command, it is."""
    if record.fact_at_s(Action.BMC_POWER) > 0 or (record.open is not None and record.open.action is Action.BMC_POWER):
        return True
    seen = record.fact(Action.BMC_OBSERVE)
    if seen is not None:
        return bool(seen["power"] != "Off")
    return record.state not in (NodeState.ENROLLED, NodeState.IDENTIFIED, NodeState.CREDENTIALED, NodeState.RETIRED)
