"""What the controller answers to what people ask: pure functions from a request and the state to events and a sentence."""

from collections.abc import Callable, Mapping

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.planning.rollout import to_bring_up, waves
from orchestrator.planning.run_requests import cancel_run, submit_run
from orchestrator.planning.site import Site

Answer = tuple[list[Event], str]


def answer_request(request: Event, state: ClusterState, now_s: float) -> Answer:
    """The events that carry out `request`, and the answer for whoever asked. An impossible request changes nothing."""
    handler = HANDLERS.get(request.kind)
    if handler is None:
        return [], f"this rackray does not know {request.kind}"
    return handler(request, state)


def _apply(request: Event, state: ClusterState) -> Answer:
    """A new spec: journal it, and bring up what it adds. Nodes in service are left alone."""
    data = request.data
    spec = ClusterSpec.model_validate(data["spec"])
    if state.spec is not None and state.spec.cluster != spec.cluster:
        return [], f"refused: this home belongs to cluster {state.spec.cluster}, the spec describes {spec.cluster}"
    events = []
    if data["sha256"] != state.spec_sha256:
        events.append(Event("spec.applied", CLUSTER, dict(data)))
    pending = to_bring_up(Site.of(spec), state.nodes)
    if pending and (state.rollout.finished or state.rollout.stopped_because or events):
        rounds = waves(pending, spec.rollout)
        because = f"{len(pending)} nodes are not ready yet"
        events.append(Event("rollout.started", CLUSTER, {"waves": [list(wave) for wave in rounds], "because": because}))
    if not pending:
        return events, "nothing to do: every node of the spec is settled"
    return events, f"{len(pending)} nodes to bring up"


def _requalify(request: Event, state: ClusterState) -> Answer:
    """Somebody says the cause is cleared: the node proves everything again."""
    events: list[Event] = []
    refused: list[str] = []
    because = f"{request.data['by']}: {request.data['reason']}"
    for name in request.data["nodes"]:
        record = state.nodes.get(name)
        if record is None:
            refused.append(f"{name} is not in the applied spec")
        elif record.state in (NodeState.QUARANTINED, NodeState.SUSPECT):
            if record.state is NodeState.SUSPECT:
                events += [_moved(name, NodeState.SUSPECT, NodeState.QUARANTINED, f"{record.because}; settled by {because}")]
            events += [_moved(name, NodeState.QUARANTINED, NodeState.REPAIRING, because)]
            events += [
                _moved(name, NodeState.REPAIRING, NodeState.IDENTIFIED, f"cause said to be cleared ({because}); proving again")
            ]
        elif record.state is NodeState.MAINTENANCE:
            events += [
                _moved(name, NodeState.MAINTENANCE, NodeState.IDENTIFIED, f"back from maintenance ({because}); proving again")
            ]
        else:
            refused.append(
                f"{name} is {record.state}; only quarantined and suspect nodes and those in maintenance can be requalified"
            )
    names = [event.subject for event in events if event.data["to"] == NodeState.IDENTIFIED]
    if names:
        events.append(Event("rollout.started", CLUSTER, {"waves": [names], "because": f"requalify ({because})"}))
    return events, "; ".join([f"{len(names)} nodes prove themselves again", *refused])


def _drain(request: Event, state: ClusterState) -> Answer:
    """Take nodes out of service; a node that holds a run keeps it until the run ends or is cancelled."""
    events: list[Event] = []
    refused: list[str] = []
    because = f"{request.data['by']}: {request.data['reason']}"
    for name in request.data["nodes"]:
        record = state.nodes.get(name)
        if record is None:
            refused.append(f"{name} is not in the applied spec")
        elif record.state is NodeState.READY:
            events += [_moved(name, NodeState.READY, NodeState.DRAINING, because)]
            events += [_moved(name, NodeState.DRAINING, NodeState.MAINTENANCE, f"nothing ran on it ({because})")]
        elif record.state is NodeState.ALLOCATED:
            refused.append(f"{name} holds {record.run}: cancel or let it end first")
        else:
            refused.append(f"{name} is {record.state}, not in service")
    drained = len({event.subject for event in events})
    return events, "; ".join([f"{drained} nodes in maintenance", *refused])


def _host_key(request: Event, state: ClusterState) -> Answer:
    """`node enroll`: a person has compared the fingerprint and vouches for the key."""
    name = request.data["node"]
    if name not in state.nodes:
        return [], f"{name} is not in the applied spec"
    data = {key: request.data[key] for key in ("ssh_host_key", "by", "reason")}
    return [Event("node.host_key", name, data)], f"host key of {name} pinned"


def _moved(name: str, old: NodeState, new: NodeState, because: str) -> Event:
    return Event("node.moved", name, {"from": str(old), "to": str(new), "because": because})


HANDLERS: Mapping[str, Callable[[Event, ClusterState], Answer]] = {
    "request.apply": _apply,
    "request.requalify": _requalify,
    "request.drain": _drain,
    "request.host_key": _host_key,
    "request.submit": submit_run,
    "request.cancel": cancel_run,
}
