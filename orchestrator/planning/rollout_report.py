"""The state of a rollout in numbers: what `rollout status`, the live view and a page show. A fold of what the journal says."""

from collections import Counter
from dataclasses import dataclass

from orchestrator.domain.node import BRING_UP, IN_SERVICE, NodeRecord, NodeState
from orchestrator.domain.rollout import RolloutRecord, is_untouched
from orchestrator.domain.state import ClusterState
from orchestrator.planning.common_cause import CommonCause, common_causes
from orchestrator.planning.estimate import Late, Range, StageTimes, late_nodes, time_left
from orchestrator.planning.site import Site


@dataclass(frozen=True, slots=True)
class WaveReport:
    """Who of a wave stands where."""

    number: int
    """1 is the canary."""
    nodes: int
    ready: tuple[str, ...]
    in_work: tuple[str, ...]
    waiting: tuple[str, ...]
    failed: tuple[str, ...]
    left_out: tuple[str, ...]
    """Skipped, aborted, drained or retired."""


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """Everything there is to say about a rollout at one moment."""

    number: int
    word: str
    """going on | paused | stopped | aborted | finished"""
    why: str
    because: str
    waves: tuple[WaveReport, ...]
    open_wave: int
    """Number of the wave that is being worked on; 0 when all have ended."""
    failed: tuple[str, ...]
    """Failed nodes that count against the budget."""
    causes: tuple[tuple[str, int], ...]
    """Kinds of failure and how often each happened, the most frequent first."""
    forgiven: int
    budget: int
    wave_budget: int | None
    common: tuple[CommonCause, ...]
    late: tuple[Late, ...]
    left: Range | None
    """Time left, in seconds; None where a stage ahead was never measured here."""


def report(state: ClusterState, times: StageTimes, now_s: float) -> RolloutReport:
    """The report at `now_s` (seconds since the epoch). Raises ValueError where no spec has been applied."""
    if state.spec is None:
        raise ValueError("no spec has been applied: there is no rollout to report on")
    site, rollout, nodes = Site.of(state.spec), state.rollout, state.nodes
    waves = tuple(_wave(index, wave, rollout, state) for index, wave in enumerate(rollout.waves, start=1))
    failed = tuple(name for wave in waves for name in wave.failed if name not in rollout.forgiven)
    kinds = Counter(nodes[name].cause or "failed" for name in failed)
    word, why = _word(rollout)
    policy = state.spec.rollout
    return RolloutReport(
        number=rollout.number,
        word=word,
        why=why,
        because=rollout.because,
        waves=waves,
        open_wave=next((wave.number for wave in waves if wave.in_work or wave.waiting), 0),
        failed=failed,
        causes=tuple(kinds.most_common()),
        forgiven=len(rollout.forgiven),
        budget=policy.failure_budget,
        wave_budget=policy.wave_failure_budget,
        common=tuple(common_causes(site, rollout, nodes)),
        late=tuple(late_nodes(site, rollout, nodes, times, now_s)),
        left=time_left(site, rollout, nodes, times, now_s),
    )


def _word(rollout: RolloutRecord) -> tuple[str, str]:
    if rollout.aborted_because:
        return "aborted", rollout.aborted_because
    if rollout.finished:
        return "finished", ""
    if rollout.stopped_because:
        return "stopped", rollout.stopped_because
    return ("paused", rollout.paused_because) if rollout.paused_because else ("going on", "")


def _wave(number: int, names: tuple[str, ...], rollout: RolloutRecord, state: ClusterState) -> WaveReport:
    parts: dict[str, list[str]] = {"ready": [], "in_work": [], "waiting": [], "failed": [], "left_out": []}
    for name in names:
        parts[_part(state.nodes[name], rollout)].append(name)
    return WaveReport(number, len(names), **{key: tuple(part) for key, part in parts.items()})


def _part(record: NodeRecord, rollout: RolloutRecord) -> str:
    if record.state in IN_SERVICE:
        return "ready"
    if record.state is NodeState.QUARANTINED:
        return "failed"
    if rollout.is_resting(record) or record.state not in BRING_UP:
        return "left_out"
    return "waiting" if is_untouched(record) else "in_work"
