"""Weights outside DeepSpeed: read, loaded into a plain model, exported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training_launch import tiny_spec

from model import export
from model.contract import RunSpec, write_manifest
from model.layers import Recipe
from model.manifest import describe_file, files_in, step_folder_name
from model.resumption import CheckpointError, manifest_for
from model.state import KINDS, STATE_NAME, Fragment, state_text, tensor_name
from model.transformer import Transformer
from model.weights import load_model, open_weights


def write_checkpoint(spec: RunSpec, model: torch.nn.Module, step: int) -> Path:
    """As two ranks would have written it: each has half of every parameter."""
    folder = Path(spec.checkpoint.directory) / step_folder_name(step)
    folder.mkdir(parents=True)
    files: dict[str, list[Fragment]] = {}
    for rank in range(2):
        tensors = {}
        mine = files[f"rank-{rank:05d}.safetensors"] = []
        for name, parameter in model.named_parameters():
            part = Fragment(name, tuple(parameter.shape), None, 0, parameter.numel()).part(rank, 2)
            mine.append(part)
            values = parameter.detach().flatten()[part.start : part.start + part.numel].clone()
            tensors |= {tensor_name(name, kind): values if kind == "fp32" else values * 0 for kind in KINDS}
        save_file(tensors, folder / f"rank-{rank:05d}.safetensors")
    (folder / STATE_NAME).write_text(state_text(files, adam_steps=step, notes={}))
    records = tuple(describe_file(folder, name) for name in files_in(folder))
    write_manifest(folder, manifest_for(spec, step=step, files=records))
    return folder


def a_model(spec: RunSpec) -> Transformer:
    return Transformer(Recipe(spec.model.shape(), seed=3))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> RunSpec:
    return tiny_spec(tmp_path / "run", model={"tied": request.param})


def test_a_plain_model_gets_the_weights_and_says_the_same(spec: RunSpec) -> None:
    model = a_model(spec)
    folder = write_checkpoint(spec, model, 5)
    tokens_BT = torch.arange(24).view(2, 12)
    for path in (folder, folder.parent):
        loaded = load_model(path)
        assert not loaded.training
        assert torch.equal(loaded.logits(tokens_BT), model.logits(tokens_BT))


def test_an_export_holds_every_parameter_once_and_says_what_it_is(
    spec: RunSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = a_model(spec)
    write_checkpoint(spec, model, 5)
    output = tmp_path / "weights.safetensors"
    assert export.main([spec.checkpoint.directory, "-o", str(output)]) == 0
    total = spec.model.shape().parameters().total
    assert f"{total:,} numbers in fp32, step 5" in capsys.readouterr().err
    with safe_open(output, "pt") as file:
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118
            name: parameter.shape for name, parameter in model.named_parameters()
        }
        assert all(torch.equal(file.get_tensor(name), parameter) for name, parameter in model.named_parameters())
        facts = file.metadata()
    assert sum(math.prod(parameter.shape) for parameter in model.parameters()) == total
    assert (facts["run_id"], facts["step"], json.loads(facts["model"])["layers"]) == ("run", "5", 2)
    export.main([spec.checkpoint.directory, "-o", str(output), "--type", "bf16"])
    with safe_open(output, "pt") as file:
        name, parameter = next(iter(model.named_parameters()))
        assert torch.equal(file.get_tensor(name), parameter.bfloat16())


def test_only_what_a_manifest_vouches_for_is_read(spec: RunSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (write_checkpoint(spec, a_model(spec), step) for step in (5, 10))
    path = new / "rank-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert open_weights(new.parent).folder == old
    output = tmp_path / "no.safetensors"
    assert export.main([str(new), "-o", str(output)]) == 2
    assert "rank-00001.safetensors was altered" in capsys.readouterr().err
    (old / "manifest.json").unlink()
    assert export.main([str(new.parent), "-o", str(output)]) == 2
    assert "none of its 2 checkpoints is complete" in capsys.readouterr().err
    assert not output.exists()
    assert export.main([str(tmp_path / "nothing"), "-o", str(output)]) == 2


def test_an_export_that_cannot_be_written_leaves_nothing_behind(spec: RunSpec, tmp_path: Path) -> None:
    write_checkpoint(spec, a_model(spec), 5)
    assert export.main([spec.checkpoint.directory, "-o", str(tmp_path / "no folder" / "weights")]) == 2


@pytest.mark.parametrize("change", [{"heads": "x"}, {"colour": 1}])
def test_a_model_this_program_does_not_know_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    spec = tiny_spec(tmp_path / "run")
    folder = write_checkpoint(spec, a_model(spec), 5)
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    value["model"] |= change
    path.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="does not know: model"):
        load_model(folder)
