"""Fitting constants to measured runs: damped Gauss-Newton on log errors, with a pull towards the starting values.

The fit is robust (pseudo-Huber weights: a run that was disturbed does not bend the constants) and regularised (each number of the
table is pulled towards its start by a normal prior on its logarithm), so that a constant about which the rows say nothing keeps
its physical value. A case multiplies the numbers of all its keys; so one slope per constant and row serves all keys.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Floats
from orchestrator.planning.parallel.constants import Kinds, Table, look_up

STEP = 1e-4
"""Change of a logarithm by which slopes are measured."""
NOISE = 0.04
"""Relative noise of a published step time, which weighs rows against the prior (same configuration, other release: 2-6 %)."""


@dataclass(frozen=True, slots=True)
class Free:
    """One number that the fit may change: its constant, the key it holds for, how far (standard deviation of the logarithm)."""

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
    kinds: Kinds,
    errors_of: Callable[[Mapping[str, Floats]], Floats],
    weights: Floats,
    knee: float = 0.06,
    rounds: int = 30,
) -> Fit:
    """Constants that make `errors_of`, ln(predicted / measured) per row from the rows' constants, small.

    `kinds` are those of the rows. `knee` is the log error from which an error counts only linearly. `weights` multiply squared
    errors. Deterministic.
    """
    spread = np.array([item.spread for item in free])
    held = {item.key: kinds.has(item.key) for item in free}
    members = np.stack([held[item.key] for item in free], axis=1).astype(np.float64)
    names = sorted({item.name for item in free})
    column = np.array([names.index(item.name) for item in free])
    offset = np.zeros(len(free))

    def values(at: Floats) -> dict[str, Floats]:
        return look_up(with_offsets(table, free, at), kinds, list(table))

    def cost(error: Floats, at: Floats) -> float:
        huber = 2.0 * knee**2 * (np.sqrt(1.0 + (error / knee) ** 2) - 1.0)
        return float(np.sum(weights * huber) / NOISE**2 + np.sum((at / spread) ** 2))

    now = values(offset)
    error = errors_of(now)
    best, damping = cost(error, offset), 1e-2
    for _round in range(rounds):
        slopes = np.stack([(errors_of({**now, name: now[name] * np.exp(STEP)}) - error) / STEP for name in names], axis=1)
        slopes = slopes[:, column] * members
        robust = weights / np.sqrt(1.0 + (error / knee) ** 2) / NOISE**2
        normal = slopes.T @ (slopes * robust[:, None]) + np.diag(1.0 / spread**2)
        pull = slopes.T @ (robust * error) + offset / spread**2
        before = best
        for _ in range(8):
            trial = offset - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), pull)
            trial_now = values(trial)
            trial_error = errors_of(trial_now)
            trial_cost = cost(trial_error, trial)
            if trial_cost < best:
                best, offset, error, now = trial_cost, trial, trial_error, trial_now
                damping = max(damping / 5.0, 1e-6)
                break
            damping *= 4.0
        if before - best < 1e-4 * before:
            break
    return Fit(with_offsets(table, free, offset), error)


def with_offsets(table: Table, free: Sequence[Free], offsets: Floats) -> Table:
    """The table with each free number multiplied by exp of its offset; a factor that is not there yet is 1."""
    changed = {name: dict(row) for name, row in table.items()}
    for item, offset in zip(free, offsets.tolist(), strict=True):
        row = changed[item.name]
        row[item.key] = row.get(item.key, 1.0) * float(np.exp(offset))
    return changed
