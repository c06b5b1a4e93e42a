from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from model.encoder_decoder import model_of
from model.layers import Recipe
from model.shape import (
    FAMILY_OPTIONS,
    PRESETS,
    Activation,
    BlockKind,
    Family,
    Norm,
    Position,
    TransformerShape,
    state_bytes_per_rank,
)
from model.simplified import SimplifiedBlock
from model.tensor_parallel import TensorGroup
from model.transformer import Block, Transformer, layer_plans

PUBLISHED_TOTALS = {
    # Counted from the released weights: GPT-2 and Llama 3 on their model pages, GPT-3 from table 2.1 of its paper.
    "gpt2-125m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "llama-405b": 405_853_388_800,
    # By the matrices of Vaswani et al. 2017 with 37,000 tokens; its table 3 gives 65 M and 213 M.
    "transformer-base": 63_045_632,
    "transformer-big": 214_171_648,
}


def a_shape(**changes: Any) -> TransformerShape:
    numbers: dict[str, Any] = {"layers": 3, "d_model": 24, "heads": 4, "d_ff": 40, "vocabulary": 300, "positions": 16}
    return TransformerShape(**{**numbers, **changes})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    assert PRESETS[name].parameters().total == PUBLISHED_TOTALS[name]


OPTIONS = [
    {},
    {"tied": False},
    {"biases": False, "kv_heads": 2},
    {"norm": Norm.RMS, "position": Position.SINUSOIDAL},
    {"activation": Activation.SWIGLU},
    {**FAMILY_OPTIONS[Family.LLAMA], "kv_heads": 2},
    FAMILY_OPTIONS[Family.VASWANI],
    {"block": BlockKind.SAS, "norm": Norm.RMS},
    {"block": BlockKind.SAS_P, "norm": Norm.NONE, "biases": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_built_module_has_exactly_the_counted_parameters_part_by_part(options: dict[str, Any]) -> None:
    shape = a_shape(**options)
    built = {"token_embedding": 0, "position_embedding": 0, "attention": 0, "feed_forward": 0, "norms": 0, "head": 0}
    parts = {
        **{"0.weight": "token_embedding", "tied_modules.embedding.weight": "token_embedding", "1.weight": "position_embedding"},
        **{"5.weight": "norms", "5.bias": "norms", "6.weight": "head"},
    }
    for name, parameter in Transformer(Recipe(shape, seed=1)).named_parameters():
        within = "norms" if "norm" in name else "feed_forward" if ".feed_forward." in name else "attention"
        built[parts.get(name, within)] += parameter.numel()
    assert {**built, "total": sum(built.values())} == shape.parameters().as_dict()


@pytest.mark.parametrize("name", PRESETS)
def test_the_largest_presets_are_built_as_they_are_counted(name: str) -> None:
    with torch.device("meta"):
        model = model_of(Recipe(PRESETS[name], seed=1))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_TOTALS[name]


def rank_parameters(shape: TransformerShape, pipeline: int, tensor: int) -> list[int]:
    """Parameters of every tensor rank of every stage, built."""
    counts = []
    for rank in range(tensor):
        plans = layer_plans(Recipe(shape, seed=1, group=TensorGroup(rank, tensor)))
        modules = [plan.module(*plan.arguments) for plan in plans]
        blocks = [index for index, plan in enumerate(plans) if plan.module in (Block, SimplifiedBlock)]
        each = len(blocks) // pipeline
        cuts = [0, *(blocks[stage * each] for stage in range(1, pipeline)), len(plans)]
        if pipeline == 1 and shape.tied:
            modules.pop()
        counts += [
            sum(parameter.numel() for module in modules[start:end] for parameter in module.parameters())
            for start, end in itertools.pairwise(cuts)
        ]
    return counts


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("pipeline", "tensor"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_the_fullest_rank_holds_its_share_of_the_blocks_and_the_larger_end(
    options: dict[str, Any], pipeline: int, tensor: int
) -> None:
    shape = a_shape(layers=4, vocabulary=301, **options)
    assert shape.largest_stage_parameters(pipeline, tensor) == max(rank_parameters(shape, pipeline, tensor))


def test_ranks_that_a_shape_cannot_be_spread_over_are_refused() -> None:
    with pytest.raises(ValueError, match="3 layers cannot fill 4 stages"):
        a_shape().largest_stage_parameters(4)
    with pytest.raises(ValueError, match="cannot be split over 3 tensor ranks"):
        a_shape().largest_stage_parameters(1, 3)


def test_flops_count_two_per_weight_and_the_attention_of_a_full_window() -> None:
    shape = a_shape(layers=1, d_model=2, heads=1, d_ff=3, vocabulary=5)
    matrices = 4 * 2 * 2 + 2 * 2 * 3 + 5 * 2
    assert shape.forward_flops_per_token(sequence_tokens=7) == 2 * matrices + 4 * 7 * 2
    assert shape.backward_flops_per_token(7) == 2 * shape.forward_flops_per_token(7)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_state_bytes_are_those_of_figure_1_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    state = state_bytes_per_rank(7_500_000_000, zero_stage=stage, data_ranks=64, precision="bf16")
    assert round(state.total_bytes / 1e9, 1) == gigabytes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"heads": 5}, "not divisible by 5"),
        ({"kv_heads": 3}, "3 key/value heads"),
        ({"heads": 8, "position": Position.ROTARY}, "a head of 3"),
        ({"d_model": 25, "heads": 5, "position": Position.SINUSOIDAL}, "d_model 25 is odd"),
    ],
)
def test_numbers_that_make_no_transformer_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        a_shape(**changes)
