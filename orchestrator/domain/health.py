"""Findings of the acceptance probe, and what a sound probe looks like."""

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """What a finding means for the node."""

    FAILED = "failed"
    """It must not receive work."""
    WARNING = "warning"
    """Worth a look; it may work."""


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """One thing one check found wrong."""

    check: str
    severity: Severity
    gpu: int | None
    """Index of the GPU, or None where the node as a whole is meant."""
    says: str
    """What is wrong, with numbers."""
    way_out: str

    def __str__(self) -> str:
        where = "" if self.gpu is None else f"GPU {self.gpu} "
        return f"{where}{self.says}; {self.way_out}"


def sound_probe(
    model: str, count: int, *, remap_pending: Collection[int] = (), power_limit_w: float = 700.0, owner: str = ""
) -> dict[str, Any]:
    """What `agent/probe.py` prints on a node of `count` sound GPUs; `remap_pending` names GPUs with a row remap pending.

    `owner` makes the GPUs those of one machine: others have other UUIDs and serials. Serves plans (the world in which every step
    succeeds), simulated nodes, and tests.
    """
    lot = zlib.crc32(owner.encode())
    return {
        "driver": "580.95.05",
        "nvml": "13.580.95.05",
        "cuda": "13.0",
        "problem": "",
        "hung": "",
        "gpus": [_sound_gpu(model, index, index in remap_pending, power_limit_w, lot) for index in range(count)],
        "seconds": 0.1,
    }


def _sound_gpu(model: str, index: int, remap_pending: bool, power_limit_w: float, lot: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": model,
        "uuid": f"GPU-{lot:08x}-0000-4000-8000-{index:012d}",
        "serial": f"{1_650_000_000_000 + lot * 100 + index}",
        "vbios": "96.00.A5.00.01",
        "inforom": "G520.0200.00.05",
        "gsp": "580.95.05",
        "memory_mib": 81559,
        "temperature_c": 31,
        "power_w": 71.4,
        "power_limit_w": power_limit_w,
        "power_limit_default_w": 700.0,
        "ecc_mode": True,
        "ecc_uncorrected_volatile": 0,
        "ecc_uncorrected_aggregate": 0,
        "remap": {"correctable": 0, "uncorrectable": int(remap_pending), "pending": remap_pending, "failure": False},
        "retired_pages_pending": None,
        "pcie_gen": 5,
        "pcie_gen_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "throttle": [],
        "mig": False,
        "compute_mode": "default",
        "recovery_action": "reset the GPU" if remap_pending else "none",
        "fabric": "completed",
        "persistence": True,
        "nvlink": {
            "up": 18,
            "down": 0,
            "peers": {"switch": 18},
            "errors": {"replay": 0, "recovery": 0, "crc_flit": 0, "crc_data": 0},
        },
        "processes": 0,
        "lost": False,
        "errors": [],
    }
