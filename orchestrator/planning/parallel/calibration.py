"""Recalibration from the operator's own runs: a few constants of one GPU and framework, fitted to measured step times.

Only what a handful of runs can tell is free: the overall pace, the host's launch rate, the fixed time of a step, the network.
Priors keep a constant where the runs say nothing about it. The interval afterwards is that of the runs' own residuals, never
narrower than 5 %, nor, after n runs, than an n-th of what it was before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.cases import Floats
from orchestrator.planning.parallel.constants import FABRICS, Constants, kinds_of
from orchestrator.planning.parallel.fitting import Free, fit
from orchestrator.planning.parallel.intervals import ends
from orchestrator.planning.parallel.memory import as_memory_allows
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.study import study_of
from orchestrator.planning.parallel.validation import FITTED, Tables, predict_rows

SPREADS: Mapping[str, float] = {"pace": 3.0, "launch_s": 0.7, "step_fixed_s": 1.0, "network_reach": 0.7, "nvlink_reach": 0.5}
LEAST_WIDTH = 0.05
MOST_OFF = 20.0
"""Times as slow or as fast as predicted, by the median, beyond which runs are not of the GPU that they are said to be of: a slow
network or a busy host costs several times, a CPU in the place of a GPU hundreds."""
SKIPPED_STEPS = 0.2
"""Share of a run's first reports that are left out: warm-up, compilation, caches."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the runs changed."""

    values: Mapping[str, Mapping[str, float]]
    """Constant → key "family|software" → new factor."""
    intervals: Mapping[str, tuple[float, float]]
    runs: int
    error_before: float
    """Mean |predicted / measured - 1| with the published constants."""
    error_after: float


def calibrate(rows: Sequence[RunRow], tables: Tables = FITTED) -> Calibration:
    """Constants that fit the given runs. Raises BadInput where no run can be used, with the reason of the first that cannot,
    and where they are too far from what is predicted to be runs of that GPU."""
    study = study_of(rows)
    usable = np.isfinite(study.step_s) if len(study) else np.zeros(0, dtype=bool)
    if not np.any(usable):
        why = f": {study.left_out[0][1]}" if study.left_out else ""
        raise BadInput(
            f"none of {len(rows)} runs can be used for calibration{why}",
            "give runs with a measured step time and a stated layout",
        )
    cases, measured = as_memory_allows(study.cases.take(usable), tables.memory), study.step_s[usable]
    size = len(cases)
    families, softwares = (np.broadcast_to(np.array(keys), (size,)).tolist() for keys in (cases.families, cases.softwares))
    keys = sorted(set(zip(families, softwares, strict=True)))
    free = [Free(name, f"{family}|{software}", spread) for family, software in keys for name, spread in SPREADS.items()]

    def errors(values: Mapping[str, Floats]) -> Floats:
        return np.log(step_time(cases, Constants(**values)).total_s / measured)

    kinds = kinds_of(cases)
    # What `train plan` and `planner validate` say of the same runs: the surface of measured shapes included.
    before = np.log(step_time(cases, tables.constants_of(cases)).total_s / measured)
    for family, software in keys:
        own = np.array([pair == (family, software) for pair in zip(families, softwares, strict=True)])
        _check_off(family, float(np.exp(-np.median(before[own]))))
    found = fit(tables.step_time, free, kinds, errors, np.ones(size), knee=0.2)
    values: dict[str, dict[str, float]] = {}
    for item in free:
        values.setdefault(item.name, {})[item.key] = found.table[item.name][item.key]
    intervals: dict[str, tuple[float, float]] = {}
    for family, software in keys:
        mine = np.array([pair == (family, software) for pair in zip(families, softwares, strict=True)])
        own, (low, high) = found.log_errors[mine], ends(cases.take(mine), tables.step_intervals)
        # A run or two are met whatever the constants: they say where the interval lies, and hardly how wide it is.
        few = 0.5 * float(np.mean(np.log(high / low))) / own.size
        width = max(LEAST_WIDTH, few, 1.64 * float(np.sqrt(np.mean(own**2))) * (1.0 + 2.0 / own.size))
        intervals |= {f"{family}|{software}{fabric}": (-width, width) for fabric in ("", *(f"@{name}" for name in FABRICS))}
    after = float(np.mean(np.abs(np.expm1(found.log_errors))))
    return Calibration(values, intervals, size, float(np.mean(np.abs(np.expm1(before)))), after)


def _check_off(family: str, off: float) -> None:
    """Raises BadInput where runs took so many times as long as predicted for a GPU family that they are of another."""
    if not 1 / MOST_OFF <= off <= MOST_OFF:
        words = f"{off:.3g} times as long" if off > 1 else f"1/{1 / off:.3g} of the time"
        raise BadInput(
            f"the runs took {words} as predicted for {family}; nothing was calibrated",
            f"say the GPU that they ran on (--gpu, or the column gpu; a calibration moves a pace by {MOST_OFF:g} times at most)",
        )


def beside_earlier(
    found: Calibration, values: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float]]
) -> tuple[list[str], dict[str, dict[str, float]], dict[str, tuple[float, float]]]:
    """A calibration with what earlier ones said of other GPUs and frameworks: their keys, then values and intervals of all."""
    new = {key for row in found.values.values() for key in row}
    old = {name: {key: value for key, value in row.items() if key not in new} for name, row in values.items()}
    names = dict.fromkeys((*old, *found.values))
    kept = sorted({key for row in old.values() for key in row})
    merged = {name: {**old.get(name, {}), **found.values.get(name, {})} for name in names}
    return kept, merged, {**intervals, **found.intervals}


@dataclass(frozen=True, slots=True)
class HeldBack:
    """One own run, predicted before any calibration and by a calibration with all runs but this one."""

    run: str
    measured_s: float
    before_s: float
    after_s: float
    low_s: float
    """Of the calibrated prediction's interval."""
    high_s: float


def held_back(rows: Sequence[RunRow], tables: Tables = FITTED) -> list[HeldBack]:
    """What calibration is worth: each usable run predicted by a calibration on the others. Raises BadInput below two of them."""
    study = study_of(rows)
    used = [row for row, step_s in zip(study.rows, study.step_s.tolist(), strict=True) if np.isfinite(step_s)]
    if len(used) < 2:
        raise BadInput(f"{len(used)} usable runs cannot be held back from each other", "give at least two measured runs")
    found = []
    for i, row in enumerate(used):
        one, others = study_of([row]), [*used[:i], *used[i + 1 :]]
        fitted = calibrate(others, tables)
        after = predict_rows(one, calibrated(tables, fitted.values, fitted.intervals))
        before_s, after_s = (float(found_s[0]) for found_s in (predict_rows(one, tables).step_s, after.step_s))
        ends_s = (after_s * float(after.low[0]), after_s * float(after.high[0]))
        found.append(HeldBack(row.id, float(one.step_s[0]), before_s, after_s, *ends_s))
    return found


def calibrated(tables: Tables, values: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float]]) -> Tables:
    """The tables with a calibration's values in the place of the published ones. Raises BadInput for a constant that does not
    exist."""
    unknown = sorted(set(values) - set(tables.step_time))
    if unknown:
        raise BadInput(
            f"the calibration names the constant {unknown[0]!r}, which does not exist",
            "calibrate again: `rackray train calibrate RUNS`",
        )
    changed = {name: {**row, **values.get(name, {})} for name, row in tables.step_time.items()}
    kept = {key: points for key, points in tables.surface.items() if key not in intervals}
    return Tables(changed, tables.memory, {**tables.step_intervals, **intervals}, tables.memory_intervals, kept)
