"""Smaller weights: what they compute, what is kept on disk, what is refused, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from training_launch import Launcher, tiny_run, tiny_spec

from model import compress as command
from model.compression import (
    CannotCompress,
    Method,
    compress,
    load,
    make_permanent,
    matrices,
    memory_bytes,
    save,
    train_pruned,
)
from model.contract import ExitCode
from model.corpus import prepare_corpus
from model.layers import Recipe
from model.resumption import CheckpointError
from model.shape import FAMILY_OPTIONS, BlockKind, Family, TransformerShape
from model.transformer import Transformer

QUANTIZED = [Method.INT8, Method.INT8_DYNAMIC, Method.INT4]
PRUNED = [Method.PRUNE, Method.PRUNE_2_4]


def a_model(**changes: Any) -> Transformer:
    numbers: dict[str, Any] = {"layers": 2, "d_model": 64, "heads": 4, "d_ff": 128, "vocabulary": 300, "positions": 32}
    model = Transformer(Recipe(TransformerShape(**{**numbers, **changes}), seed=1)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention" in name or "feed_forward" in name:
                # As large as in a trained model, so that a wrong scale shows.
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model


def tokens(seed: int = 1) -> Tensor:
    return torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(seed))


def weights(model: Transformer) -> dict[str, Tensor]:
    return {name: module.weight.detach().clone() for name, module in matrices(model).items()}


def test_int8_weights_are_rounded_to_a_255th_of_twice_the_largest_of_each_output() -> None:
    model = a_model()
    before = weights(model)
    compress(model, Method.INT8)
    for name, module in matrices(model).items():
        scale = before[name].abs().amax(dim=1, keepdim=True) / 127.5
        found = module.weight.dequantize()
        assert (found - before[name]).abs().le(scale * 0.51).all()
        assert (found / scale).round().sub(found / scale).abs().max() < 0.05


@pytest.mark.parametrize(("method", "most"), [(Method.INT8, 0.02), (Method.INT8_DYNAMIC, 0.05), (Method.INT4, 0.3)])
def test_a_quantized_model_is_nearly_the_same_in_a_third_of_the_memory(method: Method, most: float) -> None:
    model, whole = a_model(layers=6), a_model(layers=6)
    compress(model, method)
    with torch.inference_mode():
        wanted = whole.logits(tokens())
        error = (model.logits(tokens()) - wanted).norm() / wanted.norm()
    assert 0 < error < most
    matrix_bytes = sum(4 * weight.numel() for weight in weights(whole).values())
    assert memory_bytes(whole) - memory_bytes(model) > 0.6 * matrix_bytes


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_pruning_takes_the_smallest_share_of_each_matrix(share: float) -> None:
    model = a_model()
    before = weights(model)
    compress(model, Method.PRUNE, share=share)
    make_permanent(model)
    for name, weight in weights(model).items():
        zeros = weight == 0
        assert zeros.float().mean().item() == pytest.approx(share, abs=0.001)
        assert before[name][zeros].abs().max() <= before[name][~zeros].abs().min()
        assert torch.equal(weight[~zeros], before[name][~zeros])


def test_two_of_four_neighbours_are_left_and_they_are_the_largest() -> None:
    model = a_model()
    before = weights(model)
    compress(model, Method.PRUNE_2_4)
    make_permanent(model)
    for name, weight in weights(model).items():
        fours, old = weight.unflatten(1, (-1, 4)), before[name].abs().unflatten(1, (-1, 4))
        assert (fours != 0).sum(-1).eq(2).all()
        torch.testing.assert_close(fours.abs().sum(-1), old.topk(2, dim=-1).values.sum(-1))


@pytest.mark.parametrize("method", PRUNED)
def test_a_recovery_lowers_the_loss_and_leaves_zeros_zero(method: Method) -> None:
    model = a_model()
    compress(model, method)
    before = model(tokens(), tokens(2)).item()
    zeros = {name: module.weight == 0 for name, module in matrices(model).items()}
    train_pruned(model, iter([(tokens(), tokens(2))] * 8), steps=8, lr=3e-3)
    make_permanent(model)
    assert model(tokens(), tokens(2)).item() < before
    assert all(torch.equal(weight == 0, zeros[name]) for name, weight in weights(model).items())


@pytest.mark.parametrize("changes", [{}, {"block": BlockKind.SAS}, FAMILY_OPTIONS[Family.LLAMA]], ids=str)
@pytest.mark.parametrize("method", Method)
def test_a_file_gives_back_every_bit_of_the_model(method: Method, changes: dict[str, Any], tmp_path: Path) -> None:
    model = a_model(**changes)
    compress(model, method)
    make_permanent(model)
    path = tmp_path / "small.safetensors"
    save(model, path, method)
    with torch.inference_mode():
        assert torch.equal(load(path).logits(tokens()), model.logits(tokens()))
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]
    matrix_bytes = sum(4 * weight.numel() for weight in weights(a_model(**changes)).values())
    shares = {Method.NONE: 1.0, Method.INT8: 0.27, Method.INT8_DYNAMIC: 0.27, Method.INT4: 0.17}
    others = memory_bytes(a_model(**changes)) - matrix_bytes
    assert path.stat().st_size < others + shares.get(method, 0.54) * matrix_bytes + 20_000


def test_what_cannot_be_made_smaller_is_refused_with_the_choices_and_nothing_is_changed() -> None:
    model = a_model()
    before = model.state_dict()
    with pytest.raises(CannotCompress, match=r"embedding cannot be made smaller: .* choose attention or feed_forward"):
        compress(model, Method.INT8, layers=("embedding",))
    with pytest.raises(CannotCompress, match=r"groups of 48 do not divide its 64 inputs; choose --group 64 or 32 or 16"):
        compress(model, Method.INT4, group=48)
    odd = a_model(d_model=42, heads=2)
    with pytest.raises(CannotCompress, match=r"prune-2:4: groups of 4 do not divide its 42 inputs; choose int8 or prune"):
        compress(odd, Method.PRUNE_2_4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_is_no_compressed_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match="no compressed model that can be read"):
        load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no compressed model that can be read"):
        load(path)


@pytest.mark.slow
def test_the_command_tells_a_row_for_each_method_and_leaves_its_files(
    start: Launcher, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(runs / "compress", steps=2)
    prepare_corpus(spec)
    assert start(spec).wait() == [ExitCode.DONE]
    run = tmp_path / "RUN.json"
    run.write_text(json.dumps(tiny_run(runs / "compress", steps=2)))
    arguments = [spec.checkpoint.directory, "--run", str(run), "--recover-steps", "1", "-o", str(tmp_path / "files")]
    assert command.main([*arguments, "--json"]) == ExitCode.DONE
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert [*rows] == [
        "none",
        *QUANTIZED,
        "prune",
        "prune, 1 steps later",
        "prune-2:4",
        "prune-2:4, 1 steps later",
        "none, 1 steps later",
    ]
    assert all(row["heldout_loss"] == pytest.approx(rows["none"]["heldout_loss"], abs=0.1) for row in rows.values())
    assert {file.name for file in (tmp_path / "files").iterdir()} >= {"int4.safetensors", "prune-2-4-1-steps-later.safetensors"}
    assert rows["int8"]["disk_bytes"] == (tmp_path / "files" / "int8.safetensors").stat().st_size
    assert command.main([*arguments, "--layers", "norms"]) == ExitCode.BAD_RUN
    assert "choose attention or feed_forward" in capsys.readouterr().err
    assert command.main([str(tmp_path), "--run", str(run)]) == ExitCode.BAD_CHECKPOINT
