"""Which node gets which rank: a pure function of the job and of what the nodes are now.

Only nodes that are ready (or already this run's own) are used. The stages of one pipeline replica lie close together, under
one leaf switch where one has room; replicas are spread over leaves and power feeds; and the ranks of neighbouring replicas
follow the order of feeds, leaves and racks, so that a ring over them crosses each boundary once. The answer depends on the
set of nodes alone, not on the order they came in.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.job import JobSpec
from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.planning.health import LIMIT_SLACK_W
from orchestrator.planning.power_caps import PowerCap
from orchestrator.planning.site import Site


@dataclass(frozen=True, slots=True)
class PlaceableNode:
    """What placement needs to know of a node."""

    name: str
    rack: str
    leaf: str
    feed: str
    state: NodeState
    address: str
    """Where the other ranks reach it."""
    has_cuda: bool = False
    """Its compute check ran on a CUDA device."""
    run: str = ""
    """The run that holds it, when it is allocated."""
    because: str = ""
    """Why it is in its state."""
    power_cap: PowerCap | None = None
    """What it may draw, where losing a feed demands it."""
    gpu_limit_w: float | None = None
    """The highest power limit that one of its GPUs had when it was probed."""

    @property
    def place(self) -> tuple[str, str, str, list[tuple[int, int | str]]]:
        """Sorts nodes by where they are: feed, leaf, rack, then the name with its numbers read as numbers."""
        return (self.feed, self.leaf, self.rack, _natural(self.name))


@dataclass(frozen=True, slots=True)
class Placement:
    """Every rank's node, and the nodes kept aside."""

    ranks: tuple[tuple[int, str], ...]
    """(rank, node), by rank."""
    spares: tuple[str, ...]
    because: str


@dataclass(frozen=True, slots=True)
class CannotPlace:
    """The one reason, and the cheapest change that would help."""

    why: str
    smallest_change: str

    def __str__(self) -> str:
        return f"{self.why}; {self.smallest_change}"


def place(
    job: JobSpec,
    nodes: Sequence[PlaceableNode],
    excluded: Mapping[str, str],
    held: Mapping[str, str],
    run: str = "",
) -> Placement | CannotPlace:
    """Places `job` on `nodes`, without those in `excluded` (name -> why) and those that `held` gives to another run."""
    free = sorted((node for node in nodes if _is_free(node, excluded, held, run)), key=lambda node: node.place)
    if len(free) < job.nodes:
        return _cannot(job, nodes, excluded, held, run, len(free))
    group_size = _nodes_per_group(job)
    groups = _choose_groups(free, job.nodes, group_size)
    chosen = [node for group in groups for node in group]
    ranks = _assign(job, chosen)
    spares = _choose_spares([node for node in free if node not in chosen], job.spares)
    return Placement(ranks, tuple(node.name for node in spares), _say(job, groups, spares))


def placeable(site: Site, record: NodeRecord) -> PlaceableNode:
    """The placement's view of one node of the applied spec."""
    labels = site.labels(record.name)
    device = str((record.fact(Action.NODE_COMPUTE) or {}).get("device", ""))
    return PlaceableNode(
        name=record.name,
        rack=labels["rack"],
        leaf=labels["leaf"],
        feed=labels["feed"],
        state=record.state,
        address=site.computes[record.name].address,
        has_cuda=device.lower().startswith("cuda"),
        run=record.run,
        because=record.because,
        power_cap=site.power_caps.get(record.name),
        gpu_limit_w=_gpu_limit_w(record),
    )


def _gpu_limit_w(record: NodeRecord) -> float | None:
    gpus = (record.fact(Action.NODE_PROBE) or {}).get("gpus") or ()
    limits = [float(gpu["power_limit_w"]) for gpu in gpus if isinstance(gpu.get("power_limit_w"), int | float)]
    return max(limits, default=None)


def _is_free(node: PlaceableNode, excluded: Mapping[str, str], held: Mapping[str, str], run: str) -> bool:
    is_ours = node.state is NodeState.ALLOCATED and bool(run) and node.run == run
    is_in_service = node.state is NodeState.READY or is_ours
    return is_in_service and node.name not in excluded and held.get(node.name, run) == run


def _nodes_per_group(job: JobSpec) -> int:
    """Nodes that one replica fills, all its stages, tensor and sequence ranks; 1 where replicas share nodes."""
    ranks = job.layout.ranks_per_replica
    return ranks // job.ranks_per_node if ranks % job.ranks_per_node == 0 else 1


def _choose_groups(free: Sequence[PlaceableNode], wanted: int, group_size: int) -> list[list[PlaceableNode]]:
    """`wanted` nodes in groups of `group_size`: each under one leaf while a leaf has room, spread over feeds and leaves."""
    leaves: dict[tuple[str, str], list[PlaceableNode]] = {}
    for node in free:
        leaves.setdefault((node.feed, node.leaf), []).append(node)
    groups: list[list[PlaceableNode]] = []
    on_feed: dict[str, int] = {}
    on_leaf: dict[tuple[str, str], int] = {}
    for _ in range(math.ceil(wanted / group_size)):
        size = min(group_size, wanted - len(groups) * group_size)
        roomy = [leaf for leaf, there in leaves.items() if len(there) >= size]
        if roomy:
            # Fewest groups of ours first; then the fuller leaf, so that small remainders stay together.
            leaf = min(roomy, key=lambda key: (on_feed.get(key[0], 0), on_leaf.get(key, 0), -len(leaves[key]), key))
            group, leaves[leaf] = leaves[leaf][:size], leaves[leaf][size:]
            on_leaf[leaf] = on_leaf.get(leaf, 0) + 1
            on_feed[leaf[0]] = on_feed.get(leaf[0], 0) + 1
        else:
            group = sorted((node for there in leaves.values() for node in there), key=lambda node: node.place)[:size]
            leaves = {key: [node for node in there if node not in group] for key, there in leaves.items()}
        groups.append(group)
    return sorted(groups, key=lambda group: group[0].place)


def _assign(job: JobSpec, chosen: Sequence[PlaceableNode]) -> tuple[tuple[int, str], ...]:
    """Replica after replica along the nodes, its ranks of a stage side by side, tensor ranks innermost:
    rank = ((stage x data degree + replica) x sequence degree + part) x tensor degree + part, as the model counts them."""
    if job.command:
        order = list(range(job.ranks))
    else:
        data, inner = job.layout.data, job.layout.tensor * job.layout.sequence
        places = ((stage * data + replica) for replica in range(data) for stage in range(job.layout.pipeline))
        order = [place * inner + part for place in places for part in range(inner)]
    slots = [node.name for node in chosen for _ in range(job.ranks_per_node)]
    return tuple(sorted(zip(order, slots, strict=True)))


def _choose_spares(rest: Sequence[PlaceableNode], wanted: int) -> list[PlaceableNode]:
    """Up to `wanted` of the rest, from different leaves first."""
    spares: list[PlaceableNode] = []
    left = list(rest)
    while left and len(spares) < wanted:
        used = [spare.leaf for spare in spares]
        nearest = min(left, key=lambda node: (used.count(node.leaf), node.place))
        spares.append(nearest)
        left.remove(nearest)
    return sorted(spares, key=lambda node: node.place)


def _say(job: JobSpec, groups: Sequence[Sequence[PlaceableNode]], spares: Sequence[PlaceableNode]) -> str:
    leaves = sorted({node.leaf for group in groups for node in group})
    straddling = sum(len({node.leaf for node in group}) > 1 for group in groups)
    said = f"{job.ranks} ranks on {job.nodes} nodes under {', '.join(leaves)}"
    if straddling:
        said += f"; {straddling} pipeline replicas span two or more leaves, because no leaf had room for one whole"
    if job.spares:
        said += f"; {len(spares)} of {job.spares} spares" + (f": {', '.join(node.name for node in spares)}" if spares else "")
    return said + _say_caps([node for group in groups for node in group])


def _say_caps(nodes: Sequence[PlaceableNode]) -> str:
    """The lowest power cap, and how many nodes' GPUs were last seen with a higher limit than it allows."""
    caps = [node.power_cap for node in nodes if node.power_cap is not None]
    if not caps:
        return ""
    said = f"; power cap {min(caps, key=lambda cap: cap.node_w)}, so that any one feed may be lost"
    loose = [
        node
        for node in nodes
        if node.power_cap is not None
        and node.power_cap.gpu_w is not None
        and node.gpu_limit_w is not None
        and node.gpu_limit_w > node.power_cap.gpu_w + LIMIT_SLACK_W
    ]
    if loose:
        highest_w = max(node.gpu_limit_w or 0.0 for node in loose)
        said += f", but {len(loose)} of {len(nodes)} nodes let their GPUs draw {highest_w:.0f} W"
    return said


NEAREST = (
    (NodeState.ALLOCATED, "wait until run {run} ends, which holds {node}"),
    (NodeState.SUSPECT, "wait until {node} is settled: it is suspect ({because})"),
    (NodeState.DRAINING, "{node} is being drained; once it is in maintenance, `rackray node requalify {node}` brings it back"),
    (NodeState.MAINTENANCE, "bring {node} back: `rackray node requalify {node}`"),
    (NodeState.REPAIRING, "wait until {node} has proven itself again"),
    (NodeState.QUARANTINED, "clear the cause at {node} ({because}), then `rackray node requalify {node}`"),
)
"""What can be done about a node that is not ready, cheapest first. Nodes still on their way up come before all of these."""


def _cannot(
    job: JobSpec,
    nodes: Sequence[PlaceableNode],
    excluded: Mapping[str, str],
    held: Mapping[str, str],
    run: str,
    free: int,
) -> CannotPlace:
    others = sorted((node for node in nodes if not _is_free(node, excluded, held, run)), key=lambda node: node.place)
    counts: dict[str, int] = {}
    for node in others:
        label = "excluded after failures" if node.name in excluded else str(node.state)
        if node.name not in excluded and held.get(node.name, run) != run:
            label = f"held by {held[node.name]}"
        counts[label] = counts.get(label, 0) + 1
    not_free = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    why = f"the job needs {job.nodes} ready nodes and {free} are free" + (f" ({not_free})" if not_free else "")
    if len(nodes) < job.nodes:
        missing = job.nodes - len(nodes)
        return CannotPlace(why, f"the cluster has {len(nodes)} nodes: add {missing} more, or ask for {len(nodes)}")
    return CannotPlace(why, _smallest_change(others, excluded, held, run))


def _smallest_change(others: Sequence[PlaceableNode], excluded: Mapping[str, str], held: Mapping[str, str], run: str) -> str:
    usable = [node for node in others if node.name not in excluded]
    for node in usable:
        if node.state not in (NodeState.READY, NodeState.RETIRED, *(state for state, _ in NEAREST)):
            return f"finish the bring-up of {node.name}, which is {node.state}: `rackray apply`"
    for node in usable:
        holder = held.get(node.name, run)
        if holder != run and node.state in (NodeState.READY, NodeState.ALLOCATED):
            return NEAREST[0][1].format(run=holder, node=node.name)
    for state, words in NEAREST:
        for node in usable:
            if node.state is state:
                return words.format(run=node.run, node=node.name, because=node.because)
    for node in others:
        if node.name in excluded:
            return f"check {node.name} ({excluded[node.name]}) and submit the job anew: a new run may use it again"
    return "add nodes to the cluster: `rackray apply` with a larger spec"


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]
