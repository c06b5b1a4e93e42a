"""The lifecycle's table, asked before anything is written: a move that it does not have never reaches the journal.

It stands here and not in the fold: an illegal event that is on disk all the same must not make the journal unreadable.
"""

from collections.abc import Iterable, Mapping

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeRecord, NodeState, can_move


def keep_legal(events: Iterable[Event], nodes: Mapping[str, NodeRecord]) -> tuple[list[Event], dict[str, str]]:
    """`events` without the moves that the table does not allow, each seen after those before it; per refused node, why.

    Once a move of a node was refused, the later events of that node in the same commit are left out too: they rest on it.
    """
    states: dict[str, NodeState] = {}
    kept: list[Event] = []
    refused: dict[str, str] = {}
    for event in events:
        name = event.subject
        if name in refused:
            continue
        if event.kind == "node.moved":
            record, to = nodes[name], NodeState(event.data["to"])
            state = states.get(name) or record.state
            if event.data["from"] != state or not can_move(state, to, record.kind):
                refused[name] = f"{name} is {state}: the lifecycle has no move from {event.data['from']} to {to} there"
                continue
            states[name] = to
        kept.append(event)
    return kept, refused
