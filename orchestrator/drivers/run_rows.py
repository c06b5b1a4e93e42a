"""Tables of measured training runs as CSV files, read leniently: a cell that says nothing usable is a cell that is missing."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunInputs, RunMeasured, RunRow

REQUIRED_COLUMNS = ("gpu", "n_gpus")
"""Without these no row can be predicted."""

_INTEGERS = (
    *("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "seq_len", "n_gpus", "gpus_per_node"),
    *("dp", "tp", "pp", "vpp", "cp", "ep", "zero_stage", "micro_batch", "global_batch"),
)


def read_run_rows(path: Path) -> tuple[RunRow, ...]:
    """The rows of a CSV with the columns of rackray's tables of runs; unknown columns are passed over.

    Raises BadInput where the file cannot be read, is no CSV text, or lacks a required column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in REQUIRED_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                empty = "" if reader.fieldnames else "is empty and "
                words = f"{path} {empty}has no column {' and no column '.join(missing)}"
                needed = " and ".join(REQUIRED_COLUMNS)
                raise BadInput(words, f"the first line names the columns, with commas between; needed at least: {needed}")
            return tuple(_row(number, cells) for number, cells in enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{path} cannot be read: {reason}", "give a CSV file with one run per line") from error


def _row(line: int, cells: Mapping[str | None, str | list[str] | None]) -> RunRow:
    text = {name: value.strip() for name, value in cells.items() if isinstance(name, str) and isinstance(value, str)}
    whole = {name: _integer(text.get(name, "")) for name in _INTEGERS}
    inputs = RunInputs(
        gpu=text.get("gpu", ""),
        framework=text.get("framework", ""),
        model=text.get("model", ""),
        workload=text.get("workload", "") or "pretrain",
        arch=text.get("arch", "") or "dense",
        parameters_b=_positive(text.get("model_params_b", "")),
        gated_mlp=_yes_or_no(text.get("gated_mlp", "")),
        internode_gbit_s_per_node=_positive(text.get("internode_bw_gbps_per_node", "")),
        act_ckpt=text.get("act_ckpt") or None,
        precision=text.get("precision") or None,
        **whole,
    )
    measured = RunMeasured(
        step_s=_seconds(text.get("step_time_s", "")),
        tokens_per_s_per_gpu=_positive(text.get("tokens_per_s_per_gpu", "")),
        memory_gb=_positive(text.get("mem_gb_per_gpu", "")),
        memory_kind=text.get("mem_kind", ""),
        out_of_memory="oom" in inputs.workload.lower() or "out of memory" in inputs.workload.lower(),
    )
    return RunRow(text.get("id") or f"line {line}", text.get("source") or text.get("framework") or "unnamed", inputs, measured)


def _number(text: str) -> float | None:
    """A number, also with thousands separators, in the way people write it; None for what is none."""
    try:
        value = float(text.replace(",", "").replace("_", "").lstrip("~≈<>").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < LARGEST else None


LEAST_S, MOST_S = 1e-6, 1e7
"""Seconds: no step of a training run is shorter than a kernel's launch or longer than a season."""
LARGEST = 1e30
"""No quantity of a training run is larger; beyond it sums of squares leave the range of floating-point numbers."""


def _positive(text: str) -> float | None:
    value = _number(text)
    return value if value is not None and value > 1.0 / LARGEST else None


def _seconds(text: str) -> float | None:
    value = _number(text)
    return value if value is not None and LEAST_S <= value <= MOST_S else None


def _integer(text: str) -> int | None:
    value = _number(text)
    return int(value) if value is not None and value == int(value) and value >= 0 else None


def _yes_or_no(text: str) -> bool | None:
    number = _number(text)
    if number is not None:
        return number != 0
    word = text.lower()
    return True if word in ("true", "yes", "y", "swiglu", "geglu", "gated") else False if word in ("false", "no", "n") else None
