"""A decoder-only Transformer, read from top to bottom: GPT, Llama, or as in "Attention Is All You Need".

Shapes stand in the names: B sequences, T tokens, S tokens seen (those before included), P positions, D model width,
K head width; and of this rank's part H heads, G key/value heads, F feed-forward width, W vocabulary.
The layers are a list of plans, so that the flat module below and DeepSpeed's pipeline give every parameter the
same name and the same first value, whatever the layout.

Equations are from Vaswani et al. 2017 (arXiv 1706.03762) unless a docstring names another source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.dropout import Dropout, DropoutClock, Moment
from model.kv_cache import KeyValueCache, LayerCache
from model.recompute import Recompute, recomputed
from model.shape import Activation, Norm, NormPlace, Position, TransformerShape
from model.tensor_parallel import ALONE, ColumnLinear, CrossEntropy, RowLinear, TensorGroup, VocabularyMatrix, normal


@dataclass(frozen=True)
class Recipe:
    """Everything a layer is built from."""

    shape: TransformerShape
    seed: int
    """Of the first values and of the dropout masks."""
    dropout: float = 0.0
    label_smoothing: float = 0.0
    recompute: Recompute = Recompute.NONE
    group: TensorGroup = ALONE
    clock: DropoutClock = field(default_factory=lambda: DropoutClock(0))

    @property
    def deviation(self) -> float:
        """Standard deviation of first values: GPT-2's 0.02; 1/√D where embeddings are scaled by √D, so that they come to 1."""
        return 1 / math.sqrt(self.shape.d_model) if self.shape.scaled_embedding else 0.02

    @property
    def residual_deviation(self) -> float:
        """Of the last matrix of each sub-layer: before a pre-norm, each of the 2·layers additions to the residual stream
        contributes 1/(2·layers) of its variance (Radford et al. 2019, section 2.3)."""
        pre = self.shape.norm_place is NormPlace.PRE
        return self.deviation / math.sqrt(2 * self.shape.layers) if pre else self.deviation


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
    """The model as a list: embedding, positions, blocks, last norm (pre-norm only), head.

    Layer i's parameters are named `i.…`, the tied embedding's `tied_modules.embedding.weight`.
    """
    shape = recipe.shape
    if shape.tied:
        first = LayerPlan(Embedding, (recipe,), tied_key="embedding")
        last = LayerPlan(Embedding, (recipe,), tied_key="embedding", call=to_logits)
    else:
        first, last = LayerPlan(Embedding, (recipe,)), LayerPlan(Head, (recipe,))
    blocks = [LayerPlan(Block, (recipe, index)) for index in range(shape.layers)]
    last_norm = [LayerPlan(norm_kind(shape), norm_numbers(shape))] if shape.norm_place is NormPlace.PRE else []
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
            elif cache is not None and isinstance(module, Block):
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
        self.kind, self.positions = shape.position, shape.positions
        self.factor = math.sqrt(shape.d_model) if shape.scaled_embedding else 1.0
        if self.kind is Position.LEARNED:
            self.weight = nn.Parameter(normal((shape.positions, shape.d_model), recipe.seed, name, 0.02))
        self.dropout = Dropout(recipe.dropout, name, recipe.clock)

    def forward(self, hidden_BTD: Tensor, first: int = 0) -> Tensor:
        """`first` is the position of the first of the tokens."""
        tokens, width = hidden_BTD.size(1), hidden_BTD.size(2)
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
    angles_PK = _angles(positions, width, 10_000.0, device)
    with torch.inference_mode(False):
        return torch.stack([angles_PK.sin(), angles_PK.cos()], dim=-1).flatten(1)


class Block(nn.Module):
    """Attention, then feed-forward, each with its norm, dropout and residual: (B, T, D) -> (B, T, D)."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        super().__init__()
        self.index, self.place = index, recipe.shape.norm_place
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
            hidden_BTD, lambda x: self.attention(x, cache), self.attention_norm, self.attention_dropout, moment, self.place
        )
        return residual(hidden_BTD, self.feed_forward, self.feed_forward_norm, self.feed_forward_dropout, moment, self.place)


def residual(
    hidden_BTD: Tensor,
    sub_layer: Callable[[Tensor], Tensor],
    normed: nn.Module,
    dropout: Dropout,
    moment: Moment,
    place: NormPlace,
) -> Tensor:
    """Pre-norm: x + dropout(f(norm(x))).  Post-norm: norm(x + dropout(f(x))) (sections 3.1 and 5.4)."""
    if place is NormPlace.PRE:
        return hidden_BTD + dropout(sub_layer(normed(hidden_BTD)), moment)
    return normed(hidden_BTD + dropout(sub_layer(hidden_BTD), moment))


def norm(shape: TransformerShape) -> nn.Module:
    """LayerNorm, (x - mean)/√(variance + ε)·g + b, or RMSNorm, x/√(mean(x²) + ε)·g: (B, T, D) -> (B, T, D)."""
    return norm_kind(shape)(*norm_numbers(shape))


def norm_kind(shape: TransformerShape) -> type[nn.Module]:
    return nn.LayerNorm if shape.norm is Norm.LAYER else nn.RMSNorm


def norm_numbers(shape: TransformerShape) -> tuple[int, float]:
    return shape.d_model, shape.norm_eps


class SelfAttention(nn.Module):
    """Concat(head_1 … head_H)·W_O with head = softmax(QKᵀ/√K)·V, each token seeing itself and those before, or what it is told.

    With fewer key/value heads than heads, neighbouring heads share one (Ainslie et al. 2023, grouped-query attention).
    """

    def __init__(self, recipe: Recipe, name: str) -> None:
        super().__init__()
        shape, group = recipe.shape, recipe.group
        self.widths = [width // group.size for width in shape.attention_widths]
        self.d_key, self.d_head, self.positions = shape.d_query_key, shape.d_head, shape.positions
        self.rotary_base = shape.rotary_base if shape.position is Position.ROTARY else None
        common: dict[str, Any] = {"bias": shape.biases and shape.attention_biases, "seed": recipe.seed, "group": group}
        widths = shape.attention_widths
        self.qkv = ColumnLinear(shape.d_model, widths, name=f"{name}.qkv", deviation=recipe.deviation, **common)
        self.output = RowLinear(
            shape.d_model, shape.d_model, name=f"{name}.output", deviation=recipe.residual_deviation, **common
        )

    def forward(self, hidden_BTD: Tensor, cache: LayerCache | None = None, visible_B1TS: Tensor | None = None) -> Tensor:
        """`visible` says which of the S tokens each of the T may see; None: itself and those before."""
        q_BHTK, k_BGTK, v_BGTK = self.queries_keys_values(hidden_BTD, cache)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(k_BGTK, v_BGTK)
        return self.output(attend(q_BHTK, k_BGTK, v_BGTK, visible_B1TS).transpose(1, 2).flatten(2))

    def queries_keys_values(self, hidden_BTD: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of T tokens that follow those in the cache, by head; rotary positions are in them."""
        q_BTE, k_BTE, v_BTE = self.qkv(hidden_BTD).split(self.widths, dim=-1)
        q_BHTK, k_BGTK, v_BGTK = heads(q_BTE, self.d_key), heads(k_BTE, self.d_key), heads(v_BTE, self.d_head)
        if self.rotary_base is not None:
            here = slice(cache.tokens if cache else 0, None)
            tables = rotations(self.positions, self.d_key, self.rotary_base, q_BHTK.device)
            cos_TK, sin_TK = (table_PK[here][: q_BHTK.size(2)] for table_PK in tables)
            q_BHTK, k_BGTK = rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BGTK, cos_TK, sin_TK)
        return q_BHTK, k_BGTK, v_BGTK


def heads(hidden_BTE: Tensor, d_head: int) -> Tensor:
    """(B, T, heads · K) -> (B, heads, T, K)."""
    return hidden_BTE.unflatten(-1, (-1, d_head)).transpose(1, 2)


def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B1TS: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√K)·V (equation 1): (B, H, T, K).  By torch's SDPA.

    A query sees what `visible` says; without it, the T queries are the last of the S tokens and see those before.
    """
    tokens, seen = q_BHTK.size(2), k_BGSK.size(2)
    causal = visible_B1TS is None and tokens == seen and tokens > 1
    if visible_B1TS is None and 1 < tokens < seen:
        visible_B1TS = torch.ones(tokens, seen, dtype=torch.bool, device=q_BHTK.device).tril(seen - tokens)
    shared = q_BHTK.size(1) != k_BGSK.size(1)
    return functional.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=visible_B1TS, is_causal=causal, enable_gqa=shared
    )


@lru_cache(maxsize=8)
def rotations(positions: int, d_head: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of pos·base^(-2i/K) by position and pair (Su et al. 2021, equation 15): each (positions, K/2), fp32."""
    angles_PK = _angles(positions, d_head, base, device)
    with torch.inference_mode(False):
        return angles_PK.cos(), angles_PK.sin()


def _angles(positions: int, width: int, base: float, device: torch.device) -> Tensor:
    """pos / base^(2i/width): (positions, width/2), reckoned in double."""
    # Kept for later calls, which may train: a tensor made in inference mode could not be used there.
    with torch.inference_mode(False):
        rates_K = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        return torch.outer(torch.arange(positions, dtype=torch.float64, device=device), rates_K).float()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turns the pairs (x_i, x_{i+K/2}) by their angles (RoPE; the pairing of the published Llama weights in transformers)."""
    one_BHTK, two_BHTK = x_BHTK.float().chunk(2, dim=-1)
    turned = (one_BHTK * cos_TK - two_BHTK * sin_TK, two_BHTK * cos_TK + one_BHTK * sin_TK)
    return torch.cat(turned, dim=-1).to(x_BHTK.dtype)


class FeedForward(nn.Module):
    """max(0, xW_1 + b_1)W_2 + b_2 (equation 2), GELU for max, or (silu(xW_1)·xW_3)W_2 (SwiGLU, Shazeer 2020)."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        super().__init__()
        shape = recipe.shape
        self.activation, self.recompute = shape.activation, recipe.recompute
        common: dict[str, Any] = {"bias": shape.biases, "seed": recipe.seed, "group": recipe.group}
        wide = (shape.d_ff, shape.d_ff) if shape.is_gated else (shape.d_ff,)
        self.widen = ColumnLinear(shape.d_model, wide, name=f"{name}.widen", deviation=recipe.deviation, **common)
        self.narrow = RowLinear(shape.d_ff, shape.d_model, name=f"{name}.narrow", deviation=recipe.residual_deviation, **common)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        wide_BTF = self.widen(hidden_BTD)
        # Narrowing is part of it so that its input is forgotten; its product is not done again (see `recomputed`).
        selective = self.recompute is Recompute.SELECTIVE
        return recomputed(self._from_wide, wide_BTF) if selective else self._from_wide(wide_BTF)

    def _from_wide(self, wide_BTF: Tensor) -> Tensor:
        return self.narrow(activate(wide_BTF, self.activation))


def activate(wide_BTF: Tensor, activation: Activation) -> Tensor:
    """The non-linearity; a gated one takes (B, T, 2F), gate first, and gives (B, T, F)."""
    if activation is Activation.SWIGLU:
        gate_BTF, value_BTF = wide_BTF.chunk(2, dim=-1)
        return functional.silu(gate_BTF) * value_BTF
    return functional.relu(wide_BTF) if activation is Activation.RELU else functional.gelu(wide_BTF)
