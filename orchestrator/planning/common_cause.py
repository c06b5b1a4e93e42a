"""What failed nodes have in common: before forty nodes are condemned one by one, name the rack, leaf, lot or version they share.

The test is the hypergeometric one: of `population` nodes `failed` failed; how probable is it that a group of `size` nodes holds
this many of them or more by chance? With many groups some look odd by chance, so p is multiplied by their number (Bonferroni).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import BRING_UP, Cause, NodeRecord, NodeState
from orchestrator.domain.operation import Action, Status
from orchestrator.domain.rollout import RolloutRecord, is_untouched
from orchestrator.planning.site import Site

LEAST_FAILED = 3
"""Fewer failures than this are never called a common cause: two of a kind happen."""
P_MAX = 0.01
"""Largest corrected p-value that names a group."""
Group = tuple[str, str]
"""("rack" | "feed" | "leaf" | "SKU" | "lot" | "firmware", its name)."""


@dataclass(frozen=True, slots=True)
class CommonCause:
    """A group that holds more failures than chance explains."""

    kind: str
    name: str
    failed: int
    size: int
    p_value: float
    """Corrected for the number of groups looked at."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.failed} of its {self.size} nodes failed (p = {self.p_value:.1g})"


def common_causes(site: Site, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> list[CommonCause]:
    """Groups of the rollout's nodes in which failures gather, the least probable first. Only nodes that have begun count."""
    names = [name for wave in rollout.waves for name in wave if name in site.nodes]
    begun = [nodes[name] for name in names if not is_untouched(nodes[name])]
    failed = {record.name for record in begun if record.state is NodeState.QUARANTINED}
    if len(failed) < LEAST_FAILED:
        return []
    members: dict[Group, list[str]] = {}
    for record in begun:
        for group in groups_of(site, record):
            members.setdefault(group, []).append(record.name)
    return judge(members, failed, len(begun))


def judge(members: Mapping[Group, Sequence[str]], failed: Iterable[str], population: int) -> list[CommonCause]:
    """The groups among `members` in which `failed` gather beyond chance. Groups of one node, or of all nodes, say nothing."""
    # scipy costs a second to import, and only failures need it.
    from scipy.stats import hypergeom

    bad = set(failed)
    tested = {group: names for group, names in members.items() if 1 < len(names) < population}
    found = []
    for (kind, name), names in tested.items():
        hits = sum(each in bad for each in names)
        if hits >= LEAST_FAILED:
            chance = float(hypergeom.sf(hits - 1, population, len(bad), len(names)))
            p_value = min(1.0, chance * len(tested))
            if p_value <= P_MAX:
                found.append(CommonCause(kind, name, hits, len(names), p_value))
    return sorted(found, key=lambda cause: (cause.p_value, -cause.failed, cause.kind, cause.name))


def groups_of(site: Site, record: NodeRecord) -> list[Group]:
    """Everything the node shares with others: its place, its SKU, its delivery lot, the firmware versions it runs."""
    node, rack = site.nodes[record.name], site.rack(record.name)
    firmware = (record.fact(Action.BMC_FIRMWARE) or {}).get("components", ())
    return [
        ("rack", node.rack),
        ("feed", rack.feed),
        ("leaf", rack.leaf),
        ("SKU", node.sku),
        *((("lot", node.lot),) if node.lot else ()),
        *(("firmware", f"{part['id']} {part['version']}") for part in firmware),
    ]


def spare_the_silent(events: Sequence[Event], site: Site, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> list[Event]:
    """`events` without the quarantine of nodes whose whole rack, leaf or feed is silent: that is one fault, and not theirs.

    Such nodes are left out of the rollout as they are, and the rollout stops with the name of what they share.
    """
    doomed = {event.subject for event in events if event.kind == "node.moved" and event.data.get("cause") == Cause.UNREACHABLE}
    groups = _silent_groups(doomed, site, nodes)
    if not groups:
        return list(events)
    spared = sorted({name for names in groups.values() for name in names})
    said = ", ".join(f"{kind} {name} ({len(names)} of {len(names)} nodes)" for (kind, name), names in groups.items())
    because = f"nothing in {said} answers: one common cause, so none of them is quarantined"
    kept = [event for event in events if event.subject not in spared]
    skipped = Event("rollout.skipped", CLUSTER, {"nodes": spared, "because": because, "at_once": True})
    stopped = [] if rollout.stopped_because else [Event("rollout.stopped", CLUSTER, {"because": because})]
    return [*kept, skipped, *stopped]


def _silent_groups(doomed: Iterable[str], site: Site, nodes: Mapping[str, NodeRecord]) -> dict[Group, list[str]]:
    """Racks, leaves and feeds of `doomed` nodes in which every node that has begun is silent, the smallest kind first."""
    wanted = {group for name in doomed if name in site.nodes for group in _places(site, name)}
    members: dict[Group, list[str]] = {group: [] for group in sorted(wanted)}
    loud: set[Group] = set()
    for name in site.nodes if wanted else ():
        record = nodes[name]
        if record.state in (NodeState.MAINTENANCE, NodeState.RETIRED) or is_untouched(record):
            continue
        for group in _places(site, name):
            if group in members:
                members[group].append(name)
                if not is_silent(record):
                    loud.add(group)
    order = ("rack", "leaf", "feed")
    whole = [group for group, names in members.items() if group not in loud and len(names) >= LEAST_FAILED]
    return {group: members[group] for group in sorted(whole, key=lambda group: (order.index(group[0]), group[1]))}


def is_silent(record: NodeRecord) -> bool:
    """Whether the node is on its way up and the last thing known of it is that it does not answer."""
    return record.state in BRING_UP and record.silences > 0 and record.last_status == Status.UNREACHABLE


def _places(site: Site, name: str) -> tuple[Group, ...]:
    rack = site.rack(name)
    return ("rack", site.nodes[name].rack), ("leaf", rack.leaf), ("feed", rack.feed)
