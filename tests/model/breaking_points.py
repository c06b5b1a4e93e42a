"""Points at which a rank is to die by SIGKILL, as a power cut would take it; armed in the rank's own process.  Some only watch.

`arm("POINT")` takes effect at the second checkpoint of the run, so that there is one before it to fall back to;
`arm("POINT@RANK")` on that rank alone.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from model import background, checkpoint, engine, guard, manifest
from tests.benchmarks.model_memory import held_bytes


def arm(name: str) -> None:
    point, _, rank = name.partition("@")
    if not rank or rank == os.environ["RANK"]:
        {**POINTS, **MID_RUN, **NO_DEATH}[point]()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _second_time(home: Any, name: str, instead: Callable[..., Any], calls_before: int = 1) -> None:
    """Calls the real thing once and `instead` with it and its arguments from then on."""
    real, calls = getattr(home, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*arguments, **named) if len(calls) <= calls_before else instead(real, *arguments, **named)

    setattr(home, name, counted)


def _before(real: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    die()


def _after(real: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    real(*arguments, **named)
    die()


def _half_a_file(real: Callable[..., Any], tensors: dict[str, Any], path: Path) -> None:
    real(tensors, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


def _half_a_manifest(real: Callable[..., Any], folder: Path, whole: manifest.Manifest) -> None:
    (folder / f"{manifest.MANIFEST_NAME}.draft").write_text(whole.to_json()[:100])
    die()


def _half_deleted(real: Callable[..., Any], self: Any, folder: Path) -> None:
    real(self, folder)
    die()


def _jump_in_step_3() -> None:
    """This rank alone finds that its third loss is a jump."""
    real, calls = guard.Guard.judge, []

    def judge(self: guard.Guard, loss: float, grad_norm: float) -> guard.Verdict:
        calls.append(1)
        if len(calls) != 3:
            return real(self, loss, grad_norm)
        return self._refuse(guard._Trouble("spike", "made up", "skip"))

    guard.Guard.judge = judge  # type: ignore[method-assign]


def _watch_memory() -> None:
    """Writes into the rank's directory what bytes of tensors it held at most while the model was built, and after that."""
    held: list[int] = []
    # What is there already is not looked at from here on: a look at a million objects takes a second.
    gc.freeze()
    register_module_parameter_registration_hook(lambda *_: held.append(held_bytes()))
    real = deepspeed.initialize

    def initialize(**named: Any) -> Any:
        Path("building.json").write_text(json.dumps({"at_most": max(held), "at_last": held_bytes()}))
        return real(**named)

    deepspeed.initialize = initialize


NO_DEATH: dict[str, Callable[[], None]] = {
    "a jump in step 3": _jump_in_step_3,
    "memory while building": _watch_memory,
    # As on a full disk, a write fails in the middle of a file.
    "no room for a checkpoint": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    "no room for the progress": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)),
}
# The first save deletes nothing.
MID_RUN: dict[str, Callable[[], None]] = {
    "before the first step": lambda: _second_time(engine.Engine, "train_step", _before, calls_before=0),
    "in step 5, between gradients and update": lambda: _second_time(engine.Engine, "_judge", _before, calls_before=4),
    # The optimizer is called for each of its two groups of parameters.
    "in step 7, in the middle of an update": lambda: _second_time(torch.optim.AdamW, "step", _after, calls_before=12),
    "in the evaluation after step 8": lambda: _second_time(engine.FlatEngine, "evaluate", _after, calls_before=3),
}
"""When nothing is being saved, or something may be."""
POINTS: dict[str, Callable[[], None]] = {
    "before the copy": lambda: _second_time(background.BackgroundFile, "start", _before),
    "in the middle of a file": lambda: _second_time(background, "save_file", _half_a_file),
    "after a file, before it is synced": lambda: _second_time(background, "sync_file", _before),
    "after a file": lambda: _second_time(background, "sync_file", _after),
    "before state.json": lambda: _second_time(checkpoint, "state_text", _before),
    "before the manifest": lambda: _second_time(checkpoint, "write_manifest", _before),
    "in the middle of the manifest": lambda: _second_time(checkpoint, "write_manifest", _half_a_manifest),
    "after the manifest, before it is published": lambda: _second_time(checkpoint, "write_manifest", _after),
    "once it is published": lambda: _second_time(checkpoint.Checkpoints, "_prune", _before),
    "while the old one is deleted": lambda: _second_time(checkpoint.Checkpoints, "_delete", _half_deleted, calls_before=0),
}
