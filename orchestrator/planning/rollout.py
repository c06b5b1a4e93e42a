"""How fast a change spreads: waves, the failure budget, power. Pure functions; the controller carries out what they admit."""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.node import BRING_UP, NodeRecord
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Step
from orchestrator.domain.rollout import RolloutRecord, is_untouched
from orchestrator.domain.spec import Rollout
from orchestrator.domain.words import counted
from orchestrator.planning.fleet_book import DISRUPTIVE, FleetBook
from orchestrator.planning.site import Site

FULL_LOAD = frozenset({Action.BMC_UPDATE, Action.NODE_COMPUTE})
"""Steps during which a machine that is on may draw all it can: they wait while its rack or feed carries too much."""


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


def rounds(names: Sequence[str], site: Site) -> tuple[tuple[str, ...], ...]:
    """The waves of a rollout of `names`: equipment first, because the nodes' network and power hang on it, then the nodes."""
    policy = site.spec.rollout
    equipment = [name for name in names if name not in site.computes]
    return (*waves(equipment, policy), *waves([name for name in names if name in site.computes], policy))


def to_bring_up(site: Site, nodes: Mapping[str, NodeRecord]) -> list[str]:
    """Machines of the spec still on their way to `ready`, spread over the racks so that no wave sits in one rack."""
    pending = [name for name in site.nodes if name not in nodes or nodes[name].state in BRING_UP]
    by_rack: dict[str, list[str]] = {}
    for name in pending:
        by_rack.setdefault(site.nodes[name].rack, []).append(name)
    depth = max(map(len, by_rack.values()), default=0)
    return [names[i] for i in range(depth) for names in by_rack.values() if i < len(names)]


def why_stop(book: FleetBook, policy: Rollout) -> str:
    """Why no new node may start, or an empty string: too many failed in total, or in one wave.

    Failed is whatever ended in quarantine: refused, unreachable, timed out, unknown, another machine, a check.
    """
    if len(book.failed) > policy.failure_budget:
        return f"{_failed(book.failed)}, the failure budget is {policy.failure_budget}"
    if policy.wave_failure_budget is not None:
        for wave, count in sorted(book.failed_in_wave.items()):
            if count > policy.wave_failure_budget:
                budget, all_failed = policy.wave_failure_budget, _failed(book.failed)
                return (
                    f"{counted(count, 'node')} of wave {wave + 1} failed, the failure budget of a wave is {budget}; {all_failed}"
                )
    return ""


def _failed(names: Collection[str], said: str = "nodes failed") -> str:
    """How many, and the first of them by name."""
    first = ", ".join(itertools.islice(names, 5)) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {said} ({first})"


def why_stop_again(book: FleetBook, policy: Rollout) -> str:
    """Why not even nodes that a person sent into a stopped rollout may start, or an empty string: too many failed again."""
    called = book.rollout.called
    failed = [name for name in book.failed if name in called] if called else []
    if len(failed) <= policy.failure_budget:
        return ""
    said = _failed(failed, "of the nodes that were sent in again failed again")
    return f"{said}, the failure budget is {policy.failure_budget}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that has to wait, and for what."""

    step: Step
    because: str


def admit(
    steps: Iterable[Step],
    rollout: RolloutRecord,
    nodes: Mapping[str, NodeRecord],
    site: Site,
    book: FleetBook | None = None,
    now_s: float = float("inf"),
) -> tuple[list[Step], list[Refusal]]:
    """Which steps may go at `now_s`: within waves, budgets, nodes in flight, blast radius, and every rack's and feed's power.

    `book` is kept by the controller, so that the cost is that of `steps`; without it one is made from all records.
    """
    book = book or FleetBook(site, rollout, nodes)
    book.power.expire(now_s)
    halted, halted_again = why_stop(book, site.spec.rollout), why_stop_again(book, site.spec.rollout)
    busy, most = len(book.busy), site.spec.rollout.max_in_flight
    admitted: list[Step] = []
    refused: list[Refusal] = []
    for step in steps:
        record = nodes[step.node]
        stop = halted_again if step.node in rollout.called else halted
        because = _not_its_turn(record, book, stop, site.spec.rollout)
        if not because and busy >= most:
            because = f"{counted(busy, 'node', 'is', 'are')} being worked on, the limit is {most}"
        because = because or _too_many_down(step, book, site.spec.rollout) or _no_power(step, book)
        if because:
            refused.append(Refusal(step, because))
            continue
        _reserve(step, book)
        admitted.append(step)
        busy += 1
    return admitted, refused


def _not_its_turn(record: NodeRecord, book: FleetBook, halted: str, policy: Rollout) -> str:
    """Why the node may not be worked on as the rollout stands, or an empty string. A node that has begun goes on."""
    if aside := book.stands_aside(record):
        return aside
    if not is_untouched(record) or record.name in book.in_work:
        return ""
    wave = book.wave_of.get(record.name, -1)
    if wave > book.open_wave:
        return f"wave {wave + 1} waits for wave {book.open_wave + 1}"
    if halted:
        return halted
    if policy.max_unavailable is not None:
        out, in_work = len(book.unhealthy), len(book.in_work)
        if out + in_work >= policy.max_unavailable:
            are_out = counted(out, "node", "is", "are")
            return f"{are_out} out of service and {in_work} in work, max_unavailable is {policy.max_unavailable}"
    return ""


def _too_many_down(step: Step, book: FleetBook, policy: Rollout) -> str:
    """Blast radius: why one more node may not be taken down in its rack, feed, leaf or redundancy pair."""
    if step.action not in DISRUPTIVE or book.is_down(step.node):
        return ""
    limits = {"rack": policy.down_per_rack, "feed": policy.down_per_feed, "leaf": policy.down_per_leaf, "pair": 1}
    for kind, name in book.groups(step.node):
        limit, down = limits[kind], book.down_in[kind, name]
        if limit is not None and down >= limit:
            verb = "is" if down == 1 else "are"
            return f"{counted(down, 'node')} of {kind} {name} {verb} down for power or firmware, the limit is {limit}"
    return ""


def _no_power(step: Step, book: FleetBook) -> str:
    """Why the racks and feeds above the node cannot carry the step now."""
    if step.action is Action.BMC_POWER:
        return book.power.short_for(step.node) if step.args.get("reset") == "On" else ""
    return book.power.over_for(step.node) if step.action in FULL_LOAD else ""


def _reserve(step: Step, book: FleetBook) -> None:
    """The step goes: what it takes is no longer there for the next one."""
    book.begin(step.node)
    if step.action in DISRUPTIVE:
        book.take_down(step.node)
    if step.action is Action.BMC_POWER and step.args.get("reset") == "On":
        book.power.power_on(step.node)
