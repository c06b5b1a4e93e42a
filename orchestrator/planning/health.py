"""Judging the acceptance probe: one table of checks, each with the question it asks and the way out it names. Pure.

A value the GPU does not give (null) is no failure: older boards do not know every counter. A GPU that gives an error where it was
asked is one. Limits that depend on the site stand in the spec's `health`; the others follow NVIDIA's own guidance (GPU Memory
Error Management, DA-09826: a pending remap needs a reset, a failed remap a replacement).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.health import HealthFinding, Severity
from orchestrator.domain.spec import HealthPolicy, Sku

POSSIBLE: Mapping[str, tuple[float, float]] = {
    "temperature_c": (-40.0, 150.0),
    "power_w": (0.5, 5_000.0),
    "power_limit_w": (1.0, 5_000.0),
    "memory_mib": (1.0, 8_388_608.0),
}
"""Readings outside these say that the sensor or the driver is broken, whatever the limit."""
HARDWARE_THROTTLE = frozenset({"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})

Says = str | None
Question = Callable[[Mapping[str, Any], Sku, HealthPolicy], Says]


@dataclass(frozen=True, slots=True)
class Check:
    """One question; its answer is what is wrong, or None. Asked of the probe as a whole, or of each GPU in it."""

    name: str
    severity: Severity
    asks: Question
    way_out: str


LIMIT_SLACK_W = 1.0
"""Limits are set in whole watts."""


def judge_power_limit(probe: Mapping[str, Any], cap_w: float | None) -> tuple[HealthFinding, ...]:
    """GPUs that may draw more than the power tree allows after a loss; the playbook sets the limit, the probe reads it back."""
    way_out = "nvidia-smi -pl sets it; rackray-gpu-power.service does so at every boot: see its log"
    found = []
    for gpu in _gpus(probe) if cap_w is not None else ():
        limit_w = gpu.get("power_limit_w")
        if isinstance(limit_w, int | float) and cap_w is not None and limit_w > cap_w + LIMIT_SLACK_W:
            says = f"may draw {limit_w:.0f} W, the power cap is {cap_w:.0f} W"
            found.append(HealthFinding("power-cap", Severity.FAILED, gpu.get("index"), says, way_out))
    return tuple(found)


def judge_probe(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> tuple[HealthFinding, ...]:
    """What keeps the node out of service, in the order of the table; empty means that its GPUs are accepted."""
    return tuple(finding for finding in inspect_probe(probe, sku, policy) if finding.severity is Severity.FAILED)


def inspect_probe(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> tuple[HealthFinding, ...]:
    """Everything the checks find, warnings too."""
    return tuple(_findings(probe, sku, policy))


def _findings(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Iterator[HealthFinding]:
    for check in NODE_CHECKS:
        if (says := check.asks(probe, sku, policy)) is not None:
            yield HealthFinding(check.name, check.severity, None, says, check.way_out)
    for gpu in _gpus(probe):
        for gpu_check in GPU_CHECKS:
            if (says := gpu_check.asks(gpu, sku, policy)) is not None:
                yield HealthFinding(gpu_check.name, gpu_check.severity, gpu.get("index"), says, gpu_check.way_out)
                if gpu_check.name in ENDS_THE_QUESTIONS:
                    break


# Questions about the node.


def _no_answer(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return f"the probe got no answer: {probe['problem']}" if probe.get("problem") and sku.gpus.count else None


def _hung(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return f"NVML hung while asked for {probe['hung']}" if probe.get("hung") else None


def _count(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    found = len(_gpus(probe))
    # A probe that was cut short has counted nothing.
    if found == sku.gpus.count or probe.get("problem") or probe.get("hung"):
        return None
    return f"{found} GPUs are seen; the SKU has {sku.gpus.count}"


def _twins(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    uuids = [gpu["uuid"] for gpu in _gpus(probe) if gpu.get("uuid")]
    twins = sorted({uuid for uuid in uuids if uuids.count(uuid) > 1})
    return f"two GPUs say the same UUID {twins[0]}" if twins else None


def _mixed(key: str, called: str) -> Question:
    """Whether the node's GPUs carry different versions of one thing."""

    def asks(probe: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
        versions = sorted({gpu[key] for gpu in _gpus(probe) if gpu.get(key)})
        return f"its GPUs run {len(versions)} {called} versions: {', '.join(versions)}" if len(versions) > 1 else None

    return asks


# Questions about one GPU.


def _lost(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return f"is lost: {_first_error(gpu)}" if gpu.get("lost") else None


def _errors(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return f"answers with errors ({len(gpu['errors'])}), the first: {_first_error(gpu)}" if gpu.get("errors") else None


def _model(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    name = gpu.get("name")
    return f"is a {name}; the SKU has {sku.gpus.model}" if name is not None and name != sku.gpus.model else None


def _ecc_off(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return "runs with ECC switched off" if gpu.get("ecc_mode") is False else None


def _ecc(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    errors = gpu.get("ecc_uncorrected_volatile")
    if errors is None or errors <= policy.uncorrected_ecc_max:
        return None
    return f"has {errors} uncorrected ECC errors since its driver was loaded; {policy.uncorrected_ecc_max} are allowed"


def _remap_pending(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    remap = gpu.get("remap") or {}
    return f"has a row remap pending (uncorrectable rows: {remap.get('uncorrectable')})" if remap.get("pending") else None


def _remap_failed(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    remap = gpu.get("remap") or {}
    return f"failed to remap a row (uncorrectable rows: {remap.get('uncorrectable')})" if remap.get("failure") else None


def _recovery(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    action = gpu.get("recovery_action")
    # A remap that waits for a reset has said so itself.
    if action in (None, "none") or (gpu.get("remap") or {}).get("pending"):
        return None
    return f"asks for recovery by its driver: {action}"


def _absurd(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    for name, (least, most) in POSSIBLE.items():
        value = gpu.get(name)
        if value is not None and not least <= value <= most:
            return f"says {name} {value:g}, which no GPU can have"
    return None


def _compute_mode(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return "lets no program compute (compute mode prohibited)" if gpu.get("compute_mode") == "prohibited" else None


def _fabric(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    state = gpu.get("fabric")
    return f"has not joined its NVLink fabric: {state}" if state not in (None, "completed") else None


def _power_limit(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    limit_w, usual_w = gpu.get("power_limit_w"), gpu.get("power_limit_default_w")
    if limit_w is None or usual_w is None or limit_w >= usual_w:
        return None
    return f"is limited to {limit_w:g} W of {usual_w:g} W"


def _nvlink_peers(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    peers = (gpu.get("nvlink") or {}).get("peers") or {}
    if len(peers) < 2 and "unknown" not in peers:
        return None
    return f"has NVLinks to unlike ends: {', '.join(f'{count} {kind}' for kind, count in sorted(peers.items()))}"


def _retired(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return "has memory pages pending retirement" if gpu.get("retired_pages_pending") else None


def _temperature(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    celsius = gpu.get("temperature_c")
    if celsius is None or celsius <= policy.gpu_temperature_max_c:
        return None
    return f"is at {celsius} °C at rest; {policy.gpu_temperature_max_c} °C are allowed"


def _mig(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return "is in MIG mode" if gpu.get("mig") else None


def _pcie_width(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    width, most = gpu.get("pcie_width"), gpu.get("pcie_width_max")
    return f"runs on {width} of {most} PCIe lanes" if width is not None and most is not None and width < most else None


def _pcie_generation(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    generation, most = gpu.get("pcie_gen"), gpu.get("pcie_gen_max")
    if generation is None or most is None or generation >= most:
        return None
    return f"runs at PCIe generation {generation} of {most}"


def _throttled(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    reasons = sorted(HARDWARE_THROTTLE & set(gpu.get("throttle") or ()))
    return f"is slowed down by its hardware: {', '.join(reasons)}" if reasons else None


def _nvlink(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    links = gpu.get("nvlink") or {}
    return f"has {links['down']} of {links['up'] + links['down']} NVLinks down" if links.get("down") else None


def _nvlink_errors(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    errors = {name: count for name, count in ((gpu.get("nvlink") or {}).get("errors") or {}).items() if count}
    return f"counts NVLink errors: {', '.join(f'{name} {count}' for name, count in errors.items())}" if errors else None


def _busy(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return f"is held by {gpu['processes']} compute processes" if gpu.get("processes") else None


def _persistence(gpu: Mapping[str, Any], sku: Sku, policy: HealthPolicy) -> Says:
    return "runs without persistence mode" if gpu.get("persistence") is False else None


F, W = Severity.FAILED, Severity.WARNING
RESET_HINT = "once it is out of service, power-cycle it, then `rackray node requalify`"
REPLACE_HINT = "open a case with the vendor: the GPU needs replacement"

NODE_CHECKS: tuple[Check, ...] = (
    Check("nvml", F, _no_answer, "is the NVIDIA driver installed and loaded (nvidia-smi)?"),
    Check("nvml-hang", F, _hung, "power-cycle the node; if it hangs again, the GPU asked last is the suspect"),
    Check("gpu-count", F, _count, "look for GPUs that fell off the bus (dmesg, Xid 79); reseat or replace them"),
    Check("gpu-twins", F, _twins, "is the node's NVML reporting another machine's GPUs?"),
    Check("vbios-mixed", W, _mixed("vbios", "VBIOS"), "update the board's firmware package as a whole"),
    Check("inforom-mixed", W, _mixed("inforom", "InfoROM"), "update the board's firmware package as a whole"),
    Check("gsp-mixed", F, _mixed("gsp", "GSP firmware"), "reinstall the driver: its GSP firmware is one for all GPUs"),
)
GPU_CHECKS: tuple[Check, ...] = (
    Check("gpu-lost", F, _lost, "power-cycle the node (Xid 79); if it comes back lost, reseat or replace the GPU"),
    Check("gpu-errors", F, _errors, "see dmesg for Xid messages"),
    Check("gpu-model", F, _model, "correct the SKU in the spec, or the hardware"),
    Check("ecc-off", F, _ecc_off, "nvidia-smi -e 1, then reset the GPU"),
    Check("ecc-uncorrected", F, _ecc, RESET_HINT),
    Check("remap-failed", F, _remap_failed, REPLACE_HINT),
    Check("remap-pending", F, _remap_pending, RESET_HINT),
    Check("retired-pages", F, _retired, RESET_HINT),
    Check("recovery-action", F, _recovery, "look for the Xid in dmesg, drain the node and do what the driver asks for"),
    Check("absurd-reading", F, _absurd, "power-cycle the node; if it stays so, the GPU or its driver is broken"),
    Check("temperature", F, _temperature, "check fans, air flow or coolant before it gets work"),
    Check("compute-mode", F, _compute_mode, "nvidia-smi -c DEFAULT"),
    Check("mig", F, _mig, "nvidia-smi -mig 0, then reset the GPU"),
    Check("pcie-width", F, _pcie_width, "reseat the board or riser; a narrow link halves what collectives reach"),
    Check("throttle", F, _throttled, "check power supplies and cooling"),
    Check("nvlink-down", F, _nvlink, "check Fabric Manager and its log; if it runs, the board or switch needs service"),
    Check("nvlink-peers", F, _nvlink_peers, "check the NVLink cables or bridge against the board's plan"),
    Check("fabric", F, _fabric, "check Fabric Manager and its log"),
    # At rest the link may be clocked down to save power; only under load does this mean anything.
    Check("pcie-generation", W, _pcie_generation, "look again under load"),
    Check("nvlink-errors", W, _nvlink_errors, "look whether they grow"),
    Check("power-limit", W, _power_limit, "if nobody capped it on purpose: nvidia-smi -pl to its default"),
    Check("busy", W, _busy, "somebody works on this node; its measurements are not those of an idle one"),
    Check("persistence", W, _persistence, "enable nvidia-persistenced"),
)
"""What is asked of each GPU. Order: what explains the rest comes first."""

ENDS_THE_QUESTIONS = frozenset({"gpu-lost", "absurd-reading"})
"""A GPU that is gone has no other health, and one that talks nonsense is not asked on."""


def _gpus(probe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [gpu for gpu in probe.get("gpus") or () if isinstance(gpu, Mapping)]


def _first_error(gpu: Mapping[str, Any]) -> str:
    errors = gpu.get("errors") or ["no error was given"]
    return str(errors[0])
