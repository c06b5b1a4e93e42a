"""What a run's ranks were last seen to do. Observations, not events: they carry their own time and may be lost."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SMOOTHING = 0.2
"""Weight of the newest step in the speed shown: steps differ, and an operator wants the trend."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is, as rank 0's progress lines tell it."""

    run: str
    at_s: float = 0.0
    """Time of the newest line (rank 0's clock, seconds since the epoch)."""
    steps: int = 0
    """Steps the run is to complete."""
    first_step: int | None = None
    """The first step this run itself completed: 1, or the step after the checkpoint it continued."""
    step: int = 0
    """Steps completed; a restart after a failure may take it back."""
    loss_first: float | None = None
    """Training loss of `first_step`, in nat per token."""
    loss_last: float | None = None
    """Training loss of `step`, in nat per token."""
    tokens_per_s: float | None = None
    """Of all ranks together, smoothed."""
    time_left_s: float | None = None
    heldout: float | None = None
    """Newest held-out loss, in nat per token."""
    heldout_step: int = 0
    unigram: float | None = None
    """The corpus's unigram entropy, in nat per token: what a model that ignores all context could reach."""
    checkpoint_step: int = 0
    """Steps completed at the newest complete checkpoint."""
    phase: str = ""
    """The newest event line: started, layout_changed, checkpoint, heldout, nan, spike, stopped, finished."""
    lines: int = 0
    """Step lines seen."""
    progress_offset: int = 0
    """Bytes of rank 0's progress file that are accounted for."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the observations table."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "RunProgress":
        """Inverse of `to_json`; keys it does not know are left out. Raises TypeError without `run`."""
        known = {item.name for item in dataclasses.fields(RunProgress)}
        return RunProgress(**{key: value for key, value in data.items() if key in known})


def progress_from_look(previous: RunProgress, facts: Mapping[str, Any]) -> RunProgress:
    """`previous` brought forward by the facts of one RANK_LOOK at rank 0 (`progress`: parsed lines, oldest first)."""
    progress = previous
    for line in facts.get("progress") or ():
        progress = progress_from_line(progress, line)
    return replace(progress, progress_offset=facts.get("progress_offset", previous.progress_offset))


def progress_from_line(previous: RunProgress, line: Mapping[str, Any]) -> RunProgress:
    """`previous` and one more line of rank 0's progress file (`model/contract.py`: ProgressLine or EventLine)."""
    if "event" in line:
        return _after_event(previous, line)
    if not isinstance(line.get("step"), int) or "loss" not in line:
        return previous
    # The same step again (after a restart) must not count as the first.
    is_first = previous.first_step is None or line["step"] <= previous.first_step
    speed, before = _number(line.get("tokens_per_s")), previous.tokens_per_s
    smoothed = speed if before is None or speed is None else before + SMOOTHING * (speed - before)
    progress = replace(
        previous,
        at_s=_number(line.get("at")) or previous.at_s,
        step=line["step"],
        loss_last=_number(line["loss"]),
        tokens_per_s=smoothed if smoothed is not None else before,
        time_left_s=_number(line.get("time_left_s")),
        lines=previous.lines + 1,
    )
    if is_first:
        progress = replace(progress, first_step=line["step"], loss_first=_number(line["loss"]))
    heldout = _number(line.get("heldout_loss"))
    return progress if heldout is None else replace(progress, heldout=heldout, heldout_step=line["step"])


def _after_event(previous: RunProgress, line: Mapping[str, Any]) -> RunProgress:
    event, step = str(line["event"]), line.get("step", previous.step)
    progress = replace(previous, phase=event, at_s=_number(line.get("at")) or previous.at_s)
    unigram = _number(line.get("unigram_entropy_nats"))
    if unigram is not None:
        progress = replace(progress, unigram=unigram)
    if isinstance(line.get("steps"), int):
        progress = replace(progress, steps=line["steps"])
    if event == "checkpoint":
        return replace(progress, checkpoint_step=step)
    if event == "started":
        return replace(progress, step=step)
    heldout = _number(line.get("heldout_loss"))
    return progress if heldout is None else replace(progress, heldout=heldout, heldout_step=step)


def _number(value: Any) -> float | None:
    """A JSON number as a float; NaN included, because a run that diverged must show it."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class RankLook:
    """What the last answered look at one rank showed."""

    at_s: float
    """Controller clock, seconds since the epoch."""
    alive: bool
    exit_status: int | None
    heartbeat_age_s: float | None
    """Since its main loop last spoke, or since its start while it has not; None once it has ended."""
    heartbeat_step: int | None = None
    """None: it has not spoken yet."""
    heartbeat_phase: str = ""
    log_tail: str = ""
    progress_offset: int = 0
    """Bytes of its progress file read so far."""


@dataclass(frozen=True, slots=True)
class CellSight:
    """What the cell's membership last said about one node."""

    at_s: float
    alive: bool
    because: str = ""


@dataclass(frozen=True, slots=True)
class RunSeen:
    """Everything observed about one attempt of one run. Kept in memory; lost with the controller and looked up again."""

    attempt: int = 0
    looks: Mapping[int, RankLook] = field(default_factory=dict)
    """By rank: the last answered look."""
    silent_since_s: Mapping[int, float] = field(default_factory=dict)
    """By rank: since when looks at it got no answer."""
    cell: Mapping[str, CellSight] = field(default_factory=dict)
    """By node."""
    trouble: Mapping[int, str] = field(default_factory=dict)
    """By rank: why its last start or stop was refused or got no answer."""
    absent: frozenset[int] = frozenset()
    """Ranks that were not there any more when they were told to stop."""
    joined_at_s: Mapping[str, float] = field(default_factory=dict)
    """By node that the cell had forgotten: when it joined again, or had refused to."""
    tried_at_s: Mapping[tuple[str, int | str], float] = field(default_factory=dict)
    """By (action, rank or node): when it was last tried."""
    in_flight: frozenset[tuple[str, int | str]] = frozenset()
    """(action, rank or node) handed over and not answered yet."""
