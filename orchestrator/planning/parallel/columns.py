"""What a framework and a GPU put into a case, one place for both ways there: a row of a table of runs, and a plan's layouts."""

from collections.abc import Mapping

from orchestrator.planning.parallel.cases import SCHEDULES, SELECTS
from orchestrator.planning.parallel.gpus import GpuType
from orchestrator.planning.parallel.software import Software, gradient_bytes, schedule_of

PEAK_WORDS: Mapping[int, str] = {0: "bf16", 1: "fp8", 2: "fp4", -1: "fp32"}
"""Precision code of the matrix products (`Case.low`) → the word by which a GPU's peak is looked up (`GpuType.peak_tflops`)."""


def columns_of(framework: str, software: Software, gpu: GpuType, low: int, in_bf16: bool) -> dict[str, float]:
    """Columns of `Case` that hold for every layout; `software` is the family of the name `framework`, which may state a
    schedule."""
    return {
        "schedule": SCHEDULES[schedule_of(framework)],
        "selects": SELECTS[software.selects],
        "sequence_parallel": float(software.sequence_parallel),
        "whole_blocks": float(software.whole_blocks),
        "by_heads": float(software.context_by_heads),
        "flash": float(software.flash),
        "fused_loss": float(software.fused_loss),
        "low": low,
        "state_p": 4.0 if low < 0 else software.parameter_bytes,
        "state_g": gradient_bytes(software, low, in_bf16),
        "peak": gpu.peak_tflops(PEAK_WORDS[low]) * 1e12,
        "peak16": gpu.bf16_tflops * 1e12,
        "memory_bw": gpu.memory_gb_s * 1e9,
        "memory": gpu.memory_gib * 2.0**30,
        "multiprocessors": gpu.multiprocessors,
        "nvlink": gpu.nvlink_gb_s * 1e9,
        "gpu_power_w": gpu.power_w,
    }
