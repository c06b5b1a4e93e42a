"""What DeepSpeed itself makes of our configuration, read by its own classes: also of what only a GPU can run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_launch import tiny_spec

from model.engine_config import deepspeed_config, is_matrix
from model.engine_ranks import deepspeed  # settles the accelerator first
from model.engine_state import _SCALER_NUMBERS
from model.engine_update import LossScale


def read(folder: Path, **changes: Any) -> Any:
    """The run's configuration as DeepSpeed parses it; its pydantic models refuse keys that they do not know."""
    return deepspeed.runtime.config.DeepSpeedConfig(deepspeed_config(tiny_spec(folder / "run", **changes)))


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_stage_batch_and_clipping_are_understood(zero: int, tmp_path: Path) -> None:
    found = read(tmp_path, layout={"zero": zero})
    assert found.zero_config.stage == zero
    assert (found.train_batch_size, found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps) == (8, 2, 4)
    # Under ZeRO-0 the engine clips by itself.
    assert found.gradient_clipping == (0.3 if zero else 0.0)


def test_fp16_scales_the_loss_dynamically_from_two_to_the_sixteenth(tmp_path: Path) -> None:
    found = read(tmp_path, precision="fp16")
    assert found.float16_config.enabled
    assert not found.bfloat16_config.enabled
    assert found.float16_config.loss_scale == 0  # dynamic
    assert found.float16_config.initial_scale_power == 16
    assert found.float16_config.loss_scale_window == 1000


def a_scaler(scale: float) -> Any:
    numbers = {"init_scale": scale, "scale_window": 1000, "min_scale": 1, "delayed_shift": 1, "consecutive_hysteresis": False}
    return deepspeed.runtime.fp16.loss_scaler.CreateLossScaler(torch.half, 0, True, numbers)


def test_the_loss_scaler_has_the_numbers_that_a_checkpoint_keeps() -> None:
    scaler = a_scaler(2**16)
    assert scaler.dynamic
    found = {name: getattr(scaler, name) for name in _SCALER_NUMBERS}
    assert found == {"cur_scale": 2**16, "cur_iter": 0, "last_overflow_iter": -1, "cur_hysteresis": 1}


def test_a_loss_scale_falls_to_its_least_and_an_overflow_there_is_left_to_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed.runtime.fp16.loss_scaler.dist, "get_rank", lambda: 1)
    optimizer = SimpleNamespace(loss_scaler=a_scaler(2))
    scale = LossScale(optimizer)
    assert scale.can_fall
    optimizer.loss_scaler.update_scale(overflow=True)
    assert not scale.can_fall
    optimizer.loss_scaler.update_scale(overflow=True)  # by itself DeepSpeed would raise here
    assert not LossScale(SimpleNamespace()).can_fall


def test_an_offloaded_optimizer_lies_in_the_hosts_memory(tmp_path: Path) -> None:
    found = read(tmp_path, layout={"zero": 2}, optimizer={"offload": True})
    assert found.zero_config.offload_optimizer.device == "cpu"


@pytest.mark.parametrize(("kind", "made"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_is_one_that_torch_builds_from_what_is_left_of_our_words(
    kind: str, made: type[torch.optim.Optimizer], fused: bool, tmp_path: Path
) -> None:
    found = read(tmp_path, optimizer={"kind": kind, "fused": fused})
    words = dict(found.optimizer_params)
    assert (found.optimizer_name, words.pop("torch_adam"), words.pop("adam_w_mode")) == (kind, True, kind == "adamw")
    assert made([torch.nn.Parameter(torch.zeros(2))], **words).defaults.get("fused") == (fused or None)


def test_a_matrix_is_told_by_the_shape_that_it_had_before_it_was_partitioned() -> None:
    partitioned = torch.nn.Parameter(torch.empty(0))
    assert not is_matrix(partitioned)
    partitioned.ds_shape = torch.Size([3, 4])  # type: ignore[attr-defined]
    assert is_matrix(partitioned)
