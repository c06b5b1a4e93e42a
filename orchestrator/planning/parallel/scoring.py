"""How good predictions were: errors, ranking inside groups, coverage of intervals; one score per source."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.cases import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of one source; None where it has no such row."""

    source: str
    rows: int
    """In scope or not."""
    out_of_scope: int
    step_rows: int
    step_error_mean: float | None
    """Mean of |predicted / measured - 1|."""
    step_error_p90: float | None
    step_bias: float | None
    """Median of predicted / measured - 1."""
    baseline_error_mean: float | None
    """The same mean for one constant efficiency per GPU and precision, fitted to the other rows of this very source."""
    memory_rows: int
    memory_error_mean: float | None
    memory_error_p90: float | None
    false_fits: int
    """Rows that ran out of memory and were said to fit."""
    false_out_of_memory: int
    """Rows that ran and were said not to fit."""
    ranking_groups: int
    regret_mean: float | None
    """Measured time of the layout that is predicted fastest, over the fastest measured, less 1; mean over groups."""
    regret_max: float | None
    kendall_tau: float | None
    coverage: float | None
    """Share of measured step times inside the interval."""


def source_name(row: RunRow) -> str:
    """A source without what numbers its rows: the text before a row number, a table's name or a version."""
    text = re.split(r"\brow\b|\btable\b|\bTable\b|\bFigure\b|\(|@|:|,|#|\+|\bHEAD\b", row.source)[0]
    text = re.sub(r"\bv?\d+(\.\d+)+\b", "", text).strip(" -/.\"'")
    return re.sub(r"\s+", " ", text) or "unnamed"


def ranking_group(row: RunRow) -> str:
    """Rows that answer the same question: same model, GPUs, batch and precision; only the layout differs."""
    i = row.inputs
    kind = "".join(c for c in i.framework.lower() if c.isalpha())
    return repr(
        (source_name(row), kind, i.gpu, i.layers, i.hidden, i.heads, i.vocab, i.seq_len, i.n_gpus, i.global_batch, i.precision)
    )


def layout_key(row: RunRow) -> str:
    """What the layout is; repeated measurements of one layout do not rank against each other."""
    i = row.inputs
    return repr((i.dp, i.tp, i.pp, i.vpp, i.cp, i.micro_batch, i.zero_stage, i.act_ckpt))


def rankings(rows: Sequence[RunRow], predicted_s: Floats, measured_s: Floats, least: int = 3) -> list[tuple[float, float]]:
    """(regret, Kendall's tau-a) of every group with at least `least` measured layouts."""
    groups: dict[str, dict[str, list[int]]] = {}
    for i, row in enumerate(rows):
        if np.isfinite(measured_s[i]):
            groups.setdefault(ranking_group(row), {}).setdefault(layout_key(row), []).append(i)
    found = []
    for layouts in groups.values():
        if len(layouts) < least:
            continue
        predicted = np.array([predicted_s[members[0]] for members in layouts.values()])
        measured = np.array([np.median(measured_s[members]) for members in layouts.values()])
        regret = measured[np.argmin(predicted)] / measured.min() - 1.0
        found.append((float(regret), kendall_tau(predicted, measured)))
    return found


def kendall_tau(a: Floats, b: Floats) -> float:
    """Concordant less discordant pairs over all pairs."""
    upper = np.triu_indices(a.size, 1)
    signs = np.sign(a[:, None] - a[None, :])[upper] * np.sign(b[:, None] - b[None, :])[upper]
    return float(signs.mean()) if signs.size else 1.0


def mean_error(log_errors: Floats) -> tuple[float | None, float | None, float | None]:
    """Mean and 90th percentile of the absolute relative error, and the median signed one; None without rows."""
    errors = np.expm1(log_errors[np.isfinite(log_errors)])
    if not errors.size:
        return None, None, None
    return float(np.abs(errors).mean()), float(np.quantile(np.abs(errors), 0.9)), float(np.median(errors))


def share(inside: NDArray[np.bool_], usable: NDArray[np.bool_]) -> float | None:
    """Share of the usable that are inside; None without any."""
    return float(inside[usable].mean()) if np.any(usable) else None
