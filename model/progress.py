"""What a rank writes while it trains: progress lines, events and a heartbeat.  Standard library only.

Rank 0's file tells the run's story; the other ranks write their own step times, so that a slow one can be found.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from model.contract import EventLine, Heartbeat, ProgressLine, RunSpec, read_progress
from model.guard import Verdict

_INTERVALS_FOR_TIME_LEFT = 50


class Step(Protocol):
    """What is told of a step (`model.engine.StepResult`)."""

    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def forward_backward_s(self) -> float: ...
    @property
    def update_s(self) -> float: ...


class ReportError(Exception):
    """Progress or heartbeat cannot be written; the message says where and why."""


def complain(rank: int, sentence: object) -> None:
    """Tells the operator on stderr why this rank is about to end."""
    print(f"rank {rank}: {sentence}", file=sys.stderr)


class Reporter:
    """One rank's progress file and heartbeat.  Every method that writes raises ReportError where it cannot."""

    def __init__(self, spec: RunSpec, rank: int) -> None:
        self._spec, self.rank = spec, rank
        self._heartbeat = spec.heartbeat_path(rank)
        with self._errors():
            Path(spec.output_directory).mkdir(parents=True, exist_ok=True)
            self._file = _open_at_line_start(spec.progress_path(rank))
        self._flops_per_token = 3 * spec.model.shape().forward_flops_per_token(spec.batch.sequence_tokens)
        self._step = 0
        self._last_report_s: float | None = None
        self._intervals_s: deque[float] = deque(maxlen=_INTERVALS_FOR_TIME_LEFT)
        self._last_cpu_s = time.process_time()
        self._phases_s: dict[str, float] = {}
        self.peak_tflops: float | None = None
        """Of one rank's GPU; None where it is not known."""

    def beat(self, phase: str, step: int | None = None) -> None:
        """Replaces the heartbeat; `step` is the number of steps completed, the last one told if None."""
        self._step = self._step if step is None else step
        heartbeat = Heartbeat(
            rank=self.rank,
            pid=os.getpid(),
            step=self._step,
            phase=phase,
            monotonic_s=time.monotonic(),
            at=time.time(),
        )
        draft = self._heartbeat.with_name(f"{self._heartbeat.name}.draft")
        with self._errors():
            draft.write_text(heartbeat.to_json() + "\n", encoding="utf-8")
            draft.replace(self._heartbeat)

    def event(self, event: str, **detail: Any) -> None:
        """Writes an event at the current step; from rank 0 only, the others stay silent."""
        self.event_at(self._step, event, **detail)

    def event_at(self, step: int, event: str, **detail: Any) -> None:
        """Writes an event about an earlier step."""
        if self.rank == 0:
            self._write(EventLine(event=event, step=step, at=time.time(), detail=detail).to_json())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time spent inside towards the next line's `phases_s`."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self.spent(**{name: time.monotonic() - begun_s})

    def spent(self, **seconds: float) -> None:
        """Adds to the next line's `phases_s`."""
        for name, spent_s in seconds.items():
            self._phases_s[name] = self._phases_s.get(name, 0.0) + spent_s

    def step(self, step: int, result: Step, *, memory_bytes: int, heldout_loss: float | None) -> None:
        """Writes the line of a completed step (rank 0), or this rank's own times for it (other ranks)."""
        self._step = step
        step_s = result.forward_backward_s + result.update_s
        now_s, cpu_s = time.monotonic(), time.process_time()
        # From line to line, so that evaluations and checkpoints count; the first has only its own step to go by.
        self._intervals_s.append(step_s if self._last_report_s is None else now_s - self._last_report_s)
        self._last_report_s = now_s
        if self.rank == 0:
            tokens_per_s = self._spec.tokens_per_step / step_s
            tflops_per_s = tokens_per_s * self._flops_per_token / 1e12
            peak = self.peak_tflops
            line = ProgressLine(
                step=step,
                loss=result.loss,
                lr=self._spec.lr_at(step),
                grad_norm=result.grad_norm,
                step_s=step_s,
                tokens_per_s=tokens_per_s,
                tflops_per_s=tflops_per_s,
                time_left_s=(self._spec.steps - step) * sum(self._intervals_s) / len(self._intervals_s),
                memory_bytes=memory_bytes,
                at=time.time(),
                heldout_loss=heldout_loss,
                mfu=tflops_per_s / (peak * self._spec.layout.ranks) if peak else None,
                phases_s=self._phases_s,
                is_applied=result.verdict.is_applied,
            )
            self._write(line.to_json())
        else:
            times = {"rank": self.rank, "step": step, "step_s": step_s, "cpu_s": cpu_s - self._last_cpu_s}
            self._write(json.dumps({**times, "phases_s": self._phases_s, "memory_bytes": memory_bytes, "at": time.time()}))
        self._last_cpu_s = cpu_s
        self._phases_s = {}

    def close(self) -> None:
        self.beat("ended")
        with self._errors():
            self._file.close()

    def _write(self, line: str) -> None:
        with self._errors():
            self._file.write(line + "\n")
            self._file.flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ReportError(
                f"output_directory {self._spec.output_directory} cannot be written: {error}; make room there, or "
                "name a directory that this user may write on every rank's machine"
            ) from error


def furthest_step(spec: RunSpec) -> int:
    """The highest step an earlier attempt of the run completed, by rank 0's progress file; 0 if there is none."""
    path = spec.progress_path(0)
    if not path.is_file():
        return 0
    lines = read_progress(path.read_text(encoding="utf-8", errors="replace"))
    return max((line.step for line in lines if isinstance(line, ProgressLine)), default=0)


def _open_at_line_start(path: Path) -> Any:
    """Opens for appending; a line that an earlier process died in is ended first, or ours would be part of it."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return path.open("a", encoding="utf-8")
