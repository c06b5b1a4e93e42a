"""What the engine does on GPUs only: NCCL, fp16, fused and offloaded Adam, memory and MFU in the progress lines.

The offloaded Adam is DeepSpeed's own, which is compiled on first use and needs the CUDA toolkit.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from model.contract import ProgressLine, RunSpec, read_progress

PROJECT = Path(__file__).parents[2]
STEPS = 30


def a_run(folder: Path, **changes: Any) -> RunSpec:
    run: dict[str, Any] = {
        "run_id": "gpu",
        "seed": 7,
        "model": {"layers": 4, "d_model": 256, "heads": 4, "d_ff": 1024, "vocabulary": 512, "positions": 128},
        "data": {"corpus": "python-stdlib", "directory": str(folder.parent / "data")},
        "layout": {"zero": 1},
        "batch": {"global_sequences": 16, "micro_sequences": 4, "sequence_tokens": 128},
        "optimizer": {"lr": 0.001, "clip": 1.0, "warmup_steps": 4},
        "steps": STEPS,
        "checkpoint": {"directory": str(folder / "checkpoints")},
        "output_directory": str(folder / "out"),
    }
    for name, change in changes.items():
        run[name] = {**run[name], **change} if isinstance(change, dict) else change
    return RunSpec.from_json(json.dumps(run))


def train(spec: RunSpec) -> list[ProgressLine]:
    """Trains with one process per rank, each on a GPU of its own."""
    folder = Path(spec.output_directory)
    folder.mkdir(parents=True)
    path = folder / "RUN.json"
    path.write_text(spec.to_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = str(spec.layout.ranks)
    ranks = []
    for rank in map(str, range(spec.layout.ranks)):
        there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "model.train", str(path)]
        ranks.append(subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **there}))
    assert [rank.wait(timeout=1200) for rank in ranks] == [0] * len(ranks)
    lines = read_progress(spec.progress_path(0).read_text())
    return [line for line in lines if isinstance(line, ProgressLine)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[ProgressLine]:
    return train(a_run(tmp_path_factory.mktemp("gpu") / "fp32"))


def test_a_progress_line_tells_the_gpus_memory_and_speed(reference: list[ProgressLine]) -> None:
    assert reference[-1].loss < reference[0].loss - 1
    assert 0 < reference[-1].memory_bytes <= torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_half_precision_learns_as_fp32_does(precision: str, zero: int, reference: list[ProgressLine], tmp_path: Path) -> None:
    found = train(a_run(tmp_path / "run", precision=precision, layout={"zero": zero}))
    # fp16 skips its first steps until the loss scale fits.
    assert found[-1].loss == pytest.approx(reference[-1].loss, abs=0.3)


@pytest.mark.parametrize("name", ["fused", "offload"])
def test_the_other_adams_make_the_updates_of_the_plain_one(name: str, reference: list[ProgressLine], tmp_path: Path) -> None:
    if name == "offload" and not deepspeed.ops.op_builder.CPUAdamBuilder().is_compatible():
        pytest.skip("DeepSpeed cannot compile its Adam for the host here")
    found = train(a_run(tmp_path / "run", optimizer={name: True}))
    assert [line.loss for line in found] == pytest.approx([line.loss for line in reference], rel=1e-3)


def test_activation_checkpointing_needs_less_memory_and_changes_nothing(tmp_path: Path) -> None:
    # Of many tokens at once, so that the peak is what the layers keep and not what the update needs.
    batch = {"global_sequences": 64, "micro_sequences": 64}
    runs = [a_run(tmp_path / how, batch=batch, activation_checkpointing=how) for how in ("none", "selective", "full")]
    plain, selective, full = (train(spec) for spec in runs)
    for found in (selective, full):
        assert [line.loss for line in found] == pytest.approx([line.loss for line in plain], rel=1e-4)
    assert full[-1].memory_bytes < selective[-1].memory_bytes < plain[-1].memory_bytes


@pytest.mark.parametrize(
    "layout", [{"tensor": 2}, {"pipeline": 2}, {"data": 2, "zero": 3}, {"pipeline": 2, "tensor": 2}], ids=str
)
def test_layouts_over_nccl_have_the_losses_of_one_gpu(
    layout: dict[str, int], reference: list[ProgressLine], tmp_path: Path
) -> None:
    spec = a_run(tmp_path / "run", layout=layout)
    if torch.cuda.device_count() < spec.layout.ranks:
        pytest.skip(f"needs {spec.layout.ranks} GPUs")
    assert [line.loss for line in train(spec)] == pytest.approx([line.loss for line in reference], rel=1e-3)
