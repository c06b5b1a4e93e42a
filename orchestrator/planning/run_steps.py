"""The one next thing for one training run: a pure function of its record and of what was seen.

Nothing here remembers anything: a restarted controller asks again and gets the same answer, and a start that was already
made is adopted by the node's agent. The journal is written from `events_of`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.domain.event import Event
from orchestrator.domain.job import JobSpec
from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Step
from orchestrator.domain.run import RankRecord, RunRecord, RunState
from orchestrator.domain.run_progress import CellSight, RunProgress, RunSeen
from orchestrator.domain.spec import Runtime
from orchestrator.planning.elastic import smaller_jobs
from orchestrator.planning.placement import CannotPlace, PlaceableNode, Placement, place
from orchestrator.planning.run_launch import RunPaths, master_port, rank_argv, rank_environment, run_json
from orchestrator.planning.run_observe import key_of, seen_for
from orchestrator.planning.run_verdict import MAY_BE_THE_PROGRAM, Failure, Finished, Settling, judge, silent_nodes
from orchestrator.planning.settle import JOIN_EFFECT_S

LOOK_EVERY_S = 1.0
LOOKS_PER_S = 200
"""At most so many looks per second and run: a run of 2,000 ranks is looked at every 10 s."""
TRY_EVERY_S = 3.0
"""Pause before an exchange without an answer is repeated."""
PLACE_EVERY_S = 5.0
PREFLIGHT_LIMIT_S = 60.0
LAUNCH_LIMIT_S = 180.0
GONE_LIMIT_S = 30.0
"""How long the end of a killed rank is waited for before its node is given up."""
BACKOFF_CAP_S = 60.0


@dataclass(frozen=True, slots=True)
class RunWorld:
    """What a decision about one run may look at."""

    now_s: float
    runtime: Runtime
    nodes: Mapping[str, PlaceableNode]
    held: Mapping[str, str] = field(default_factory=dict)
    """Nodes that other runs hold: name -> run."""
    seen: RunSeen = field(default_factory=RunSeen)
    progress: RunProgress | None = None
    barred: Mapping[str, str] = field(default_factory=dict)
    """Nodes that must not be used whatever their state, and why: a memory that outlives runs."""
    joins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each of the run's nodes joins the cell with, should the cell have forgotten it."""


@dataclass(frozen=True, slots=True)
class SubmitSteps:
    """Exchanges to make."""

    steps: tuple[Step, ...]
    because: str


@dataclass(frozen=True, slots=True)
class MoveRun:
    """The run changes its state."""

    to: RunState
    because: str
    exclude: tuple[tuple[str, str], ...] = ()
    """(node, why) not to be used again by this run."""
    blamed: str = ""
    cause: str = ""
    is_fatal: bool = False


@dataclass(frozen=True, slots=True)
class PlaceRun:
    """Every rank gets its node."""

    placement: Placement
    attempt: int
    master_address: str
    master_port: int
    directory: str


@dataclass(frozen=True, slots=True)
class ExcludeNode:
    """One node is given up; the run goes on in the same state."""

    node: str
    because: str


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do before `until_s`, unless an answer comes."""

    until_s: float
    because: str


RunDecision = SubmitSteps | MoveRun | PlaceRun | ExcludeNode | WaitUntil


def next_run_step(run: RunRecord, world: RunWorld) -> RunDecision:
    """What to do next for `run`. No I/O, no clock, no randomness."""
    if run.is_ended:
        return WaitUntil(float("inf"), f"{run.id} is {run.state}")
    world = replace(world, seen=seen_for(run, world.seen))
    return STATES[run.state](run, run.spec, world)


def events_of(run: RunRecord, decision: RunDecision) -> tuple[Event, ...]:
    """What the journal gets when `decision` is carried out, in one commit and before anything is submitted."""
    if isinstance(decision, MoveRun):
        suspect = decision.cause not in MAY_BE_THE_PROGRAM
        excluded = [_excluded(run, node, why, suspect) for node, why in decision.exclude]
        data: dict[str, Any] = {"from": str(run.state), "to": str(decision.to), "because": decision.because}
        if decision.to is RunState.RECOVERING:
            data |= {"blamed": decision.blamed, "cause": decision.cause, "fatal": decision.is_fatal}
        return (*excluded, Event("run.moved", run.id, data))
    if isinstance(decision, ExcludeNode):
        return (_excluded(run, decision.node, decision.because, True),)
    if isinstance(decision, PlaceRun):
        data = {
            "ranks": [list(pair) for pair in decision.placement.ranks],
            "spares": list(decision.placement.spares),
            "attempt": decision.attempt,
            "master_address": decision.master_address,
            "master_port": decision.master_port,
            "directory": decision.directory,
            "because": decision.placement.because,
        }
        return (Event("run.placed", run.id, data),)
    return ()


def _excluded(run: RunRecord, node: str, because: str, suspect: bool) -> Event:
    return Event("run.excluded", run.id, {"node": node, "because": because, "suspect": suspect})


def queue_order(runs: Mapping[str, RunRecord]) -> list[RunRecord]:
    """Unfinished runs in the order in which they may take nodes: priority, then age."""
    unfinished = [run for run in runs.values() if not run.is_ended]
    return sorted(unfinished, key=lambda run: (-int(run.job.get("priority", 0)), run.submitted_at_s, run.id))


def held_by_others(runs: Mapping[str, RunRecord], run_id: str) -> dict[str, str]:
    """Nodes that runs other than `run_id` hold."""
    return {node: run.id for run in runs.values() if run.id != run_id for node in run.held}


def allocation_events(runs: Mapping[str, RunRecord], nodes: Mapping[str, NodeRecord]) -> list[Event]:
    """Moves that bring the nodes' states in line with the runs: held nodes are allocated, released ones ready again, and a
    node that a run gave up is suspect. Level-triggered: the same call makes up for a crash between two commits."""
    held = {node: run.id for run in runs.values() for node in run.held}
    events = []
    for name in sorted(nodes):
        node = nodes[name]
        if node.state is NodeState.READY and name in held:
            events.append(_node_moved(node, NodeState.ALLOCATED, f"held by {held[name]}", held[name]))
        if node.state is NodeState.ALLOCATED and held.get(name) != node.run:
            run = runs.get(node.run)
            why = run.excluded.get(name) if run else None
            if run and why and name in run.suspects:
                events.append(_node_moved(node, NodeState.SUSPECT, f"{node.run} gave it up: {why}", ""))
            else:
                events.append(_node_moved(node, NodeState.READY, f"released by {node.run}", ""))
    return events


def _node_moved(node: NodeRecord, to: NodeState, because: str, run: str) -> Event:
    return Event("node.moved", node.name, {"from": str(node.state), "to": str(to), "because": because, "run": run})


# ---------------------------------------------------------------------- one function per state
def _waiting(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    if run.stop:
        return _stopped(run)
    found = _place_elastic(run, job, world)
    if isinstance(found, Placement):
        return MoveRun(RunState.PLACING, f"there is room: {found.because}")
    if str(found) != run.because:
        return MoveRun(RunState.WAITING, str(found))
    return WaitUntil(world.now_s + PLACE_EVERY_S, str(found))


def _placing(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    if run.stop:
        return _stopped(run)
    if run.is_placed:
        return MoveRun(RunState.PREFLIGHT, f"attempt {run.attempt}: {len(run.ranks)} ranks on {', '.join(run.nodes)}")
    found = _place_elastic(run, job, world)
    if isinstance(found, CannotPlace):
        return MoveRun(RunState.WAITING, str(found))
    attempt = run.attempt + 1
    address = world.nodes[dict(found.ranks)[0]].address
    return PlaceRun(found, attempt, address, master_port(run.id, attempt), _paths(world).run(run.id))


def _preflight(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    if run.stop:
        return _stopped(run)
    for name in run.nodes:
        node = world.nodes.get(name)
        if node is None or node.state not in (NodeState.READY, NodeState.ALLOCATED):
            state = f"{node.state} ({node.because})" if node else "no longer in the spec"
            return MoveRun(RunState.PLACING, f"{name} is {state}")
    sights = {name: world.seen.cell[name] for name in run.nodes if name in world.seen.cell}
    sights = {name: sight for name, sight in sights.items() if sight.at_s >= run.since_s}
    # A cell whose head has died and come up again knows nobody: who was proved well joins it again before it is left out.
    absent = {name: sight for name, sight in sights.items() if not sight.alive}
    forgotten = [name for name in absent if name in world.joins and name not in world.seen.joined_at_s]
    joining = [name for name, sight in absent.items() if _is_joining(name, sight, world)]
    lost = [(name, sight.because) for name, sight in absent.items() if name not in (*forgotten, *joining)]
    if lost:
        said = "; ".join(f"{name}: {why}" for name, why in lost)
        return MoveRun(RunState.PLACING, f"not in the cell: {said}", tuple(lost))
    unseen = [name for name in run.nodes if name not in sights]
    if not unseen and not absent:
        return MoveRun(RunState.LAUNCHING, f"all {len(run.nodes)} nodes are alive in the cell")
    if unseen and sights and world.now_s > run.since_s + PREFLIGHT_LIMIT_S:
        why = f"the cell said nothing about it for {PREFLIGHT_LIMIT_S:.0f} s"
        return MoveRun(RunState.PLACING, f"{', '.join(unseen)}: {why}", tuple((name, why) for name in unseen))
    because = "is every node alive in the cell?"
    steps = [Step(name, Action.CELL_JOIN, "the cell has forgotten it: join again", world.joins[name]) for name in forgotten]
    steps += [Step(name, Action.CELL_OBSERVE, because) for name in (*unseen, *joining)]
    return _submit_due(steps, world, TRY_EVERY_S, because)


def _is_joining(name: str, sight: CellSight, world: RunWorld) -> bool:
    """Whether the node has joined again and the cell may not list it yet."""
    joined_s = world.seen.joined_at_s.get(name)
    return joined_s is not None and (sight.at_s <= joined_s or world.now_s < joined_s + JOIN_EFFECT_S)


def _launching(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    if run.stop:
        return _stop_ranks(run, job, world)
    unstarted = [rank for rank in run.ranks if not rank.is_started]
    if not unstarted:
        return MoveRun(RunState.RUNNING, f"all {len(run.ranks)} ranks were started")
    if world.now_s > run.since_s + LAUNCH_LIMIT_S:
        first = unstarted[0]
        trouble = world.seen.trouble.get(first.rank, "no answer")
        said = f"{len(unstarted)} of {len(run.ranks)} ranks did not start in {LAUNCH_LIMIT_S:.0f} s; rank {first.rank}: {trouble}"
        # Where nothing started at all, it is not the nodes' fault.
        culprits = {rank.node for rank in unstarted} if len(unstarted) < len(run.ranks) else set()
        return MoveRun(RunState.RECOVERING, said, tuple((name, said) for name in sorted(culprits)), cause="launch")
    return _submit_due([_start(run, job, world, rank) for rank in unstarted], world, TRY_EVERY_S, "ranks are being started")


def _running(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    verdict = judge(run, job, dict(world.nodes), world.seen, world.now_s)
    if isinstance(verdict, Finished):
        return MoveRun(RunState.FINISHED, f"all {run.steps} steps are done" if run.steps else "every rank ended with status 0")
    if run.stop:
        return _stop_ranks(run, job, world)
    if isinstance(verdict, Failure):
        return _recover(run, job, world, verdict)
    steps = [_look(run, world, rank) for rank in run.ranks if not rank.is_ended]
    steps += [Step(node, Action.CELL_OBSERVE, "it does not answer") for node in silent_nodes(run, world.seen, world.now_s)]
    because = verdict.because if isinstance(verdict, Settling) else "ranks are being watched"
    return _submit_due(steps, world, _look_every_s(run), because)


def _recover(run: RunRecord, job: JobSpec, world: RunWorld, failure: Failure) -> MoveRun:
    said = f"{failure.cause}: {failure.because}"
    exclude = tuple((node, said) for node in failure.exclude)
    # A crash or a hang may well be the program's own: a node is left out for it only where another can take its place.
    if failure.cause in MAY_BE_THE_PROGRAM and isinstance(_place(run, job, world, dict(exclude)), CannotPlace):
        exclude = ()
    return MoveRun(RunState.RECOVERING, said, exclude, failure.blamed, str(failure.cause), failure.is_fatal)


def _recovering(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    present = _present(run, world)
    if present:
        late = [rank for rank in present if world.now_s > run.since_s + GONE_LIMIT_S]
        if late:
            return _give_up(late[0], world)
        return _submit_due(_kill(run, world, present), world, LOOK_EVERY_S, "what is left of the run is being ended")
    if run.stop:
        return _stopped(run)
    if run.fatal:
        return MoveRun(RunState.FAILED, run.because)
    if run.failures > job.attempts:
        said = f"{run.failures} failures without a new checkpoint, {job.attempts} restarts are allowed; the last: {run.because}"
        return MoveRun(RunState.FAILED, said)
    ready_s = run.since_s + min(BACKOFF_CAP_S, 2.0 ** min(run.failures, 10))
    if world.now_s < ready_s:
        return WaitUntil(ready_s, f"a pause before attempt {run.attempt + 1}")
    step = run.last_known_step
    source = f"from the checkpoint at step {step}" if step else "from the beginning: there is no checkpoint yet"
    return MoveRun(RunState.PLACING, f"attempt {run.attempt + 1} {source}")


STATES: Mapping[RunState, Callable[[RunRecord, JobSpec, RunWorld], RunDecision]] = {
    RunState.WAITING: _waiting,
    RunState.PLACING: _placing,
    RunState.PREFLIGHT: _preflight,
    RunState.LAUNCHING: _launching,
    RunState.RUNNING: _running,
    RunState.RECOVERING: _recovering,
}


# ---------------------------------------------------------------------- ending ranks
def _stop_ranks(run: RunRecord, job: JobSpec, world: RunWorld) -> RunDecision:
    """Ask every rank to write its checkpoint and end; kill what has not ended in time."""
    present = _present(run, world)
    if not present:
        return _stopped(run)
    asked_s = run.stop.at_s if run.stop else run.since_s
    if world.now_s <= asked_s + job.stop_limit_s:
        because = f"stop asked by {run.stop.by}" if run.stop else "stop"
        steps = [step for rank in present for step in _end(run, world, rank, "TERM", because)]
        return _submit_due(steps, world, LOOK_EVERY_S, "the ranks write a checkpoint and end")
    if world.now_s > asked_s + job.stop_limit_s + GONE_LIMIT_S:
        return _give_up(present[0], world)
    return _submit_due(_kill(run, world, present), world, LOOK_EVERY_S, "the ranks did not end in time and are killed")


def _present(run: RunRecord, world: RunWorld) -> list[RankRecord]:
    """Ranks that may still run: not known to have ended, nor absent when told to stop, nor on a node that was given up."""
    return [
        rank
        for rank in run.ranks
        if not rank.is_ended and rank.node not in run.excluded and rank.rank not in _absent_for_good(run, world)
    ]


def _absent_for_good(run: RunRecord, world: RunWorld) -> frozenset[int]:
    """A stop that found nothing counts only for a rank whose start was never confirmed; the others leave a status."""
    return frozenset(rank for rank in world.seen.absent if not run.rank(rank).is_started)


def _kill(run: RunRecord, world: RunWorld, ranks: list[RankRecord]) -> list[Step]:
    return [step for rank in ranks for step in _end(run, world, rank, "KILL", run.because)]


def _end(run: RunRecord, world: RunWorld, rank: RankRecord, signal: str, because: str) -> list[Step]:
    """Tell one rank to end, and look whether it did. A start that is under way is waited for: it would come after the stop."""
    if (str(Action.RANK_START), rank.rank) in world.seen.in_flight:
        return []
    args = {"run": run.id, "attempt": run.attempt, "rank": rank.rank, "directory": run.directory, "signal": signal}
    stop = Step(rank.node, Action.RANK_STOP, because, args)
    return [stop, _look(run, world, rank)] if rank.is_started else [stop]


def _give_up(rank: RankRecord, world: RunWorld) -> ExcludeNode:
    trouble = world.seen.trouble.get(rank.rank, "its process does not end")
    return ExcludeNode(rank.node, f"rank {rank.rank} could not be ended there: {trouble}")


def _stopped(run: RunRecord) -> MoveRun:
    who = f"stopped by {run.stop.by}: {run.stop.reason}" if run.stop else "stopped"
    step = run.last_known_step
    return MoveRun(RunState.STOPPED, f"{who}; " + (f"checkpoint at step {step}" if step else "no checkpoint"))


# ---------------------------------------------------------------------- steps
def _start(run: RunRecord, job: JobSpec, world: RunWorld, rank: RankRecord) -> Step:
    # A mixed gang runs on the CPU: one communication backend must serve all ranks.
    has_cuda = all(world.nodes[name].has_cuda for name in run.nodes if name in world.nodes)
    cap = world.nodes[rank.node].power_cap if rank.node in world.nodes else None
    args = {
        "run": run.id,
        "attempt": run.attempt,
        "rank": rank.rank,
        "environment": rank_environment(run, rank.rank, has_cuda=has_cuda, interface=world.runtime.interface, power_cap=cap),
        "argv": rank_argv(run, job, world.runtime),
        "directory": run.directory,
        "run_json": run_json(run, job, _paths(world)),
    }
    return Step(rank.node, Action.RANK_START, f"rank {rank.rank} of {len(run.ranks)}, attempt {run.attempt}", args)


def _look(run: RunRecord, world: RunWorld, rank: RankRecord) -> Step:
    look = world.seen.looks.get(rank.rank)
    offset = look.progress_offset if look else 0
    if rank.rank == 0 and world.progress is not None:
        offset = world.progress.progress_offset
    args = {"run": run.id, "attempt": run.attempt, "rank": rank.rank, "directory": run.directory, "progress_offset": offset}
    return Step(rank.node, Action.RANK_LOOK, "how far is it?", args)


def _submit_due(steps: list[Step], world: RunWorld, every_s: float, because: str) -> RunDecision:
    """Those of `steps` that are not in flight and were last tried long enough ago; otherwise the time of the next."""
    idle = [step for step in steps if key_of(step) not in world.seen.in_flight]
    dues = {key_of(step): _due_s(step, world, every_s) for step in idle}
    due = tuple(step for step in idle if dues[key_of(step)] <= world.now_s)
    if due:
        return SubmitSteps(due, because)
    return WaitUntil(min(dues.values(), default=world.now_s + every_s), because)


def _due_s(step: Step, world: RunWorld, every_s: float) -> float:
    tried_s = world.seen.tried_at_s.get(key_of(step))
    pause_s = TRY_EVERY_S if step.action in (Action.RANK_STOP, Action.CELL_OBSERVE) else every_s
    return float("-inf") if tried_s is None else tried_s + pause_s


def _look_every_s(run: RunRecord) -> float:
    return max(LOOK_EVERY_S, len(run.ranks) / LOOKS_PER_S)


def _place(run: RunRecord, job: JobSpec, world: RunWorld, without: Mapping[str, str] | None = None) -> Placement | CannotPlace:
    excluded = {**world.barred, **run.excluded, **(without or {})}
    return place(job, list(world.nodes.values()), excluded, world.held, run.id)


def _place_elastic(run: RunRecord, job: JobSpec, world: RunWorld) -> Placement | CannotPlace:
    """As `_place`; a run that has trained before may also have fewer replicas, as many as there is room for."""
    found = _place(run, job, world)
    if isinstance(found, Placement) or not (run.attempt or run.resume_of):
        return found
    for smaller in smaller_jobs(job):
        less = _place(run, smaller, world)
        if isinstance(less, Placement):
            because = f"{smaller.layout.data} of {job.layout.data} replicas, for {found.why}; {less.because}"
            return replace(less, because=because)
    return found


def _paths(world: RunWorld) -> RunPaths:
    return RunPaths(world.runtime.shared_directory)
