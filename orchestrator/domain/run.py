"""A training run's life: its states, the legal moves between them, and its record folded from the journal.

Events whose subject is the run (`fold_run`):

    run.submitted        job (JSON), job_sha256, by, steps, resume_of (run or null), checkpoint_run, resume_from_step
    run.moved            from, to, because; with it, where they apply: blamed (node), cause, fatal (bool)
    run.placed           ranks [[rank, node], ...], spares, attempt, master_address, master_port, directory, because
    run.rank_started     rank, pid, started_ticks
    run.rank_ended       rank, exit_status (null: it is gone and left no status)
    run.milestone        milestone (started, checkpoint, heldout, stopped, finished, nan), step, and what the line carried
    run.excluded         node, because, suspect (bool)
    run.stop_requested   by, reason

Other `run.*` kinds (intents and outcomes of single exchanges) leave the record as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator.domain.event import Event
from orchestrator.domain.job import JobSpec


class RunState(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    """Submitted; there is no room for it yet, and its reason says what is missing."""
    PLACING = "placing"
    """There is room: each rank is being given its node."""
    PREFLIGHT = "preflight"
    """Its nodes are held for it; the cell is asked whether each of them is really there."""
    LAUNCHING = "launching"
    """Every rank is being started, or adopted where it already runs."""
    RUNNING = "running"
    """All ranks were started; they are watched."""
    RECOVERING = "recovering"
    """Something failed: what is left of it is being stopped before it is placed again or given up."""
    FINISHED = "finished"
    """All steps are done and every rank ended well."""
    FAILED = "failed"
    """Given up; its reason says why and what can be done."""
    STOPPED = "stopped"
    """Ended because somebody asked for it."""


R = RunState
LEGAL_RUN_MOVES: Mapping[RunState, frozenset[RunState]] = {
    # Waiting to waiting: another reason to wait.
    R.WAITING: frozenset({R.WAITING, R.PLACING, R.STOPPED, R.FAILED}),
    R.PLACING: frozenset({R.WAITING, R.PREFLIGHT, R.STOPPED, R.FAILED}),
    R.PREFLIGHT: frozenset({R.LAUNCHING, R.PLACING, R.STOPPED, R.FAILED}),
    R.LAUNCHING: frozenset({R.RUNNING, R.RECOVERING, R.STOPPED}),
    R.RUNNING: frozenset({R.FINISHED, R.RECOVERING, R.STOPPED}),
    R.RECOVERING: frozenset({R.PLACING, R.FAILED, R.STOPPED}),
    R.FINISHED: frozenset(),
    R.FAILED: frozenset(),
    R.STOPPED: frozenset(),
}
ENDED = frozenset({R.FINISHED, R.FAILED, R.STOPPED})
"""States that no run leaves; continuing one makes a new run on its checkpoints."""

HOLDS_NODES = frozenset({R.PLACING, R.PREFLIGHT, R.LAUNCHING, R.RUNNING, R.RECOVERING})
"""States in which the nodes of a run are its own."""


@dataclass(frozen=True, slots=True)
class RankRecord:
    """One rank of the present attempt."""

    rank: int
    node: str
    pid: int = 0
    """0: no start was confirmed."""
    started_ticks: int = 0
    """Start time in clock ticks since the node's boot; with the pid it names one process."""
    started_at_s: float = 0.0
    is_ended: bool = False
    exit_status: int | None = None
    """None while it runs, and when it went without leaving one (killed, or the power went)."""
    ended_at_s: float = 0.0

    @property
    def is_started(self) -> bool:
        return self.pid > 0


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Somebody asked the run to end."""

    by: str
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything the journal says about one run: the fold over its events, never edited in place."""

    id: str
    job_name: str
    job: Mapping[str, Any]
    """The job file as JSON (`JobSpec.model_dump(mode="json")`)."""
    job_sha256: str = ""
    """Of the job file's text."""
    by: str = ""
    submitted_at_s: float = 0.0
    steps: int = 0
    """Steps to complete; `--steps` may set another end than the job."""
    resume_of: str = ""
    """The ended run this one continues."""
    checkpoint_run: str = ""
    """The run under whose directory the checkpoints lie: the first of a chain of resumed runs."""
    resume_from_step: int = 0
    """Steps completed at the checkpoint that was known when it was submitted."""

    state: RunState = RunState.WAITING
    since_s: float = 0.0
    because: str = ""
    attempt: int = 0
    """Counts placements; 0 before the first."""
    is_placed: bool = False
    """The present attempt has its nodes; false while it is being placed again, when `ranks` are still the old ones."""
    ranks: tuple[RankRecord, ...] = ()
    spares: tuple[str, ...] = ()
    directory: str = ""
    """Run directory on the shared storage, as the nodes see it."""
    master_address: str = ""
    master_port: int = 0
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Nodes this run will not use again, and why."""
    suspects: frozenset[str] = frozenset()
    """Those of them that something is wrong with whatever runs there."""
    blamed: Mapping[str, int] = field(default_factory=dict)
    """How often a failure was laid at a node's door."""
    failures: int = 0
    """Failures since the last new checkpoint."""
    restarts: int = 0
    """Failures in all."""
    fatal: bool = False
    """The failure it is recovering from will come again: no further attempt."""
    first_step: int | None = None
    """First step of the present attempt."""
    checkpoint_step: int = 0
    """Steps completed at the newest checkpoint the journal knows."""
    ended_well: bool = False
    """The model said that all steps are done, in the present attempt."""
    heldout: float | None = None
    unigram: float | None = None
    stop: StopRequest | None = None

    @property
    def spec(self) -> JobSpec:
        """The job. Raises pydantic.ValidationError if a newer rackray wrote it."""
        return JobSpec.model_validate(self.job)

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes its ranks are placed on, each once, in rank order."""
        return tuple(dict.fromkeys(rank.node for rank in self.ranks))

    @property
    def held(self) -> tuple[str, ...]:
        """The nodes that are its own now: those of its ranks, then its spares, without the ones it excluded."""
        mine = (*self.nodes, *self.spares) if self.state in HOLDS_NODES else ()
        return tuple(node for node in mine if node not in self.excluded)

    @property
    def last_known_step(self) -> int:
        """Steps completed at the newest checkpoint it wrote or started from."""
        return max(self.checkpoint_step, self.resume_from_step)

    def rank(self, number: int) -> RankRecord:
        """The record of one rank. Raises KeyError."""
        for rank in self.ranks:
            if rank.rank == number:
                return rank
        raise KeyError(number)


def fold_run(record: RunRecord | None, event: Event) -> RunRecord:
    """`record` after one event. Raises ValueError or KeyError when the journal contradicts itself."""
    data, verb = event.data, event.kind.removeprefix("run.")
    if verb == "submitted":
        if record is not None:
            raise ValueError(f"event {event.seq}: run {event.subject} was submitted twice")
        return _submitted(event)
    if record is None:
        raise ValueError(f"event {event.seq}: {event.kind} for run {event.subject!r}, which was never submitted")
    if verb == "moved":
        return _moved(record, event)
    if verb == "placed":
        return _placed(record, data)
    if verb == "rank_started":
        started = {"pid": data["pid"], "started_ticks": data["started_ticks"], "started_at_s": event.at_s}
        return _with_rank(record, data["rank"], started)
    if verb == "rank_ended":
        ended = {"is_ended": True, "exit_status": data["exit_status"], "ended_at_s": event.at_s}
        return _with_rank(record, data["rank"], ended)
    if verb == "milestone":
        return _milestone(record, data)
    if verb == "excluded":
        suspects = record.suspects | {data["node"]} if data.get("suspect", True) else record.suspects
        return replace(record, excluded={**record.excluded, data["node"]: data["because"]}, suspects=suspects)
    if verb == "stop_requested":
        if record.is_ended or record.stop is not None:
            return record
        return replace(record, stop=StopRequest(data["by"], data["reason"], event.at_s))
    return record


def next_run_id(job_name: str, existing: Iterable[str]) -> str:
    """NAME-N with the smallest N above every one given out before."""
    numbers = [tail for head, _, tail in (name.rpartition("-") for name in existing) if head == job_name]
    return f"{job_name}-{max((int(number) for number in numbers if number.isdigit()), default=0) + 1}"


def can_move_run(old: RunState, new: RunState) -> bool:
    """Whether the lifecycle allows going from `old` to `new` in one move."""
    return new in LEGAL_RUN_MOVES[old]


def _submitted(event: Event) -> RunRecord:
    data = event.data
    return RunRecord(
        id=event.subject,
        job_name=data["job"]["name"],
        job=data["job"],
        job_sha256=data.get("job_sha256", ""),
        by=data.get("by", ""),
        submitted_at_s=event.at_s,
        steps=data.get("steps") or data["job"].get("steps", 0),
        resume_of=data.get("resume_of") or "",
        checkpoint_run=data.get("checkpoint_run") or data.get("resume_of") or event.subject,
        resume_from_step=data.get("resume_from_step") or 0,
        since_s=event.at_s,
        because=f"submitted by {data.get('by') or 'nobody named'}",
    )


def _moved(record: RunRecord, event: Event) -> RunRecord:
    data = event.data
    to = RunState(data["to"])
    if data["from"] != record.state or not can_move_run(record.state, to):
        raise ValueError(f"event {event.seq}: run {record.id} cannot move from {data['from']} to {to}; it is {record.state}")
    if to is record.state:
        return replace(record, because=data["because"])
    moved = replace(record, state=to, since_s=event.at_s, because=data["because"])
    if to is RunState.PLACING:
        return replace(moved, is_placed=False)
    if to is RunState.WAITING:
        return replace(moved, is_placed=False, ranks=(), spares=())
    if to is RunState.RECOVERING:
        blamed = dict(record.blamed)
        if data.get("blamed"):
            blamed[data["blamed"]] = blamed.get(data["blamed"], 0) + 1
        fatal = bool(data.get("fatal"))
        return replace(moved, failures=record.failures + 1, restarts=record.restarts + 1, blamed=blamed, fatal=fatal)
    return moved


def _placed(record: RunRecord, data: Mapping[str, Any]) -> RunRecord:
    if record.state is not RunState.PLACING:
        raise ValueError(f"run {record.id} was placed while it was {record.state}")
    return replace(
        record,
        attempt=data["attempt"],
        is_placed=True,
        first_step=None,
        ended_well=False,
        ranks=tuple(RankRecord(rank, node) for rank, node in data["ranks"]),
        spares=tuple(data["spares"]),
        master_address=data["master_address"],
        master_port=data["master_port"],
        directory=data["directory"],
    )


def _with_rank(record: RunRecord, number: int, changes: Mapping[str, Any]) -> RunRecord:
    record.rank(number)  # A rank nobody placed is a contradiction.
    ranks = tuple(replace(rank, **changes) if rank.rank == number else rank for rank in record.ranks)
    return replace(record, ranks=ranks)


def _milestone(record: RunRecord, data: Mapping[str, Any]) -> RunRecord:
    milestone, step = data["milestone"], data["step"]
    heldout, unigram = data.get("heldout_loss"), data.get("unigram_entropy_nats")
    record = replace(
        record,
        # A loss that is no number comes as text, because JSON has no NaN.
        heldout=heldout if isinstance(heldout, float) else record.heldout,
        unigram=unigram if isinstance(unigram, float) else record.unigram,
    )
    if milestone == "started":
        return replace(record, first_step=step + 1)
    if milestone == "checkpoint":
        # A new checkpoint is progress: the restarts before it are forgiven.
        is_new = step > record.last_known_step
        return replace(record, checkpoint_step=step, failures=0 if is_new else record.failures)
    if milestone == "finished":
        return replace(record, ended_well=True)
    return record
