"""What the looks at a run's ranks amount to: all well, finished, or which failure it was. Pure.

Told apart: a lost node, a hang, a loss that is no number, a run the model refuses, a crash. When one rank goes, the others
fail after it ("peer lost"), so nothing is concluded before every rank has been heard or found silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.contract import ExitCode
from orchestrator.domain.job import JobSpec
from orchestrator.domain.node import NodeState
from orchestrator.domain.run import RankRecord, RunRecord
from orchestrator.domain.run_progress import RunSeen
from orchestrator.planning.placement import PlaceableNode

SETTLE_S = 10.0
"""How long after the first bad end the other ranks are listened to, so that the cause is not taken for its consequence."""

SILENT_S = 5.0
"""How long a rank may not answer before the cell is asked about its node."""


class Cause(StrEnum):
    """Why a run does not go on."""

    LOST_NODE = "lost node"
    """Its node left the cell, was taken out of service, or its agent does not answer."""
    HANG = "hang"
    """Processes live and their main loops do not move."""
    NOT_A_NUMBER = "not a number"
    """The loss diverged: the same numbers would come again."""
    LOSS_SPIKE = "loss spike"
    """The loss jumped, and the job says to stop then: the same jump would come again."""
    REFUSED = "refused"
    """The model does not accept the run, its data or its checkpoint: so would it the next time."""
    CRASH = "crash"
    """A rank ended by itself with an error, or was killed."""
    ENDED_EARLY = "ended early"
    """Every rank ended well, before the last step."""


REFUSALS = {
    ExitCode.BAD_RUN: "does not accept RUN.json",
    ExitCode.BAD_CHECKPOINT: "cannot continue or write its checkpoint",
    ExitCode.BAD_DATA: "cannot use the data",
}
COMES_AGAIN = frozenset({Cause.NOT_A_NUMBER, Cause.LOSS_SPIKE, Cause.REFUSED})
MAY_BE_THE_PROGRAM = frozenset({Cause.CRASH, Cause.HANG})
"""Causes that say nothing certain about the node: it is not made suspect for them."""


@dataclass(frozen=True, slots=True)
class Well:
    """Nothing to do but to go on looking."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Every rank ended well and the work is done."""


@dataclass(frozen=True, slots=True)
class Settling:
    """Something went wrong; until `until_s` the other ranks may still say what."""

    until_s: float
    because: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, in words for an operator."""

    cause: Cause
    because: str
    blamed: str = ""
    """The node it is laid at, if any."""
    exclude: tuple[str, ...] = ()
    """Nodes not to be used again by this run."""

    @property
    def is_fatal(self) -> bool:
        """Whether another attempt would only fail again."""
        return self.cause in COMES_AGAIN


Verdict = Well | Finished | Settling | Failure


def judge(run: RunRecord, job: JobSpec, nodes: dict[str, PlaceableNode], seen: RunSeen, now_s: float) -> Verdict:
    """The verdict on a running run."""
    failed = [rank for rank in run.ranks if rank.is_ended and rank.exit_status != 0]
    certain = _refused(failed, run, seen) or _lost(run, job, nodes, seen, now_s)
    if certain:
        return certain
    if failed:
        return _after_failed(run, failed, seen, now_s)
    if all(rank.is_ended for rank in run.ranks):
        if job.command or run.ended_well:
            return Finished()
        return Failure(Cause.ENDED_EARLY, f"every rank ended with status 0 before step {run.steps}, and nobody here asked for it")
    return _hanging(run, job, seen) or Well()


def silent_nodes(run: RunRecord, seen: RunSeen, now_s: float) -> list[str]:
    """Nodes of ranks that have not answered for a while: the cell is to be asked about them."""
    quiet = {rank for rank, since_s in seen.silent_since_s.items() if now_s - since_s >= SILENT_S}
    return [rank.node for rank in run.ranks if rank.rank in quiet and not rank.is_ended]


def _lost(run: RunRecord, job: JobSpec, nodes: dict[str, PlaceableNode], seen: RunSeen, now_s: float) -> Failure | None:
    reasons: dict[str, str] = {}
    for rank in run.ranks:
        reason = None if rank.is_ended else _why_lost(run, rank, job, nodes, seen, now_s)
        if reason:
            reasons[rank.node] = reason
    if not reasons:
        return None
    common = _common_cause(list(reasons), nodes)
    said = "; ".join(f"{node} {reason}" for node, reason in reasons.items())
    return Failure(Cause.LOST_NODE, said + common, exclude=tuple(reasons))


def _why_lost(
    run: RunRecord, rank: RankRecord, job: JobSpec, nodes: dict[str, PlaceableNode], seen: RunSeen, now_s: float
) -> str | None:
    node = nodes.get(rank.node)
    if node is None:
        return "is no longer in the spec"
    if node.state not in (NodeState.READY, NodeState.ALLOCATED, NodeState.SUSPECT, NodeState.DRAINING):
        return f"was taken out of service: it is {node.state} ({node.because})"
    silent_since_s = seen.silent_since_s.get(rank.rank)
    if silent_since_s is None:
        return None
    sight = seen.cell.get(rank.node)
    if sight is not None and not sight.alive and sight.at_s > silent_since_s:
        return f"left the cell: {sight.because}"
    # One agent that is silent while others answer is lost; if none answers, it is the cell or its head, not the nodes.
    others_answer = any(look.at_s > silent_since_s for other, look in seen.looks.items() if run.rank(other).node != rank.node)
    if others_answer and now_s - silent_since_s > job.heartbeat_limit_s:
        return f"has an agent that has not answered for {now_s - silent_since_s:.0f} s"
    return None


def _common_cause(lost: Sequence[str], nodes: dict[str, PlaceableNode]) -> str:
    there = [nodes[name] for name in lost if name in nodes]
    if len(there) < 2:
        return ""
    for what in ("leaf", "rack", "feed"):
        if len({getattr(node, what) for node in there}) == 1:
            return f"; they have {what} {getattr(there[0], what)} in common"
    return ""


def _refused(failed: Sequence[RankRecord], run: RunRecord, seen: RunSeen) -> Failure | None:
    for rank in failed:
        if rank.exit_status == ExitCode.NOT_A_NUMBER and not run.job.get("command"):
            return Failure(
                Cause.NOT_A_NUMBER,
                "the loss became infinite or not a number; the same numbers would come again: lower optimizer.lr or raise "
                f"warmup_steps, then submit with --resume to go on from step {run.last_known_step}",
            )
        if rank.exit_status == ExitCode.LOSS_SPIKE and not run.job.get("command"):
            return Failure(
                Cause.LOSS_SPIKE,
                f"the loss jumped and the guard stopped the run; submit with --resume to go on from step {run.last_known_step}, "
                "with guard.on_spike: skip or ignore, or a lower optimizer.lr",
            )
    for rank in failed:
        if rank.exit_status in REFUSALS and not run.job.get("command"):
            words = REFUSALS[ExitCode(rank.exit_status)]
            return Failure(Cause.REFUSED, f"the training {words}{_last_words(seen, rank.rank)}")
    return None


def _after_failed(run: RunRecord, failed: Sequence[RankRecord], seen: RunSeen, now_s: float) -> Settling | Failure:
    first_s = min(rank.ended_at_s for rank in failed)
    unheard = [rank.rank for rank in run.ranks if not rank.is_ended]
    if unheard and now_s < first_s + SETTLE_S:
        return Settling(first_s + SETTLE_S, f"{len(failed)} of {len(run.ranks)} ranks ended badly; listening to the others")
    causes = [rank for rank in failed if rank.exit_status != ExitCode.PEER_LOST] or list(failed)
    culprit = min(causes, key=lambda rank: (rank.ended_at_s, rank.rank))
    silent = [rank for rank in run.ranks if rank.rank in seen.silent_since_s and not rank.is_ended]
    if silent and culprit.exit_status == ExitCode.PEER_LOST:
        names = tuple(dict.fromkeys(rank.node for rank in silent))
        return Failure(Cause.LOST_NODE, f"{', '.join(names)} fell silent, and the other ranks lost their peer", exclude=names)
    if culprit.exit_status == ExitCode.PEER_LOST and not run.job.get("command"):
        return Failure(Cause.CRASH, f"the ranks lost each other, and none says why{_last_words(seen, culprit.rank)}")
    said = f"rank {culprit.rank} on {culprit.node} {_say_status(culprit.exit_status)}{_last_words(seen, culprit.rank)}"
    return Failure(Cause.CRASH, said, culprit.node, _if_repeated(run, culprit.node))


def _hanging(run: RunRecord, job: JobSpec, seen: RunSeen) -> Failure | None:
    stale: list[tuple[float, RankRecord]] = []
    for rank in run.ranks:
        look = seen.looks.get(rank.rank)
        if rank.is_ended or look is None or not look.alive or look.heartbeat_age_s is None:
            continue
        # Another program writes no heartbeat; that it does not end is no hang.
        if look.heartbeat_step is None and job.command:
            continue
        limit_s = job.start_limit_s if look.heartbeat_step is None or run.first_step is None else job.heartbeat_limit_s
        if look.heartbeat_age_s > limit_s:
            stale.append((look.heartbeat_age_s, rank))
    if not stale:
        return None
    age_s, oldest = max(stale, key=lambda pair: (pair[0], -pair[1].rank))
    look = seen.looks[oldest.rank]
    phase = f" in {look.heartbeat_phase} after step {look.heartbeat_step}" if look.heartbeat_step is not None else " at its start"
    said = f"{len(stale)} of {len(run.ranks)} ranks hang; rank {oldest.rank} on {oldest.node} last moved {age_s:.0f} s ago{phase}"
    # All of them wait for each other in a collective: only a rank that hangs alone is to blame.
    blamed = oldest.node if len(stale) == 1 and len(run.ranks) > 1 else ""
    return Failure(Cause.HANG, said, blamed, _if_repeated(run, blamed))


def _if_repeated(run: RunRecord, node: str) -> tuple[str, ...]:
    """A node is given a second chance, not a third."""
    return (node,) if node and run.blamed.get(node, 0) >= 1 else ()


def _say_status(status: int | None) -> str:
    if status is None:
        return "is gone and left no exit status"
    return f"was ended by signal {status - 128}" if status > 128 else f"ended with status {status}"


def _last_words(seen: RunSeen, rank: int) -> str:
    look = seen.looks.get(rank)
    lines = [line.strip() for line in look.log_tail.splitlines() if line.strip()] if look else []
    return f": {lines[-1][:300]}" if lines else ""
