"""What an answer of a node's agent or of the cell means for a run: pure bookkeeping between two decisions.

The controller keeps one `RunSeen` per unfinished run in memory and one `RunProgress` in the observations table. It calls
`handed_over` when it submits a decision's steps and `observe_outcome` for each answer, and journals the events it gets back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orchestrator.domain.event import Event
from orchestrator.domain.operation import Action, Outcome, Status
from orchestrator.domain.plan import Step
from orchestrator.domain.run import RunRecord
from orchestrator.domain.run_progress import CellSight, RankLook, RunProgress, RunSeen, progress_from_look
from orchestrator.planning.settle import JOIN_EFFECT_S

V = TypeVar("V")

MILESTONES = frozenset({"started", "checkpoint", "heldout", "stopped", "finished", "nan"})
"""Event lines of rank 0 that are worth a line in the journal."""

MILESTONE_FACTS = (
    "heldout_loss",
    "unigram_entropy_nats",
    "resumed_from",
    "steps_lost",
    "steps",
    "parameters",
    "size_bytes",
    "because",
    "loss",
)


@dataclass(frozen=True, slots=True)
class Observed:
    """What one outcome changed."""

    seen: RunSeen
    progress: RunProgress
    events: tuple[Event, ...] = ()
    """To be journaled, in this order."""
    lines: tuple[Mapping[str, Any], ...] = ()
    """New lines of rank 0's progress file, to be kept for the loss curve."""


def seen_for(run: RunRecord, seen: RunSeen | None) -> RunSeen:
    """`seen`, or a fresh one where the run has gone on to another attempt since."""
    return seen if seen is not None and seen.attempt == run.attempt else RunSeen(attempt=run.attempt)


def key_of(step: Step) -> tuple[str, int | str]:
    """Names an exchange of a run: at most one with the same key is in flight."""
    return (str(step.action), step.args.get("rank", step.node))


def handed_over(seen: RunSeen, steps: Iterable[Step], now_s: float) -> RunSeen:
    """`seen` after `steps` were submitted."""
    keys = [key_of(step) for step in steps]
    return replace(seen, in_flight=seen.in_flight | set(keys), tried_at_s={**seen.tried_at_s, **dict.fromkeys(keys, now_s)})


def observe_outcome(run: RunRecord, seen: RunSeen, progress: RunProgress, step: Step, outcome: Outcome, now_s: float) -> Observed:
    """What `outcome` of `step` says about `run`. An answer about an earlier attempt changes nothing."""
    seen = seen_for(run, seen)
    if "attempt" in step.args and step.args["attempt"] != run.attempt:
        return Observed(seen, progress)
    seen = replace(seen, in_flight=seen.in_flight - {key_of(step)})
    if step.action is Action.CELL_OBSERVE:
        return Observed(_after_cell(seen, step.node, outcome, now_s), progress)
    if step.action is Action.CELL_JOIN:
        return Observed(_after_join(seen, step.node, outcome, now_s), progress)
    if step.action is Action.RANK_START:
        return _after_start(run, seen, progress, step.args["rank"], outcome)
    if step.action is Action.RANK_STOP:
        return Observed(_after_stop(seen, step.args["rank"], outcome), progress)
    if step.action is Action.RANK_LOOK:
        return _after_look(run, seen, progress, step.args["rank"], outcome, now_s)
    raise ValueError(f"{step.action} is no exchange of a training run")


def _after_cell(seen: RunSeen, node: str, outcome: Outcome, now_s: float) -> RunSeen:
    if outcome.status is not Status.DONE:
        return seen
    alive = bool(outcome.facts.get("alive"))
    sight = CellSight(now_s, alive, "" if alive else "the cell does not list it alive")
    return replace(seen, cell={**seen.cell, node: sight})


def _after_join(seen: RunSeen, node: str, outcome: Outcome, now_s: float) -> RunSeen:
    """A join that is lost, or held up on our side (the head answers nobody), is made again; any other failure is the node's."""
    if outcome.status is Status.DONE:
        return replace(seen, joined_at_s={**seen.joined_at_s, node: now_s})
    if outcome.status in (Status.HELD, Status.UNKNOWN):
        return seen
    refused = CellSight(now_s, alive=False, because=_say(outcome))
    return replace(seen, cell={**seen.cell, node: refused}, joined_at_s={**seen.joined_at_s, node: now_s - JOIN_EFFECT_S})


def _after_start(run: RunRecord, seen: RunSeen, progress: RunProgress, rank: int, outcome: Outcome) -> Observed:
    if outcome.status is not Status.DONE:
        return Observed(replace(seen, trouble={**seen.trouble, rank: _say(outcome)}), progress)
    facts, record = outcome.facts, run.rank(rank)
    seen = replace(seen, trouble=_without(seen.trouble, rank))
    if (record.pid, record.started_ticks) == (facts["pid"], facts["started_ticks"]):
        return Observed(seen, progress)
    data = {"rank": rank, "pid": facts["pid"], "started_ticks": facts["started_ticks"]}
    return Observed(seen, progress, (Event("run.rank_started", run.id, data),))


def _after_stop(seen: RunSeen, rank: int, outcome: Outcome) -> RunSeen:
    if outcome.status is not Status.DONE:
        return replace(seen, trouble={**seen.trouble, rank: _say(outcome)})
    seen = replace(seen, trouble=_without(seen.trouble, rank))
    return seen if outcome.facts.get("was_alive") else replace(seen, absent=seen.absent | {rank})


def _after_look(run: RunRecord, seen: RunSeen, progress: RunProgress, rank: int, outcome: Outcome, now_s: float) -> Observed:
    if outcome.status is not Status.DONE:
        silent = {rank: now_s, **seen.silent_since_s}
        return Observed(replace(seen, silent_since_s=silent, trouble={**seen.trouble, rank: _say(outcome)}), progress)
    facts, before, record = outcome.facts, seen.looks.get(rank), run.rank(rank)
    look = RankLook(
        at_s=now_s,
        alive=bool(facts["alive"]),
        exit_status=facts.get("exit_status"),
        heartbeat_age_s=facts.get("heartbeat_age_s"),
        heartbeat_step=facts.get("heartbeat_step"),
        heartbeat_phase=str(facts.get("heartbeat_phase") or ""),
        log_tail=str(facts.get("log_tail") or ""),
        progress_offset=int(facts.get("progress_offset") or 0),
    )
    seen = replace(
        seen,
        looks={**seen.looks, rank: look},
        silent_since_s=_without(seen.silent_since_s, rank),
        trouble=_without(seen.trouble, rank),
    )
    lines: tuple[Mapping[str, Any], ...] = tuple(facts.get("progress") or ()) if rank == 0 else ()
    events: list[Event] = []
    if rank == 0:
        progress, events = _read_lines(run, progress, facts, lines)
    # A rank is over when its status is known, or when two looks in a row found neither process nor status; rank 0 only once
    # its last line was read, because what it said decides how the run ended.
    gone_for_good = look.exit_status is not None or (before is not None and not before.alive)
    if not look.alive and gone_for_good and not lines and not record.is_ended:
        events.append(Event("run.rank_ended", run.id, {"rank": rank, "exit_status": look.exit_status}))
    return Observed(seen, progress, tuple(events), lines)


def _read_lines(
    run: RunRecord, progress: RunProgress, facts: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]
) -> tuple[RunProgress, list[Event]]:
    """Progress after `lines`, and the milestones among them, each with the loss and speed known at that moment."""
    events: list[Event] = []
    for line in lines:
        progress = progress_from_look(progress, {"progress": [line]})
        if line.get("event") in MILESTONES:
            data: dict[str, Any] = {"milestone": line["event"], "step": line.get("step", progress.step)}
            data |= {name: line[name] for name in MILESTONE_FACTS if line.get(name) is not None}
            if line["event"] == "finished":
                data |= {"loss_first": progress.loss_first, "loss_last": progress.loss_last}
            events.append(Event("run.milestone", run.id, data))
    progress = replace(progress, progress_offset=facts.get("progress_offset", progress.progress_offset))
    return progress, events


def _say(outcome: Outcome) -> str:
    return f"{outcome.action} at {outcome.node}: {outcome.status}" + (f", {outcome.reason}" if outcome.reason else "")


def _without(mapping: Mapping[int, V], key: int) -> Mapping[int, V]:
    return {other: value for other, value in mapping.items() if other != key} if key in mapping else mapping
