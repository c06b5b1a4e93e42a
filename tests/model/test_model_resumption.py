from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from training_launch import tiny_spec

from model.contract import RunSpec, write_manifest
from model.manifest import describe_file, files_in, step_folder_name
from model.resumption import CheckpointError, changes_of_text, choose_resumption, manifest_for


def a_spec(folder: Path, **changes: Any) -> RunSpec:
    return tiny_spec(folder / "run", **{"resume": True, **changes})


def write_checkpoint(spec: RunSpec, step: int) -> Path:
    folder = Path(spec.checkpoint.directory) / step_folder_name(step)
    folder.mkdir(parents=True)
    (folder / "weights.pt").write_bytes(b"weights")
    files = tuple(describe_file(folder, name) for name in files_in(folder))
    write_manifest(folder, manifest_for(spec, step=step, files=files))
    return folder


def test_a_run_without_checkpoints_begins_at_the_beginning(tmp_path: Path) -> None:
    for resume in (True, False):
        assert choose_resumption(a_spec(tmp_path, resume=resume)).step == 0


def test_the_newest_complete_checkpoint_is_taken_and_the_lost_steps_are_counted(tmp_path: Path) -> None:
    spec = a_spec(tmp_path, steps=20)
    for step in (5, 10):
        write_checkpoint(spec, step)
    assert choose_resumption(spec).step == 10
    assert choose_resumption(spec).steps_lost(furthest_step=13) == 3
    (Path(spec.checkpoint.directory) / "step-000010" / "weights.pt").write_bytes(b"other words")
    after_damage = choose_resumption(spec)
    assert (after_damage.step, [skipped.step for skipped in after_damage.skipped]) == (5, [10])
    # The progress file may be lost too; the damaged checkpoint alone tells that step 10 was reached.
    assert after_damage.steps_lost(furthest_step=0) == 5


def test_a_run_that_begins_anew_does_not_write_over_another_ones_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(a_spec(tmp_path), 5)
    with pytest.raises(CheckpointError, match=r"already holds step-000005 .* set resume to true"):
        choose_resumption(a_spec(tmp_path, resume=False))


def test_a_checkpoint_of_another_model_is_refused_and_not_loaded_wrong(tmp_path: Path) -> None:
    write_checkpoint(a_spec(tmp_path), 5)
    with pytest.raises(CheckpointError, match=r"written with model.d_ff 64, this run has model.d_ff"):
        choose_resumption(a_spec(tmp_path, model={"d_ff": 128}))


def test_another_layout_precision_or_batch_continues_and_what_changed_is_told(tmp_path: Path) -> None:
    spec = a_spec(tmp_path)
    write_checkpoint(spec, 5)
    assert choose_resumption(spec).changes(spec) == {}
    other = a_spec(tmp_path, layout={"data": 2, "zero": 3}, precision="bf16", batch={"global_sequences": 16})
    changes = choose_resumption(other).changes(other)
    assert changes["layout"] == [asdict(spec.layout), asdict(other.layout)]
    assert changes["precision"] == ["fp32", "bf16"]
    assert [batch["global_sequences"] for batch in changes["batch"]] == [8, 16]
    assert changes.keys() == {"layout", "precision", "batch"}


def test_more_steps_and_another_rate_may_continue_a_run(tmp_path: Path) -> None:
    spec = a_spec(tmp_path)
    write_checkpoint(spec, 5)
    again = replace(spec, steps=50, run_id="again")
    assert choose_resumption(again).step == 5
    assert choose_resumption(again).changes(again) == {"run_id": ["run", "again"]}


def test_a_run_that_ends_before_its_checkpoint_is_refused_and_one_that_ends_with_it_is_not(tmp_path: Path) -> None:
    spec = a_spec(tmp_path)
    write_checkpoint(spec, 5)
    assert choose_resumption(replace(spec, steps=5)).step == 5
    with pytest.raises(CheckpointError, match=r"after step 5, and this run ends at step 4; set steps to 5 or more"):
        choose_resumption(replace(spec, steps=4))


def test_another_text_is_told_and_another_vocabulary_is_refused(tmp_path: Path) -> None:
    then = {"digest": "one", "vocabulary_sha256": "words"}
    assert changes_of_text(tmp_path, then, then) == {}
    assert changes_of_text(tmp_path, then, {**then, "digest": "two"}) == {"text.digest": ["one", "two"]}
    # Written before this was noted.
    assert changes_of_text(tmp_path, {}, then) == {}
    with pytest.raises(CheckpointError, match=r"another vocabulary \(words, now other\)"):
        changes_of_text(tmp_path, then, {**then, "vocabulary_sha256": "other"})
