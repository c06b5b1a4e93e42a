"""Predicting rows of measured runs from their inputs alone, and scoring the predictions per source."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import Constants, Table, resolve
from orchestrator.planning.parallel.fitted import MEMORY, STEP_TIME
from orchestrator.planning.parallel.fitted_intervals import MEMORY_INTERVALS, STEP_TIME_INTERVALS
from orchestrator.planning.parallel.fitted_surface import SURFACE
from orchestrator.planning.parallel.intervals import Quantiles, ends
from orchestrator.planning.parallel.memory import ROOM, as_memory_allows, memory_of
from orchestrator.planning.parallel.scoring import Score, mean_error, rankings, share, source_name
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.study import Study, baseline_errors, comparable_memory, folds_of, study_of
from orchestrator.planning.parallel.surface import Surface, from_text, on_surface


@dataclass(frozen=True, slots=True)
class Tables:
    """Constants and intervals to predict with."""

    step_time: Table
    memory: Table
    step_intervals: Quantiles
    memory_intervals: Quantiles
    surface: Surface

    def constants_of(self, cases: Cases) -> Constants:
        """The constants of step time of every case, moved by the surface of measured shapes."""
        return on_surface(resolve(self.step_time, cases), cases, self.surface)


FITTED = Tables(STEP_TIME, MEMORY, STEP_TIME_INTERVALS, MEMORY_INTERVALS, from_text(SURFACE))


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions for the rows of a study, one element per row; made before any measured cell is read."""

    step_s: Floats
    low: Floats
    """Lower end of the interval over `step_s`."""
    high: Floats
    memory_bytes: Floats
    """Of the kind that the row's source measures."""
    device_bytes: Floats
    lean_bytes: Floats
    """The same with full recomputation and sharding where the row does not say: what a run must need at least."""
    memory_low: Floats
    memory_high: Floats


def predict_rows(study: Study, tables: Tables = FITTED) -> Predicted:
    """Step time and memory of every row in scope."""
    cases = as_memory_allows(study.cases, tables.memory)
    low, high = ends(cases, tables.step_intervals, study.guessed)
    memory_low, memory_high = ends(cases, tables.memory_intervals, study.guessed)
    unsaid = np.array([row.inputs.act_ckpt is None for row in study.rows])
    unsharded = np.array([row.inputs.zero_stage is None for row in study.rows])
    lean = cases.with_columns(
        recompute=np.where(unsaid, 2.0, cases.recompute),
        zero=np.where(unsharded, np.where(cases.pp > 1, np.maximum(cases.zero, 1.0), 3.0), cases.zero),
    )
    return Predicted(
        step_s=np.broadcast_to(step_time(cases, tables.constants_of(cases)).total_s, (len(study),)),
        low=low,
        high=high,
        memory_bytes=comparable_memory(study.rows, cases, tables.memory),
        device_bytes=memory_of(cases, tables.memory).device_bytes,
        lean_bytes=memory_of(lean, tables.memory).device_bytes,
        memory_low=memory_low,
        memory_high=memory_high,
    )


@dataclass(frozen=True, slots=True)
class Validation:
    """The scores of a table of runs, by source, and over all rows at the end."""

    scores: tuple[Score, ...]
    reasons: dict[str, dict[str, int]]
    """Source → reason for being out of scope → rows."""


def validate(rows: Iterable[RunRow], tables: Tables = FITTED) -> Validation:
    """Predict every row, then compare."""
    study = study_of(rows)
    if not len(study):
        reasons = _reasons(study)
        counted = {name: sum(counts.values()) for name, counts in sorted(reasons.items())}
        if counted:
            counted["all sources"] = sum(counted.values())
        return Validation(tuple(_empty(name, count) for name, count in counted.items()), reasons)
    predicted = predict_rows(study, tables)
    log_step = np.log(predicted.step_s / study.step_s)
    log_memory = np.log(predicted.memory_bytes / study.memory_bytes)
    return score(study, predicted, log_step, log_memory)


def score(study: Study, predicted: Predicted, log_step: Floats, log_memory: Floats) -> Validation:
    """Scores from predictions and errors, which may be those of rows held back from the fit."""
    names = np.array([source_name(row) for row in study.rows])
    base = baseline_errors(study, folds_of(study.rows), names.tolist())
    reasons = _reasons(study)
    every = np.ones(len(study), dtype=bool)
    parts = [(name, names == name) for name in sorted(set(names.tolist()))]
    scores = [
        _score(name, study, predicted, log_step, log_memory, base, part, sum(reasons.get(name, {}).values()))
        for name, part in parts
    ]
    scores += [_empty(name, sum(counts.values())) for name, counts in sorted(reasons.items()) if name not in set(names.tolist())]
    scores.append(_score("all sources", study, predicted, log_step, log_memory, base, every, len(study.left_out)))
    return Validation(tuple(scores), reasons)


def _score(
    name: str,
    study: Study,
    predicted: Predicted,
    log_step: Floats,
    log_memory: Floats,
    base: Floats,
    part: NDArray[np.bool_],
    left_out: int,
) -> Score:
    mean, p90, bias = mean_error(log_step[part])
    memory_mean, memory_p90, _ = mean_error(log_memory[part])
    rows = [row for row, chosen in zip(study.rows, part, strict=True) if chosen]
    step_s = np.exp(log_step) * study.step_s
    ranked = rankings(rows, step_s[part], study.step_s[part])
    inside = (study.step_s >= step_s * predicted.low) & (study.step_s <= step_s * predicted.high)
    gpu_bytes = np.broadcast_to(study.cases.memory, (len(study),))
    says_fits = predicted.device_bytes * predicted.memory_high <= gpu_bytes * ROOM
    says_not = predicted.lean_bytes * predicted.memory_low > gpu_bytes
    failed = np.array([row.measured.out_of_memory for row in study.rows])
    return Score(
        source=name,
        rows=int(part.sum()) + left_out,
        out_of_scope=left_out,
        step_rows=int(np.isfinite(log_step[part]).sum()),
        step_error_mean=mean,
        step_error_p90=p90,
        step_bias=bias,
        baseline_error_mean=mean_error(base[part])[0],
        memory_rows=int(np.isfinite(log_memory[part]).sum()),
        memory_error_mean=memory_mean,
        memory_error_p90=memory_p90,
        false_fits=int((says_fits & failed & part).sum()),
        false_out_of_memory=int((says_not & ~failed & part & np.isfinite(study.step_s)).sum()),
        ranking_groups=len(ranked),
        regret_mean=float(np.mean([regret for regret, _ in ranked])) if ranked else None,
        regret_max=max(regret for regret, _ in ranked) if ranked else None,
        kendall_tau=float(np.mean([tau for _, tau in ranked])) if ranked else None,
        coverage=share(inside, part & np.isfinite(log_step)),
    )


def _empty(name: str, rows: int) -> Score:
    return Score(
        source=name,
        rows=rows,
        out_of_scope=rows,
        step_rows=0,
        step_error_mean=None,
        step_error_p90=None,
        step_bias=None,
        baseline_error_mean=None,
        memory_rows=0,
        memory_error_mean=None,
        memory_error_p90=None,
        false_fits=0,
        false_out_of_memory=0,
        ranking_groups=0,
        regret_mean=None,
        regret_max=None,
        kendall_tau=None,
        coverage=None,
    )


def _reasons(study: Study) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row, reason in study.left_out:
        counts = found.setdefault(source_name(row), {})
        counts[reason] = counts.get(reason, 0) + 1
    return found
