"""Rows of measured runs: what is read, what is left out and why, and how predictions of them are scored."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunInputs, RunMeasured, RunRow
from orchestrator.drivers.run_rows import read_run_rows
from orchestrator.planning.parallel.calibration import calibrate, calibrated
from orchestrator.planning.parallel.constants import STARTS, Constants, kinds_of, resolve
from orchestrator.planning.parallel.fitting import Free, fit
from orchestrator.planning.parallel.intervals import ends, quantiles_of
from orchestrator.planning.parallel.rows import OutOfScope, case_of
from orchestrator.planning.parallel.scoring import kendall_tau, rankings
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.study import configuration, folds_of, study_of
from orchestrator.planning.parallel.validation import FITTED, predict_rows, validate
from tests.planning.parallel.published import needs_published_runs, published_rows

INPUTS = RunInputs(
    gpu="H100-80G",
    framework="NeMo",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    ffn_hidden=14336,
    vocab=128_256,
    seq_len=8192,
    gated_mlp=True,
    n_gpus=8,
    tp=1,
    pp=1,
    cp=1,
    micro_batch=1,
    global_batch=128,
    precision="bf16",
)


def a_row(step_s: float | None = None, name: str = "a", **changed: object) -> RunRow:
    return RunRow(name, "ours", replace(INPUTS, **changed), RunMeasured(step_s=step_s))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"arch": "moe"}, "moe"),
        ({"gpu": "H9000"}, "unknown GPU H9000"),
        ({"layers": None}, "layers is not stated"),
        ({"seq_len": None}, "seq_len is not stated"),
        ({"layers": 10**9}, "layers 1e+09 is above"),
        ({"ep": 8}, "only dense"),
        ({"tp": 3}, "not divisible"),
        ({"pp": 8, "layers": 4}, "cannot fill"),
        ({"precision": "int3"}, "unknown precision"),
        ({"workload": "lora"}, "lora"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(changed: dict[str, object], reason: str) -> None:
    left_out = case_of(a_row(**changed).inputs)
    assert isinstance(left_out, OutOfScope)
    assert reason in left_out.reason


@pytest.mark.parametrize(
    "cell", ["kv_heads", "ffn_hidden", "vocab", "tp", "pp", "cp", "micro_batch", "precision", "gpus_per_node"]
)
def test_a_row_with_one_cell_missing_is_still_predicted(cell: str) -> None:
    validation = validate([a_row(6.0, **{cell: None})])
    assert validation.scores[0].out_of_scope == 0
    assert validation.scores[0].step_rows == 1


def test_what_was_measured_never_reaches_a_prediction() -> None:
    rows = [a_row(6.0), a_row(600.0), a_row(None)]
    predicted = predict_rows(study_of(rows)).step_s
    assert predicted[0] == predicted[1] == predicted[2]


def test_an_unseen_framework_gets_the_wide_interval() -> None:
    known, unknown = predict_rows(study_of([a_row()])), predict_rows(study_of([a_row(framework="brand new")]))
    assert unknown.high[0] / unknown.low[0] > known.high[0] / known.low[0]


def test_cells_that_are_no_numbers_are_missing_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("gpu,n_gpus,layers,extra,step_time_s\nH100,8,many,x,nan\nA100,,12,y,-1\n\ufeff,,,,\n", encoding="utf-8")
    rows = read_run_rows(path)
    assert [row.inputs.layers for row in rows] == [None, 12, None]
    assert all(row.measured.step_s is None for row in rows)
    assert validate(rows).scores[-1].out_of_scope == 3


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_file_without_the_needed_columns_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="gpu"):
        read_run_rows(path)


def test_no_row_at_all_is_no_error() -> None:
    assert validate([]).scores == ()


def test_regret_is_the_price_of_the_layout_that_was_picked() -> None:
    rows = [a_row(1.0, micro_batch=1), a_row(1.5, micro_batch=2), a_row(2.0, micro_batch=4)]
    measured = np.array([1.0, 1.5, 2.0])
    assert rankings(rows, np.array([1.0, 2.0, 3.0]), measured) == [(0.0, 1.0)]
    ((regret, tau),) = rankings(rows, np.array([3.0, 2.0, 1.0]), measured)
    assert (regret, tau) == (1.0, -1.0)
    assert kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(1 / 3)


def test_rows_of_one_configuration_are_held_back_together() -> None:
    rows = [a_row(1.0, n_gpus=n, global_batch=16 * n, dp=n) for n in (8, 64, 512)]
    assert len({configuration(row) for row in rows}) == 1
    assert len(set(folds_of(rows).tolist())) == 1
    assert configuration(rows[0]) != configuration(a_row(1.0, micro_batch=2))


def test_a_fit_recovers_a_constant_that_made_the_rows() -> None:
    rows = [
        a_row(name=str(i), micro_batch=m, precision=p)
        for i, (m, p) in enumerate([(1, "bf16"), (2, "bf16"), (4, "bf16"), (2, "fp8")])
    ]
    study = study_of(rows)
    truth = {**STARTS, "pace": {**STARTS["pace"], "nemo": 1.3}}
    made = step_time(study.cases, resolve(truth, study.cases)).total_s

    def errors(values: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.log(step_time(study.cases, Constants(**values)).total_s / made)

    found = fit(STARTS, [Free("pace", "nemo", 1.0)], kinds_of(study.cases), errors, np.ones(4))
    assert found.table["pace"]["nemo"] == pytest.approx(1.3, rel=0.01)


def test_own_runs_set_the_planner_right() -> None:
    rows = [a_row(name=str(m), framework="rackray", micro_batch=m, zero_stage=1) for m in (1, 2, 4)]
    slow = 1.7 * predict_rows(study_of(rows)).step_s
    runs = [replace(row, measured=RunMeasured(step_s=float(step_s))) for row, step_s in zip(rows, slow, strict=True)]
    found = calibrate(runs)
    assert found.error_before == pytest.approx(1 - 1 / 1.7, abs=0.01)
    assert found.error_after < 0.05
    tables = calibrated(FITTED, found.values, found.intervals)
    assert predict_rows(study_of(runs), tables).step_s == pytest.approx(slow, rel=0.06)
    with pytest.raises(BadInput, match="does not exist"):
        calibrated(FITTED, {"speed": {}}, {})


@pytest.mark.parametrize(("factor", "words"), [(100.0, "100 times as long as predicted for"), (0.01, "1/100 of the time as")])
def test_runs_of_another_machine_do_not_set_the_planner_wrong(factor: float, words: str) -> None:
    rows = [a_row(name=str(m), framework="rackray", micro_batch=m, zero_stage=1) for m in (1, 2)]
    predicted_s = predict_rows(study_of(rows)).step_s
    runs = [
        replace(row, measured=RunMeasured(step_s=factor * step_s)) for row, step_s in zip(rows, predicted_s.tolist(), strict=True)
    ]
    with pytest.raises(BadInput, match=words) as caught:
        calibrate(runs)
    assert "--gpu" in str(caught.value.hint)


@needs_published_runs
def test_published_runs_are_met_as_the_readme_says() -> None:
    scores = {score.source: score for score in validate(published_rows()).scores}
    limits = {
        "VIA-Research/vTrain data/ground_truth_multi.csv": 0.09,
        "VIA-Research/vTrain data/ground_truth_single.csv": 0.08,
        "NVIDIA/dgxc-benchmarking": 0.04,
        "NVIDIA-NeMo/Megatron-Bridge": 0.05,
        "mosaicml/llm-foundry": 0.05,
        "bigscience-workshop/bigscience": 0.07,
    }
    for source, limit in limits.items():
        score = scores[source]
        assert score.step_error_mean is not None and score.baseline_error_mean is not None
        assert score.step_error_mean < limit, source
        assert score.step_error_mean < score.baseline_error_mean / 1.5, source
    everything = scores["all sources"]
    assert everything.false_fits == 0
    assert everything.rows == len(published_rows())
    # These rows were seen by the fit: their intervals, made for rows that were not, hold more than nine of ten.
    assert everything.coverage is not None and 0.85 <= everything.coverage <= 0.99


@needs_published_runs
def test_every_row_is_predicted_or_counted_with_a_reason() -> None:
    study = study_of(published_rows())
    assert len(study) + len(study.left_out) == len(published_rows())
    assert np.all(np.isfinite(predict_rows(study).step_s))
    assert all(reason for _, reason in study.left_out)


def test_intervals_hold_nine_of_ten_and_the_closest_group_wins() -> None:
    rows = [a_row(name=f"{n}-{i}", n_gpus=n, dp=n) for n in (8, 64) for i in range(200)]
    errors = np.concatenate([np.linspace(-0.1, 0.1, 200), np.linspace(-0.4, 0.4, 200)])
    cases = study_of(rows).cases
    found = quantiles_of([errors], cases, np.array([-0.8, 0.8]), np.array([-1.0, 1.0]))
    low, high = ends(cases, found)
    inside = (np.exp(-errors) >= low) & (np.exp(-errors) <= high)
    assert 0.88 <= inside.mean() <= 0.94
    assert np.log(high[-1] / low[-1]) > 3 * np.log(high[0] / low[0])
    stranger = study_of([a_row(framework="brand new")]).cases
    assert ends(stranger, found)[1][0] == pytest.approx(np.e)
    new_gpu = study_of([a_row(gpu="A100-80G")]).cases
    assert ends(new_gpu, found)[1][0] == pytest.approx(np.exp(0.8))
    assert ends(cases.take(np.array([0])), found, np.array([True]))[1][0] == pytest.approx(np.e)
