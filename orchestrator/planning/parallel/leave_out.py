"""How far the model carries: whole groups of measured runs held back at once, in several ways.

Holding back a configuration (`study.configuration`) says what to expect of the neighbours of measured runs. Holding back all runs
of a source, a framework, a GPU, a model, a scale or a pair of tensor and pipeline degrees says what to expect of strangers, which
is what a planner is asked about.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.cases import Floats
from orchestrator.planning.parallel.constants import Table
from orchestrator.planning.parallel.gpus import find_gpu
from orchestrator.planning.parallel.scoring import mean_error, source_name
from orchestrator.planning.parallel.software import software_of
from orchestrator.planning.parallel.study import Study, folds_of, held_back_errors

MOST_FITS = 12
"""Groups beyond this many share fits, by a hash of their name."""


def _gpu_family(row: RunRow) -> str:
    gpu = find_gpu(row.inputs.gpu)
    return gpu.family if gpu else "unknown"


WAYS: Mapping[str, Callable[[RunRow], str]] = {
    "one source": source_name,
    "one framework": lambda row: software_of(row.inputs.framework).name,
    "one GPU family": _gpu_family,
    "one model": lambda row: f"{row.inputs.layers} x {row.inputs.hidden}, {row.inputs.heads} heads",
    "one scale": lambda row: f"2^{round(math.log2(row.inputs.n_gpus or 1))} GPUs",
    "one (tensor, pipeline)": lambda row: f"tensor {row.inputs.tp or 1}, pipeline {row.inputs.pp or 1}",
}
"""What is held back together → the group a row belongs to."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Errors of rows whose whole group was held back."""

    way: str
    group: NDArray[np.str_]
    log_step: Floats
    """ln(predicted / measured), nan without a measured time."""

    @property
    def groups(self) -> int:
        return len(set(self.group[np.isfinite(self.log_step)].tolist()))

    @property
    def median(self) -> float | None:
        """Median of the absolute relative error."""
        known = self.log_step[np.isfinite(self.log_step)]
        return float(np.median(np.abs(np.expm1(known)))) if known.size else None

    def worst(self, count: int) -> Iterator[tuple[str, int, float]]:
        """The groups predicted worst: name, rows, mean absolute error."""
        found = []
        for name in sorted(set(self.group.tolist())):
            part = (self.group == name) & np.isfinite(self.log_step)
            error = mean_error(self.log_step[part])[0]
            if error is not None:
                found.append((name, int(part.sum()), error))
        yield from sorted(found, key=lambda item: -item[2])[:count]


def leave_out(study: Study, memory: Table, way: str) -> LeftOut:
    """Predict every row by a fit that has seen nothing of its group."""
    key = WAYS[way]
    names = np.array([key(row) for row in study.rows])
    distinct = sorted(set(names.tolist()))
    fold = np.searchsorted(distinct, names) if len(distinct) <= MOST_FITS else folds_of(study.rows, key, MOST_FITS)
    return LeftOut(way, names, held_back_errors(study, memory, fold))
