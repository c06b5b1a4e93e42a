"""Which checkpoint a run continues from, or why it must not.  Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.contract import CheckpointChoice, FileRecord, Manifest, RunSpec, SkippedCheckpoint, newest_complete
from model.manifest import Check, damaged_checkpoints, step_folders


class CheckpointError(Exception):
    """A checkpoint cannot be written or continued; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a run starts from."""

    choice: CheckpointChoice | None
    """None: from the beginning."""
    skipped: tuple[SkippedCheckpoint, ...]
    """Damaged checkpoints newer than the chosen one."""

    @property
    def step(self) -> int:
        """Steps already completed."""
        return self.choice.manifest.step if self.choice else 0

    def changes(self, spec: RunSpec) -> dict[str, list[Any]]:
        """What is otherwise than when the checkpoint was written: name -> [then, now]."""
        if self.choice is None:
            return {}
        now = manifest_for(spec, step=self.step, files=())
        names = ("run_id", "layout", "precision", "seed", "batch")
        pairs = {name: [getattr(self.choice.manifest, name), getattr(now, name)] for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def steps_lost(self, furthest_step: int) -> int:
        """Steps that an earlier attempt had done and that are done again; `furthest_step` is its last one."""
        return max([furthest_step, *(skipped.step for skipped in self.skipped)]) - self.step


def choose_resumption(spec: RunSpec, check: Check | None = None) -> Resumption:
    """The newest complete checkpoint of a run that resumes; the beginning for any other and where there is none.

    Any layout continues any other's checkpoint.  Raises CheckpointError where the checkpoint belongs to another model or is
    beyond the run's last step, and where a run that starts from the beginning finds checkpoints: nothing is overwritten or
    continued by accident.
    """
    directory = Path(spec.checkpoint.directory)
    if not spec.resume:
        folders = step_folders(directory)
        if folders:
            raise CheckpointError(
                f"{directory} already holds {folders[0][1].name} and this run starts from the beginning; "
                "set resume to true, or choose another checkpoint.directory"
            )
        return Resumption(None, ())
    choice = newest_complete(directory, check)
    if choice is None:
        return Resumption(None, damaged_checkpoints(directory, check))
    wanted = manifest_for(spec, step=choice.manifest.step, files=())
    if choice.manifest.model != wanted.model:
        then, now = choice.manifest.model, wanted.model
        others = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        raise CheckpointError(
            f"{choice.folder} was written with {_said(then, others)}, this run has {_said(now, others)}; "
            "continue it with the same model, or start in another checkpoint.directory"
        )
    if choice.manifest.step > spec.steps:
        raise CheckpointError(
            f"{choice.folder} is after step {choice.manifest.step}, and this run ends at step {spec.steps}; set steps to "
            f"{choice.manifest.step} or more, or choose another checkpoint.directory"
        )
    return Resumption(choice, choice.skipped)


def changes_of_text(folder: Path, then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[Any]]:
    """What is otherwise in the text than what the checkpoint's writer noted of it, as `Resumption.changes` tells it.

    Raises CheckpointError where the tokens have other meanings now, for the weights would be of no use.
    """
    key = "vocabulary_sha256"
    if then.get(key, now[key]) != now[key]:
        raise CheckpointError(
            f"{folder} learnt tokens of another vocabulary ({then[key]:.12}, now {now[key]:.12}): the text of data.corpus has "
            "changed since; bring it back, or start in another checkpoint.directory"
        )
    return {f"text.{name}": [then[name], now[name]] for name in then.keys() & now.keys() if then[name] != now[name]}


def _said(model: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"model.{name} {model.get(name)}" for name in names)


def manifest_for(spec: RunSpec, *, step: int, files: tuple[FileRecord, ...]) -> Manifest:
    """The manifest of the run's checkpoint after `step` steps."""
    return Manifest(
        run_id=spec.run_id,
        step=step,
        world_size=spec.layout.ranks,
        layout=asdict(spec.layout),
        model=asdict(spec.model),
        precision=spec.precision,
        seed=spec.seed,
        batch=asdict(spec.batch),
        files=files,
    )
