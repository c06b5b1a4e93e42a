"""A decoder-only Transformer, read from top to bottom: GPT, Llama, or as in "Attention Is All You Need".

Shapes stand in the names: B sequences, T tokens, P positions, D model width; W this rank's part of the vocabulary.
The layers are a list of plans, so that the flat module below and DeepSpeed's pipeline give every parameter the
same name and the same first value, whatever the layout.

Equations are from Vaswani et al. 2017 (arXiv 1706.03762) unless a docstring names another source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from model.dropout import Dropout, Moment
from model.kv_cache import KeyValueCache, LayerCache
from model.layers import FeedForward, Recipe, SelfAttention, angles, norm, norm_kind, norm_numbers, residual
from model.recompute import Recompute, recomputed
from model.shape import BlockKind, Position
from model.simplified import SimplifiedBlock
from model.tensor_parallel import CrossEntropy, VocabularyMatrix, normal

Call = Callable[[nn.Module, Any], Any]
"""Runs a layer on what the layer before gave."""


@dataclass(frozen=True)
class LayerPlan:
    """One entry of the layer list: what to build, and how to call it."""

    module: type[nn.Module]
    arguments: tuple[Any, ...] = ()
    tied_key: str | None = None
    """Plans with the same key share one module, the one the first of them built."""
    call: Call | None = None
    """How to call the module; None calls it with the input alone."""


def layer_plans(recipe: Recipe) -> list[LayerPlan]:
    """The model as a list: embedding, positions, blocks, last norm (not with post-LN), head.

    Layer i's parameters are named `i.…`, the tied embedding's `tied_modules.embedding.weight`.
    """
    shape = recipe.shape
    if shape.tied:
        first = LayerPlan(Embedding, (recipe,), tied_key="embedding")
        last = LayerPlan(Embedding, (recipe,), tied_key="embedding", call=to_logits)
    else:
        first, last = LayerPlan(Embedding, (recipe,)), LayerPlan(Head, (recipe,))
    kind = SimplifiedBlock if shape.block.is_simplified else Block
    blocks = [LayerPlan(kind, (recipe, index)) for index in range(shape.layers)]
    last_norm = [] if shape.block is BlockKind.POST_LN else [LayerPlan(norm_kind(shape), norm_numbers(shape))]
    return [first, LayerPlan(Positions, (recipe,)), *blocks, *last_norm, last]


class LayerStack(nn.Module):
    """All layers of a list on one rank (or on each of its tensor ranks), with the parameter names of the pipeline."""

    def __init__(self, recipe: Recipe, plans: list[LayerPlan]) -> None:
        super().__init__()
        self.recipe = recipe
        self.tied_modules = nn.ModuleDict()
        self._calls: list[tuple[str, Call | None]] = []
        for index, plan in enumerate(plans):
            name = str(index) if plan.tied_key is None else f"tied_modules.{plan.tied_key}"
            if plan.tied_key is None:
                self.add_module(name, plan.module(*plan.arguments))
            elif plan.tied_key not in self.tied_modules:
                self.tied_modules[plan.tied_key] = plan.module(*plan.arguments)
            self._calls.append((name, plan.call))

    def layers(self) -> Iterator[tuple[nn.Module, Call | None]]:
        """Each entry of the list: the module, and how to call it."""
        return ((self.get_submodule(name), call) for name, call in self._calls)


class Transformer(LayerStack):
    """The decoder-only model whole."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, layer_plans(recipe))
        self.loss = next_token_loss(recipe)

    def logits(self, tokens_BT: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Token ids (B, T) -> logits (B, T, W), or (B, 1, W) of the last token only.

        With a cache, the tokens follow those that it holds.
        """
        hidden = tokens_BT
        for index, (module, call) in enumerate(self.layers()):
            if last_only and index == len(self._calls) - 1:
                hidden = hidden[:, -1:]
            if cache is not None and isinstance(module, Positions):
                hidden = module(hidden, cache.tokens)
            elif cache is not None and isinstance(module, Block | SimplifiedBlock):
                hidden = module(hidden, cache)
            else:
                hidden = call(module, hidden) if call else module(hidden)
        if cache is not None:
            cache.tokens += tokens_BT.size(1)
        return hidden

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nat per token, a scalar."""
        return self.loss(self.logits(tokens_BT), targets_BT)


def next_token_loss(recipe: Recipe) -> CrossEntropy:
    """The loss over the head's logits."""
    return CrossEntropy(recipe.shape.vocabulary, recipe.label_smoothing, recipe.group)


class Embedding(VocabularyMatrix):
    """Token ids (B, T) -> vectors (B, T, D); as a tied head (section 3.4), vectors (B, T, D) -> logits (B, T, W)."""

    def __init__(self, recipe: Recipe, name: str = "token_embedding") -> None:
        numbers = (recipe.shape.vocabulary, recipe.shape.d_model)
        super().__init__(*numbers, seed=recipe.seed, name=name, deviation=recipe.deviation, group=recipe.group)


def to_logits(embedding: nn.Module, hidden_BTD: Tensor) -> Tensor:
    """The tied head: hidden (B, T, D) times the embedding's transpose."""
    return embedding(hidden_BTD, to_logits=True)


class Head(Embedding):
    """The untied head: vectors (B, T, D) -> logits (B, T, W)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, "head")

    def forward(self, inputs: Tensor, to_logits: bool = True) -> Tensor:
        return super().forward(inputs, to_logits)


class Positions(nn.Module):
    """Embedding (times √D where scaled) plus position, then dropout: (B, T, D) -> (B, T, D).  Rotary ones add nothing."""

    def __init__(self, recipe: Recipe, name: str = "positions") -> None:
        super().__init__()
        shape = recipe.shape
        self.kind, self.positions, self.sequence = shape.position, shape.positions, recipe.sequence
        self.factor = math.sqrt(shape.d_model) if shape.scaled_embedding else 1.0
        if self.kind is Position.LEARNED:
            self.weight = nn.Parameter(normal((shape.positions, shape.d_model), recipe.seed, name, 0.02))
        self.dropout = Dropout(recipe.dropout, name, recipe.clock)

    def forward(self, hidden_BTD: Tensor, first: int = 0) -> Tensor:
        """`first` is the position of the first of the tokens that the ranks of a sequence hold together."""
        tokens, width = hidden_BTD.size(1), hidden_BTD.size(2)
        first += self.sequence.rank * tokens
        if self.factor != 1.0:
            hidden_BTD = hidden_BTD * self.factor
        if self.kind is Position.LEARNED:
            hidden_BTD = hidden_BTD + self.weight[first : first + tokens]
        elif self.kind is Position.SINUSOIDAL:
            table_PD = sinusoids(self.positions, width, hidden_BTD.device)
            hidden_BTD = hidden_BTD + table_PD[first : first + tokens].to(hidden_BTD.dtype)
        return self.dropout(hidden_BTD)


@lru_cache(maxsize=8)
def sinusoids(positions: int, width: int, device: torch.device) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos of the same (section 3.5): (positions, width), fp32."""
    angles_PK = angles(positions, width, 10_000.0, device)
    with torch.inference_mode(False):
        return torch.stack([angles_PK.sin(), angles_PK.cos()], dim=-1).flatten(1)


class Block(nn.Module):
    """Attention, then feed-forward, each with its norm, dropout and residual: (B, T, D) -> (B, T, D)."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        super().__init__()
        self.index, self.kind = index, recipe.shape.block
        self.recompute, self.clock = recipe.recompute, recipe.clock
        self.attention_norm = norm(recipe.shape)
        self.attention = SelfAttention(recipe, f"block.{index}.attention")
        self.attention_dropout = Dropout(recipe.dropout, f"block.{index}.attention", recipe.clock)
        self.feed_forward_norm = norm(recipe.shape)
        self.feed_forward = FeedForward(recipe, f"block.{index}.feed_forward")
        self.feed_forward_dropout = Dropout(recipe.dropout, f"block.{index}.feed_forward", recipe.clock)

    def forward(self, hidden_BTD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        arguments = (hidden_BTD, self.clock.now, cache.layers[self.index] if cache else None)
        return recomputed(self._run, *arguments) if self.recompute is Recompute.FULL else self._run(*arguments)

    def _run(self, hidden_BTD: Tensor, moment: Moment, cache: LayerCache | None) -> Tensor:
        hidden_BTD = residual(
            hidden_BTD, lambda x: self.attention(x, cache), self.attention_norm, self.attention_dropout, moment, self.kind
        )
        return residual(hidden_BTD, self.feed_forward, self.feed_forward_norm, self.feed_forward_dropout, moment, self.kind)
