from __future__ import annotations

import pytest
import torch

from model.shape import PRESETS, Family, TransformerShape, state_bytes_per_rank
from model.transformer import Block, LayerPlan, Transformer, layer_plans

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
}


def a_shape(**changes: object) -> TransformerShape:
    numbers = {"layers": 3, "d_model": 24, "heads": 4, "d_ff": 40, "vocabulary": 300, "positions": 16}
    return TransformerShape(**{**numbers, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    assert PRESETS[name].parameters().total == PUBLISHED_TOTALS[name]


@pytest.mark.parametrize("tied", [True, False])
def test_the_built_module_has_exactly_the_counted_parameters_part_by_part(tied: bool) -> None:
    shape = a_shape(tied=tied)
    built = {"token_embedding": 0, "position_embedding": 0, "attention": 0, "feed_forward": 0, "norms": 0, "head": 0}
    for name, parameter in Transformer(layer_plans(shape, dropout=0.0, seed=1)).named_parameters():
        if "tied_modules" in name or name == "0.weight":
            part = "token_embedding"
        elif name == "1.weight":
            part = "position_embedding"
        elif "norm" in name or name.startswith("5."):
            part = "norms"
        elif name == "6.weight":
            part = "head"
        else:
            part = "attention" if ".attention." in name else "feed_forward"
        built[part] += parameter.numel()
    assert {**built, "total": sum(built.values())} == shape.parameters().as_dict()


def test_the_fullest_stage_holds_its_blocks_and_the_larger_end() -> None:
    shape = a_shape(layers=4)

    def size(plans: list[LayerPlan]) -> int:
        modules = [plan.module(*plan.arguments) for plan in plans]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    plans = layer_plans(shape, dropout=0.0, seed=1)
    middle = [index for index, plan in enumerate(plans) if plan.module is Block][2]
    assert shape.largest_stage_parameters(2) == max(size(plans[:middle]), size(plans[middle:]))
    assert shape.largest_stage_parameters(1) == shape.parameters().total


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
    [({"layers": 0}, "layers is 0"), ({"heads": 5}, "not divisible by 5"), ({"kv_heads": 3}, "3 key/value heads")],
)
def test_numbers_that_make_no_transformer_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        a_shape(**changes)


def test_a_shape_that_is_counted_but_not_built_is_refused() -> None:
    with pytest.raises(ValueError, match="only the gpt family"):
        layer_plans(a_shape(family=Family.LLAMA), dropout=0.0, seed=1)


def test_a_token_sees_itself_and_those_before_it_only() -> None:
    model = Transformer(layer_plans(a_shape(), dropout=0.0, seed=1))
    tokens_BT = torch.arange(8)[None]
    changed_BT = tokens_BT.clone()
    changed_BT[0, 5] = 200
    with torch.no_grad():
        same_BT = (model.logits(tokens_BT) == model.logits(changed_BT)).all(dim=-1)
    assert same_BT.tolist() == [[True] * 5 + [False] * 3]


def test_an_untrained_model_knows_nothing() -> None:
    model = Transformer(layer_plans(a_shape(), dropout=0.0, seed=1))
    generator = torch.Generator().manual_seed(0)
    tokens_BT, targets_BT = torch.randint(0, 300, (2, 16, 16), generator=generator)
    assert abs(model(tokens_BT, targets_BT).item() - 5.704) < 0.05  # ln 300


def test_first_values_depend_on_the_seed_and_not_on_what_was_built_before() -> None:
    def first(seed: int) -> torch.Tensor:
        return next(Transformer(layer_plans(a_shape(), dropout=0.0, seed=seed)).get_submodule("3").parameters())

    def weights(seed: int) -> torch.Tensor:
        block = layer_plans(a_shape(), dropout=0.0, seed=seed)[3]
        return block.module(*block.arguments).get_parameter("attention.qkv.weight")

    whole = Transformer(layer_plans(a_shape(), dropout=0.0, seed=1)).get_parameter("3.attention.qkv.weight")
    assert torch.equal(whole, weights(1))
    assert not torch.equal(whole, weights(2))
    assert first(1).shape == (24,)
