"""Checkpoints that are whole or do not count: drafted, written in the background, manifested, renamed; and resumed.

step-000120.draft/  while it is written     →  step-000120/  complete     →  step-000120.delete/  on its way out
    rank-00000.safetensors …    each rank's part of the state
    state.json                  which part of which parameter lies where (`model/state.py`)
    manifest.json               last

A save holds the training up for a copy into host memory; a thread of each rank writes it.  Once every rank's is on disk,
rank 0 writes the manifest and gives the folder its name: whatever dies before that leaves the checkpoint before in force.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.background import BackgroundFile
from model.contract import FileRecord, Manifest, RunSpec, write_manifest
from model.engine import Engine
from model.engine_ranks import from_rank_zero, to_rank_zero
from model.manifest import (
    ManifestError,
    check_files,
    describe_file,
    files_in,
    step_folder_name,
    step_folders,
    sync_directory,
    sync_file,
)
from model.resumption import CheckpointError, Resumption, choose_resumption, manifest_for
from model.state import STATE_NAME, Fragment, state_text, tensor_name

_WAY_OUT: Final = "make room in checkpoint.directory, or name one that every rank may write, then resume"


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is complete."""

    step: int
    size_bytes: int
    save_s: float
    """From the beginning of the save until it was published."""
    held_s: float
    """How long the training stood still for it."""


@dataclass(frozen=True, slots=True)
class _ToCheck:
    """What rank 0 asks the others to verify with it."""

    folder: Path
    files: tuple[FileRecord, ...]


@dataclass(slots=True)
class _Begun:
    """A checkpoint on its way."""

    step: int
    draft: Path
    begun_s: float
    held_s: float = 0.0
    state_text: str = ""
    """Of `state.json`; rank 0 has it."""


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


class Checkpoints:
    """The run's checkpoint directory, as one rank sees it.  Every public method is collective."""

    def __init__(self, spec: RunSpec, rank: int, world_size: int) -> None:
        self._spec, self._rank, self._world_size = spec, rank, world_size
        self._directory = Path(spec.checkpoint.directory)
        self._file = BackgroundFile()
        self._begun: _Begun | None = None
        self._fragments: dict[str, list[Fragment]] | None = None
        self._deleting: list[threading.Thread] = []

    def find(self) -> Resumption:
        """The newest complete checkpoint, the same on every rank: rank 0 looks, and each rank verifies its share of the files.

        Raises CheckpointError, on every rank, for the reasons of `choose_resumption` and where a rank does not see a checkpoint.
        """
        if self._rank == 0:
            found: Resumption | str
            try:
                found = choose_resumption(self._spec, self._check_together)
            except (CheckpointError, OSError) as error:
                found = str(error) or type(error).__name__
            from_rank_zero(found)
        else:
            while isinstance(found := from_rank_zero(None), _ToCheck):
                self._check_share(found)
        if isinstance(found, str):
            raise CheckpointError(found)
        return found

    def _check_together(self, folder: Path, files: Sequence[FileRecord]) -> None:
        """Rank 0's `check_files`, for which the others wait in `find`."""
        self._check_share(from_rank_zero(_ToCheck(folder, tuple(files))))

    def _check_share(self, task: _ToCheck) -> None:
        """Every rank's part in it.  Raises on rank 0 alone."""
        fault = ""
        try:
            check_files(task.folder, task.files[self._rank :: self._world_size])
        except (ManifestError, OSError) as error:
            fault = str(error)
        faults = to_rank_zero((task.folder.is_dir(), fault))
        if self._rank == 0:
            blind = [str(rank) for rank, (sees_it, _) in enumerate(faults) if not sees_it]
            if blind:
                raise CheckpointError(
                    f"{task.folder} is not seen by rank {', '.join(blind)}; put checkpoint.directory on storage that all share"
                )
            if wrong := "; ".join(fault for _, fault in faults if fault):
                raise ManifestError(wrong)

    def begin(self, engine: Engine, step: int, notes: Mapping[str, Any]) -> Saved | None:
        """Begins to save `step`; first waits for the save before, if that still goes on, and returns it.

        `notes` (rank 0's count) come back from a resumed run's `StateReader`.  Raises CheckpointError, on every rank,
        where a rank cannot write or the ranks do not see each other's files.
        """
        before = self.finish()
        begun_s = time.monotonic()
        draft = self._directory / f"{step_folder_name(step)}.draft"
        # Told by rank 0, for whom the others would wait if it only raised.
        if fault := from_rank_zero(self._make(draft) if self._rank == 0 else ""):
            raise CheckpointError(fault)
        spans = engine.state.owned()
        if self._fragments is None:
            shares = to_rank_zero([span.fragment for span in spans])
            self._fragments = {rank_file_name(rank): share for rank, share in enumerate(shares)}
        tensors = {tensor_name(span.fragment.name, kind): t for span in spans for kind, t in span.tensors.items()}
        self._file.start(draft / rank_file_name(self._rank), tensors)
        self._begun = _Begun(step, draft, begun_s)
        if self._rank == 0:
            notes = {**notes, "loss_scale": engine.state.loss_scale()}
            self._begun.state_text = state_text(self._fragments, adam_steps=engine.state.adam_steps(), notes=notes)
        self._begun.held_s = time.monotonic() - begun_s
        return before

    def _make(self, draft: Path) -> str:
        """Makes the folder to write into; what is wrong where it cannot, or nothing."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._fragments is None:
                self._clear_leftovers()
            draft.mkdir()
        except OSError as error:
            return f"{draft} cannot be made: {error}; {_WAY_OUT}"
        return ""

    def poll(self, engine: Engine) -> Saved | None:
        """The save under way, if it has just become complete on every rank; to be asked after every step."""
        if self._begun is None or engine.any_rank(self._file.is_busy):
            return None
        return self.finish()

    def finish(self) -> Saved | None:
        """Waits for the save under way; None if there is none.  Raises as `begin` does."""
        if self._begun is None:
            return None
        begun, self._begun = self._begun, None
        waited_s = time.monotonic()
        size_bytes = self._complete(begun)
        now_s = time.monotonic()
        return Saved(begun.step, size_bytes, save_s=now_s - begun.begun_s, held_s=begun.held_s + now_s - waited_s)

    def close(self) -> None:
        """Waits for the deletion of old checkpoints."""
        for thread in self._deleting:
            thread.join()

    def _complete(self, begun: _Begun) -> int:
        record: FileRecord | str
        try:
            record = self._file.finish()
        except Exception as error:
            # Told to rank 0, which tells all: one that only raised here would leave the others waiting.
            record = f"{type(error).__name__}: {error}"
        records = to_rank_zero(record)
        size_bytes: int | str = 0
        if self._rank == 0:
            try:
                size_bytes = self._publish(begun, records).size_bytes
            except CheckpointError as error:
                size_bytes = str(error)
            except OSError as error:
                size_bytes = f"{begun.draft} could not be written: {error}; {_WAY_OUT}"
        size_bytes = from_rank_zero(size_bytes)
        if isinstance(size_bytes, str):
            raise CheckpointError(size_bytes)
        return size_bytes

    def _publish(self, begun: _Begun, records: list[FileRecord | str]) -> Manifest:
        faults = [f"rank {rank}: {record}" for rank, record in enumerate(records) if isinstance(record, str)]
        if faults:
            raise CheckpointError(f"{begun.draft} could not be written: {'; '.join(faults)}; {_WAY_OUT}")
        there = files_in(begun.draft)
        missing = [rank for rank in range(self._world_size) if rank_file_name(rank) not in there]
        if missing:
            raise CheckpointError(
                f"{begun.draft} is not the same directory on every rank: rank 0 does not see the files of rank "
                f"{', '.join(map(str, missing))}; put checkpoint.directory on storage that all ranks share"
            )
        (begun.draft / STATE_NAME).write_text(begun.state_text, encoding="utf-8")
        sync_file(begun.draft / STATE_NAME)
        files = [describe_file(begun.draft, STATE_NAME), *(record for record in records if isinstance(record, FileRecord))]
        manifest = manifest_for(self._spec, step=begun.step, files=tuple(files))
        write_manifest(begun.draft, manifest)
        folder = self._directory / step_folder_name(begun.step)
        if folder.exists():
            # A damaged one that an earlier attempt left and this one has now done again.
            self._delete(folder)
        begun.draft.rename(folder)
        sync_directory(self._directory)
        self._prune(begun.step)
        return manifest

    def _prune(self, step: int) -> None:
        # Newer than the one just written: damaged ones, or this attempt would have begun from them.
        folders = step_folders(self._directory)
        newer = [folder for other, folder in folders if other > step]
        for folder in newer + [folder for _, folder in folders[len(newer) + self._spec.checkpoint.keep :]]:
            self._delete(folder)

    def _delete(self, folder: Path) -> None:
        # Renamed first, so that a half-deleted checkpoint is never taken for a damaged one.
        going = folder.with_name(f"{folder.name}.delete")
        folder.rename(going)
        # What is left of it when this process dies, the next attempt clears away.
        deleting = threading.Thread(target=shutil.rmtree, args=(going,), kwargs={"ignore_errors": True}, daemon=True)
        deleting.start()
        self._deleting = [*(thread for thread in self._deleting if thread.is_alive()), deleting]

    def _clear_leftovers(self) -> None:
        for pattern in ("step-*.draft", "step-*.delete"):
            for folder in self._directory.glob(pattern):
                shutil.rmtree(folder)
