"""A tiny run, and what its processes leave behind."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
        run[name] = {**run.get(name, {}), **change} if isinstance(change, dict) else change
    return run


def tiny_spec(folder: Path, **changes: Any) -> RunSpec:
    return RunSpec.from_json(json.dumps(tiny_run(folder, **changes)))


class Rank:
    """A forked rank; what `subprocess.Popen` would be."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        assert self.ended.wait(timeout_s), f"rank process {self.pid} does not end"
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if not self.ended.is_set():
            self.send_signal(signal.SIGKILL)
            self.wait(60)


class RankServer:
    """The process that ranks are forked from (tests/model/rank_server.py)."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        command = [sys.executable, str(here / "rank_server.py")]
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{here}"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT, env=environment, text=True
        )
        self._ranks: dict[int, Rank] = {}
        self._started: queue.Queue[Rank] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, arguments: list[str], environment: dict[str, str], directory: Path, log: Path, breaking: str = "") -> Rank:
        """`breaking` names a point of tests/model/breaking_points.py where the rank is to die; empty for none."""
        order = {"arguments": arguments, "environment": environment, "directory": str(directory), "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**order, "break": breaking}) + "\n")
        self._process.stdin.flush()
        return self._started.get(timeout=120)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "pid" in said:
                rank = self._ranks[said["pid"]] = Rank(said["pid"])
                self._started.put(rank)
            else:
                rank = self._ranks[said["ended"]]
                rank.returncode = said["code"]
                rank.ended.set()


@dataclass
class Launch:
    """The ranks of one run as processes of this machine."""

    spec: RunSpec
    logs: list[Path]
    processes: list[Rank] = field(default_factory=list)

    def wait(self) -> list[int]:
        """Exit codes by rank, once all have ended."""
        return [process.wait(400) for process in self.processes]

    def wait_for_step(self, step: int) -> None:
        """Returns once rank 0 has told of `step`."""
        self._wait_until(lambda: any(line.step >= step for line in self.steps()), f"step {step}")

    def wait_for_checkpoint(self) -> None:
        """Returns once rank 0 has told of a checkpoint that is complete: it is written while training goes on."""
        self._wait_until(lambda: bool(self.events("checkpoint")), "a checkpoint")

    def _wait_until(self, came: Callable[[], bool], what: str) -> None:
        give_up_s = time.monotonic() + 300
        while not came():
            assert self.processes[0].poll() is None, self.logs[0].read_text()
            assert time.monotonic() < give_up_s, f"{what} did not come: {self.logs[0].read_text()}"
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


class Launcher(Protocol):
    """Starts the ranks of a run; they die at the point `breaking` names, if any."""

    def __call__(self, spec: RunSpec, breaking: str = "") -> Launch: ...
