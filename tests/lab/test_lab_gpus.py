"""The NVML library and its state file, asked by the real pynvml in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.lab.errors import LabError
from orchestrator.lab.gpus import GPU_FAULTS, NodeGpus
from orchestrator.lab.nvml.library import SONAME, compile_library

ASK = """
import json, sys, pynvml as nvml
def ask(call, *words):
    try:
        answer = call(*words)
    except nvml.NVMLError as error:
        return type(error).__name__
    return answer
try:
    nvml.nvmlInit()
except nvml.NVMLError as error:
    print(json.dumps(type(error).__name__)); sys.exit()
def one(index):
    try:
        h = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return type(error).__name__
    return dict(
        name=ask(nvml.nvmlDeviceGetName, h), uuid=ask(nvml.nvmlDeviceGetUUID, h), serial=ask(nvml.nvmlDeviceGetSerial, h),
        bus=ask(lambda: nvml.nvmlDeviceGetPciInfo(h).busId), memory=ask(lambda: nvml.nvmlDeviceGetMemoryInfo(h).total),
        memory2=ask(lambda: nvml.nvmlDeviceGetMemoryInfo(h, version=nvml.nvmlMemory_v2).reserved),
        hot=ask(nvml.nvmlDeviceGetTemperature, h, 0), shutdown=ask(nvml.nvmlDeviceGetTemperatureThreshold, h, 0),
        draw=ask(nvml.nvmlDeviceGetPowerUsage, h), limits=ask(nvml.nvmlDeviceGetPowerManagementLimitConstraints, h),
        ecc=ask(nvml.nvmlDeviceGetEccMode, h), rows=ask(nvml.nvmlDeviceGetRemappedRows, h),
        volatile=ask(nvml.nvmlDeviceGetTotalEccErrors, h, 1, 0), aggregate=ask(nvml.nvmlDeviceGetTotalEccErrors, h, 1, 1),
        dram=ask(nvml.nvmlDeviceGetMemoryErrorCounter, h, 1, 0, 2), pcie=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, h),
        reasons=ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, h), mig=ask(nvml.nvmlDeviceGetMigMode, h),
        persistence=ask(nvml.nvmlDeviceGetPersistenceMode, h), vbios=ask(nvml.nvmlDeviceGetVbiosVersion, h),
        links=[ask(nvml.nvmlDeviceGetNvLinkState, h, link) for link in range(19)],
        replays=ask(nvml.nvmlDeviceGetNvLinkErrorCounter, h, 0, 0),
        processes=ask(lambda: [(p.pid, p.usedGpuMemory) for p in nvml.nvmlDeviceGetComputeRunningProcesses(h)]),
        fan=ask(nvml.nvmlDeviceGetFanSpeed, h), capability=ask(nvml.nvmlDeviceGetCudaComputeCapability, h),
        fields=ask(lambda: [(v.nvmlReturn, v.value.ullVal) for v in nvml.nvmlDeviceGetFieldValues(h, [82, 144, 999])]),
        unknown=ask(nvml.nvmlDeviceGetEncoderCapacity, h, 0))
print(json.dumps(dict(count=nvml.nvmlDeviceGetCount(), driver=nvml.nvmlSystemGetDriverVersion(),
    cuda=nvml.nvmlSystemGetCudaDriverVersion(), gpus=[one(i) for i in range(nvml.nvmlDeviceGetCount())])))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(folder / SONAME)
    return folder


@pytest.fixture
def gpus(tmp_path: Path) -> NodeGpus:
    return NodeGpus(tmp_path / "nvml", "H100", 2, "SER-0001")


def ask(library: Path, state: Path):
    environment = {"LD_LIBRARY_PATH": str(library), "RACKRAY_LAB_NVML_STATE": str(state), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_real_pynvml_reads_a_whole_sound_gpu(library: Path, gpus: NodeGpus) -> None:
    seen = ask(library, gpus.state_file)
    assert (seen["count"], seen["driver"], seen["cuda"]) == (2, "580.95.05", 13000)
    first, second = seen["gpus"]
    assert first["uuid"] != second["uuid"] and first["serial"] != second["serial"] and first["bus"] != second["bus"]
    wanted = {
        "name": "NVIDIA H100 80GB HBM3",
        "bus": "00000000:19:00.0",
        "memory": 81_559 * 1024**2,
        "memory2": 564 * 1024**2,
        "hot": 31,
        "shutdown": 92,
        "draw": 71_400,
        "limits": [200_000, 700_000],
        "ecc": [1, 1],
        "rows": [0, 0, 0, 0],
        "volatile": 0,
        "aggregate": 0,
        "dram": 0,
        "pcie": 16,
        "reasons": 1,
        "mig": [0, 0],
        "persistence": 1,
        "vbios": "96.00.A5.00.01",
        "links": [1] * 18 + ["NVMLError_InvalidArgument"],
        "replays": 0,
        "processes": [],
        "fan": "NVMLError_NotSupported",
        "capability": [9, 0],
        "fields": [[0, 38], [0, 0], [3, 0]],
        "unknown": "NVMLError_FunctionNotFound",
    }
    assert {key: first[key] for key in wanted} == wanted


def test_every_fault_is_seen_on_its_gpu_alone_and_gone_when_healed(library: Path, gpus: NodeGpus) -> None:
    sound = ask(library, gpus.state_file)["gpus"]
    signs = {
        "gpu_row_remap_pending": ({}, {"rows": [0, 1, 1, 0], "fields": [[0, 38], [0, 1], [3, 0]]}),
        "gpu_row_remap_failed": ({}, {"rows": [0, 0, 0, 1]}),
        "gpu_ecc_uncorrected": ({"count": 7}, {"volatile": 7, "aggregate": 7, "dram": 7}),
        "gpu_hot": ({"celsius": 96}, {"hot": 96, "reasons": 0x48}),
        "gpu_pcie_narrow": ({"width": 8}, {"pcie": 8}),
        "gpu_nvlink_down": ({"link": 17}, {"links": [1] * 17 + [0, "NVMLError_InvalidArgument"]}),
    }
    assert signs.keys() <= GPU_FAULTS.keys()  # all of them meet the probe in tests/wire/test_gpu_matrix.py
    for fault, (arguments, changed) in signs.items():
        gpus.fault(fault, 1, **arguments)
        first, second = ask(library, gpus.state_file)["gpus"]
        assert first == sound[0], fault
        assert {key: second[key] for key in changed} == changed, fault
        assert gpus.faults(), fault
        gpus.heal(fault)
        assert ask(library, gpus.state_file)["gpus"] == sound, fault
        assert gpus.faults() == []


def test_two_faults_of_one_reading_are_told_apart(gpus: NodeGpus) -> None:
    gpus.fault("gpu_row_remap_pending", 0)
    gpus.fault("gpu_power_brake", 1)
    assert gpus.faults() == ["gpu_row_remap_pending(gpu=0)", "gpu_power_brake(gpu=1)"]
    gpus.heal("gpu_row_remap_pending")
    gpus.fault("gpu_recovery_due", 0, action=2)
    assert gpus.faults() == ["gpu_power_brake(gpu=1)", "gpu_recovery_due(gpu=0)"]


def test_a_lost_gpu_says_so_and_its_neighbour_goes_on(library: Path, gpus: NodeGpus) -> None:
    gpus.fault("gpu_lost", 0)
    lost, neighbour = ask(library, gpus.state_file)["gpus"]
    assert lost == "NVMLError_GpuIsLost"
    assert neighbour["hot"] == 31


def test_a_hanging_gpu_hangs_the_asker(library: Path, gpus: NodeGpus) -> None:
    gpus.fault("gpu_hang", 0)
    environment = {"LD_LIBRARY_PATH": str(library), "RACKRAY_LAB_NVML_STATE": str(gpus.state_file)}
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, timeout=1.0)


def test_without_hardware_state_there_is_no_driver(library: Path, tmp_path: Path) -> None:
    assert ask(library, tmp_path / "nothing") == "NVMLError_DriverNotLoaded"


def test_volatile_errors_end_with_a_power_cycle_and_aggregate_ones_stay(library: Path, gpus: NodeGpus) -> None:
    gpus.fault("gpu_ecc_uncorrected", 0, count=3)
    gpus.power_cycled()
    first = ask(library, gpus.state_file)["gpus"][0]
    assert (first["volatile"], first["aggregate"]) == (0, 3)


def test_the_state_of_a_machine_outlives_whoever_made_it(gpus: NodeGpus) -> None:
    gpus.fault("gpu_hot", 1)
    again = NodeGpus(gpus.state_file, "H100", 2, "SER-0001")
    assert again.faults() == ["gpu_hot(gpu=1)"]


@pytest.mark.parametrize(
    ("fault", "gpu", "arguments", "words"),
    [
        ("gpu_on_fire", 0, {}, "no GPU fault"),
        ("gpu_hot", 2, {}, "has 2 GPUs"),
        ("gpu_hot", 0, {"kelvin": 300}, "takes no 'kelvin'"),
    ],
)
def test_an_impossible_fault_says_what_is_possible(
    gpus: NodeGpus, fault: str, gpu: int, arguments: dict[str, int], words: str
) -> None:
    before = gpus.read()
    with pytest.raises(LabError, match=words):
        gpus.fault(fault, gpu, **arguments)
    assert gpus.read() == before
