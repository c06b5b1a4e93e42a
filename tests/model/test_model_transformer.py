"""The model beside the equations it is made from, written out plainly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn
from torch.nn import functional

from model.cut import Cut
from model.dropout import Dropout, DropoutClock, Moment
from model.kv_cache import KeyValueCache
from model.layers import FeedForward, Recipe, SelfAttention, rotate, rotations
from model.recompute import Recompute
from model.shape import FAMILY_OPTIONS, Activation, Family, TransformerShape
from model.tensor_parallel import Shard, shards_of
from model.transformer import Block, Positions, Transformer, layer_plans, sinusoids

SEED = 5


def a_shape(family: Family = Family.GPT, **changes: Any) -> TransformerShape:
    numbers = {"layers": 3, "d_model": 24, "heads": 4, "d_ff": 40, "vocabulary": 300, "positions": 16}
    return TransformerShape(**{**numbers, **FAMILY_OPTIONS[family], **changes})


def hidden(*size: int, seed: int = SEED) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def tokens(sequences: int, length: int) -> Tensor:
    return torch.randint(0, 300, (sequences, length), generator=torch.Generator().manual_seed(SEED))


FAMILIES = pytest.mark.parametrize("family", Family)


# ------------------------------------------------------------------ attention, equation 1
def plain_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    scores_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(q_BHTK.size(-1))
    later_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool).triu(1)
    return scores_BHTT.masked_fill(later_TT, -math.inf).softmax(-1) @ v_BHTK


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@FAMILIES
def test_attention_is_softmax_of_scaled_products_with_heads_that_share_keys_and_values(family: Family, kv_heads: int) -> None:
    shape = a_shape(family, kv_heads=kv_heads)
    attention = SelfAttention(Recipe(shape, SEED), "a")
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(hidden(*parameter.shape, seed=parameter.dim()))
    x_BTD = hidden(2, 7, 24)
    q, k, v = attention.qkv(x_BTD).split((24, 6 * kv_heads, 6 * kv_heads), dim=-1)
    q, k, v = (part.view(2, 7, -1, 6).transpose(1, 2) for part in (q, k, v))
    if family is Family.LLAMA:
        # RoPE as the paper writes it: pairs are complex numbers, turned by e^(i·pos·rate).
        rates_K = 500_000.0 ** (-torch.arange(3) / 3)
        turns_TK = torch.polar(torch.ones(7, 3), torch.outer(torch.arange(7), rates_K))
        q, k = ((torch.complex(*part.chunk(2, -1)) * turns_TK) for part in (q, k))
        q, k = (torch.cat([part.real, part.imag], -1) for part in (q, k))
    k, v = (part.repeat_interleave(4 // kv_heads, dim=1) for part in (k, v))
    wanted = functional.linear(
        plain_attention(q, k, v).transpose(1, 2).flatten(2), attention.output.weight, attention.output.bias
    )
    torch.testing.assert_close(attention(x_BTD), wanted, rtol=1e-4, atol=1e-4)


@FAMILIES
def test_a_token_sees_itself_and_those_before_it_only(family: Family) -> None:
    model = Transformer(Recipe(a_shape(family), SEED))
    tokens_BT = torch.arange(8)[None]
    changed_BT = tokens_BT.clone()
    changed_BT[0, 5] = 200
    with torch.no_grad():
        same_T = [torch.equal(a, b) for a, b in zip(model.logits(tokens_BT)[0], model.logits(changed_BT)[0], strict=True)]
    assert same_T == [True] * 5 + [False] * 3


# ------------------------------------------------------------------ positions
def test_sinusoids_are_those_of_section_3_5() -> None:
    table = sinusoids(50, 24, torch.device("cpu"))
    for position, index in ((0, 0), (3, 4), (49, 11)):
        angle = position / 10_000 ** (2 * index / 24)
        assert table[position, 2 * index].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, 2 * index + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = hidden(1, 1, 1, 6), hidden(1, 1, 1, 6, seed=SEED + 1)
    cos, sin = rotations(16, 6, 10_000.0, torch.device("cpu"))

    def product(query_at: int, key_at: int) -> float:
        turned = (rotate(x, cos[at : at + 1], sin[at : at + 1]) for x, at in ((q, query_at), (k, key_at)))
        return torch.mul(*turned).sum().item()

    assert product(9, 4) == pytest.approx(product(6, 1), abs=1e-5)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)


def test_embeddings_are_scaled_by_the_root_of_the_width_before_positions_are_added() -> None:
    shape = a_shape(Family.VASWANI)
    x_BTD = hidden(1, 5, 24)
    wanted = x_BTD * math.sqrt(24) + sinusoids(16, 24, x_BTD.device)[:5]
    torch.testing.assert_close(Positions(Recipe(shape, SEED))(x_BTD), wanted)


# ------------------------------------------------------------------ whole blocks beside torch's and Llama's
@pytest.mark.parametrize("family", [Family.GPT, Family.VASWANI])
def test_a_block_is_torchs_encoder_layer_with_the_same_weights(family: Family) -> None:
    shape = a_shape(family, attention_biases=True)
    block = Block(Recipe(shape, SEED), 0).double()
    theirs = nn.TransformerEncoderLayer(
        *(24, 4, 40, 0.0),
        activation="relu" if family is Family.VASWANI else "gelu",
        batch_first=True,
        norm_first=family is Family.GPT,
        dtype=torch.float64,
    )
    names = {
        **{"self_attn.in_proj_weight": "attention.qkv.weight", "self_attn.in_proj_bias": "attention.qkv.bias"},
        **{"self_attn.out_proj.weight": "attention.output.weight", "self_attn.out_proj.bias": "attention.output.bias"},
        **{f"linear1.{part}": f"feed_forward.widen.{part}" for part in ("weight", "bias")},
        **{f"linear2.{part}": f"feed_forward.narrow.{part}" for part in ("weight", "bias")},
        **{f"norm1.{part}": f"attention_norm.{part}" for part in ("weight", "bias")},
        **{f"norm2.{part}": f"feed_forward_norm.{part}" for part in ("weight", "bias")},
    }
    with torch.no_grad():
        for index, parameter in enumerate(block.parameters()):
            parameter.copy_(hidden(*parameter.shape, seed=index))
    theirs.load_state_dict({there: block.get_parameter(here) for there, here in names.items()})
    x_BTD = hidden(2, 9, 24).double()
    mask_TT = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    torch.testing.assert_close(block(x_BTD), theirs(x_BTD, src_mask=mask_TT, is_causal=True))


def test_a_llama_block_is_pre_rms_norm_with_a_gated_feed_forward() -> None:
    block = Block(Recipe(a_shape(Family.LLAMA, kv_heads=2), SEED), 0)
    with torch.no_grad():
        for index, parameter in enumerate(block.parameters()):
            parameter.copy_(hidden(*parameter.shape, seed=index))
    x = hidden(2, 9, 24)

    def rms(vectors: Tensor, gain: Tensor) -> Tensor:
        return vectors / (vectors.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    y = x + block.attention(rms(x, block.attention_norm.weight))
    w_1, w_3 = block.feed_forward.widen.weight.chunk(2)
    normed = rms(y, block.feed_forward_norm.weight)
    wanted = y + (functional.silu(normed @ w_1.T) * (normed @ w_3.T)) @ block.feed_forward.narrow.weight.T
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("activation", "plain"), [(Activation.RELU, functional.relu), (Activation.GELU, functional.gelu)])
def test_the_feed_forward_is_equation_2(activation: Activation, plain: Any) -> None:
    layer = FeedForward(Recipe(a_shape(activation=activation), SEED), "f")
    with torch.no_grad():
        layer.widen.bias.copy_(hidden(40))
        layer.narrow.bias.copy_(hidden(24))
    x = hidden(2, 3, 24)
    wanted = plain(x @ layer.widen.weight.T + layer.widen.bias) @ layer.narrow.weight.T + layer.narrow.bias
    torch.testing.assert_close(layer(x), wanted)


# ------------------------------------------------------------------ first values and the loss
@FAMILIES
def test_an_untrained_model_knows_nothing(family: Family) -> None:
    loss = Transformer(Recipe(a_shape(family, d_model=256), SEED))(*tokens(2, 32).view(2, 2, 16)).item()
    # ln 300 = 5.704.  Tied to embeddings of unit size, the head first expects every token to come again.
    assert loss == pytest.approx(5.704, abs=0.1) if family is not Family.VASWANI else 5.7 < loss < 7.5


def test_first_values_depend_on_the_seed_and_not_on_what_was_built_before() -> None:
    def weights(seed: int) -> Tensor:
        block = layer_plans(Recipe(a_shape(), seed))[3]
        return block.module(*block.arguments).get_parameter("attention.qkv.weight")

    whole = Transformer(Recipe(a_shape(), 1)).get_parameter("3.attention.qkv.weight")
    assert torch.equal(whole, weights(1))
    assert not torch.equal(whole, weights(2))


def test_label_smoothing_spreads_a_share_of_the_target_while_training_only() -> None:
    model = Transformer(Recipe(a_shape(), SEED, label_smoothing=0.1))
    inputs, targets = tokens(2, 8), tokens(2, 8).flip(1)
    logs = model.logits(inputs).log_softmax(-1)
    plain = -logs.gather(-1, targets.unsqueeze(-1)).mean()
    torch.testing.assert_close(model(inputs, targets), 0.9 * plain - 0.1 * logs.mean())
    torch.testing.assert_close(model.eval()(inputs, targets), plain)


# ------------------------------------------------------------------ dropout
def masks(moment: Moment, name: str = "here", seed: int = SEED) -> Tensor:
    clock = DropoutClock(seed)
    clock.now = moment
    return Dropout(0.25, name, clock)(torch.ones(100, 100))


def test_a_dropout_mask_follows_from_seed_step_micro_batch_and_place() -> None:
    mask = masks(Moment(3, 1))
    assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.rand(10)  # what else is drawn makes no difference
    assert torch.equal(mask, masks(Moment(3, 1)))
    others = [masks(Moment(4, 1)), masks(Moment(3, 2)), masks(Moment(3, 1), "there"), masks(Moment(3, 1), seed=SEED + 1)]
    assert not any(torch.equal(mask, other) for other in others)


def test_nothing_is_dropped_in_an_evaluation() -> None:
    x = hidden(4, 4)
    assert torch.equal(Dropout(0.5, "here", DropoutClock(SEED)).eval()(x), x)


# ------------------------------------------------------------------ recomputation
@pytest.mark.parametrize("how", [Recompute.SELECTIVE, Recompute.FULL])
@FAMILIES
def test_recomputation_changes_no_bit_of_loss_or_gradients_and_keeps_less(family: Family, how: Recompute) -> None:
    def run(recompute: Recompute) -> tuple[list[Tensor], int]:
        clock = DropoutClock(SEED)
        model = Transformer(Recipe(a_shape(family), SEED, dropout=0.1, recompute=recompute, clock=clock))
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        clock.now = Moment(1, 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(*tokens(2, 32).view(2, 2, 16))
        # The next micro-batch is under way when a pipeline runs backward.
        clock.now = Moment(1, 1)
        held = sum(kept.values())
        loss.backward()
        return [loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)], held

    (wanted, all_bytes), (found, kept_bytes) = run(Recompute.NONE), run(how)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    # ReLU's result is both its own gradient's input and the next matrix's: there is nothing to forget.
    if (family, how) != (Family.VASWANI, Recompute.SELECTIVE):
        assert kept_bytes < 0.9 * all_bytes


# ------------------------------------------------------------------ keys and values kept
@pytest.mark.parametrize("pieces", [[8], [1] * 8, [5, 1, 1, 1], [3, 4, 1]])
@FAMILIES
def test_logits_with_kept_keys_and_values_are_those_without(family: Family, pieces: list[int]) -> None:
    shape = a_shape(family, kv_heads=2)
    model = Transformer(Recipe(shape, SEED)).eval()
    cache = KeyValueCache(shape, sequences=2, tokens=8, dtype=torch.float32, device=torch.device("cpu"))
    tokens_BT = tokens(2, 8)
    with torch.no_grad():
        found = [model.logits(piece, cache) for piece in tokens_BT.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(found, dim=1), model.logits(tokens_BT), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="room for 8 tokens, not for 9"):
            model.logits(tokens_BT[:, :1], cache)


# ------------------------------------------------------------------ shards
@given(
    parts=some.lists(some.integers(5, 11), min_size=1, max_size=3),
    other=some.integers(1, 4),
    dim=some.sampled_from([0, 1]),
    size=some.sampled_from([1, 2, 3]),
)
def test_a_parameter_is_split_as_checkpoints_cut_it_and_nothing_is_lost(
    parts: list[int], other: int, dim: int, size: int
) -> None:
    shard = Shard(dim, tuple(parts))
    whole = torch.arange(sum(parts) * other).view((sum(parts), other) if dim == 0 else (other, sum(parts)))
    shards = [shard.split(whole, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat([each.flatten() for each in shards]).sort().values, torch.arange(whole.numel()))
    for rank, each in enumerate(shards):
        cut = Cut(dim, shard.parts, rank, size)
        assert torch.equal(each, cut.of(whole))
        assert each.shape == cut.shape(tuple(whole.shape))


def test_every_parameter_that_is_split_says_how() -> None:
    shards = shards_of(Transformer(Recipe(a_shape(Family.LLAMA, layers=1, kv_heads=2), SEED)))
    assert shards == {
        "0.weight": Shard(0, (300,)),
        "2.attention.qkv.weight": Shard(0, (24, 12, 12)),
        "2.attention.output.weight": Shard(1, (24,)),
        "2.feed_forward.widen.weight": Shard(0, (40, 40)),
        "2.feed_forward.narrow.weight": Shard(1, (40,)),
        "4.weight": Shard(0, (300,)),
    }
