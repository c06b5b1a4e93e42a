"""What the controller answers to what people ask: pure functions from a request and the state to events and a sentence."""

from collections.abc import Callable, Mapping

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.rollout import is_untouched
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.planning.node_requests import drain, host_key, replace_board, requalify, retire
from orchestrator.planning.rollout import rounds, to_bring_up
from orchestrator.planning.rollout_requests import Answer, abort, pause, resume, retry, skip
from orchestrator.planning.run_requests import cancel_run, submit_run
from orchestrator.planning.site import Site


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
    site, rollout, limit = Site.of(spec), state.rollout, frozenset(data.get("limit") or ())
    pending = [name for name in to_bring_up(site, state.nodes) if not limit or name in limit]
    left = _left_the_spec(site, state)
    in_waves = {name for wave in rollout.waves for name in wave if name not in rollout.skipped}
    ended = rollout.finished or rollout.aborted_because or rollout.stopped_because
    if pending and (ended or events or not in_waves.issuperset(pending)):
        taken_up = rounds([*pending, *_under_way(site, state, set(pending))], site)
        because = f"{site.words(pending)} are not ready yet"
        events.append(Event("rollout.started", CLUSTER, {"waves": [list(wave) for wave in taken_up], "because": because}))
        if rollout.paused_because:
            events.append(Event("rollout.paused", CLUSTER, {"because": rollout.paused_because}))
    answer = f"{site.words(pending)} to bring up" if pending else "nothing to do: every node of the spec is settled"
    if pending and rollout.paused_because:
        answer += f"; the rollout is paused by {rollout.paused_because}: `rackray rollout resume` goes on"
    return events, "; ".join([answer, *left])


def _left_the_spec(site: Site, state: ClusterState) -> list[str]:
    """What is said of nodes that a new spec no longer names. Nothing is done to them."""
    gone = [
        record.name for record in state.nodes.values() if record.name not in site.nodes and record.state is not NodeState.RETIRED
    ]
    if not gone:
        return []
    names = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
    return [f"{len(gone)} nodes are no longer in the spec ({names}): nothing is sent to them, they stay on and as they are"]


def _under_way(site: Site, state: ClusterState, pending: set[str]) -> list[str]:
    """Nodes outside `pending` that the present rollout has begun: they go on in the new one."""
    rollout = state.rollout
    if rollout.finished:
        return []
    moving = [name for wave in rollout.waves for name in wave if name in site.nodes and name not in pending]
    return [name for name in moving if not rollout.is_resting(state.nodes[name]) and not is_untouched(state.nodes[name])]


HANDLERS: Mapping[str, Callable[[Event, ClusterState], Answer]] = {
    "request.apply": _apply,
    "request.requalify": requalify,
    "request.drain": drain,
    "request.host_key": host_key,
    "request.replace": replace_board,
    "request.retire": retire,
    "request.rollout_pause": pause,
    "request.rollout_resume": resume,
    "request.rollout_skip": skip,
    "request.rollout_retry": retry,
    "request.rollout_abort": abort,
    "request.submit": submit_run,
    "request.cancel": cancel_run,
}
