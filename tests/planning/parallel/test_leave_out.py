"""Whole groups held back, what own runs teach, and what a spec says of its network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator import wiring
from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunMeasured, RunRow
from orchestrator.drivers.run_rows import read_run_rows
from orchestrator.planning.parallel.calibration import held_back
from orchestrator.planning.parallel.cluster import cluster_of
from orchestrator.planning.parallel.constants import STARTS, kinds_of, look_up
from orchestrator.planning.parallel.leave_out import WAYS, leave_out
from orchestrator.planning.parallel.memory import memory_of
from orchestrator.planning.parallel.study import study_of
from orchestrator.planning.parallel.validation import FITTED, predict_rows
from tests.planning.parallel.test_rows_and_scores import a_row

SPECS = Path(__file__).parents[3] / "cluster_specs"
OWN_RUNS = Path(__file__).parents[3] / "orchestrator" / "planning" / "parallel" / "bench" / "own_runs.csv"


def measured_rows(factor: float, framework: str) -> list[RunRow]:
    rows = [
        a_row(name=f"{framework}-{m}-{p}", framework=framework, micro_batch=m, precision=p)
        for m in (1, 2, 4)
        for p in ("bf16", "fp8")
    ]
    times = factor * predict_rows(study_of(rows)).step_s
    return [replace(row, measured=RunMeasured(step_s=float(step_s))) for row, step_s in zip(rows, times, strict=True)]


def test_a_group_that_is_held_back_teaches_nothing_about_itself() -> None:
    """One framework's rows are all 60 % slower: seen, the fit follows them; held back, it cannot know."""
    study = study_of([*measured_rows(1.0, "NeMo"), *measured_rows(1.6, "torchtitan")])
    found = leave_out(study, FITTED.memory, "one framework")
    slow = np.array([name == "torchtitan" for name in found.group.tolist()])
    assert found.groups == 2
    assert np.median(found.log_step[slow]) < np.median(found.log_step[~slow]) - 0.3
    assert {rows for _, rows, _ in found.worst(2)} == {6}


def test_every_way_names_a_group_for_every_row() -> None:
    rows = [a_row(), a_row(gpu="H9000", layers=None, n_gpus=None, tp=None)]
    assert all(isinstance(key(row), str) and key(row) for key in WAYS.values() for row in rows)


def test_a_stranger_has_what_all_have_in_common() -> None:
    table = {**STARTS, "pace": {"": 1.1, "nemo": 2.0, "H100|nemo": 3.0}}
    cases = study_of([a_row(), a_row(framework="brand new")]).cases
    assert look_up(table, kinds_of(cases), ["pace"])["pace"].tolist() == pytest.approx([6.6, 1.1])


def test_own_runs_are_held_back_one_by_one() -> None:
    rows = [a_row(name=str(m), framework="rackray", micro_batch=m, zero_stage=1) for m in (1, 2, 4)]
    slow = 1.7 * predict_rows(study_of(rows)).step_s
    runs = [replace(row, measured=RunMeasured(step_s=float(step_s))) for row, step_s in zip(rows, slow, strict=True)]
    for run in held_back(runs):
        assert run.before_s == pytest.approx(run.measured_s / 1.7)
        assert run.after_s == pytest.approx(run.measured_s, rel=0.1)
        assert run.low_s < run.after_s < run.high_s
    with pytest.raises(BadInput, match="1 usable runs"):
        held_back(runs[:1])


def test_the_kept_own_runs_are_better_predicted_after_calibration() -> None:
    found = held_back(read_run_rows(OWN_RUNS))
    assert len(found) >= 6
    before, after = (
        np.mean([abs(np.log(getattr(run, name) / run.measured_s)) for run in found]) for name in ("before_s", "after_s")
    )
    assert after < before


def test_a_spec_says_what_leaves_and_spines_leave_of_the_network() -> None:
    spec = wiring.load_spec(SPECS / "example-32-dgx.yaml").spec
    cluster = cluster_of(spec, 32)
    assert (cluster.leaf_nodes, cluster.spine_share) == (32, 1.0)
    frontier = cluster_of(wiring.load_spec(SPECS / "frontier-100k.yaml").spec, 1000)
    assert frontier.leaf_nodes < 1000
    assert 0.0 < frontier.spine_share <= 1.0


def test_zb_1p_keeps_one_micro_batch_more_than_1f1b() -> None:
    plain, zb = (
        study_of([a_row(framework=f"Megatron-LM fork {name}", pp=8, n_gpus=8, vpp=1, global_batch=64, kv_heads=32)]).cases
        for name in ("1F1B", "ZB-1p")
    )
    kept = [float(memory_of(cases, FITTED.memory).activation_bytes[0]) for cases in (plain, zb)]
    assert kept[1] / kept[0] == pytest.approx(9 / 8)
