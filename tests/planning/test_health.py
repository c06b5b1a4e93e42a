"""Every check of the acceptance probe fires on its own bad fixture, and on nothing sound."""

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.domain.health import Severity, sound_probe
from orchestrator.domain.spec import GpuSku, HealthPolicy, Sku
from orchestrator.planning.health import GPU_CHECKS, NODE_CHECKS, inspect_probe, judge_probe

MODEL = "NVIDIA H100 80GB HBM3"
SKU = Sku(manufacturer="M", model="S", units=8, idle_w=900, max_w=2600, gpus=GpuSku(model=MODEL, count=2, memory_gib=80))
POLICY = HealthPolicy()
REMAP = {"correctable": 0, "uncorrectable": 1, "pending": False, "failure": False}
LINKS = {"up": 17, "down": 1, "errors": {"replay": 0}}

BAD_GPU: Mapping[str, tuple[dict[str, Any], str]] = {
    "gpu-lost": ({"lost": True, "errors": ["GPU 1: handle: GPU is lost"]}, "lost"),
    "gpu-errors": ({"errors": ["GPU 1: power_w: Unknown Error"]}, "Unknown Error"),
    "gpu-model": ({"name": "NVIDIA A100-SXM4-80GB"}, "A100"),
    "ecc-off": ({"ecc_mode": False}, "ECC"),
    "ecc-uncorrected": ({"ecc_uncorrected_volatile": 3}, "3 uncorrected"),
    "remap-pending": ({"remap": {**REMAP, "pending": True}}, "uncorrectable rows: 1"),
    "remap-failed": ({"remap": {**REMAP, "failure": True}}, "uncorrectable rows: 1"),
    "retired-pages": ({"retired_pages_pending": True}, "pending"),
    "recovery-action": ({"recovery_action": "reboot the node"}, "reboot the node"),
    "absurd-reading": ({"power_w": 0.0}, "power_w 0"),
    "compute-mode": ({"compute_mode": "prohibited"}, "prohibited"),
    "nvlink-peers": ({"nvlink": {"up": 18, "down": 0, "peers": {"switch": 17, "gpu": 1}}}, "1 gpu, 17 switch"),
    "fabric": ({"fabric": "in progress"}, "in progress"),
    "power-limit": ({"power_limit_w": 350.0}, "350 W of 700 W"),
    "temperature": ({"temperature_c": 86}, "86 °C at rest; 85 °C"),
    "mig": ({"mig": True}, "MIG"),
    "pcie-width": ({"pcie_width": 8}, "8 of 16"),
    "throttle": ({"throttle": ["sw_power_cap", "hw_thermal_slowdown"]}, "hw_thermal_slowdown"),
    "nvlink-down": ({"nvlink": LINKS}, "1 of 18"),
    "pcie-generation": ({"pcie_gen": 4}, "4 of 5"),
    "nvlink-errors": ({"nvlink": {"up": 18, "down": 0, "errors": {"replay": 7, "recovery": 0}}}, "replay 7"),
    "busy": ({"processes": 2}, "2 compute"),
    "persistence": ({"persistence": False}, "persistence"),
}
BAD_NODE: Mapping[str, tuple[dict[str, Any], str]] = {
    "nvml": ({"problem": "NVML does not start: Driver Not Loaded", "gpus": []}, "Driver Not Loaded"),
    "nvml-hang": ({"hung": "GPU 1: ecc_mode", "gpus": sound_probe(MODEL, 1)["gpus"]}, "GPU 1: ecc_mode"),
    "gpu-count": ({"gpus": sound_probe(MODEL, 1)["gpus"]}, "1 GPUs are seen; the SKU has 2"),
    "gpu-twins": ({"gpus": [sound_probe(MODEL, 1)["gpus"][0], {**sound_probe(MODEL, 1)["gpus"][0], "index": 1}]}, "UUID"),
    "inforom-mixed": ({"gpus": [{**gpu, "inforom": f"G{gpu['index']}"} for gpu in sound_probe(MODEL, 2)["gpus"]]}, "2 InfoROM"),
    "gsp-mixed": ({"gpus": [{**gpu, "gsp": f"580.{gpu['index']}"} for gpu in sound_probe(MODEL, 2)["gpus"]]}, "2 GSP"),
    "vbios-mixed": ({"gpus": [{**gpu, "vbios": f"96.{gpu['index']}"} for gpu in sound_probe(MODEL, 2)["gpus"]]}, "2 VBIOS"),
}


def with_second_gpu(**changed: Any) -> dict[str, Any]:
    probe = sound_probe(MODEL, 2)
    probe["gpus"][1] |= changed
    return probe


def test_a_sound_node_gives_no_finding_at_all() -> None:
    assert inspect_probe(sound_probe(MODEL, 2), SKU, POLICY) == ()


def test_the_fixtures_cover_every_check_of_the_tables() -> None:
    assert set(BAD_GPU) == {check.name for check in GPU_CHECKS}
    assert set(BAD_NODE) == {check.name for check in NODE_CHECKS}


@pytest.mark.parametrize("name", BAD_GPU)
def test_each_gpu_check_fires_alone_and_names_its_gpu(name: str) -> None:
    changed, words = BAD_GPU[name]
    findings = inspect_probe(with_second_gpu(**changed), SKU, POLICY)
    assert [(finding.check, finding.gpu) for finding in findings] == [(name, 1)]
    assert words in findings[0].says and findings[0].way_out and str(findings[0]).startswith("GPU 1 ")


@pytest.mark.parametrize("name", BAD_NODE)
def test_each_node_check_fires_alone(name: str) -> None:
    changed, words = BAD_NODE[name]
    findings = inspect_probe({**sound_probe(MODEL, 2), **changed}, SKU, POLICY)
    assert [(finding.check, finding.gpu) for finding in findings] == [(name, None)]
    assert words in findings[0].says and findings[0].way_out


def test_warnings_keep_no_node_out_and_failures_do() -> None:
    for checks, bad in ((GPU_CHECKS, BAD_GPU), (NODE_CHECKS, BAD_NODE)):
        for check in checks:
            changed = bad[check.name][0]
            probe = with_second_gpu(**changed) if bad is BAD_GPU else {**sound_probe(MODEL, 2), **changed}
            assert bool(judge_probe(probe, SKU, POLICY)) == (check.severity is Severity.FAILED), check.name


def test_what_a_gpu_does_not_say_is_no_failure() -> None:
    silent = dict.fromkeys(sound_probe(MODEL, 1)["gpus"][0])
    assert inspect_probe(with_second_gpu(**{**silent, "index": 1}), SKU, POLICY) == ()


def test_a_recovery_that_a_pending_remap_asks_for_is_not_told_twice() -> None:
    probe = with_second_gpu(remap={**REMAP, "pending": True}, recovery_action="reset the GPU")
    assert [finding.check for finding in inspect_probe(probe, SKU, POLICY)] == ["remap-pending"]


def test_limits_come_from_the_policy() -> None:
    lax = HealthPolicy(gpu_temperature_max_c=90, uncorrected_ecc_max=5)
    assert judge_probe(with_second_gpu(temperature_c=90, ecc_uncorrected_volatile=5), SKU, lax) == ()
    assert len(judge_probe(with_second_gpu(temperature_c=91, ecc_uncorrected_volatile=6), SKU, lax)) == 2
