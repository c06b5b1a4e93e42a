"""How wrong predictions were on rows that the fit had not seen, and the intervals that follow from it.

Split conformal intervals (Vovk et al. 2005): quantiles of ln(measured / predicted) of held-back rows of the same GPU family,
framework family and fabric. Half of the errors are of rows whose configuration was held back and half of rows whose whole model
was: questions are asked about neighbours of measured runs and about strangers. Where a framework was measured but not on that
GPU, the errors are those of rows whose whole GPU family was held back; where the framework was not measured, or a row needed
guesses, those of rows whose whole framework was.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import kinds_of

COVERAGE = 0.90
FEWEST = 12
"""Rows below which a group has no interval of its own."""
UNKNOWN = ""
"""The key of frameworks without rows, and of rows with guesses."""
NEW_GPU = "*"
"""The key of frameworks with rows, on a GPU without."""

Quantiles: TypeAlias = Mapping[str, tuple[float, float]]
"""Key ("family|software@fabric", "family|software", "*" or "") → lower and upper end of ln(measured / predicted)."""


def quantiles_of(
    log_errors: Sequence[Floats], cases: Cases, new_gpu: Floats, unknown: Floats, tried: NDArray[np.bool_] | None = None
) -> dict[str, tuple[float, float]]:
    """Intervals by group from held-back errors, ln(predicted / measured), each of `log_errors` held back in another way.

    `new_gpu` and `unknown` are errors with the GPU's family and the framework's family held back. `tried`: the rows that count.
    """
    found = {UNKNOWN: _ends(-unknown[np.isfinite(unknown)]), NEW_GPU: _ends(-new_gpu[np.isfinite(new_gpu)])}
    names = _names(cases)
    every = np.concatenate([np.where(tried, errors, np.nan) if tried is not None else errors for errors in log_errors])
    for rank in (1, 0):
        keys = np.array([name[rank] for name in names] * len(log_errors))
        for key in sorted(set(keys.tolist())):
            errors = every[(keys == key) & np.isfinite(every)]
            if errors.size >= FEWEST * len(log_errors):
                found[key] = _ends(-errors)
            elif rank == 1 and errors.size:
                found[key] = _wider(_ends(-every[_of_software(keys, key) & np.isfinite(every)]), _ends(-errors))
    return found


def _of_software(keys: NDArray[np.str_], key: str) -> NDArray[np.bool_]:
    return np.char.endswith(keys, "|" + key.partition("|")[2])


def _wider(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), max(a[1], b[1])


def ends(cases: Cases, quantiles: Quantiles, guessed: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
    """Factors on a prediction for the lower and the upper end of its interval, per case; `guessed` ones are strangers."""
    names = _names(cases)
    measured = {key.partition("@")[0].partition("|")[2] for key in quantiles}
    of = {name: quantiles[_key(name, quantiles, measured)] for name in set(names)}
    factors = np.array([of[name] for name in names])
    if guessed is not None and np.any(guessed):
        stranger = np.array(quantiles[UNKNOWN])
        wide = np.stack([np.minimum(factors[:, 0], stranger[0]), np.maximum(factors[:, 1], stranger[1])], axis=1)
        factors = np.where(guessed[:, None], wide, factors)
    factors = np.exp(factors)
    return factors[:, 0], factors[:, 1]


def _key(name: tuple[str, str, str], quantiles: Quantiles, measured: set[str]) -> str:
    for key in name[:2]:
        if key in quantiles:
            return key
    return NEW_GPU if name[2] in measured and NEW_GPU in quantiles else UNKNOWN


def _names(cases: Cases) -> list[tuple[str, str, str]]:
    """Per case, the groups it belongs to: GPU, framework and fabric; GPU and framework; framework."""
    kinds = kinds_of(cases)
    triples = [(f"{family}|{software}@{fabric}", f"{family}|{software}", software) for family, software, fabric in kinds.triples]
    return [triples[i] for i in kinds.index.tolist()]


def _ends(values: Floats) -> tuple[float, float]:
    """The central COVERAGE of values, each end one rank further out than the plain quantile for finite samples."""
    ordered = np.sort(values)
    rank = (1.0 - COVERAGE) / 2.0 * (ordered.size + 1)
    low = ordered[max(int(np.floor(rank)) - 1, 0)]
    high = ordered[min(int(np.ceil(ordered.size + 1 - rank)) - 1, ordered.size - 1)]
    return float(min(low, -0.01)), float(max(high, 0.01))
