"""Fitting constants to measured step times: damped Gauss-Newton on log errors, with a pull towards the starting values.

The fit is robust (pseudo-Huber weights: a run that was disturbed does not bend the constants) and regularised (each constant is pulled
towards its start by a normal prior on its logarithm), so that a constant about which the rows say nothing keeps its physical value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import Table, keys_of, resolve
from orchestrator.planning.parallel.step_time import step_time

STEP = 1e-4
"""Change of a logarithm by which slopes are measured."""
SHARES = frozenset({"data_overlap", "context_exposed", "tensor_exposed", "wave_power"})
"""Constants that cannot exceed 1."""


@dataclass(frozen=True, slots=True)
class Free:
    """One constant that the fit may change: its name, the key it holds for, how far (standard deviation of the logarithm)."""

    name: str
    key: str
    spread: float


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit found."""

    table: Table
    log_errors: Floats
    """ln(predicted / measured) of the rows it was fitted on."""
    rounds: int


def fit(table: Table, free: Sequence[Free], cases: Cases, measured_s: Floats, weights: Floats, knee: float = 0.08, rounds: int = 30) -> Fit:
    """Constants that make ln(predicted) close to ln(measured).

    `knee` is the log error from which an error counts only linearly. `weights` multiply squared errors. Deterministic.
    """
    start = np.array([_value(table, item) for item in free])
    spread = np.array([item.spread for item in free])
    offset = np.zeros(len(free))
    damping, done = 1e-2, 0

    def errors(at: Floats) -> Floats:
        now = with_values(table, free, start * np.exp(at))
        return np.log(step_time(cases, resolve(now, cases)).total_s / measured_s)

    def cost(error: Floats, at: Floats) -> float:
        return float(np.sum(weights * knee**2 * 2.0 * (np.sqrt(1.0 + (error / knee) ** 2) - 1.0)) / NOISE**2 + np.sum((at / spread) ** 2))

    error = errors(offset)
    best = cost(error, offset)
    for done in range(1, rounds + 1):
        slopes = _slopes(errors, offset, error)
        robust = weights / np.sqrt(1.0 + (error / knee) ** 2) / NOISE**2
        normal = slopes.T @ (slopes * robust[:, None]) + np.diag(1.0 / spread**2)
        pull = slopes.T @ (robust * error) + offset / spread**2
        for _ in range(8):
            trial = offset - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), pull)
            trial = np.minimum(trial, _ceilings(free, start))
            trial_error = errors(trial)
            trial_cost = cost(trial_error, trial)
            if trial_cost < best:
                break
            damping *= 4.0
        else:
            break
        gain, best, offset, error = best - trial_cost, trial_cost, trial, trial_error
        damping = max(damping / 5.0, 1e-6)
        if gain < 1e-4 * best:
            break
    return Fit(with_values(table, free, start * np.exp(offset)), error, done)


NOISE = 0.04
"""Relative noise of a published step time, which weighs rows against the prior (same configuration, other release: 2-6 %)."""


def with_values(table: Table, free: Sequence[Free], values: Floats) -> Table:
    """The table with the free constants replaced."""
    changed = {name: dict(row) for name, row in table.items()}
    for item, value in zip(free, values, strict=True):
        changed[item.name][item.key] = float(value)
    return changed


def _value(table: Table, item: Free) -> float:
    row: Mapping[str, float] = table[item.name]
    if item.key in row:
        return row[item.key]
    family, _, software = item.key.partition("|")
    return next(row[key] for key in keys_of(family, software or item.key) if key in row)


def _ceilings(free: Sequence[Free], start: Floats) -> Floats:
    return np.array([np.log(0.999 / value) if item.name in SHARES else np.inf for item, value in zip(free, start, strict=True)])


def _slopes(errors: Callable[[Floats], Floats], at: Floats, error: Floats) -> Floats:
    columns = []
    for i in range(at.size):
        moved = at.copy()
        moved[i] += STEP
        columns.append((errors(moved) - error) / STEP)
    return np.stack(columns, axis=1)
