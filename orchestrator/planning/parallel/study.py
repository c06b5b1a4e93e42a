"""Measured rows as a study: cases beside measurements, folds, fits, errors of held-back rows, and the trivial baseline."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.cases import Cases, Floats, stack
from orchestrator.planning.parallel.constants import MEMORY_STARTS, STARTS, Constants, Table, kinds_of, resolve
from orchestrator.planning.parallel.fitting import Fit, fit
from orchestrator.planning.parallel.free import free_constants, free_memory_constants
from orchestrator.planning.parallel.memory import Memory, MemoryConstants, as_memory_allows, memory_from, memory_of
from orchestrator.planning.parallel.rows import OutOfScope, RowCase, case_of
from orchestrator.planning.parallel.sizes import model_parameters
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.surface import fit_surface, on_surface

FOLDS = 5
MOST_WEIGHT = 150.0
"""Rows of one framework on one GPU family count together no more than this many: a sweep of hundreds is one experiment."""


@dataclass(frozen=True, slots=True)
class Study:
    """Rows in scope as columns; `left_out` are the others, each with its reason."""

    rows: tuple[RunRow, ...]
    cases: Cases
    step_s: Floats
    """Measured; nan where not."""
    memory_bytes: Floats
    """Measured; nan where not."""
    left_out: tuple[tuple[RunRow, str], ...]
    guessed: NDArray[np.bool_]
    """Per row, whether something a prediction hangs on was guessed."""

    def __len__(self) -> int:
        return len(self.rows)


def study_of(rows: Iterable[RunRow]) -> Study:
    """Make every row complete, or leave it out with a reason; what was measured plays no part in that."""
    kept: list[tuple[RunRow, RowCase]] = []
    left_out: list[tuple[RunRow, str]] = []
    for row in rows:
        case = case_of(row.inputs)
        if isinstance(case, OutOfScope):
            left_out.append((row, case.reason))
        else:
            kept.append((row, case))
    cases = stack([c.case for _, c in kept], [c.family for _, c in kept], [c.software for _, c in kept])
    steps = np.array([measured_step_s(row, case.case.global_batch) for row, case in kept], dtype=np.float64)
    memory = np.array([row.measured.memory_bytes or np.nan for row, _ in kept], dtype=np.float64)
    guessed = np.array([bool(case.guessed) for _, case in kept], dtype=np.bool_)
    return Study(tuple(row for row, _ in kept), cases, steps, memory, tuple(left_out), guessed)


def measured_step_s(row: RunRow, batch: float) -> float:
    """The measured step time of a row predicted with `batch` sequences a step, from tokens per second where only those were
    printed or the batch is not stated; nan where neither is."""
    inputs, measured = row.inputs, row.measured
    if measured.step_s and inputs.global_batch:
        return measured.step_s
    gpus = inputs.n_gpus or (inputs.dp or 0) * (inputs.tp or 1) * (inputs.pp or 1) * (inputs.cp or 1)
    if measured.tokens_per_s_per_gpu and inputs.seq_len and gpus:
        return batch * inputs.seq_len / (measured.tokens_per_s_per_gpu * gpus)
    return float("nan")


# ---------------------------------------------------------------------- who is held back with whom
def configuration(row: RunRow) -> str:
    """Rows of equal configuration are held back together: same model, layout and precision, whatever the scale or the release."""
    i = row.inputs
    scale = (i.dp, i.global_batch) if i.framework == "Megatron-DeepSpeed" else ()
    kind = "".join(c for c in i.framework.lower() if c.isalpha())
    return repr(
        (
            kind,
            i.gpu,
            i.layers,
            i.hidden,
            i.heads,
            i.seq_len,
            i.tp,
            i.pp,
            i.vpp,
            i.cp,
            i.micro_batch,
            i.zero_stage,
            i.precision,
            scale,
        )
    )


def folds_of(rows: Sequence[RunRow], key: Callable[[RunRow], str] = configuration, folds: int = FOLDS) -> NDArray[np.intp]:
    """The fold of each row: a hash of its key, so that the split never depends on the order of rows."""
    return np.array([int(hashlib.sha256(key(row).encode()).hexdigest(), 16) % folds for row in rows], dtype=np.intp)


# ---------------------------------------------------------------------- fits
def fit_step_time(study: Study, memory_table: Table, chosen: NDArray[np.bool_] | None = None, rounds: int = 20) -> Fit:
    """Constants of step time from the chosen rows (default: all) that have a measured time."""
    usable = np.isfinite(study.step_s) & ~study.guessed
    use = usable if chosen is None else chosen & usable
    cases = as_memory_allows(study.cases.take(use), memory_table)
    measured = study.step_s[use]

    def errors(values: Mapping[str, Floats]) -> Floats:
        return np.log(step_time(cases, Constants(**values)).total_s / measured)

    return fit(STARTS, free_constants(cases), kinds_of(cases), errors, _weights(cases), rounds=rounds)


def _weights(cases: Cases) -> Floats:
    """One for each row of a small experiment, less for each of a large one; one node and several count apart."""
    across = np.broadcast_to(cases.dp * cases.tp * cases.pp * cases.cp > cases.per_node, (len(cases),))
    keys = list(zip(cases.families, cases.softwares, across.tolist(), strict=True))
    count = Counter(keys)
    return np.array([min(1.0, MOST_WEIGHT / count[key]) for key in keys])


def fit_memory(study: Study, chosen: NDArray[np.bool_] | None = None) -> Fit:
    """Constants of memory from the chosen rows (default: all) that have measured memory."""
    usable = np.isfinite(study.memory_bytes) & ~study.guessed
    use = usable if chosen is None else chosen & usable
    part = Study(
        tuple(row for row, used in zip(study.rows, use, strict=True) if used),
        study.cases.take(use),
        study.step_s[use],
        study.memory_bytes[use],
        (),
        study.guessed[use],
    )
    known = as_memory_allows(part.cases, MEMORY_STARTS)

    def errors(values: Mapping[str, Floats]) -> Floats:
        return np.log(_comparable(part.rows, memory_from(known, MemoryConstants(**values))) / part.memory_bytes)

    return fit(MEMORY_STARTS, free_memory_constants(part.cases.softwares), kinds_of(known), errors, np.ones(len(part)))


def comparable_memory(rows: Sequence[RunRow], cases: Cases, table: Table) -> Floats:
    """Predicted bytes of the kind that each row's source measured: allocated, reserved, or all of the device."""
    return _comparable(rows, memory_of(cases, table))


def _comparable(rows: Sequence[RunRow], memory: Memory) -> Floats:
    words = [row.measured.memory_kind.lower().split("(")[0] for row in rows]
    allocated = np.array(["allocated" in word or word.startswith("gb peak") for word in words])
    reserved = np.array(["reserved" in word for word in words])
    return np.where(allocated, memory.allocated_bytes, np.where(reserved, memory.reserved_bytes, memory.device_bytes))


# ---------------------------------------------------------------------- errors of rows that the fit did not see
def held_back_errors(study: Study, memory_table: Table, fold: NDArray[np.intp]) -> Floats:
    """ln(predicted / measured) step time of every row, each predicted with constants fitted without its fold."""
    cases = as_memory_allows(study.cases, memory_table)
    found = np.full(len(study), np.nan)
    for held in sorted(set(fold.tolist())):
        table = fit_step_time(study, memory_table, fold != held, rounds=10).table
        constants = resolve(table, cases)
        others = fold != held
        surface = fit_surface(cases.take(others), np.log(step_time(cases, constants).total_s / study.step_s)[others])
        predicted = step_time(cases, on_surface(constants, cases, surface)).total_s
        found = np.where(fold == held, np.log(predicted / study.step_s), found)
    return found


def held_back_memory_errors(study: Study, fold: NDArray[np.intp]) -> Floats:
    """ln(predicted / measured) memory of every row, held back in the same way."""
    found = np.full(len(study), np.nan)
    for held in sorted(set(fold.tolist())):
        table = fit_memory(study, fold != held).table
        predicted = comparable_memory(study.rows, as_memory_allows(study.cases, table), table)
        found = np.where(fold == held, np.log(predicted / study.memory_bytes), found)
    return found


def baseline_errors(study: Study, fold: NDArray[np.intp], group: Sequence[str]) -> Floats:
    """The trivial planner: one efficiency per GPU and precision inside each group, fitted without the row's fold."""
    log_ideal = np.log(ideal_s(study.cases) / study.step_s)
    keys = np.array(
        [f"{name}|{row.inputs.gpu}|{low}" for name, row, low in zip(group, study.rows, study.cases.low.tolist(), strict=True)]
    )
    found = np.full(len(study), np.nan)
    usable = np.isfinite(log_ideal)
    for i in np.flatnonzero(usable):
        others = usable & (keys == keys[i]) & (fold != fold[i])
        if not np.any(others):
            others = usable & (fold != fold[i])
        if not np.any(others):
            continue  # a single configuration: nothing is left to fit a constant on
        found[i] = log_ideal[i] - np.median(log_ideal[others])
    return found


def ideal_s(cases: Cases) -> Floats:
    """Seconds of a step at the GPUs' full rate: 6 FLOPs per parameter and token, causal attention, one more pass where all is
    recomputed."""
    tokens = cases.global_batch * cases.seq
    weights = model_parameters(cases)
    flops = tokens * (6.0 * weights + 6.0 * cases.layers * cases.hidden * cases.seq)
    gpus = cases.dp * cases.tp * cases.pp * cases.cp
    return flops * np.where(cases.recompute >= 2, 4.0 / 3.0, 1.0) / (gpus * cases.peak)
