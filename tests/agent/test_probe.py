"""The probe, run as it travels (`python - < probe.py`), on the real pynvml and a library that answers as told."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import orchestrator.agent
from orchestrator.domain.health import sound_probe
from orchestrator.domain.spec import GpuSku, HealthPolicy, Sku
from orchestrator.lab.gpus import NodeGpus
from orchestrator.lab.nvml.library import SONAME, compile_library
from orchestrator.planning.health import inspect_probe, judge_probe

SCRIPT = Path(orchestrator.agent.__file__).with_name("probe.py")
MARKER = "rackray-probe:"
MODEL = "NVIDIA H100 80GB HBM3"
SKU = Sku(manufacturer="M", model="S", units=8, idle_w=900, max_w=2600, gpus=GpuSku(model=MODEL, count=2, memory_gib=80))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(folder / SONAME)
    return folder


@pytest.fixture
def gpus(tmp_path: Path) -> NodeGpus:
    return NodeGpus(tmp_path / "nvml", "H100", 2, "SER-0001")


def probed(library: Path, state: Path, timeout_s: float = 20.0) -> dict[str, Any]:
    environment = {"LD_LIBRARY_PATH": str(library), "RACKRAY_LAB_NVML_STATE": str(state), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-", "--timeout-s", str(timeout_s)]
    done = subprocess.run(command, input=SCRIPT.read_bytes(), env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.decode().splitlines()
    report: dict[str, Any] = json.loads(line.removeprefix(MARKER))
    return report


def checks(report: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(finding.check, finding.gpu) for finding in judge_probe(report, SKU, HealthPolicy())]


def test_a_sound_node_is_described_whole_and_accepted(library: Path, gpus: NodeGpus) -> None:
    report = probed(library, gpus.state_file)
    assert checks(report) == [] and inspect_probe(report, SKU, HealthPolicy()) == ()
    assert (report["driver"], report["cuda"], report["problem"], report["hung"]) == ("580.95.05", "13.0", "", "")
    model = sound_probe(MODEL, 2)
    assert report.keys() == model.keys() and report["gpus"][1].keys() == model["gpus"][1].keys()
    for got, wanted in zip(report["gpus"], model["gpus"], strict=True):
        told_apart = {"uuid", "serial", "memory_mib", "retired_pages_pending"}
        assert {k: v for k, v in got.items() if k not in told_apart} == {k: v for k, v in wanted.items() if k not in told_apart}
    assert len({gpu["uuid"] for gpu in report["gpus"]}) == 2


@pytest.mark.parametrize(
    ("fault", "arguments", "found"),
    [
        ("gpu_row_remap_pending", {}, {"remap-pending"}),
        ("gpu_row_remap_failed", {}, {"remap-failed"}),
        ("gpu_lost", {}, {"gpu-lost"}),
        ("gpu_ecc_uncorrected", {"count": 3}, {"ecc-uncorrected"}),
        ("gpu_hot", {"celsius": 93}, {"temperature", "throttle"}),
        ("gpu_pcie_narrow", {"width": 4}, {"pcie-width"}),
        ("gpu_nvlink_down", {"link": 5}, {"nvlink-down"}),
    ],
)
def test_a_planted_fault_is_found_on_its_gpu_and_gone_when_healed(
    library: Path, gpus: NodeGpus, fault: str, arguments: dict[str, int], found: set[str]
) -> None:
    gpus.fault(fault, 1, **arguments)
    assert set(checks(probed(library, gpus.state_file))) == {(check, 1) for check in found}
    gpus.heal(fault, 1)
    assert checks(probed(library, gpus.state_file)) == []


def test_a_call_that_hangs_is_reported_with_all_that_was_said_before(library: Path, gpus: NodeGpus) -> None:
    gpus.fault("gpu_hang", 1)
    started_s = time.monotonic()
    report = probed(library, gpus.state_file, timeout_s=1.5)
    assert time.monotonic() - started_s < 8
    assert report["hung"].startswith("GPU 1: ") and [gpu["index"] for gpu in report["gpus"]] == [0]
    assert checks(report) == [("nvml-hang", None)]


def test_no_driver_and_no_library_are_told_apart(library: Path, tmp_path: Path) -> None:
    without_driver = probed(library, tmp_path / "no-such-state")
    assert "Driver" in without_driver["problem"] and without_driver["gpus"] == []
    without_library = probed(tmp_path, tmp_path / "no-such-state")
    assert "Library Not Found" in without_library["problem"]
    assert checks(without_driver) == checks(without_library) == [("nvml", None)]


def test_a_library_that_kills_its_caller_is_reported(gpus: NodeGpus, tmp_path: Path) -> None:
    source = tmp_path / "dies.c"
    source.write_text("#include <stdlib.h>\nint nvmlInitWithFlags(unsigned f) { (void)f; abort(); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / SONAME), str(source)], check=True)
    report = probed(tmp_path, gpus.state_file)
    assert "died" in report["problem"] and checks(report) == [("nvml", None)]
