"""Fitting constants to measured step times: damped Gauss-Newton on log errors, with a pull towards the starting values.

The fit is robust (pseudo-Huber weights: a run that was disturbed does not bend the constants) and regularised (each constant
is pulled
towards its start by a normal prior on its logarithm), so that a constant about which the rows say nothing keeps its physical
value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Floats
from orchestrator.planning.parallel.constants import Table, keys_of

STEP = 1e-4
"""Change of a logarithm by which slopes are measured."""
SHARES = frozenset(
    {"data_overlap", "shard_overlap", "context_exposed", "tensor_exposed", "boundary_exposed", "wave_power", "imbalance_share"}
)
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


def fit(
    table: Table,
    free: Sequence[Free],
    errors_of: Callable[[Table], Floats],
    weights: Floats,
    knee: float = 0.06,
    rounds: int = 30,
) -> Fit:
    """Constants that make `errors_of`, ln(predicted / measured) per row, small.

    `knee` is the log error from which an error counts only linearly. `weights` multiply squared errors. Deterministic.
    """
    start = np.array([value_of(table, item) for item in free])
    spread = np.array([item.spread for item in free])
    ceilings = np.array(
        [np.log(0.999 / value) if item.name in SHARES else np.inf for item, value in zip(free, start, strict=True)]
    )
    offset = np.zeros(len(free))

    def errors(at: Floats) -> Floats:
        return errors_of(with_values(table, free, start * np.exp(at)))

    def cost(error: Floats, at: Floats) -> float:
        huber = 2.0 * knee**2 * (np.sqrt(1.0 + (error / knee) ** 2) - 1.0)
        return float(np.sum(weights * huber) / NOISE**2 + np.sum((at / spread) ** 2))

    error = errors(offset)
    best, damping = cost(error, offset), 1e-2
    for _round in range(rounds):
        slopes = _slopes(errors, offset, error)
        robust = weights / np.sqrt(1.0 + (error / knee) ** 2) / NOISE**2
        normal = slopes.T @ (slopes * robust[:, None]) + np.diag(1.0 / spread**2)
        pull = slopes.T @ (robust * error) + offset / spread**2
        before = best
        for _ in range(8):
            trial = np.minimum(offset - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), pull), ceilings)
            trial_error = errors(trial)
            trial_cost = cost(trial_error, trial)
            if trial_cost < best:
                best, offset, error = trial_cost, trial, trial_error
                damping = max(damping / 5.0, 1e-6)
                break
            damping *= 4.0
        if before - best < 1e-4 * before:
            break
    return Fit(with_values(table, free, start * np.exp(offset)), error)


NOISE = 0.04
"""Relative noise of a published step time, which weighs rows against the prior (same configuration, other release: 2-6 %)."""


def with_values(table: Table, free: Sequence[Free], values: Floats) -> Table:
    """The table with the free constants replaced."""
    changed = {name: dict(row) for name, row in table.items()}
    for item, value in zip(free, values, strict=True):
        changed[item.name][item.key] = float(value)
    return changed


def value_of(table: Table, item: Free) -> float:
    """What the table says now for a free constant: its own entry, or the one it would fall back to."""
    row: Mapping[str, float] = table[item.name]
    if item.key in row:
        return row[item.key]
    family, _, software = item.key.rpartition("|")
    software, _, fabric = software.partition("@")
    return next(row[key] for key in keys_of(family or software, software, fabric) if key in row)


def _slopes(errors: Callable[[Floats], Floats], at: Floats, error: Floats) -> Floats:
    columns = []
    for i in range(at.size):
        moved = at.copy()
        moved[i] += STEP
        columns.append((errors(moved) - error) / STEP)
    return np.stack(columns, axis=1)
