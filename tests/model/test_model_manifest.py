from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from training_launch import PROJECT

from model.contract import Manifest, ManifestError, newest_complete, verify_manifest, write_manifest
from model.manifest import damaged_checkpoints, describe_file, files_in, step_folder_name


def a_checkpoint(directory: Path, step: int) -> Path:
    folder = directory / step_folder_name(step)
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "weights.pt").write_bytes(f"weights of step {step}".encode())
    (folder / "random-state-00000.pt").write_bytes(b"random")
    files = tuple(describe_file(folder, name) for name in files_in(folder))
    layout = {"pipeline": 1, "tensor": 1, "data": 1, "zero": 1}
    write_manifest(
        folder,
        Manifest(run_id="r", step=step, world_size=1, layout=layout, model={}, precision="fp32", seed=1, batch={}, files=files),
    )
    return folder


def truncate(folder: Path) -> None:
    os.truncate(folder / "deepspeed" / "weights.pt", 3)


def flip_a_bit(folder: Path) -> None:
    path = folder / "deepspeed" / "weights.pt"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "random-state-00000.pt").unlink()


def add_a_file(folder: Path) -> None:
    (folder / "deepspeed" / "extra.pt").write_bytes(b"x")


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def tear_the_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 50)


def age_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1'))


DAMAGES = [
    (truncate, "3 bytes, the manifest says 18"),
    (flip_a_bit, "altered"),
    (lose_a_file, "random-state-00000.pt is missing"),
    (add_a_file, "extra.pt is not in the manifest"),
    (lose_the_manifest, "manifest.json cannot be read"),
    (tear_the_manifest, "not readable"),
    (age_the_manifest, "format version 1; this program knows 2"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    for step in (5, 10, 20):
        a_checkpoint(tmp_path, step)
    damage(tmp_path / step_folder_name(20))
    choice = newest_complete(tmp_path)
    assert choice is not None
    assert (choice.folder.name, choice.manifest.step) == ("step-000010", 10)
    ((step, why),) = [(skipped.step, skipped.reason) for skipped in choice.skipped]
    assert step == 20
    assert reason in why
    with pytest.raises(ManifestError):
        verify_manifest(tmp_path / step_folder_name(20))


def test_drafts_and_what_is_being_deleted_are_no_checkpoints(tmp_path: Path) -> None:
    for suffix in (".draft", ".delete"):
        folder = a_checkpoint(tmp_path, 7)
        folder.rename(folder.with_name(folder.name + suffix))
    (tmp_path / "step-000009").write_text("a file, not a folder")
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "not there") is None


def test_where_nothing_is_whole_everything_is_reported(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate_target = a_checkpoint(tmp_path, step)
        flip_a_bit(truncate_target)
    assert newest_complete(tmp_path) is None
    assert [damaged.step for damaged in damaged_checkpoints(tmp_path)] == [2, 1]


def test_steps_sort_as_numbers_when_they_outgrow_their_digits(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        a_checkpoint(tmp_path, step)
    choice = newest_complete(tmp_path)
    assert choice is not None
    assert choice.manifest.step == 1_000_000


def test_nothing_of_a_checkpoint_is_unpickled() -> None:
    """What is read is safetensors and JSON; a pickle would run code of whoever wrote it."""
    for path in (PROJECT / "model").rglob("*.py"):
        assert not re.search(r"torch\.load|import pickle|load_checkpoint\(", path.read_text()), path
