"""How wrong predictions were on rows that the fit had not seen, and the intervals that follow from it.

Split conformal intervals (Vovk et al. 2005): the quantile of ln(measured / predicted) of held-back rows of the same GPU
family and
framework family, widened for small groups; where there are too few rows, of the framework's family on any GPU; for a
framework that no
row was fitted on, of rows predicted with their whole framework held back.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats

COVERAGE = 0.90
FEWEST = 12
"""Rows below which a group has no interval of its own."""
UNKNOWN = ""
"""The key of frameworks without rows."""

Quantiles: TypeAlias = Mapping[str, tuple[float, float]]
"""Key ("family|software", "software" or "") → lower and upper end of ln(measured / predicted)."""


def quantiles_of(
    log_errors: Floats, families: Sequence[str], softwares: Sequence[str], unknown: Floats
) -> dict[str, tuple[float, float]]:
    """Intervals by group from `log_errors` = ln(predicted / measured) of held-back rows, and from `unknown`, the same with the
    row's whole framework held back."""
    found = {UNKNOWN: _ends(-unknown[np.isfinite(unknown)])}
    both = [f"{family}|{software}" for family, software in zip(families, softwares, strict=True)]
    for keys in (both, list(softwares)):
        for key in sorted(set(keys)):
            errors = log_errors[np.array([k == key for k in keys]) & np.isfinite(log_errors)]
            if errors.size >= FEWEST:
                found[key] = _ends(-errors)
    return found


def ends(cases: Cases, quantiles: Quantiles) -> tuple[Floats, Floats]:
    """Factors on a prediction for the lower and the upper end of its interval, per case."""
    size = max(len(cases.families), len(cases.softwares))
    families = cases.families * (size if len(cases.families) == 1 else 1)
    softwares = cases.softwares * (size if len(cases.softwares) == 1 else 1)
    rows = [_of(quantiles, family, software) for family, software in zip(families, softwares, strict=True)]
    factors = np.exp(np.array(rows))
    return factors[:, 0], factors[:, 1]


def _of(quantiles: Quantiles, family: str, software: str) -> tuple[float, float]:
    return next(quantiles[key] for key in (f"{family}|{software}", software, UNKNOWN) if key in quantiles)


def _ends(values: Floats) -> tuple[float, float]:
    """The central COVERAGE of values, each end one rank further out than the plain quantile for finite samples."""
    ordered = np.sort(values)
    rank = (1.0 - COVERAGE) / 2.0 * (ordered.size + 1)
    low = ordered[max(int(np.floor(rank)) - 1, 0)]
    high = ordered[min(int(np.ceil(ordered.size + 1 - rank)) - 1, ordered.size - 1)]
    return float(min(low, -0.01)), float(max(high, 0.01))
