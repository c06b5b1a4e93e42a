"""The GPUs of one lab node: what its NVML library answers, kept in a text file outside the node's disk.

Hardware outlives an image, so a fault planted here survives re-imaging and power cycles until it is healed. The file is
replaced whole (never half-written), and the library reads it at every call: a fault is seen by running processes at once.
Keys: `orchestrator/lab/nvml/stub.c`. Figures of the profiles: NVIDIA H100 Tensor Core GPU datasheet (80 GB HBM3, 3.35 TB/s,
700 W, 18 NVLink-4 links) and what nvidia-smi prints on an idle HGX board; the lab's GPUs compute nothing and stay idle.
"""

import hashlib
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab.errors import BadLabInput

GIB = 1024**3
MAX_GPUS = 16
"""The library's table of devices is this long."""
IDLE_REASON = 1
HW_SLOWDOWN, HW_THERMAL, HW_POWER_BRAKE = 0x8, 0x40, 0x80
"""Bits of nvmlClocksEventReasons (nvml.h)."""


@dataclass(frozen=True, slots=True)
class GpuModel:
    """What all GPUs of one model have in common."""

    name: str
    memory_bytes: int
    reserved_bytes: int
    power_max_mw: int
    power_min_mw: int
    power_idle_mw: int
    cuda_cores: int
    nvlinks: int
    nvlink_version: int
    pci_device_id: int
    pci_subsystem_id: int
    board_part: str
    vbios: str
    graphics_max_mhz: int
    memory_mhz: int
    memory_bus_bits: int
    pcie_gen: int
    compute: tuple[int, int]
    architecture: int
    """nvmlDeviceArchitecture_t: 7 Ampere, 9 Hopper."""


H100 = GpuModel(
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=81_559 * 1024**2,
    reserved_bytes=564 * 1024**2,
    power_max_mw=700_000,
    power_min_mw=200_000,
    power_idle_mw=71_400,
    cuda_cores=16_896,
    nvlinks=18,
    nvlink_version=4,
    pci_device_id=0x233010DE,
    pci_subsystem_id=0x16C110DE,
    board_part="692-2G520-0200-000",
    vbios="96.00.A5.00.01",
    graphics_max_mhz=1980,
    memory_mhz=2619,
    memory_bus_bits=5120,
    pcie_gen=5,
    compute=(9, 0),
    architecture=9,
)
H200 = GpuModel(
    name="NVIDIA H200",
    memory_bytes=143_771 * 1024**2,
    reserved_bytes=604 * 1024**2,
    power_max_mw=700_000,
    power_min_mw=200_000,
    power_idle_mw=76_200,
    cuda_cores=16_896,
    nvlinks=18,
    nvlink_version=4,
    pci_device_id=0x233510DE,
    pci_subsystem_id=0x18BE10DE,
    board_part="692-2G520-0280-000",
    vbios="96.00.BC.00.02",
    graphics_max_mhz=1980,
    memory_mhz=3201,
    memory_bus_bits=6144,
    pcie_gen=5,
    compute=(9, 0),
    architecture=9,
)
A100 = GpuModel(
    name="NVIDIA A100-SXM4-80GB",
    memory_bytes=80 * GIB,
    reserved_bytes=618 * 1024**2,
    power_max_mw=400_000,
    power_min_mw=100_000,
    power_idle_mw=61_800,
    cuda_cores=6_912,
    nvlinks=12,
    nvlink_version=3,
    pci_device_id=0x20B210DE,
    pci_subsystem_id=0x146310DE,
    board_part="692-2G506-0212-002",
    vbios="92.00.45.00.06",
    graphics_max_mhz=1410,
    memory_mhz=1593,
    memory_bus_bits=5120,
    pcie_gen=4,
    compute=(8, 0),
    architecture=7,
)
GPU_MODELS = {model.name: model for model in (H100, H200, A100)} | {"H100": H100, "H200": H200, "A100": A100}

DRIVER_VERSION = "580.95.05"
SYSTEM_KEYS = {"driver_version": DRIVER_VERSION, "nvml_version": f"13.{DRIVER_VERSION}", "cuda_version": "13000"}

GPU_FAULTS: Mapping[str, Mapping[str, str]] = {
    "gpu_row_remap_pending": {"remap_pending": "1", "remapped_rows_uncorrected": "1", "recovery_action": "1"},
    "gpu_row_remap_failed": {"remap_failed": "1"},
    "gpu_lost": {"lost": "1"},
    "gpu_hang": {"hang": "1"},
    "gpu_ecc_uncorrected": {"ecc_volatile_uncorrected": "{count}", "ecc_aggregate_uncorrected": "{count}"},
    "gpu_ecc_off": {"ecc_mode": "0"},
    "gpu_hot": {
        "temperature_c": "{celsius}",
        "temperature_memory_c": "{celsius}",
        "clock_event_reasons": str(HW_SLOWDOWN | HW_THERMAL),
    },
    "gpu_power_brake": {"clock_event_reasons": str(HW_SLOWDOWN | HW_POWER_BRAKE)},
    "gpu_power_capped": {"power_limit_mw": "{milliwatts}", "power_enforced_limit_mw": "{milliwatts}"},
    "gpu_pcie_narrow": {"pcie_width": "{width}"},
    "gpu_nvlink_down": {"nvlink_active": "0"},
    "gpu_nvlink_errors": {"nvlink_replays": "{count}"},
    "gpu_nvlink_miswired": {"nvlink_peer": "{peer}"},
    "gpu_fabric_stuck": {"fabric_state": "2"},
    "gpu_recovery_due": {"recovery_action": "{action}"},
    "gpu_mig": {"mig_mode": "1", "mig_mode_pending": "1"},
    "gpu_compute_prohibited": {"compute_mode": "2"},
    "gpu_vbios_odd": {"vbios_version": "96.00.00.00.00"},
}
"""Fault -> key of the state -> its value while the GPU is broken; {word} is the fault's argument. README.md lists them."""
FAULT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gpu_ecc_uncorrected": {"count": 1},
    "gpu_hot": {"celsius": 93},
    "gpu_pcie_narrow": {"width": 4},
    "gpu_nvlink_down": {"link": 0},
    "gpu_nvlink_errors": {"link": 0, "count": 1000},
    "gpu_nvlink_miswired": {"link": 0, "peer": 0},
    "gpu_power_capped": {"milliwatts": 350_000},
    "gpu_recovery_due": {"action": 2},
}


def gpu_model(name: str) -> GpuModel:
    """The profile of a model by its NVML name or short name. Raises: BadLabInput for one the lab does not know."""
    if name not in GPU_MODELS:
        raise BadLabInput(f"the lab has no GPU called {name!r}", hint=f"it knows {', '.join(sorted(GPU_MODELS))}")
    return GPU_MODELS[name]


class NodeGpus:
    """The state file of one node's GPUs. Thread-safe."""

    def __init__(self, state_file: Path, model: str, count: int, machine_serial: str) -> None:
        if not 0 <= count <= MAX_GPUS:
            raise BadLabInput(f"a lab node has 0 to {MAX_GPUS} GPUs, not {count}", hint="change gpu_count")
        self.state_file = state_file
        self.count = count
        self._lock = threading.Lock()
        self._sound = sound_state(gpu_model(model), count, machine_serial)
        if not state_file.exists():
            self._write(self._sound)

    def fault(self, name: str, gpu: int, **arguments: int) -> None:
        """Breaks one GPU. Raises: BadLabInput for an unknown fault, GPU or argument."""
        values = self._arguments(name, gpu, arguments)
        suffix = f".{gpu}.{values['link']}" if "link" in values else f".{gpu}"
        self._change({key + suffix: broken.format(**values) for key, broken in GPU_FAULTS[name].items()})

    def heal(self, name: str, gpu: int | None = None, **arguments: int) -> None:
        """Undoes a fault: of all GPUs, of one, of one of its links. Raises: BadLabInput as `fault` does."""
        changes: dict[str, str | None] = {}
        for index in range(self.count) if gpu is None else (gpu,):
            self._arguments(name, index, arguments)
            place = f".{index}.{arguments['link']}" if "link" in arguments else f".{index}"
            for stem in GPU_FAULTS[name]:
                changes |= {key: self._sound.get(key) for key in self.read() if f"{key}.".startswith(f"{stem}{place}.")}
        self._change(changes)

    def read(self) -> dict[str, str]:
        """The whole state, key to value."""
        pairs = (line.split(" ", 1) for line in self.state_file.read_text().splitlines())
        return {key: value for key, value in pairs}

    def faults(self) -> list[str]:
        """`NAME(gpu=I)` for every GPU fault that is on, links told apart."""
        state = self.read()
        found = []
        for name, keys in GPU_FAULTS.items():
            stem = next(iter(keys))
            for key, value in state.items():
                place = key.removeprefix(stem + ".").split(".") if key.startswith(stem + ".") else []
                if place and value != self._sound.get(key) and self._fits(name, key, value):
                    found.append(f"{name}({', '.join(f'{word}={at}' for word, at in zip(('gpu', 'link'), place, strict=False))})")
        return found

    def power_cycled(self) -> None:
        """The driver loads anew: volatile error counters start at 0, aggregate ones stay (nvml.h, nvmlEccCounterType_t)."""
        kinds = ("corrected", "uncorrected")
        self._change({f"ecc_volatile_{kind}.{gpu}": "0" for kind in kinds for gpu in range(self.count)})

    def _arguments(self, name: str, gpu: int, given: Mapping[str, int]) -> dict[str, int]:
        if name not in GPU_FAULTS:
            raise BadLabInput(f"no GPU fault is called {name!r}", hint=f"there are {', '.join(sorted(GPU_FAULTS))}")
        if not 0 <= gpu < self.count:
            raise BadLabInput(
                f"the node has {self.count} GPUs, numbered from 0; there is no GPU {gpu}", hint="choose another gpu"
            )
        known = FAULT_DEFAULTS.get(name, {})
        strange = sorted(given.keys() - known.keys())
        if strange:
            raise BadLabInput(f"{name} takes no {strange[0]!r}", hint=f"it takes gpu{''.join(f', {word}' for word in known)}")
        return {**known, **given}

    @staticmethod
    def _fits(name: str, key: str, value: str) -> bool:
        """Whether a value that is not sound is that of this fault: several faults may change one key."""
        stem = key.split(".")[0]
        fixed = {fault for fault, keys in GPU_FAULTS.items() if keys.get(stem) == value}
        return name in fixed or (not fixed and "{" in GPU_FAULTS[name][stem])

    def _change(self, changes: Mapping[str, str | None]) -> None:
        """None takes a key out of the state: the GPU does not say any more."""
        with self._lock:
            self._write({key: value for key, value in (self.read() | dict(changes)).items() if value is not None})

    def _write(self, state: Mapping[str, str]) -> None:
        draft = self.state_file.with_name(self.state_file.name + ".draft")
        draft.write_text("".join(f"{key} {value}\n" for key, value in state.items()))
        draft.chmod(0o644)
        draft.replace(self.state_file)


def sound_state(model: GpuModel, count: int, machine_serial: str) -> dict[str, str]:
    """The state of `count` idle GPUs without a fault; serials and UUIDs follow from the machine's serial."""
    state = {"count": str(count), **SYSTEM_KEYS}
    for gpu in range(count):
        state |= {f"{key}.{gpu}": value for key, value in _identity(model, gpu, machine_serial).items()}
        state |= {f"{key}.{gpu}": str(value) for key, value in _readings(model).items()}
        for link in range(model.nvlinks):
            state[f"nvlink_active.{gpu}.{link}"] = "1"
            for counter in ("nvlink_replays", "nvlink_recoveries", "nvlink_crc_flit", "nvlink_crc_data"):
                state[f"{counter}.{gpu}.{link}"] = "0"
    return state


def _identity(model: GpuModel, gpu: int, machine_serial: str) -> dict[str, str]:
    seed = hashlib.sha256(f"{machine_serial}/{gpu}".encode())
    return {
        "name": model.name,
        "uuid": f"GPU-{uuid.UUID(bytes=seed.digest()[:16], version=4)}",
        "serial": str(1_650_000_000_000 + int.from_bytes(seed.digest()[16:20], "big")),
        "pci_bus_id": f"00000000:{(0x19 + gpu * 0x1B) & 0xFF:02X}:00.0",
        "board_part_number": model.board_part,
        "vbios_version": model.vbios,
        "inforom_version": "G520.0200.00.05",
        "inforom_oem_version": "2.1",
        "inforom_ecc_version": "7.16",
        "gsp_version": DRIVER_VERSION,
    }


IDLE_READINGS: Mapping[str, int] = {
    "board_id": 0,
    "multi_gpu_board": 0,
    "brand": 14,
    "memory_used_bytes": 0,
    "bar1_total_bytes": 128 * GIB,
    "bar1_used_bytes": 1024**2,
    "temperature_c": 31,
    "temperature_memory_c": 38,
    "temperature_shutdown_c": 92,
    "temperature_slowdown_c": 89,
    "temperature_memory_max_c": 95,
    "temperature_gpu_max_c": 87,
    "utilization_gpu_percent": 0,
    "utilization_memory_percent": 0,
    "clock_graphics_mhz": 345,
    "clock_sm_mhz": 345,
    "clock_video_mhz": 765,
    "clock_video_max_mhz": 1545,
    "clock_event_reasons": IDLE_REASON,
    "clock_event_reasons_supported": 0x1FF,
    "performance_state": 0,
    "persistence_mode": 1,
    "compute_mode": 0,
    "mig_mode": 0,
    "mig_mode_pending": 0,
    "gsp_enabled": 1,
    "gsp_default": 1,
    "ecc_mode": 1,
    "ecc_mode_pending": 1,
    "ecc_volatile_corrected": 0,
    "ecc_volatile_uncorrected": 0,
    "ecc_aggregate_corrected": 0,
    "ecc_aggregate_uncorrected": 0,
    "remapped_rows_corrected": 0,
    "remapped_rows_uncorrected": 0,
    "remap_pending": 0,
    "remap_failed": 0,
    "remap_banks": 2560,
    "recovery_action": 0,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_replays": 0,
    "fabric_state": 3,
    "fabric_health_mask": 0,
}
"""Numbers of an idle GPU that are the same on every model."""


def _readings(model: GpuModel) -> dict[str, int]:
    """Numbers of an idle GPU in the units NVML uses; what is left out answers NOT_SUPPORTED (no fan on an SXM board)."""
    return {
        **IDLE_READINGS,
        "pci_device_id": model.pci_device_id,
        "pci_subsystem_id": model.pci_subsystem_id,
        "architecture": model.architecture,
        "compute_major": model.compute[0],
        "compute_minor": model.compute[1],
        "cuda_cores": model.cuda_cores,
        "memory_bus_bits": model.memory_bus_bits,
        "memory_total_bytes": model.memory_bytes,
        "memory_reserved_bytes": model.reserved_bytes,
        "power_usage_mw": model.power_idle_mw,
        "power_limit_mw": model.power_max_mw,
        "power_default_limit_mw": model.power_max_mw,
        "power_enforced_limit_mw": model.power_max_mw,
        "power_limit_min_mw": model.power_min_mw,
        "power_limit_max_mw": model.power_max_mw,
        "clock_memory_mhz": model.memory_mhz,
        "clock_graphics_max_mhz": model.graphics_max_mhz,
        "clock_sm_max_mhz": model.graphics_max_mhz,
        "clock_memory_max_mhz": model.memory_mhz,
        "pcie_gen": model.pcie_gen,
        "pcie_gen_max": model.pcie_gen,
        "nvlink_count": model.nvlinks,
        "nvlink_version": model.nvlink_version,
    }
