"""A tiny run, and what its processes leave behind."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.contract import EventLine, ProgressLine, RunSpec, read_progress

PROJECT = Path(__file__).parents[2]


def tiny_run(folder: Path, **changes: Any) -> dict[str, Any]:
    """RUN.json's fields for a model of two layers; `changes` replace fields, or are merged into a part."""
    run: dict[str, Any] = {
        "run_id": folder.name,
        "seed": 7,
        "model": {"layers": 2, "d_model": 32, "heads": 4, "d_ff": 64, "vocabulary": 512, "positions": 32},
        "data": {"corpus": "python-stdlib", "directory": str(folder.parent / "data"), "heldout_fraction": 0.05},
        "layout": {"pipeline": 1, "tensor": 1, "data": 1, "zero": 1},
        "batch": {"global_sequences": 8, "micro_sequences": 2, "sequence_tokens": 16},
        "optimizer": {"lr": 0.01, "clip": 0.3, "warmup_steps": 2, "schedule": "cosine"},
        "steps": 5,
        "checkpoint": {"directory": str(folder / "checkpoints")},
        "output_directory": str(folder / "out"),
    }
    for name, change in changes.items():
        run[name] = {**run[name], **change} if isinstance(change, dict) else change
    return run


def tiny_spec(folder: Path, **changes: Any) -> RunSpec:
    return RunSpec.from_json(json.dumps(tiny_run(folder, **changes)))


@dataclass
class Launch:
    """The ranks of one run as processes of this machine."""

    spec: RunSpec
    logs: list[Path]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def wait(self) -> list[int]:
        """Exit codes by rank, once all have ended."""
        return [process.wait(timeout=400) for process in self.processes]

    def wait_for_step(self, step: int) -> None:
        """Returns once rank 0 has told of `step`."""
        give_up_s = time.monotonic() + 300
        while not any(line.step >= step for line in self.steps()):
            assert self.processes[0].poll() is None, self.logs[0].read_text()
            assert time.monotonic() < give_up_s, f"step {step} did not come: {self.logs[0].read_text()}"
            time.sleep(0.02)

    def send(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def lines(self) -> list[ProgressLine | EventLine]:
        path = self.spec.progress_path(0)
        return read_progress(path.read_text()) if path.exists() else []

    def steps(self) -> list[ProgressLine]:
        return [line for line in self.lines() if isinstance(line, ProgressLine)]

    def events(self, name: str) -> list[EventLine]:
        return [line for line in self.lines() if isinstance(line, EventLine) and line.event == name]

    def curve(self) -> dict[int, tuple[float, float]]:
        """step -> (loss, gradient norm); of a step done twice, the last."""
        return {line.step: (line.loss, line.grad_norm) for line in self.steps()}

    def say(self) -> str:
        return "\n".join(f"--- rank {i} ---\n{log.read_text()[-3000:]}" for i, log in enumerate(self.logs))


Launcher = Callable[[RunSpec], Launch]
