"""What people may say about the rollout that is going on: pause, resume, skip, retry, abort. Each has a reason."""

from collections.abc import Collection, Sequence

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import BRING_UP, SETTLED, NodeState
from orchestrator.domain.rollout import RolloutRecord, is_untouched
from orchestrator.domain.state import ClusterState
from orchestrator.domain.words import counted

Answer = tuple[list[Event], str]


def said_by(request: Event) -> str:
    """Who asked and why, as events and answers show it."""
    return f"{request.data['by']}: {request.data['reason']}"


def node_moved(name: str, old: NodeState, new: NodeState, because: str) -> Event:
    """The event of a move that a person asked for."""
    return Event("node.moved", name, {"from": str(old), "to": str(new), "because": because})


def failed_nodes(state: ClusterState) -> list[str]:
    """Nodes of the rollout that are in quarantine and that nobody has accepted yet, in the order of the waves."""
    rollout = state.rollout
    names = [name for wave in rollout.waves for name in wave if name not in rollout.forgiven]
    return [name for name in names if state.nodes[name].state is NodeState.QUARANTINED]


def _going_on(rollout: RolloutRecord) -> str:
    """Why nothing can be said about the rollout, or an empty string."""
    if not rollout.number:
        return "refused: there has been no rollout; `rackray apply` starts one"
    if rollout.aborted_because:
        return f"refused: the rollout was aborted ({rollout.aborted_because}); `rackray apply` starts a new one"
    return "refused: the rollout is finished; `rackray apply` starts a new one" if rollout.finished else ""


def pause(request: Event, state: ClusterState) -> Answer:
    """No node that has not begun begins; those under way go on to their end."""
    if refused := _going_on(state.rollout):
        return [], refused
    if state.rollout.paused_because:
        return [], f"paused already by {state.rollout.paused_because}"
    said = "paused: no new node begins, those under way go on to their end"
    return [Event("rollout.paused", CLUSTER, {"because": said_by(request)})], said


def resume(request: Event, state: ClusterState) -> Answer:
    """Go on after a pause, or after the breaker stopped it: the failures so far are accepted and count no more."""
    rollout = state.rollout
    if refused := _going_on(rollout):
        return [], refused
    if not rollout.paused_because and not rollout.stopped_because:
        return [], "refused: the rollout is neither paused nor stopped"
    forgiven = failed_nodes(state) if rollout.stopped_because else []
    said = f"resumed; {len(forgiven)} failed nodes are accepted and no longer count against the budget" if forgiven else "resumed"
    return [Event("rollout.resumed", CLUSTER, {"because": said_by(request), "forgiven": forgiven})], said


def skip(request: Event, state: ClusterState) -> Answer:
    """Leave nodes out of this rollout; one that is in the middle of a stage ends that stage."""
    rollout = state.rollout
    if refused := _going_on(rollout):
        return [], refused
    in_waves = {name for wave in rollout.waves for name in wave}
    names, problems = [], []
    for name in request.data["nodes"]:
        if name not in in_waves:
            problems.append(f"{name} is not part of this rollout")
        elif state.nodes[name].state in SETTLED:
            problems.append(f"{name} is {state.nodes[name].state}: nothing more would be done with it")
        elif name in rollout.skipped:
            problems.append(f"{name} is left out already")
        else:
            names.append(name)
    events = [Event("rollout.skipped", CLUSTER, {"nodes": names, "because": said_by(request)})] if names else []
    return events, in_words(f"{counted(len(names), 'node', 'is', 'are')} left out", names, problems)


def abort(request: Event, state: ClusterState) -> Answer:
    """No new node begins, and those under way stop after the stage they are in. Nothing is switched off."""
    if refused := _going_on(state.rollout):
        return [], refused
    moving = [name for wave in state.rollout.waves for name in wave if state.nodes[name].state in BRING_UP]
    begun = sum(not is_untouched(state.nodes[name]) for name in moving)
    ends = counted(begun, "node", "under way ends its stage", "under way end their stages")
    said = f"aborted: {ends}; {len(moving) - begun:,} never begin"
    return [Event("rollout.aborted", CLUSTER, {"because": said_by(request)})], said


def retry(request: Event, state: ClusterState) -> Answer:
    """Quarantined nodes of this rollout prove everything again; all of them when none is named."""
    rollout = state.rollout
    if not rollout.number or rollout.aborted_because:
        return [], _going_on(rollout)
    in_waves = [name for wave in rollout.waves for name in wave]
    names, problems = [], []
    for name in request.data["nodes"] or [name for name in in_waves if state.nodes[name].state is NodeState.QUARANTINED]:
        if name not in set(in_waves):
            problems.append(f"{name} is not part of this rollout: `rackray node requalify`")
        elif state.nodes[name].state is not NodeState.QUARANTINED:
            problems.append(f"{name} is {state.nodes[name].state}, not quarantined")
        else:
            names.append(name)
    events = [event for name in names for event in prove_again(name, state, said_by(request))]
    events += take_part(names, state, f"retry ({said_by(request)})")
    if not names and not problems:
        return [], "nothing to retry: no node of this rollout is quarantined"
    return events, in_words(counted(len(names), "node", "proves itself again", "prove themselves again"), names, problems)


def in_words(said: str, done: Collection[str], refused: Sequence[str]) -> str:
    """The answer: what was done, then what was refused; where nothing was done, only that."""
    return "; ".join([said, *refused]) if done or not refused else f"refused: {'; '.join(refused)}"


def prove_again(name: str, state: ClusterState, because: str) -> list[Event]:
    """The moves by which a quarantined or suspect node, or one in maintenance, begins to prove everything again."""
    record, events = state.nodes[name], []
    if record.state is NodeState.MAINTENANCE:
        return [node_moved(name, record.state, NodeState.IDENTIFIED, f"back from maintenance ({because}); proving again")]
    if record.state is NodeState.SUSPECT:
        events = [node_moved(name, record.state, NodeState.QUARANTINED, f"{record.because}; settled by {because}")]
    said = f"cause said to be cleared ({because}); proving again"
    return [
        *events,
        node_moved(name, NodeState.QUARANTINED, NodeState.REPAIRING, because),
        node_moved(name, NodeState.REPAIRING, NodeState.IDENTIFIED, said),
    ]


def take_part(names: Sequence[str], state: ClusterState, because: str) -> list[Event]:
    """`names` join the rollout that is going on; where none is, one of their own begins.

    A rollout that the breaker has stopped stays stopped, and `resume` goes on with it: of the nodes that have not begun,
    only those a person names here do.
    """
    rollout = state.rollout
    if not names:
        return []
    if rollout.finished or rollout.aborted_because:
        return [Event("rollout.started", CLUSTER, {"waves": [list(names)], "because": because})]
    at_rest = [all(rollout.is_resting(state.nodes[name]) for name in wave) for wave in rollout.waves]
    wave = at_rest.index(False) if False in at_rest else len(at_rest)
    data = {"nodes": list(names), "wave": wave, "because": because}
    return [Event("rollout.extended", CLUSTER, {**data, "called": True} if rollout.stopped_because else data)]
