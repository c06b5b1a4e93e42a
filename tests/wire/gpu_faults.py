"""F97 to F120: what can be wrong with a node's GPUs, how the lab's NVML makes it, and what the health table must find."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.domain.health import Severity
from orchestrator.lab.gpus import NodeGpus
from orchestrator.lab.nvml.library import SONAME, compile_library

GPU = 1
"""The GPU that the faults are of; its neighbour 0 stays sound."""
F, W = Severity.FAILED, Severity.WARNING
Found = tuple[str, int | None]


@dataclass
class Bench:
    """The lab's NVML library, the state of two GPUs, and the interpreter's way to them."""

    folder: Path
    library: Path
    gpus: NodeGpus
    timeout_s: float = 20.0

    def state(self, **changed: str | None) -> None:
        """Change keys of the state file that no named fault changes; two underscores stand for a dot."""
        self.gpus._change({key.replace("__", "."): value for key, value in changed.items()})

    def environment(self) -> dict[str, str]:
        return {
            "LD_LIBRARY_PATH": str(self.library),
            "RACKRAY_LAB_NVML_STATE": str(self.gpus.state_file),
            "PATH": "/usr/bin:/bin",
        }


Plant = Callable[[Bench], Iterator[None] | None]


@dataclass(frozen=True)
class GpuFault:
    """One row."""

    number: str
    kind: str
    made: str
    plant: Plant | None
    """None where the lab cannot make it; `made` says why."""
    found: Sequence[Found] = ()
    """(check, GPU) of everything the table must find; empty: nothing is wrong with the node."""
    says: str = ""
    """What the first finding must hold (regular expression)."""
    severity: Severity = F
    limit_s: float = 20.0
    answered: str = field(default="")
    then: str = ""
    """What comes of it where no single probe can show it: then `plant` is None, and a test of its own makes it."""

    @property
    def id(self) -> str:
        return f"{self.number}-{self.kind.replace(' ', '-')}"


def fault(name: str, **arguments: int) -> Plant:
    """A fault that `rackray lab fault` knows."""
    return lambda bench: bench.gpus.fault(name, GPU, **arguments)


def state(**changed: str | None) -> Plant:
    return lambda bench: bench.state(**changed)


def no_library(bench: Bench) -> None:
    bench.library = bench.folder


def no_driver(bench: Bench) -> None:
    bench.gpus.state_file.unlink()


def old_driver(bench: Bench) -> None:
    """A library without the functions that came last."""
    bench.library = bench.folder / "old"
    bench.library.mkdir()
    newest = ("nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetGspFirmwareVersion")
    compile_library(bench.library / SONAME, without=newest)


def dies(bench: Bench) -> None:
    """A library that kills its caller."""
    bench.library = bench.folder / "dies"
    bench.library.mkdir()
    source = bench.library / "dies.c"
    source.write_text("#include <stdlib.h>\nint nvmlInitWithFlags(unsigned f) { (void)f; abort(); }\n")
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(bench.library / SONAME), str(source)], check=True)


def lost_on_the_way(bench: Bench) -> None:
    """The GPU hangs when the probe comes to it, and then is gone: Xid 79 in the middle of a probe."""
    bench.gpus.fault("gpu_hang", GPU)

    def fall_off() -> None:
        time.sleep(1.0)
        bench.state(**{f"lost__{GPU}": "1", f"hang__{GPU}": None})

    threading.Thread(target=fall_off, daemon=True).start()


def twin(bench: Bench) -> None:
    bench.state(**{f"uuid__{GPU}": bench.gpus.read()["uuid.0"]})


XIDS: Mapping[str, int] = {"reset the GPU": 1, "reboot the node": 2, "drain and reset": 4}
"""What the driver asks for after Xids 48, 63, 64, 94, 95 (reset), 79, 119, 120 (reboot), 140 (drain and reset)."""

GPU_TABLE: tuple[GpuFault, ...] = (
    GpuFault("F97", "libnvidia-ml.so.1 missing", "no library on the path", no_library, [("nvml", None)], "Library Not Found"),
    GpuFault("F97", "driver not loaded", "no state file", no_driver, [("nvml", None)], "Driver Not Loaded"),
    GpuFault("F97", "a library that aborts", "a library of its own", dies, [("nvml", None)], "died with status"),
    GpuFault(
        "F98",
        "driver and library of different versions",
        "state `init_error 18`",
        state(init_error="18"),
        [("nvml", None)],
        "mismatch",
    ),
    GpuFault(
        "F99",
        "FunctionNotFound",
        "a library without three functions",
        old_driver,
        answered="null: an older driver does not know every counter",
    ),
    GpuFault(
        "F100",
        "NotSupported for one field",
        "a key taken out of the state",
        state(**{f"power_usage_mw__{GPU}": None, f"remap_pending__{GPU}": None}),
        answered="null: what a GPU does not say is no failure",
    ),
    GpuFault("F101", "fewer GPUs than the spec", "state `count 1`", state(count="1"), [("gpu-count", None)], "1 GPUs .* has 2"),
    GpuFault(
        "F102",
        "a GPU of another model",
        "state `name`",
        state(**{f"name__{GPU}": "NVIDIA A100-SXM4-80GB"}),
        [("gpu-model", GPU)],
        "A100",
    ),
    GpuFault("F103", "lost in the middle of the probe", "hangs, then is lost", lost_on_the_way, [("gpu-lost", GPU)], "is lost"),
    GpuFault("F103", "lost", "lab fault `gpu_lost`", fault("gpu_lost"), [("gpu-lost", GPU)], "is lost"),
    *(
        GpuFault(
            "F104",
            f"an Xid whose cure is: {words}",
            "lab fault `gpu_recovery_due`: the kernel log is this machine's, the driver's wish is not",
            fault("gpu_recovery_due", action=action),
            [("recovery-action", GPU)],
            words,
        )
        for words, action in XIDS.items()
    ),
    GpuFault(
        "F105",
        "uncorrectable ECC errors",
        "lab fault `gpu_ecc_uncorrected`",
        fault("gpu_ecc_uncorrected", count=3),
        [("ecc-uncorrected", GPU)],
        "3 uncorrected",
    ),
    GpuFault("F105", "ECC switched off", "lab fault `gpu_ecc_off`", fault("gpu_ecc_off"), [("ecc-off", GPU)], "ECC"),
    GpuFault(
        "F106",
        "row remap pending",
        "lab fault `gpu_row_remap_pending`",
        fault("gpu_row_remap_pending"),
        [("remap-pending", GPU)],
        "uncorrectable rows: 1",
    ),
    GpuFault(
        "F106",
        "page retirement pending",
        "state `retired_pages_pending`",
        state(**{f"retired_pages_pending__{GPU}": "1"}),
        [("retired-pages", GPU)],
        "pending retirement",
    ),
    GpuFault(
        "F107",
        "row remap failed",
        "lab fault `gpu_row_remap_failed`",
        fault("gpu_row_remap_failed"),
        [("remap-failed", GPU)],
        "failed",
    ),
    GpuFault(
        "F108", "NVLink down", "lab fault `gpu_nvlink_down`", fault("gpu_nvlink_down", link=5), [("nvlink-down", GPU)], "1 of 18"
    ),
    GpuFault(
        "F109",
        "NVLink errors",
        "lab fault `gpu_nvlink_errors`",
        fault("gpu_nvlink_errors", link=3, count=7),
        [("nvlink-errors", GPU)],
        "replay 7",
        W,
    ),
    GpuFault(
        "F110",
        "an NVLink to the wrong end",
        "lab fault `gpu_nvlink_miswired`",
        fault("gpu_nvlink_miswired", link=2),
        [("nvlink-peers", GPU)],
        "1 gpu, 17 switch",
    ),
    GpuFault(
        "F111",
        "PCIe width below its maximum",
        "lab fault `gpu_pcie_narrow`",
        fault("gpu_pcie_narrow", width=8),
        [("pcie-width", GPU)],
        "8 of 16",
    ),
    GpuFault(
        "F111",
        "PCIe generation below its maximum",
        "state `pcie_gen`",
        state(**{f"pcie_gen__{GPU}": "3"}),
        [("pcie-generation", GPU)],
        "generation 3 of 5",
        W,
        answered="at rest a link may be clocked down; no GPU computes in the lab",
    ),
    GpuFault(
        "F112",
        "too hot, slowed down",
        "lab fault `gpu_hot`",
        fault("gpu_hot", celsius=93),
        [("temperature", GPU), ("throttle", GPU)],
        "93 °C",
    ),
    GpuFault(
        "F112",
        "power brake",
        "lab fault `gpu_power_brake`",
        fault("gpu_power_brake"),
        [("throttle", GPU)],
        "hw_power_brake_slowdown",
    ),
    GpuFault(
        "F113",
        "power limit below the default",
        "lab fault `gpu_power_capped`",
        fault("gpu_power_capped"),
        [("power-limit", GPU)],
        "350 W of 700 W",
        W,
    ),
    GpuFault(
        "F114",
        "persistence mode off",
        "state `persistence_mode`",
        state(**{f"persistence_mode__{GPU}": "0"}),
        [("persistence", GPU)],
        "persistence",
        W,
    ),
    GpuFault(
        "F114",
        "compute mode prohibited",
        "lab fault `gpu_compute_prohibited`",
        fault("gpu_compute_prohibited"),
        [("compute-mode", GPU)],
        "prohibited",
    ),
    GpuFault("F115", "MIG on", "lab fault `gpu_mig`", fault("gpu_mig"), [("mig", GPU)], "MIG"),
    GpuFault(
        "F116",
        "VBIOS of another version",
        "lab fault `gpu_vbios_odd`",
        fault("gpu_vbios_odd"),
        [("vbios-mixed", None)],
        "2 VBIOS",
        W,
    ),
    GpuFault(
        "F116",
        "InfoROM of another version",
        "state `inforom_version`",
        state(**{f"inforom_version__{GPU}": "G520.0201.00.05"}),
        [("inforom-mixed", None)],
        "2 InfoROM",
        W,
    ),
    GpuFault(
        "F116",
        "GSP firmware of another version",
        "state `gsp_version`",
        state(**{f"gsp_version__{GPU}": "570.1"}),
        [("gsp-mixed", None)],
        "2 GSP",
    ),
    GpuFault("F117", "two GPUs of a node with one UUID", "state `uuid`", twin, [("gpu-twins", None)], "same UUID"),
    GpuFault(
        "F117",
        "two nodes with one UUID or serial",
        "two nodes' libraries with the GPUs of one machine",
        None,
        answered="a probe sees one node: the journal's fold compares them (`domain/identities.py`)",
        then="quarantines the node that said it later, with both names",
    ),
    GpuFault(
        "F118",
        "fabric not completed",
        "lab fault `gpu_fabric_stuck`",
        fault("gpu_fabric_stuck"),
        [("fabric", GPU)],
        "in progress",
    ),
    GpuFault(
        "F119",
        "an NVML call that hangs",
        "lab fault `gpu_hang`",
        fault("gpu_hang"),
        [("nvml-hang", None)],
        "NVML hung while asked for GPU 1",
        limit_s=1.5,
        answered="the child that asks is killed; what was said before counts",
    ),
    GpuFault(
        "F120",
        "temperature 255",
        "state `temperature_c 255`",
        state(**{f"temperature_c__{GPU}": "255"}),
        [("absurd-reading", GPU)],
        "temperature_c 255",
    ),
    GpuFault(
        "F120",
        "power 0",
        "state `power_usage_mw 0`",
        state(**{f"power_usage_mw__{GPU}": "0"}),
        [("absurd-reading", GPU)],
        "power_w 0",
    ),
)
GPU_NUMBERS = tuple(f"F{number}" for number in range(97, 121))
