"""What blocks of every kind are made of: norms, attention, feed-forward, and the recipe that they are built from.

Shapes stand in the names: B sequences, T tokens, S tokens seen (those before included), P positions, D model width,
K head width; and of this rank's part H heads, G key/value heads, F feed-forward width.

Equations are from Vaswani et al. 2017 (arXiv 1706.03762) unless a docstring names another source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import Pattern, attend
from model.dropout import Dropout, DropoutClock, Moment
from model.kv_cache import LayerCache
from model.recompute import Recompute, recomputed
from model.sequence_parallel import WHOLE, SequenceGroup, heads_of_my_tokens, tokens_of_my_heads
from model.shape import Activation, BlockKind, Norm, Position, TransformerShape
from model.tensor_parallel import ALONE, ColumnLinear, RowLinear, TensorGroup

NUMBER_TYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a run's `precision`, and an export's `--type`, is to torch."""


@dataclass(frozen=True)
class Recipe:
    """Everything a layer is built from."""

    shape: TransformerShape
    seed: int | None
    """Of the first values; None where a checkpoint's will take their place."""
    dropout: float = 0.0
    label_smoothing: float = 0.0
    recompute: Recompute = Recompute.NONE
    group: TensorGroup = ALONE
    sequence: SequenceGroup = WHOLE
    clock: DropoutClock = field(default_factory=lambda: DropoutClock(0))

    @property
    def deviation(self) -> float:
        """Standard deviation of first values: GPT-2's 0.02; of embeddings that are scaled by √D, 1/√D, so that they come to 1."""
        return 1 / math.sqrt(self.shape.d_model) if self.shape.scaled_embedding else 0.02

    def matrix_deviation(self, inputs: int, outputs: int, residual: bool = False) -> float:
        """Of a matrix: GPT-2's 0.02; beside scaled embeddings √(2/(inputs + outputs)) (Glorot & Bengio 2010), queries, keys and
        values counted as one matrix, as torch.nn.Transformer does: with each by itself, learning began later.  The last matrix
        of a pre-norm sub-layer (`residual`) is smaller: each of the 2·layers additions contributes 1/(2·layers) of the variance
        (Radford et al. 2019, section 2.3)."""
        deviation = math.sqrt(2 / (inputs + outputs)) if self.shape.scaled_embedding else 0.02
        pre = self.shape.block is BlockKind.PRE_LN
        return deviation / math.sqrt(2 * self.shape.layers) if residual and pre else deviation


def residual(
    hidden_BTD: Tensor,
    sub_layer: Callable[[Tensor], Tensor],
    normed: nn.Module,
    dropout: Dropout,
    moment: Moment,
    kind: BlockKind,
) -> Tensor:
    """Pre-norm: x + dropout(f(norm(x))).  Post-norm: norm(x + dropout(f(x))) (sections 3.1 and 5.4)."""
    if kind is BlockKind.PRE_LN:
        return hidden_BTD + dropout(sub_layer(normed(hidden_BTD)), moment)
    return normed(hidden_BTD + dropout(sub_layer(hidden_BTD), moment))


def norm(shape: TransformerShape) -> nn.Module:
    """LayerNorm, (x - mean)/√(variance + ε)·g + b, or RMSNorm, x/√(mean(x²) + ε)·g: (B, T, D) -> (B, T, D)."""
    return norm_kind(shape)(*norm_numbers(shape))


def norm_kind(shape: TransformerShape) -> type[nn.Module]:
    return nn.RMSNorm if shape.norm is Norm.RMS else nn.LayerNorm


def norm_numbers(shape: TransformerShape) -> tuple[int, float]:
    return shape.d_model, shape.norm_eps


class SelfAttention(nn.Module):
    """Concat(head_1 … head_H)·W_O with head = softmax(QKᵀ/√K)·V, a token seeing itself and those before, or what it is told.

    With fewer key/value heads than heads, neighbouring heads share one (Ainslie et al. 2023, grouped-query attention).
    """

    def __init__(self, recipe: Recipe, name: str) -> None:
        super().__init__()
        shape, group = recipe.shape, recipe.group
        self.widths = [width // group.size for width in shape.attention_widths]
        self.d_key, self.d_head = shape.d_query_key, shape.d_head
        self.pattern, self.rotary, self.sequence = Pattern.of(shape), Rotary.of(shape), recipe.sequence
        common: dict[str, Any] = {"bias": shape.biases and shape.attention_biases, "seed": recipe.seed, "group": group}
        widths = shape.attention_widths
        square = (shape.d_model, shape.d_model)
        deviation = recipe.matrix_deviation(shape.d_model, sum(widths))
        self.qkv = ColumnLinear(shape.d_model, widths, name=f"{name}.qkv", deviation=deviation, **common)
        self.output = RowLinear(
            *square, name=f"{name}.output", deviation=recipe.matrix_deviation(*square, residual=True), **common
        )

    def forward(self, hidden_BTD: Tensor, cache: LayerCache | None = None, visible_B1TS: Tensor | None = None) -> Tensor:
        """`visible` says which of the S tokens each of the T may see; None: itself and those before."""
        q_BHTK, k_BGTK, v_BGTK = self.queries_keys_values(hidden_BTD, cache)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(k_BGTK, v_BGTK)
        mixed_BHTK = heads_of_my_tokens(attend(q_BHTK, k_BGTK, v_BGTK, visible_B1TS, pattern=self.pattern), self.sequence)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))

    def queries_keys_values(self, hidden_BTD: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of T tokens that follow those in the cache, by head; rotary positions are in them."""
        q_BTE, k_BTE, v_BTE = self.qkv(hidden_BTD).split(self.widths, dim=-1)
        q_BHTK, k_BGTK, v_BGTK = (
            tokens_of_my_heads(heads(part_BTE, width), self.sequence)
            for part_BTE, width in ((q_BTE, self.d_key), (k_BTE, self.d_key), (v_BTE, self.d_head))
        )
        if self.rotary is not None:
            q_BHTK, k_BGTK = self.rotary.turn(q_BHTK, k_BGTK, cache.tokens if cache else 0)
        return q_BHTK, k_BGTK, v_BGTK


def heads(hidden_BTE: Tensor, d_head: int) -> Tensor:
    """(B, T, heads · K) -> (B, heads, T, K)."""
    return hidden_BTE.unflatten(-1, (-1, d_head)).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions: queries and keys are turned by their place in the text."""

    positions: int
    d_key: int
    base: float

    @classmethod
    def of(cls, shape: TransformerShape) -> Rotary | None:
        """None where the shape has positions of another kind."""
        return cls(shape.positions, shape.d_query_key, shape.rotary_base) if shape.position is Position.ROTARY else None

    def turn(self, q_BHTK: Tensor, k_BGTK: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Both turned, their T tokens standing at `first` and after."""
        here = slice(first, first + q_BHTK.size(2))
        cos_TK, sin_TK = (table_PK[here] for table_PK in rotations(self.positions, self.d_key, self.base, q_BHTK.device))
        return rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BGTK, cos_TK, sin_TK)


@lru_cache(maxsize=8)
def rotations(positions: int, d_head: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of pos·base^(-2i/K) by position and pair (Su et al. 2021, equation 15): each (positions, K/2), fp32."""
    angles_PK = angles(positions, d_head, base, device)
    with torch.inference_mode(False):
        return angles_PK.cos(), angles_PK.sin()


def angles(positions: int, width: int, base: float, device: torch.device) -> Tensor:
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
        deviation = recipe.matrix_deviation(shape.d_model, shape.d_ff)
        self.widen = ColumnLinear(shape.d_model, wide, name=f"{name}.widen", deviation=deviation, **common)
        deviation = recipe.matrix_deviation(shape.d_ff, shape.d_model, residual=True)
        self.narrow = RowLinear(shape.d_ff, shape.d_model, name=f"{name}.narrow", deviation=deviation, **common)

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
