"""What GPUs can do at most, for the share of it that a run reaches (MFU).  Standard library only."""

from __future__ import annotations

from typing import Final

_HALF_TFLOPS: Final = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.5),
    ("H100", 989.4),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("MI300X", 1307.4),
)
"""(part of the device's name, TFLOP/s of dense matrix products in bf16 or fp16), the longer names first.

NVIDIA's datasheets of GB200 NVL72, HGX B200, H200, H100, A100 and L40S, where half of the figures "with sparsity"; AMD's of
MI300X."""


def peak_tflops(device_name: str, precision: str) -> float | None:
    """TFLOP/s of one GPU; None for one that is not listed, and for fp32, whose peak depends on whether TF32 is allowed."""
    if precision not in ("bf16", "fp16"):
        return None
    return next((peak for part, peak in _HALF_TFLOPS if part in device_name), None)
