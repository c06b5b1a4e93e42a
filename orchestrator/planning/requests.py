"""What the controller answers to what people ask: pure functions from a request and the state to events and a sentence."""

from collections.abc import Callable, Mapping

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.rollout import is_untouched
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.domain.words import counted
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


ELSEWHERE = "each cluster has a home of its own: set RACKRAY_HOME to that of the spec's cluster, or to a new folder"


def _apply(request: Event, state: ClusterState) -> Answer:
    """A new spec: journal it, and bring up what it adds. Nodes in service are left alone."""
    data = request.data
    spec = ClusterSpec.model_validate(data["spec"])
    if state.spec is not None and state.spec.cluster != spec.cluster:
        return [], f"refused: this home belongs to cluster {state.spec.cluster}, the spec describes {spec.cluster}; {ELSEWHERE}"
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
        because = f"{site.words(pending)} {'is' if len(pending) == 1 else 'are'} not ready yet"
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
    are = counted(len(gone), "node", "is", "are")
    return [f"{are} no longer in the spec ({names}): nothing is sent there, everything stays on and as it is"]


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
