"""How fast a change spreads: waves, the failure budget, power. Pure functions; the controller carries out what they admit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.node import BRING_UP, NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Step
from orchestrator.domain.spec import Rollout
from orchestrator.domain.state import RolloutRecord
from orchestrator.planning.fleet_book import FleetBook
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


def why_stop(book: FleetBook, policy: Rollout) -> str:
    """Why no new wave may start, or an empty string."""
    failed = book.failed
    if len(failed) <= policy.failure_budget:
        return ""
    return f"{len(failed)} nodes failed ({', '.join(list(failed)[:5])}), the failure budget is {policy.failure_budget}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that has to wait, and for what."""

    step: Step
    because: str


def admit(
    steps: Iterable[Step], rollout: RolloutRecord, nodes: Mapping[str, NodeRecord], site: Site, book: FleetBook | None = None
) -> tuple[list[Step], list[Refusal]]:
    """Which steps may go now: those of open waves, within the number of nodes in flight, within every rack's and feed's power.

    `book` is kept by the controller, so that the cost is that of `steps`; without it one is made from all records.
    """
    book = book or FleetBook(site, rollout, nodes)
    wave_of, current, busy, power = book.wave_of, book.open_wave, len(book.busy), book.power
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
