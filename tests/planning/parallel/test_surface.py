"""The surface over measured shapes: it moves predictions near what was measured, and nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.planning.parallel.refit import Refit, as_modules
from orchestrator.planning.parallel.surface import as_text, coordinates, fit_surface, from_text, height
from orchestrator.planning.parallel.validation import FITTED
from tests.planning.parallel.test_rows_and_scores import a_row, study_of


def cases_of(*micro_batches: int, framework: str = "NeMo"):  # type: ignore[no-untyped-def]
    return study_of([a_row(name=str(i), micro_batch=m, framework=framework) for i, m in enumerate(micro_batches)]).cases


def test_it_moves_measured_shapes_and_leaves_far_ones() -> None:
    cases = cases_of(*[1] * 40, *[2] * 40)
    errors = np.array([0.1] * 40 + [-0.1] * 40)
    surface = fit_surface(cases, errors)
    near = height(cases_of(1, 2), surface)
    assert -0.11 < near[0] < -0.04
    assert 0.04 < near[1] < 0.11
    assert abs(height(cases_of(64), surface)[0]) < 0.01


def test_other_frameworks_and_small_tables_have_no_surface() -> None:
    surface = fit_surface(cases_of(*[1] * 40), np.full(40, 0.2))
    assert height(cases_of(1, framework="torchtitan"), surface)[0] == 0.0
    assert fit_surface(cases_of(*[1] * 5), np.full(5, 0.2)) == {}


def test_one_wild_row_does_not_bend_it() -> None:
    errors = np.zeros(40)
    errors[0] = 5.0
    assert abs(height(cases_of(1), fit_surface(cases_of(*[1] * 40), errors))[0]) < 0.02


def test_text_keeps_it() -> None:
    cases = cases_of(*[1] * 20, *[4] * 20)
    surface = fit_surface(cases, np.linspace(-0.1, 0.1, 40))
    assert np.allclose(height(cases, from_text(as_text(surface))), height(cases, surface), atol=1e-3)
    assert coordinates(cases).shape == (40, 8)


def test_a_fit_is_written_as_modules_that_say_the_same() -> None:
    study = study_of([a_row(1.0)])
    surface = fit_surface(cases_of(*[1] * 40), np.full(40, 0.1))
    tables = replace(FITTED, surface=surface)
    written = as_modules(Refit(study, tables, np.zeros(1), np.zeros(1), {}), "2026-01-01", "a command")
    read: dict[str, Any] = {}
    for text in written.values():
        exec(compile(text, "written", "exec"), read)  # noqa: S102 - our own text, to see that it is a module
    assert set(read["STEP_TIME"]) == set(FITTED.step_time)
    assert read["STEP_TIME"]["gemm"]["A100"] == pytest.approx(FITTED.step_time["gemm"]["A100"], rel=1e-3)
    assert read["STEP_TIME_INTERVALS"][""] == pytest.approx(FITTED.step_intervals[""], abs=1e-4)
    case = cases_of(1)
    assert height(case, from_text(read["SURFACE"])) == pytest.approx(height(case, surface), abs=1e-3)
