"""The encoder-decoder beside torch's own, its counts beside the paper's, and its parts beside the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.encoder_decoder import EncoderDecoder, PairLoss, visible
from model.layers import Recipe
from model.shape import PRESETS, BlockKind, EncoderDecoderShape, Family, Position, shape_of_family
from model.tensor_parallel import ALONE
from model.translation.special_tokens import PAD

NUMBERS = {"layers": 2, "encoder_layers": 3, "d_model": 16, "heads": 4, "d_ff": 24, "vocabulary": 30, "positions": 12}


def tiny_shape(**options: object) -> EncoderDecoderShape:
    shape = shape_of_family(Family.VASWANI, NUMBERS, options)
    assert isinstance(shape, EncoderDecoderShape)
    return shape


def in_double(recipe: Recipe) -> EncoderDecoder:
    return EncoderDecoder(recipe).double().eval()


def some_pairs() -> tuple[Tensor, Tensor]:
    """Three sources and targets of different lengths, filled up with PAD."""
    generator = torch.Generator().manual_seed(4)
    source_BS = torch.randint(3, NUMBERS["vocabulary"], (3, 7), generator=generator)
    target_BT = torch.randint(3, NUMBERS["vocabulary"], (3, 5), generator=generator)
    source_BS[0, 4:], source_BS[1, 6:], target_BT[2, 3:] = PAD, PAD, PAD
    return source_BS, target_BT


# ---------------------------------------------------------------------- beside torch
def torchs_own(model: EncoderDecoder) -> nn.Transformer:
    """torch.nn.Transformer with the same weights; post-LN has no norm after the last layer, as published."""
    shape = model.recipe.shape
    assert isinstance(shape, EncoderDecoderShape)
    pre = shape.block is BlockKind.PRE_LN
    numbers = (shape.d_model, shape.heads, shape.d_ff, 0.0)
    options = {"batch_first": True, "norm_first": pre, "activation": "relu"}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*numbers, **options), shape.encoder_layers, nn.LayerNorm(shape.d_model) if pre else None
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(*numbers, **options), shape.layers, nn.LayerNorm(shape.d_model) if pre else None
    )
    other = nn.Transformer(shape.d_model, shape.heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    other.double().eval()
    blocks = [module for module, _ in model.layers() if type(module).__name__ in ("EncoderBlock", "DecoderBlock")]
    with torch.no_grad():
        for block, layer in zip(blocks, [*encoder.layers, *decoder.layers], strict=True):
            copy_layer(block, layer)
        if pre:
            norms = [module for module, _ in model.layers() if type(module).__name__ in ("EncoderNorm", "DecoderNorm")]
            for mine, theirs in zip(norms, (encoder.norm, decoder.norm), strict=True):
                theirs.load_state_dict(mine.norm.state_dict())
    return other


def copy_layer(block: nn.Module, layer: nn.Module) -> None:
    copy_attention(layer.self_attn, block.attention.qkv, block.attention.output)
    norms = [block.attention_norm, block.feed_forward_norm]
    if hasattr(block, "cross"):
        both = nn.Module()
        both.weight = torch.cat([block.cross.query.weight, block.cross.key_value.weight])
        both.bias = torch.cat([block.cross.query.bias, block.cross.key_value.bias])
        copy_attention(layer.multihead_attn, both, block.cross.output)
        norms.insert(1, block.cross_norm)
    for theirs, mine in ((layer.linear1, block.feed_forward.widen), (layer.linear2, block.feed_forward.narrow)):
        theirs.weight.copy_(mine.weight)
        theirs.bias.copy_(mine.bias)
    for number, mine in enumerate(norms, 1):
        getattr(layer, f"norm{number}").load_state_dict(mine.state_dict())


def copy_attention(theirs: nn.MultiheadAttention, inputs: nn.Module, output: nn.Module) -> None:
    theirs.in_proj_weight.copy_(inputs.weight)
    theirs.in_proj_bias.copy_(inputs.bias)
    theirs.out_proj.weight.copy_(output.weight)
    theirs.out_proj.bias.copy_(output.bias)


@pytest.mark.parametrize("block", [BlockKind.PRE_LN, BlockKind.POST_LN])
def test_outputs_are_those_of_torchs_transformer_with_the_same_weights(block: BlockKind) -> None:
    model = in_double(Recipe(tiny_shape(block=block, attention_biases=True), seed=1))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too must count
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    source_BS, target_BT = some_pairs()
    matrix_VD = model.tied_modules["embedding"].weight
    width = NUMBERS["d_model"]

    def embedded(ids: Tensor) -> Tensor:
        positions = torch.tensor(
            [
                [(math.cos if i % 2 else math.sin)(place / 10_000 ** ((i - i % 2) / width)) for i in range(width)]
                for place in range(ids.size(1))
            ],
            dtype=torch.float64,
        )
        return matrix_VD[ids] * math.sqrt(width) + positions.float()

    out_BTD = torchs_own(model)(
        embedded(source_BS),
        embedded(target_BT),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(target_BT.size(1), dtype=torch.float64),
        src_key_padding_mask=source_BS == PAD,
        memory_key_padding_mask=source_BS == PAD,
    )
    torch.testing.assert_close(model.logits(source_BS, target_BT), out_BTD @ matrix_VD.T, rtol=1e-10, atol=1e-6)


# ---------------------------------------------------------------------- counts
SHAPES = {
    "as published": {},
    "pre-norm, learned": {"block": BlockKind.PRE_LN, "position": Position.LEARNED},
    "narrow keys": {"d_key": 3, "attention_biases": True},
    "no biases": {"biases": False},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_the_counted_parameters_are_the_built_ones(options: dict[str, object]) -> None:
    shape = tiny_shape(**options)
    model = EncoderDecoder(Recipe(shape, seed=1))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters().total == shape.largest_stage_parameters(1)


@pytest.mark.parametrize(
    ("name", "total", "papers"), [("transformer-base", 63_045_632, 65e6), ("transformer-big", 214_171_648, 213e6)]
)
def test_the_published_presets_have_the_published_size(name: str, total: int, papers: float) -> None:
    shape = PRESETS[name]
    with torch.device("meta"):
        model = EncoderDecoder(Recipe(shape, seed=1))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters().total == total
    assert total == pytest.approx(papers, rel=0.035)


def test_three_embeddings_are_one_matrix() -> None:
    model = EncoderDecoder(Recipe(tiny_shape(), seed=1))
    sizes = [tuple(p.shape) for p in model.parameters()]
    assert sizes.count((30, 16)) == 1
    assert len({p.data_ptr() for p in model.parameters()}) == len(sizes)


# ---------------------------------------------------------------------- what it may see
@pytest.mark.parametrize("block", [BlockKind.PRE_LN, BlockKind.POST_LN])
def test_padding_changes_nothing_and_later_targets_are_not_seen(block: BlockKind) -> None:
    model = in_double(Recipe(tiny_shape(block=block), seed=1))
    source_BS, target_BT = some_pairs()
    whole = model.logits(source_BS, target_BT)
    alone = model.logits(source_BS[:1, :4], target_BT[:1, :3])
    torch.testing.assert_close(whole[:1, :3], alone)
    changed = target_BT.clone()
    changed[:, 3:] = 5
    torch.testing.assert_close(model.logits(source_BS, changed)[:, :3], whole[:, :3])
    assert not torch.allclose(model.logits(source_BS.flip(1), target_BT), whole)


def test_the_loss_of_micro_batches_averages_to_the_mean_per_token() -> None:
    recipe = Recipe(tiny_shape(), seed=1, label_smoothing=0.1)
    loss, generator = PairLoss(recipe), torch.Generator().manual_seed(2)
    targets = [torch.tensor([[4, 5, 2], [6, 2, PAD]]), torch.tensor([[2]])]
    logits = [torch.randn(*each.shape, NUMBERS["vocabulary"], generator=generator) for each in targets]
    per_micro_batch = torch.tensor(6 / 2)
    for training, smoothing in ((True, 0.1), (False, 0.0)):
        loss.train(training)
        mean = sum(float(loss(scores, (ids, per_micro_batch))) for scores, ids in zip(logits, targets, strict=True)) / 2
        flat = torch.cat([each.flatten(0, 1) for each in logits])
        wanted = nn.functional.cross_entropy(
            flat, torch.cat([each.flatten() for each in targets]), ignore_index=PAD, label_smoothing=smoothing
        )
        assert mean == pytest.approx(float(wanted), rel=1e-6)


def test_dropout_falls_on_every_sub_layer_and_both_embeddings_and_on_nothing_else() -> None:
    model = EncoderDecoder(Recipe(tiny_shape(), seed=1, dropout=0.5, group=ALONE))
    names = [module.name for module in model.modules() if type(module).__name__ == "Dropout"]
    assert len(names) == len(set(names)) == 2 * 3 + 3 * 2 + 2
    source_BS, target_BT = some_pairs()
    dropped = model.train().logits(source_BS, target_BT)
    assert not torch.allclose(dropped, model.eval().logits(source_BS, target_BT))


def test_the_encoder_alone_gives_the_memory_that_the_decoder_reads() -> None:
    model = in_double(Recipe(replace(tiny_shape(), block=BlockKind.PRE_LN), seed=1))
    source_BS, target_BT = some_pairs()
    memory_BSD = model.encode(source_BS)
    moment = model.recipe.clock.now

    def run(block: object, hidden: Tensor) -> Tensor:
        return block.run(hidden, block.cross.keys_and_values(memory_BSD), visible(source_BS), None, moment)

    torch.testing.assert_close(model.decode(target_BT, 0, run), model.logits(source_BS, target_BT))
