"""How wrong predictions were on rows that the fit had not seen, and the intervals that follow from it.

Split conformal intervals (Vovk et al. 2005): the quantile of ln(measured / predicted) of held-back rows of the same GPU
family and
framework family, widened for small groups; where there are too few rows, of the framework's family on any GPU; for a
framework that no
row was fitted on, of rows predicted with their whole framework held back.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import FABRICS

COVERAGE = 0.90
FEWEST = 12
"""Rows below which a group has no interval of its own."""
UNKNOWN = ""
"""The key of frameworks without rows."""

Quantiles: TypeAlias = Mapping[str, tuple[float, float]]
"""Key ("family|software@fabric", "family|software", "software" or "") → lower and upper end of ln(measured / predicted)."""


def quantiles_of(log_errors: Floats, cases: Cases, unknown: Floats) -> dict[str, tuple[float, float]]:
    """Intervals by group from `log_errors` = ln(predicted / measured) of held-back rows, and from `unknown`, the same with the
    row's whole framework held back."""
    found = {UNKNOWN: _ends(-unknown[np.isfinite(unknown)])}
    names = _names(cases)
    for rank in range(3):
        keys = np.array([name[rank] for name in names])
        for key in sorted(set(keys.tolist())):
            errors = log_errors[(keys == key) & np.isfinite(log_errors)]
            if errors.size >= FEWEST:
                found[key] = _ends(-errors)
    return found


def ends(cases: Cases, quantiles: Quantiles) -> tuple[Floats, Floats]:
    """Factors on a prediction for the lower and the upper end of its interval, per case."""
    names = _names(cases)
    of = {name: next(quantiles[key] for key in (*name, UNKNOWN) if key in quantiles) for name in set(names)}
    factors = np.exp(np.array([of[name] for name in names]))
    return factors[:, 0], factors[:, 1]


def _names(cases: Cases) -> list[tuple[str, str, str]]:
    """Per case, the groups it belongs to, the closest first: GPU, framework and fabric; GPU and framework; framework."""
    size = len(cases)
    families, softwares = (np.broadcast_to(np.array(keys), (size,)).tolist() for keys in (cases.families, cases.softwares))
    crosses = np.broadcast_to(cases.dp * cases.tp * cases.pp * cases.cp > cases.per_node, (size,)).tolist()
    triples = zip(families, softwares, (FABRICS[int(crossed)] for crossed in crosses), strict=True)
    return [(f"{family}|{software}@{fabric}", f"{family}|{software}", software) for family, software, fabric in triples]


def _ends(values: Floats) -> tuple[float, float]:
    """The central COVERAGE of values, each end one rank further out than the plain quantile for finite samples."""
    ordered = np.sort(values)
    rank = (1.0 - COVERAGE) / 2.0 * (ordered.size + 1)
    low = ordered[max(int(np.floor(rank)) - 1, 0)]
    high = ordered[min(int(np.ceil(ordered.size + 1 - rank)) - 1, ordered.size - 1)]
    return float(min(low, -0.01)), float(max(high, 0.01))
