"""Node sets as operators write them: r[01-40]-n[1-4], comma-separated, resolved against the applied spec."""

import difflib
from collections.abc import Collection

from orchestrator.domain.errors import BadInput
from orchestrator.domain.state import ClusterState


def chosen(text: str, state: ClusterState) -> list[str]:
    """The nodes `text` names, in the spec's order; all when it is empty. Raises BadInput for unknown or unreadable names."""
    order = [machine.name for machine in state.spec.managed()] if state.spec else []
    order += [name for name in state.nodes if name not in set(order)]
    return chosen_from(text, order, "the applied spec")


def chosen_from(text: str, order: list[str], where: str) -> list[str]:
    """The nodes of `order` that `text` names; all when it is empty. Raises BadInput for unknown or unreadable names."""
    if not text:
        return order
    # ClusterShell costs 50 ms to import; most commands never name nodes.
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    try:
        wanted = set(NodeSet(text))
    except NodeSetException as error:
        raise BadInput(f"{text!r} is no set of nodes: {error}", "write r[01-40]-n[1-4] or names with commas") from error
    unknown = sorted(wanted - set(order))
    if unknown:
        raise BadInput(f"not in {where}: {folded(unknown)}", _way_out(unknown, order))
    return [name for name in order if name in wanted]


def folded(names: Collection[str]) -> str:
    """`names` as an operator writes them, short: `r[01-40]-n[1-4],login1`."""
    if len(names) < 2:
        return "".join(names)
    from ClusterShell.NodeSet import NodeSet  # as above

    return str(NodeSet.fromlist(names))


def _way_out(unknown: list[str], order: list[str]) -> str:
    close = [match for name in unknown[:5] for match in difflib.get_close_matches(name, order, n=1, cutoff=0.75)]
    shape = f"it has {folded(order)}"
    shown = shape if len(shape) <= 100 else "see `rackray status` for the names"
    return f"did you mean {folded(sorted(set(close)))}? {shown}" if close else shown
