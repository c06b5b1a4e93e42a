"""Simplified blocks beside the equations of their paper, written out with matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor
from torch.nn import functional

from model.attention import Pattern
from model.kv_cache import KeyValueCache
from model.layers import Recipe
from model.shape import PRESETS, BlockKind, Norm, TransformerShape
from model.simplified import ShapedAttention, SimplifiedBlock, running_mean, shaped_attention
from model.transformer import Transformer

SIMPLIFIED = pytest.mark.parametrize("block", [BlockKind.SAS, BlockKind.SAS_P])
NORMS = pytest.mark.parametrize("norm", Norm)


def a_shape(**changes: Any) -> TransformerShape:
    numbers: dict[str, Any] = {"layers": 3, "d_model": 24, "heads": 4, "d_ff": 40, "vocabulary": 300, "positions": 16}
    return TransformerShape(**{**numbers, **changes})


def drawn(*size: int, seed: int = 3) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter moved away from its first value, so that each of them matters."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter += 0.3 * drawn(*parameter.shape, seed=index)
    return module


def matrix_form(q: Tensor, k: Tensor, v: Tensor, own: Tensor, softmax: Tensor, mean: Tensor, window: int = 0) -> Tensor:
    """(α·I + β·softmax(QKᵀ/√K) - γ·C)·V, equation 8 of the paper with its n × n matrices."""
    n = q.size(2)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    if window:
        later |= torch.ones(n, n, dtype=torch.bool).tril(-window)
    weights = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(later, -math.inf).softmax(-1)
    uniform = (~later).double() / (~later).double().sum(-1, keepdim=True)
    return (own * torch.eye(n, dtype=torch.float64) + softmax * weights - mean * uniform) @ v


@pytest.mark.parametrize("window", [0, 3])
@given(tokens=some.integers(1, 12))
@settings(max_examples=12, deadline=None)
def test_shaped_attention_is_its_matrix_form_forward_and_backward(tokens: int, window: int) -> None:
    inputs = [drawn(2, 4, tokens, 6, seed=i).requires_grad_() for i in range(3)]
    gains = [drawn(4, 1, 1, seed=10 + i).requires_grad_() for i in range(3)]
    found = shaped_attention(*inputs, *gains, pattern=Pattern(window=window))
    wanted = matrix_form(*inputs, *gains, window=window)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    weights = drawn(*found.shape, seed=20)
    slopes = [torch.autograd.grad((mixed * weights).sum(), [*inputs, *gains]) for mixed in (found, wanted)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_running_mean_of_half_precision_is_summed_in_single() -> None:
    ones = torch.ones(1, 1, 5000, 1, dtype=torch.bfloat16)
    assert running_mean(ones).unique().tolist() == [1.0]


@SIMPLIFIED
def test_at_the_start_attention_is_the_identity_in_every_layer(block: BlockKind) -> None:
    x = drawn(2, 9, 24)
    for index in (0, 1):
        attention = ShapedAttention(Recipe(a_shape(block=block), 1), index).double()
        torch.testing.assert_close(attention(x), x, rtol=1e-12, atol=1e-12)
        queries, keys, *_ = attention.qk.weight.split(24)
        assert queries.count_nonzero() == 0
        assert keys.std().item() == pytest.approx(0.02, rel=0.2)


@SIMPLIFIED
@NORMS
@pytest.mark.parametrize("index", [0, 1])
def test_a_block_is_the_papers_figure(block: BlockKind, norm: Norm, index: int) -> None:
    made = shaken(SimplifiedBlock(Recipe(a_shape(block=block, norm=norm), 1), index).double())
    x = drawn(2, 9, 24)

    def attention(y: Tensor) -> Tensor:
        inner = made.attention
        q, k, *value = functional.linear(y, inner.qk.weight, inner.qk.bias).split(24, dim=-1)
        v = inner.value_skip_gain * y + inner.value_gain * value[0] if index == 0 else y
        heads = (part.view(2, 9, 4, 6).transpose(1, 2) for part in (q, k, v))
        gains = (gain.view(4, 1, 1) for gain in (inner.own_gain, inner.softmax_gain, inner.mean_gain))
        return matrix_form(*heads, *gains).transpose(1, 2).reshape(2, 9, 24)

    y = made.attention_norm(x)
    if block is BlockKind.SAS_P:
        wanted = made.attention_gain * attention(y) + made.feed_forward_gain * made.feed_forward(y)
    else:
        h = made.attention_gain * attention(y)
        wanted = made.skip_gain * h + made.feed_forward_gain * made.feed_forward(made.feed_forward_norm(h))
    torch.testing.assert_close(made(x), wanted, rtol=1e-9, atol=1e-11)
    assert isinstance(made.attention_norm, torch.nn.Identity) == (norm is Norm.NONE and index > 0)


def test_the_feed_forward_begins_at_a_tenth_at_18_layers_and_goes_as_one_over_the_root_of_the_depth() -> None:
    def gain(layers: int) -> float:
        return SimplifiedBlock(Recipe(a_shape(layers=layers, block=BlockKind.SAS), 1), 0).feed_forward_gain.item()

    assert gain(18) == pytest.approx(0.1)
    assert gain(2) == pytest.approx(0.3)


@SIMPLIFIED
@NORMS
def test_the_built_model_has_the_counted_parameters_part_by_part(block: BlockKind, norm: Norm) -> None:
    shape = a_shape(block=block, norm=norm)
    built = {"attention": 0, "feed_forward": 0, "norms": 0}
    for name, parameter in Transformer(Recipe(shape, 1)).named_parameters():
        if name[0] in "2345":
            is_narrow = "feed_forward." in name
            part = "norms" if "norm" in name or name[0] == "5" else "feed_forward" if is_narrow else "attention"
            built[part] += parameter.numel()
    assert built == {part: count for part, count in shape.parameters().as_dict().items() if part in built}


def test_a_sixth_of_the_layers_parameters_is_gone() -> None:
    numbers = {"layers": 18, "d_model": 768, "heads": 12, "d_ff": 3072, "vocabulary": 50_000, "positions": 128}
    whole, simple = (TransformerShape(**numbers, block=block) for block in (BlockKind.PRE_LN, BlockKind.SAS_P))
    parts = [shape.parameters() for shape in (whole, simple)]
    layers = [part.attention + part.feed_forward + part.norms for part in parts]
    assert 1 - layers[1] / layers[0] == pytest.approx(1 / 6, abs=0.01)
    assert PRESETS["gpt3-175b"].layers * 2 * 12_288**2 == pytest.approx(29e9, rel=0.01)


@SIMPLIFIED
@NORMS
@pytest.mark.parametrize("pieces", [[8], [1] * 8, [3, 4, 1]], ids=str)
def test_logits_with_a_kept_running_sum_are_those_without(block: BlockKind, norm: Norm, pieces: list[int]) -> None:
    shape = a_shape(block=block, norm=norm)
    model = shaken(Transformer(Recipe(shape, 1)).double()).eval()
    cache = KeyValueCache(shape, sequences=2, tokens=8, dtype=torch.float64, device=torch.device("cpu"))
    tokens_BT = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = torch.cat([model.logits(piece, cache) for piece in tokens_BT.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(found, model.logits(tokens_BT), rtol=1e-8, atol=1e-8)


@SIMPLIFIED
def test_what_a_simplified_block_cannot_be_is_refused(block: BlockKind) -> None:
    with pytest.raises(ValueError, match="pre-ln blocks need a norm, layer or rms"):
        a_shape(norm=Norm.NONE)
    with pytest.raises(ValueError, match="kv_heads must be 0 or 4"):
        a_shape(block=block, kv_heads=2)
