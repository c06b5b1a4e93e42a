"""What makes a checkpoint complete: a manifest with the size and SHA-256 of every file, written last.

A checkpoint is a folder `step-000123` in the checkpoint directory.  It grows as `step-000123.draft`; once every file
is on disk the manifest is written, and the folder gets its name.  Whatever has no manifest, or disagrees with it, is
not a checkpoint.  Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

MANIFEST_NAME: Final = "manifest.json"
FORMAT: Final = 2
"""1 held DeepSpeed's own files, which one layout alone could read."""
_STEP_FOLDER = re.compile(r"step-(\d{6,})")


class ManifestError(Exception):
    """A folder is not the checkpoint its manifest says; the message names the file and the difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a checkpoint."""

    path: str
    """Inside the folder, with slashes."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a complete checkpoint holds and which run can continue it."""

    run_id: str
    step: int
    """Steps completed."""
    world_size: int
    layout: dict[str, int]
    model: dict[str, Any]
    precision: str
    seed: int
    batch: dict[str, int]
    """Together with the seed it says which text comes in which step."""
    files: tuple[FileRecord, ...]
    format_version: int = FORMAT

    @property
    def size_bytes(self) -> int:
        return sum(record.size_bytes for record in self.files)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ManifestError where the text is no manifest of this format."""
        try:
            value = json.loads(text)
            manifest = cls(**{**value, "files": tuple(FileRecord(**record) for record in value["files"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"{MANIFEST_NAME} is not readable: {error}") from error
        if manifest.format_version != FORMAT:
            raise ManifestError(f"{MANIFEST_NAME} has format version {manifest.format_version}; this program knows {FORMAT}")
        return manifest


Check = Callable[[Path, Sequence[FileRecord]], None]
"""Compares the files of a folder with their records, as `check_files`."""


@dataclass(frozen=True, slots=True)
class SkippedCheckpoint:
    """A step folder that must not be loaded, and why."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointChoice:
    """The checkpoint to continue from, and the newer ones that were passed over."""

    folder: Path
    manifest: Manifest
    skipped: tuple[SkippedCheckpoint, ...]


def newest_complete(directory: Path, check: Check | None = None) -> CheckpointChoice | None:
    """The newest checkpoint whose every file agrees with its manifest; None if there is none.

    Reads and hashes files (by `check`, as `verify_manifest` does), newest checkpoint first, until one is right.  Drafts are
    not looked at.
    """
    skipped: list[SkippedCheckpoint] = []
    for step, folder in step_folders(directory):
        try:
            return CheckpointChoice(folder, verify_manifest(folder, check), tuple(skipped))
        except ManifestError as error:
            skipped.append(SkippedCheckpoint(step, str(error)))
    return None


def damaged_checkpoints(directory: Path, check: Check | None = None) -> tuple[SkippedCheckpoint, ...]:
    """Every step folder that disagrees with its manifest, newest first; for reports where nothing can be loaded."""
    damaged = []
    for step, folder in step_folders(directory):
        try:
            verify_manifest(folder, check)
        except ManifestError as error:
            damaged.append(SkippedCheckpoint(step, str(error)))
    return tuple(damaged)


def step_folders(directory: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every published checkpoint, newest first, verified or not; empty without the directory."""
    if not directory.is_dir():
        return []
    matches = ((_STEP_FOLDER.fullmatch(folder.name), folder) for folder in directory.iterdir() if folder.is_dir())
    return sorted(((int(match[1]), folder) for match, folder in matches if match), reverse=True)


def step_folder_name(step: int) -> str:
    return f"step-{step:06d}"


def verify_manifest(folder: Path, check: Check | None = None) -> Manifest:
    """The folder's manifest, after every file was read and compared with it: by `check_files`, or by many ranks together.

    Raises ManifestError for a missing, added, resized or altered file, or a manifest that is missing or unreadable.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{folder.name}: {MANIFEST_NAME} cannot be read: {error}") from error
    except ManifestError as error:
        raise ManifestError(f"{folder.name}: {error}") from error
    promised = {record.path for record in manifest.files}
    present = set(files_in(folder))
    if promised != present:
        odd = [f"{path} is missing" for path in sorted(promised - present)]
        odd += [f"{path} is not in the manifest" for path in sorted(present - promised)]
        raise ManifestError(f"{folder.name}: {'; '.join(odd)}")
    (check or check_files)(folder, manifest.files)
    return manifest


def check_files(folder: Path, files: Sequence[FileRecord]) -> None:
    """Reads the files and compares them with their records.  Raises ManifestError at the first that is not as recorded."""
    for record in files:
        path = folder / record.path
        # The size first: a torn file is then found without reading gigabytes.
        if path.stat().st_size != record.size_bytes:
            raise ManifestError(
                f"{folder.name}: {record.path} has {path.stat().st_size} bytes, the manifest says {record.size_bytes}"
            )
    for record in files:
        if describe_file(folder, record.path).sha256 != record.sha256:
            raise ManifestError(f"{folder.name}: {record.path} was altered: its SHA-256 is not the manifest's")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest whole or not at all; call it last, when every file it names is on disk (`sync_file`)."""
    draft = folder / f"{MANIFEST_NAME}.draft"
    with draft.open("w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST_NAME)
    sync_directory(folder)


def files_in(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, sorted, as paths inside it."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST_NAME)


def describe_file(folder: Path, path: str) -> FileRecord:
    """Size and SHA-256 of one file, read from the file itself."""
    with (folder / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(path=path, size_bytes=file.tell(), sha256=digest)


def sync_file(path: Path) -> None:
    """Returns when the file's bytes and its name are on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Returns when the directory's names are on disk, so that a rename survives a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
