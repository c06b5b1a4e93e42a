"""Asks NVML what an acceptance needs. Travels by itself over SSH (`python - < probe.py`): standard library and pynvml alone.

NVML calls can hang for ever in the kernel, so they are made in a child process that is killed when it is silent too long; what
hung is reported, with everything said before. One line is printed: MARKER (login shells print what they like before it) and a
JSON object:

    driver, nvml, cuda    versions, or null
    problem               why there is no answer at all ("the NVIDIA driver library is not installed"), else ""
    hung                  the call that did not come back, else ""
    gpus                  one object per GPU; null is "this GPU does not say", `errors` what went wrong while asking,
                          `lost` whether it has fallen off the bus
    processes             on each GPU: how many compute processes hold it
    seconds               how long asking took

Units: temperature_c in degrees Celsius, power_w, power_limit_w and power_limit_default_w in watts, memory_mib in MiB.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

MARKER = "rackray-probe:"
SHORTEST_SILENCE_S = 1.0
REAP_S = 2.0

RECOVERY_ACTIONS = {
    0: "none",
    1: "reset the GPU",
    2: "reboot the node",
    3: "drain its peers",
    4: "drain and reset",
    5: "recover the IMEX domain",
    6: "reset the bus",
    7: "reboot the system",
}
"""nvmlDeviceGpuRecoveryAction_t (nvml.h): what the driver itself asks for, above all after an Xid."""
COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
FABRIC_STATES = {1: "not started", 2: "in progress", 3: "completed"}
"""nvmlGpuFabricState_t without 0, "not supported"."""
NVLINK_PEERS = {0: "gpu", 1: "npu", 2: "switch"}
"""nvmlIntNvLinkDeviceType_t; any other number is unknown."""
# nvmlClocksEventReasons bits (nvml.h) and the names used here. Idle (0x1) and applications clocks (0x2) are no trouble.
THROTTLE_REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


def main() -> None:
    """Print the one line; the exit status is 0 whatever the GPUs say."""
    parser = argparse.ArgumentParser(description="NVML probe")
    parser.add_argument("--timeout-s", type=float, default=40.0, help="longest silence of the whole probe")
    arguments = parser.parse_args()
    print(MARKER + json.dumps(probe(max(SHORTEST_SILENCE_S, arguments.timeout_s))), flush=True)


def probe(timeout_s: float) -> dict[str, Any]:
    """The whole report, within about `timeout_s` seconds."""
    started_s = time.monotonic()
    report: dict[str, Any] = {"driver": None, "nvml": None, "cuda": None, "problem": "", "hung": "", "gpus": []}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(writing)
    os.close(writing)
    asking, ended = _collect(reading, report, started_s + timeout_s)
    os.close(reading)
    status = _end(child, ended)
    if not ended:
        report["hung"] = asking or "the start of NVML"
    elif status and not report["problem"]:
        report["problem"] = f"the probe died with status {status} while asking for {asking or 'nothing yet'}"
    report["seconds"] = round(time.monotonic() - started_s, 3)
    return report


def _collect(reading: int, report: dict[str, Any], end_s: float) -> tuple[str, bool]:
    """Take the child's lines until it closes its end or time is over: (what it asks for now, whether it has ended)."""
    rest, asking = b"", ""
    while True:
        left_s = end_s - time.monotonic()
        if left_s <= 0 or not select.select([reading], [], [], left_s)[0]:
            return asking, False
        piece = os.read(reading, 65536)
        if not piece:
            return asking, True
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            message = json.loads(line)
            asking = message.pop("asking", asking)
            if "gpu" in message:
                report["gpus"].append(message["gpu"])
            report.update(message.get("report", {}))


def _end(child: int, ended: bool) -> int:
    """End the child and its zombie; a process stuck in the kernel is left behind rather than waited for."""
    if not ended:
        os.kill(child, signal.SIGKILL)
    give_up_s = time.monotonic() + REAP_S
    while time.monotonic() < give_up_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    return 0


def _run_child(writing: int) -> None:
    """Never returns."""
    status = 1
    try:
        with os.fdopen(writing, "w") as pipe:
            _Asker(pipe).ask()
        status = 0
    finally:
        # Not sys.exit: the parent's buffers and exit handlers are none of the child's business.
        os._exit(status)


class _Asker:
    """Runs in the child: asks, and says before each call what it asks for."""

    def __init__(self, pipe: TextIO) -> None:
        self.pipe = pipe
        self.nvml: Any = None
        self.errors: list[str] = []

    def ask(self) -> None:
        """Everything, one line per GPU."""
        self.say(asking="the start of NVML")
        try:
            import pynvml  # in the child: loading the library can hang too
        except ImportError:
            self.say(report={"problem": f"pynvml (nvidia-ml-py) is not installed for {sys.executable}"})
            return
        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.say(report={"problem": f"NVML does not start: {error}"})
            return
        self.say(
            report={
                "driver": self.get("driver version", lambda: _text(pynvml.nvmlSystemGetDriverVersion())),
                "nvml": self.get("NVML version", lambda: _text(pynvml.nvmlSystemGetNVMLVersion())),
                "cuda": self.get("CUDA version", lambda: _cuda(pynvml.nvmlSystemGetCudaDriverVersion_v2())),
            }
        )
        count = self.get("device count", pynvml.nvmlDeviceGetCount)
        if count is None:
            self.say(report={"problem": f"NVML does not count its GPUs: {'; '.join(self.errors)}"})
            return
        for index in range(count):
            self.say(gpu=self.gpu(index))
        pynvml.nvmlShutdown()

    def gpu(self, index: int) -> dict[str, Any]:
        """One GPU."""
        n, self.errors = self.nvml, []
        about = f"GPU {index}: "
        handle = self.get(about + "handle", lambda: n.nvmlDeviceGetHandleByIndex(index))
        facts = dict.fromkeys(GPU_FIELDS)
        if handle is not None:
            for name, read in GPU_FIELDS.items():
                facts[name] = self.get(about + name, partial(read, n, handle))
        lost = any("lost" in error.lower() or "fallen off" in error.lower() for error in self.errors)
        return {"index": index, **facts, "lost": lost, "errors": self.errors}

    def get(self, what: str, read: Callable[[], Any]) -> Any:
        """What `read` gives; None where the device does not say (not supported, or an older driver)."""
        n = self.nvml
        self.say(asking=what)
        try:
            return read()
        except (n.NVMLError_NotSupported, n.NVMLError_FunctionNotFound, n.NVMLError_NoPermission):
            return None
        except n.NVMLError as error:
            self.errors.append(f"{what}: {error}")
            return None

    def say(self, **message: object) -> None:
        """One line to the parent, at once: it must know what was asked for when the answer never comes."""
        self.pipe.write(json.dumps(message) + "\n")
        self.pipe.flush()


def _remap(n: Any, handle: Any) -> dict[str, Any]:
    correctable, uncorrectable, pending, failure = n.nvmlDeviceGetRemappedRows(handle)
    return {"correctable": correctable, "uncorrectable": uncorrectable, "pending": bool(pending), "failure": bool(failure)}


def _ecc(n: Any, handle: Any, counter: int) -> int:
    return n.nvmlDeviceGetTotalEccErrors(handle, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, counter)


def _throttle(n: Any, handle: Any) -> list[str]:
    try:
        reasons = n.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except n.NVMLError_FunctionNotFound:
        reasons = n.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # its name before driver 535
    return [name for bit, name in THROTTLE_REASONS.items() if reasons & bit]


def _fabric(n: Any, handle: Any) -> str:
    info = n.c_nvmlGpuFabricInfoV_t()
    n.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    if info.state not in FABRIC_STATES:
        raise n.NVMLError_NotSupported()
    return FABRIC_STATES[info.state]


def _recovery_action(n: Any, handle: Any) -> str:
    (asked,) = n.nvmlDeviceGetFieldValues(handle, [n.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if asked.nvmlReturn != n.NVML_SUCCESS:
        raise n.NVMLError(asked.nvmlReturn)
    return RECOVERY_ACTIONS.get(asked.value.uiVal, f"action {asked.value.uiVal}")


def _compute_mode(n: Any, handle: Any) -> str:
    mode = n.nvmlDeviceGetComputeMode(handle)
    return COMPUTE_MODES.get(mode, f"mode {mode}")


def _peer(n: Any, handle: Any, link: int) -> str:
    try:
        return NVLINK_PEERS.get(n.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link), "unknown")
    except (n.NVMLError_NotSupported, n.NVMLError_InvalidArgument, n.NVMLError_FunctionNotFound):
        return ""


def _nvlink(n: Any, handle: Any) -> dict[str, Any]:
    """Links up and down, what is at the other end of those that are up, and error counters summed over the links.

    Links that are not there say "invalid argument".
    """
    counters = {
        "replay": n.NVML_NVLINK_ERROR_DL_REPLAY,
        "recovery": n.NVML_NVLINK_ERROR_DL_RECOVERY,
        "crc_flit": n.NVML_NVLINK_ERROR_DL_CRC_FLIT,
        "crc_data": n.NVML_NVLINK_ERROR_DL_CRC_DATA,
    }
    up, down, errors = 0, 0, dict.fromkeys(counters, 0)
    peers: dict[str, int] = {}
    for link in range(n.NVML_NVLINK_MAX_LINKS):
        try:
            state = n.nvmlDeviceGetNvLinkState(handle, link)
        except (n.NVMLError_NotSupported, n.NVMLError_InvalidArgument):
            continue
        up, down = up + bool(state), down + (not state)
        if state and (peer := _peer(n, handle, link)):
            peers[peer] = peers.get(peer, 0) + 1
        for name, counter in counters.items():
            try:
                errors[name] += n.nvmlDeviceGetNvLinkErrorCounter(handle, link, counter)
            except (n.NVMLError_NotSupported, n.NVMLError_InvalidArgument):
                continue
    if up + down == 0:
        raise n.NVMLError_NotSupported()
    return {"up": up, "down": down, "peers": peers, "errors": errors}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


GPU_FIELDS: dict[str, Callable[[Any, Any], Any]] = {
    "name": lambda n, h: _text(n.nvmlDeviceGetName(h)),
    "uuid": lambda n, h: _text(n.nvmlDeviceGetUUID(h)),
    "serial": lambda n, h: _text(n.nvmlDeviceGetSerial(h)),
    "vbios": lambda n, h: _text(n.nvmlDeviceGetVbiosVersion(h)),
    "inforom": lambda n, h: _text(n.nvmlDeviceGetInforomImageVersion(h)),
    "gsp": lambda n, h: _text(n.nvmlDeviceGetGspFirmwareVersion(h)),
    "memory_mib": lambda n, h: n.nvmlDeviceGetMemoryInfo(h).total // 2**20,
    "temperature_c": lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
    "power_w": lambda n, h: n.nvmlDeviceGetPowerUsage(h) / 1000,
    "power_limit_w": lambda n, h: n.nvmlDeviceGetPowerManagementLimit(h) / 1000,
    "power_limit_default_w": lambda n, h: n.nvmlDeviceGetPowerManagementDefaultLimit(h) / 1000,
    "ecc_mode": lambda n, h: bool(n.nvmlDeviceGetEccMode(h)[0]),
    "ecc_uncorrected_volatile": lambda n, h: _ecc(n, h, n.NVML_VOLATILE_ECC),
    "ecc_uncorrected_aggregate": lambda n, h: _ecc(n, h, n.NVML_AGGREGATE_ECC),
    "remap": _remap,
    "retired_pages_pending": lambda n, h: bool(n.nvmlDeviceGetRetiredPagesPendingStatus(h)),
    "pcie_gen": lambda n, h: n.nvmlDeviceGetCurrPcieLinkGeneration(h),
    "pcie_gen_max": lambda n, h: n.nvmlDeviceGetMaxPcieLinkGeneration(h),
    "pcie_width": lambda n, h: n.nvmlDeviceGetCurrPcieLinkWidth(h),
    "pcie_width_max": lambda n, h: n.nvmlDeviceGetMaxPcieLinkWidth(h),
    "throttle": _throttle,
    "mig": lambda n, h: bool(n.nvmlDeviceGetMigMode(h)[0]),
    "compute_mode": _compute_mode,
    "recovery_action": _recovery_action,
    "fabric": _fabric,
    "persistence": lambda n, h: bool(n.nvmlDeviceGetPersistenceMode(h)),
    "nvlink": _nvlink,
    "processes": lambda n, h: len(n.nvmlDeviceGetComputeRunningProcesses(h)),
}
"""What is asked of each GPU: the name in the report, and how NVML is asked."""


if __name__ == "__main__":
    main()
