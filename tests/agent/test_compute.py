"""The compute check: repeatable products count, corrupted ones are noticed, broken devices are named."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from orchestrator.agent import compute  # noqa: E402 - after the skip


class OneBitFlips:
    """torch, with `equal` reporting a difference on the given try."""

    def __init__(self, wrong_try: int) -> None:
        self._tries = 0
        self._wrong_try = wrong_try

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def equal(self, left: Any, right: Any) -> bool:
        self._tries += 1
        if self._tries == self._wrong_try:
            left = left.clone()
            left.view(-1)[0] += 1e-3
        return bool(torch.equal(left, right))


def test_a_sound_cpu_repeats_itself_and_is_called_a_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    facts = compute.check(0.05)
    assert facts["device"] == "cpu" and facts["repeatable"] is True and facts["gflops"] > 0
    (device,) = facts["devices"]
    assert device["rounds"] >= 1 and device["error"] == "" and device["checksum"]


def test_one_wrong_product_among_many_is_noticed() -> None:
    result = compute._check_device(OneBitFlips(wrong_try=2), "cpu", 0, 0.2)
    assert result.rounds >= 2 and result.repeatable is False


def test_a_device_that_fails_is_reported_and_not_raised() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            if name == "equal":
                raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
            return getattr(torch, name)

    result = compute._check_device(Broken(), "cpu", 3, 0.01)
    assert result.repeatable is False and result.gflops == 0.0 and "uncorrectable ECC" in result.error
