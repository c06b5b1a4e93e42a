"""Checkpoints that are whole or do not count: drafted, hashed, manifested, renamed; and the choice of one to resume.

step-000120.draft/  while it is written     →  step-000120/  complete     →  step-000120.delete/  on its way out
    deepspeed/…                 DeepSpeed's files: weights, optimizer state
    random-state-00000.pt …     one per rank
    manifest.json               last
"""

from __future__ import annotations

import shutil
from pathlib import Path

from model.contract import FileRecord, Manifest, RunSpec, write_manifest
from model.engine import Engine, from_every_rank, from_rank_zero, random_state_name, wait_for_every_rank
from model.manifest import describe_file, files_in, step_folder_name, step_folders, sync_directory, sync_file
from model.resumption import CheckpointError, Resumption, choose_resumption, manifest_for


class Checkpoints:
    """The run's checkpoint directory, as one rank sees it.  `save` and `find` are collective."""

    def __init__(self, spec: RunSpec, rank: int, world_size: int) -> None:
        self._spec, self._rank, self._world_size = spec, rank, world_size
        self._directory = Path(spec.checkpoint.directory)

    def find(self) -> Resumption:
        """The newest complete checkpoint, the same on every rank: rank 0 verifies and the others follow.

        Raises CheckpointError, on every rank, for the reasons of `choose_resumption`.
        """
        found: Resumption | str = ""
        if self._rank == 0:
            try:
                found = choose_resumption(self._spec)
            except (CheckpointError, OSError) as error:
                found = str(error) or type(error).__name__
        found = from_rank_zero(found)
        if isinstance(found, str):
            raise CheckpointError(found)
        return found

    def save(self, engine: Engine, step: int) -> Manifest:
        """Writes the checkpoint of `step`, publishes it and deletes the ones beyond `checkpoint.keep`.

        Raises CheckpointError, on every rank, where the ranks do not see each other's files.
        """
        draft = self._directory / f"{step_folder_name(step)}.draft"
        if self._rank == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            draft.mkdir()
        wait_for_every_rank()
        draft.mkdir(parents=True, exist_ok=True)  # on a directory that is not shared; `_records` then says so
        engine.save(draft, step)
        wait_for_every_rank()  # DeepSpeed waits for its own files only
        manifest = manifest_for(self._spec, step=step, files=self._records(draft))
        if self._rank == 0:
            write_manifest(draft, manifest)
            self._publish(draft, step)
            self._prune(step)
        wait_for_every_rank()
        return manifest

    def _records(self, draft: Path) -> tuple[FileRecord, ...]:
        """Size and hash of every file, on disk for good; each rank does its share of them."""
        names: list[str] = from_rank_zero(files_in(draft))
        records: list[FileRecord] | str = []
        try:
            for name in names[self._rank :: self._world_size]:
                sync_file(draft / name)
                records.append(describe_file(draft, name))  # type: ignore[union-attr]
        except OSError as error:
            # Told to every rank: one that only raised here would leave the others waiting.
            records = str(error)
        missing = [r for r in range(self._world_size) if random_state_name(r) not in names]
        shares = from_every_rank(records)
        faults = [f"rank {rank}: {share}" for rank, share in enumerate(shares) if isinstance(share, str)]
        faults += [f"rank 0 does not see the files of rank {rank}" for rank in missing]
        if faults:
            raise CheckpointError(
                f"{draft} is not the same directory on every rank ({'; '.join(faults)}); "
                "put checkpoint.directory on storage that all ranks share"
            )
        return tuple(sorted((record for share in shares for record in share), key=lambda record: record.path))

    def _publish(self, draft: Path, step: int) -> None:
        folder = self._directory / step_folder_name(step)
        if folder.exists():
            # A damaged one that an earlier attempt left and this one has now done again.
            self._delete(folder)
        draft.rename(folder)
        sync_directory(self._directory)

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
        shutil.rmtree(going)

    def _clear_leftovers(self) -> None:
        for pattern in ("step-*.draft", "step-*.delete"):
            for folder in self._directory.glob(pattern):
                shutil.rmtree(folder)
