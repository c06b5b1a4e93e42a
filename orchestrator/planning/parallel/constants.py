"""tmp"""
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats

Table: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Constants:
    """The fitted numbers for each case; every field broadcasts against the cases."""

    gemm: Floats
    gemm_low: Floats
    wave_power: Floats
    inner_half: Floats
    column_half: Floats
    row_half: Floats
    odd_cost: Floats
    backward_matmul: Floats
    selective_share: Floats
    flash_reach: Floats
    head_half: Floats
    scores_reach: Floats
    score_passes: Floats
    odd_head: Floats
    whole_passes: Floats
    split_passes: Floats
    backward_passes: Floats
    loss_passes: Floats
    launch_s: Floats
    end_fixed_s: Floats
    step_fixed_s: Floats
    optimizer_bytes: Floats
    nvlink_reach: Floats
    nvlink_alpha_s: Floats
    network_reach: Floats
    network_alpha_s: Floats
    boundary_reach: Floats
    boundary_alpha_s: Floats
    tensor_exposed: Floats
    context_exposed: Floats
    gradient_wire_bytes: Floats
    data_overlap: Floats
    pace: Floats


DEFAULTS: Table = {
    "gemm": {"": 0.75},
    "gemm_low": {"": 0.55},
    "wave_power": {"": 0.5},
    "inner_half": {"": 150.0},
    "column_half": {"": 50.0},
    "row_half": {"": 50.0},
    "odd_cost": {"": 0.05},
    "backward_matmul": {"": 1.0},
    "selective_share": {"": 0.2},
    "flash_reach": {"": 0.5},
    "head_half": {"": 32.0},
    "scores_reach": {"": 0.4},
    "score_passes": {"": 6.0},
    "odd_head": {"": 0.5},
    "whole_passes": {"": 12.0},
    "split_passes": {"": 3.0},
    "backward_passes": {"": 1.5},
    "loss_passes": {"": 8.0},
    "launch_s": {"": 2e-3},
    "end_fixed_s": {"": 5e-4},
    "step_fixed_s": {"": 1e-2},
    "optimizer_bytes": {"": 36.0},
    "nvlink_reach": {"": 0.6},
    "nvlink_alpha_s": {"": 3e-5},
    "network_reach": {"": 0.6},
    "network_alpha_s": {"": 5e-5},
    "boundary_reach": {"": 0.5},
    "boundary_alpha_s": {"": 5e-5},
    "tensor_exposed": {"": 1.0},
    "context_exposed": {"": 0.3},
    "gradient_wire_bytes": {"": 3.0},
    "data_overlap": {"": 0.5},
    "pace": {"": 1.0},
}


def keys_of(family: str, software: str) -> tuple[str, ...]:
    """Where a constant is looked up, most special first."""
    return (f"{family}|{software}", software, family, "")


def resolve(table: Table, cases: Cases) -> Constants:
    """The constants of every case."""
    pairs = _pairs(cases)
    unique = sorted(set(pairs))
    position = {pair: i for i, pair in enumerate(unique)}
    index = np.array([position[pair] for pair in pairs], dtype=np.intp)
    values: dict[str, Floats] = {}
    for field in fields(Constants):
        row = table[field.name]
        each = np.array([next(row[key] for key in keys_of(*pair) if key in row) for pair in unique], dtype=np.float64)
        values[field.name] = each[index]
    return Constants(**values)


def _pairs(cases: Cases) -> list[tuple[str, str]]:
    size = max(len(cases.families), len(cases.softwares))
    families = cases.families if len(cases.families) == size else cases.families * size
    softwares = cases.softwares if len(cases.softwares) == size else cases.softwares * size
    return list(zip(families, softwares, strict=True))
