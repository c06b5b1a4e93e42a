"""The whole fit from a table of runs: constants, held-back errors, intervals, and their text as the module `fitted.py`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.cases import Floats
from orchestrator.planning.parallel.constants import Table, resolve
from orchestrator.planning.parallel.intervals import quantiles_of
from orchestrator.planning.parallel.leave_out import LeftOut, leave_out
from orchestrator.planning.parallel.memory import as_memory_allows
from orchestrator.planning.parallel.scoring import source_name
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.study import (
    Study,
    fit_memory,
    fit_step_time,
    folds_of,
    held_back_errors,
    held_back_memory_errors,
    study_of,
)
from orchestrator.planning.parallel.surface import as_text, fit_surface
from orchestrator.planning.parallel.validation import Tables

NEEDED = ("one model", "one GPU family", "one framework")
"""What the intervals are made of."""
UNKNOWN_MEMORY = np.array([0.75, 0.85, 1.0, 1.15, 1.3])
"""Predicted over measured memory that is reckoned with for a framework whose memory nobody published."""


@dataclass(frozen=True, slots=True)
class Refit:
    """What a fit of all rows found, and what held-back rows say about it."""

    study: Study
    tables: Tables
    log_step: Floats
    """ln(predicted / measured) of every row, predicted by a fit that had not seen its configuration; nan without a measured
    time."""
    log_memory: Floats
    left_out: Mapping[str, LeftOut]
    """Way of `leave_out.WAYS` → the errors of rows whose whole group was held back."""

    @property
    def step_rows(self) -> int:
        """Rows with a measured step time."""
        return int(np.isfinite(self.study.step_s).sum())

    def step_points(self) -> dict[str, tuple[list[float], list[float]]]:
        """Source → measured and held-back predicted step times, seconds."""
        return self._points(self.study.step_s, self.log_step)

    def memory_points(self) -> dict[str, tuple[list[float], list[float]]]:
        """Source → measured and held-back predicted memory, GiB."""
        return self._points(self.study.memory_bytes / 2**30, self.log_memory)

    def _points(self, measured: Floats, log_error: Floats) -> dict[str, tuple[list[float], list[float]]]:
        names = np.array([source_name(row) for row in self.study.rows])
        found = {}
        for name in sorted(set(names.tolist())):
            part = (names == name) & np.isfinite(log_error)
            if np.any(part):
                found[name] = (measured[part].tolist(), (measured[part] * np.exp(log_error[part])).tolist())
        return found


def refit(rows: Iterable[RunRow], ways: Sequence[str] = NEEDED) -> Refit:
    """Fit constants of time and memory on all rows, and intervals on rows held back; `ways` of `leave_out.WAYS` are told of.

    Raises BadInput for rows of which none can be held back from the others.
    """
    study = study_of(rows)
    fold = folds_of(study.rows)
    _check_enough(study, fold)
    memory = fit_memory(study).table
    log_memory = held_back_memory_errors(study, fold)
    log_step = held_back_errors(study, memory, fold)
    left_out = {way: leave_out(study, memory, way) for way in dict.fromkeys((*NEEDED, *ways))}
    table = fit_step_time(study, memory).table
    known = as_memory_allows(study.cases, memory)
    errors = np.log(step_time(known, resolve(table, known)).total_s / study.step_s)
    surface = fit_surface(known, np.where(study.guessed, np.nan, errors))
    model, gpu, framework = (left_out[way].log_step for way in NEEDED)
    new_gpu, unknown = _thinned(study, gpu), _thinned(study, framework)
    step_intervals = quantiles_of((log_step, model), study.cases, new_gpu, unknown, ~study.guessed)
    strangers = np.log(UNKNOWN_MEMORY)
    memory_intervals = quantiles_of((log_memory,), study.cases, strangers, strangers, ~study.guessed)
    return Refit(study, Tables(table, memory, step_intervals, memory_intervals, surface), log_step, log_memory, left_out)


def _check_enough(study: Study, fold: NDArray[np.intp]) -> None:
    """Raises BadInput where a fold would be predicted from no row at all: of step times or of memory, or of another GPU or
    framework."""
    names = {"step time": study.step_s, "memory": study.memory_bytes} if len(study) else {}
    usable = {name: np.isfinite(values) & ~study.guessed for name, values in names.items()}
    kinds = [len(set(keys)) for keys in (study.cases.families, study.cases.softwares)] if len(study) else [0]
    folds = [len(set(fold[chosen].tolist())) for chosen in usable.values()]
    if min(kinds) < 2 or min(folds) < 2:
        counts = " and ".join(f"{int(chosen.sum())} with a measured {name}" for name, chosen in usable.items()) or "none in scope"
        raise BadInput(
            f"{len(study.rows) + len(study.left_out)} rows, {counts}, are too few for a fit of all constants",
            "give rows of several configurations, GPUs and frameworks with step_time_s and mem_gb_per_gpu; for runs of your own "
            "there is `rackray train calibrate`",
        )


def _thinned(study: Study, errors: Floats) -> Floats:
    """About 20 rows of every GPU and framework: a sweep of hundreds says no more about strangers than 20 rows of another."""
    keys = np.array(
        [f"{family}|{software}" for family, software in zip(study.cases.families, study.cases.softwares, strict=True)]
    )
    found = np.full(len(study), np.nan)
    for key in sorted(set(keys.tolist())):
        rows = np.flatnonzero((keys == key) & np.isfinite(errors))
        picked = rows[:: max(1, rows.size // 20)]
        found[picked] = errors[picked]
    return found


def as_modules(done: Refit, date: str, command: str) -> dict[str, str]:
    """The texts of `fitted.py`, `fitted_intervals.py` and `fitted_surface.py`: readable tables, sorted, four digits."""
    rows = int(np.isfinite(done.study.step_s).sum())
    memory_rows = int(np.isfinite(done.study.memory_bytes).sum())
    of = f"{date}, {rows} step times and {memory_rows} memories, by `{command}`. Do not edit by hand."
    home = "from orchestrator.planning.parallel"
    constants = (
        f'"""Fitted constants of {of}\n\n'
        "Method: `fitting.py` (robust, regularised least squares on log errors) from the starts in `constants.py`; what each\n"
        'constant means stands there and in `memory.py`. Key "" holds the general value, the others hold factors on it.\n'
        f'"""\n\n{home}.constants import Table\n'
    )
    intervals = f'"""Intervals of {of}\n\nMethod: `intervals.py`.\n"""\n\n'
    intervals += f"{home}.intervals import Quantiles\n"
    shapes = f'"""Surface over shapes of {of}\n\n'
    shapes += 'Each line: GPU family|framework family, eight coordinates, weight; see `surface.py`.\n"""\n\n'
    tables = done.tables
    return {
        "fitted.py": constants + _table("STEP_TIME", tables.step_time) + _table("MEMORY", tables.memory),
        "fitted_intervals.py": intervals
        + _intervals("STEP_TIME_INTERVALS", tables.step_intervals)
        + _intervals("MEMORY_INTERVALS", tables.memory_intervals),
        "fitted_surface.py": shapes + f'SURFACE = """\\\n{as_text(tables.surface)}"""\n',
    }


def _table(name: str, table: Table) -> str:
    lines = [f"\n{name}: Table = {{"]
    for constant, row in table.items():
        lines.append(f'    "{constant}": {{')
        # A factor of 1 says nothing: a key that is not there means the same.
        lines += [f'        "{key}": {value:.4g},' for key, value in sorted(row.items()) if not key or f"{value:.4g}" != "1"]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def _intervals(name: str, quantiles: Mapping[str, tuple[float, float]]) -> str:
    lines = [f'    "{key}": ({low:.4f}, {high:.4f}),' for key, (low, high) in sorted(quantiles.items())]
    return "\n".join([f"\n{name}: Quantiles = {{", *lines, "}", '"""Key → ends of ln(measured / predicted)."""', ""])
