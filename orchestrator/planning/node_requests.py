"""What people may ask of nodes: prove again, drain, pin a host key, say that a board was swapped, retire."""

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.state import ClusterState
from orchestrator.domain.words import counted
from orchestrator.planning.rollout_requests import Answer, in_words, node_moved, prove_again, said_by, take_part

OUT_OF_SERVICE = frozenset({NodeState.QUARANTINED, NodeState.SUSPECT, NodeState.MAINTENANCE})
"""States from which a person's word lets a node prove itself again."""


def requalify(request: Event, state: ClusterState) -> Answer:
    """Somebody says the cause is cleared: the nodes prove everything again."""
    names: list[str] = []
    refused: list[str] = []
    for name in request.data["nodes"]:
        record = state.nodes.get(name)
        if record is None:
            refused.append(f"{name} is not in the applied spec")
        elif record.state in OUT_OF_SERVICE:
            names.append(name)
        else:
            refused.append(
                f"{name} is {record.state}; only quarantined and suspect nodes and those in maintenance can be requalified"
            )
    events = [event for name in names for event in prove_again(name, state, said_by(request))]
    events += take_part(names, state, f"requalify ({said_by(request)})")
    return events, in_words(counted(len(names), "node", "proves itself again", "prove themselves again"), names, refused)


def drain(request: Event, state: ClusterState) -> Answer:
    """Take nodes out of service; a node that holds a run keeps it until the run ends or is cancelled."""
    events: list[Event] = []
    refused: list[str] = []
    because = said_by(request)
    for name in request.data["nodes"]:
        record = state.nodes.get(name)
        if record is None:
            refused.append(f"{name} is not in the applied spec")
        elif record.state is NodeState.READY:
            events += [node_moved(name, NodeState.READY, NodeState.DRAINING, because)]
            events += [node_moved(name, NodeState.DRAINING, NodeState.MAINTENANCE, f"nothing ran on it ({because})")]
        elif record.state is NodeState.ALLOCATED:
            refused.append(f"{name} holds {record.run}: cancel or let it end first")
        else:
            refused.append(f"{name} is {record.state}, not in service")
    drained = {event.subject for event in events}
    return events, in_words(f"{counted(len(drained), 'node')} in maintenance", drained, refused)


def host_key(request: Event, state: ClusterState) -> Answer:
    """`node enroll`: a person has compared the fingerprint and vouches for the key."""
    name = request.data["node"]
    if name not in state.nodes:
        return [], f"{name} is not in the applied spec"
    data = {key: request.data[key] for key in ("ssh_host_key", "by", "reason")}
    return [Event("node.host_key", name, data)], f"host key of {name} pinned"


def replace_board(request: Event, state: ClusterState) -> Answer:
    """`node replace`: another board stands behind this name. Every pin is dropped, and it proves everything from the start."""
    name, serial = request.data["node"], request.data["serial"]
    record = state.nodes.get(name)
    if record is None or state.spec is None:
        return [], f"refused: {name} is not in the applied spec"
    if record.state not in OUT_OF_SERVICE and record.state is not NodeState.ENROLLED:
        return [], f"refused: {name} is {record.state}; take it out of service first: `rackray node drain {name}`"
    if record.open is not None:
        return [], f"refused: {record.open.action} is under way at {name}; try again in a moment"
    wanted = {machine.name: machine.serial for machine in state.spec.managed()}
    if name not in wanted:
        return [], f"refused: {name} has left the spec"
    old = record.serial or wanted[name]
    for other, its_serial in wanted.items():
        if other != name and (state.nodes[other].serial or its_serial) == serial:
            return [], f"refused: serial {serial} belongs to {other}"
    because = said_by(request)
    replaced = Event("node.replaced", name, {"serial": serial, "old_serial": old, "because": because})
    if record.state is NodeState.ENROLLED:
        return [replaced, *take_part([name], state, f"replaced ({because})")], f"{name} must now say serial {serial}, not {old}"
    events = [*prove_again(name, state, f"board {old} replaced by {serial}, {because}")]
    said = f"{name} must now say serial {serial}, not {old}; its pins are dropped and it proves everything again"
    return [replaced, *events, *take_part([name], state, f"replaced ({because})")], said


def retire(request: Event, state: ClusterState) -> Answer:
    """Nodes leave the fleet for good. Nothing is sent to them: power, data and accounts stay as they are."""
    events: list[Event] = []
    refused: list[str] = []
    because = said_by(request)
    for name in request.data["nodes"]:
        record = state.nodes.get(name)
        if record is None:
            refused.append(f"{name} is not known here")
            continue
        to_quarantined = [node_moved(name, record.state, NodeState.QUARANTINED, because)]
        from_quarantined = [
            node_moved(name, NodeState.QUARANTINED, NodeState.REPAIRING, because),
            node_moved(name, NodeState.REPAIRING, NodeState.RETIRED, because),
        ]
        if record.open is not None:
            refused.append(f"{record.open.action} is under way at {name}; try again in a moment")
        elif record.state in (NodeState.ENROLLED, NodeState.MAINTENANCE):
            events.append(node_moved(name, record.state, NodeState.RETIRED, because))
        elif record.state is NodeState.QUARANTINED:
            events += from_quarantined
        elif record.state is NodeState.SUSPECT:
            events += to_quarantined + from_quarantined
        else:
            refused.append(f"{name} is {record.state}; take it out of service first: `rackray node drain {name}`")
    retired = {event.subject for event in events}
    said = f"{counted(len(retired), 'node')} retired; nothing was sent there: power, data and accounts are as they were"
    return events, in_words(said, retired, refused)
