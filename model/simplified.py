"""Simplified Transformer blocks: no values, no projection, and hardly a skip (He & Hofmann 2024, arXiv 2311.01906).

A' = α·I + β·softmax(QKᵀ/√K) - γ·C mixes the tokens, where C is the mean over all that a token sees.  With W_Q = 0 at the
start the softmax is C, so that A' = I: the signal passes a deep stack unchanged without a skip.  A'V is worked out as
α·V + β·attention(Q, K, V) - γ·(running mean of V), so that no n × n matrix is made.

Values are the block's input itself, heads are put side by side again without a projection; only the first layer has a
value matrix, identity + trained part (their section 4.3 and code).  Shapes as in `layers.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from model.attention import Pattern, attend
from model.dropout import Dropout, Moment
from model.kv_cache import LayerCache
from model.layers import FeedForward, Recipe, Rotary, norm
from model.recompute import Recompute, recomputed
from model.sequence_parallel import heads_of_my_tokens, tokens_of_my_heads
from model.shape import BlockKind, Norm
from model.tensor_parallel import ColumnLinear, Shard, all_columns, own_columns, shared_parameter, to_ranks

FIRST_FEED_FORWARD_GAIN = 0.1
"""At 18 layers, the authors' depth; it goes as 1/√depth."""


class SimplifiedBlock(nn.Module):
    """SAS: h = g_a·attention(norm(x)), then g_s·h + g_f·feed_forward(norm(h)).  SAS-P: g_a·attention(y) + g_f·feed_forward(y)
    with y = norm(x).  (B, T, D) -> (B, T, D); the gains g are trained."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        super().__init__()
        shape = recipe.shape
        self.index, self.is_parallel = index, shape.block is BlockKind.SAS_P
        self.recompute, self.clock = recipe.recompute, recipe.clock
        has_norms = shape.norm is not Norm.NONE
        # Without norms the first block's input still has one: embeddings have no scale of their own.
        self.attention_norm = norm(shape) if has_norms or index == 0 else nn.Identity()
        self.attention = ShapedAttention(recipe, index)
        self.attention_gain = nn.Parameter(torch.ones(1))
        self.attention_dropout = Dropout(recipe.dropout, f"block.{index}.attention", recipe.clock)
        if not self.is_parallel:
            self.feed_forward_norm = norm(shape) if has_norms else nn.Identity()
            self.skip_gain = nn.Parameter(torch.ones(1))
        self.feed_forward = FeedForward(recipe, f"block.{index}.feed_forward")
        self.feed_forward_gain = nn.Parameter(torch.full((1,), FIRST_FEED_FORWARD_GAIN * math.sqrt(18 / shape.layers)))
        self.feed_forward_dropout = Dropout(recipe.dropout, f"block.{index}.feed_forward", recipe.clock)

    def forward(self, hidden_BTD: Tensor, cache: Any = None) -> Tensor:
        """With a `KeyValueCache`, the tokens follow those that it holds."""
        arguments = (hidden_BTD, self.clock.now, cache.layers[self.index] if cache else None)
        return recomputed(self._run, *arguments) if self.recompute is Recompute.FULL else self._run(*arguments)

    def _run(self, hidden_BTD: Tensor, moment: Moment, cache: LayerCache | None) -> Tensor:
        normed_BTD = self.attention_norm(hidden_BTD)
        mixed_BTD = self.attention_gain * self.attention_dropout(self.attention(normed_BTD, cache), moment)
        thought_about = normed_BTD if self.is_parallel else self.feed_forward_norm(mixed_BTD)
        thought_BTD = self.feed_forward_dropout(self.feed_forward(thought_about), moment)
        kept_BTD = mixed_BTD if self.is_parallel else self.skip_gain * mixed_BTD
        return torch.addcmul(kept_BTD, self.feed_forward_gain, thought_BTD)


class ShapedAttention(nn.Module):
    """Concat(A'_1·x_1 … A'_H·x_H), each token seeing itself and those before: (B, T, D) -> (B, T, D)."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        super().__init__()
        shape, group = recipe.shape, recipe.group
        self.group, self.sequence = group, recipe.sequence
        self.d_head, self.pattern = shape.d_head, Pattern.of(shape)
        self.rotary = Rotary.of(shape)
        self.has_values = index == 0
        outputs = (shape.d_model,) * (3 if self.has_values else 2)
        common: dict[str, Any] = {
            "bias": shape.biases and shape.attention_biases,
            "seed": recipe.seed,
            "deviation": recipe.deviation,
            "group": group,
        }
        # Queries, keys and values; only keys begin drawn.
        self.qk = ColumnLinear(shape.d_model, outputs, name=f"block.{index}.attention.qk", zero=(0, 2), **common)
        self.own_gain, self.softmax_gain, self.mean_gain = (
            shared_parameter(torch.ones(shape.heads), Shard(0, (shape.heads,)), group) for _ in range(3)
        )
        if self.has_values:
            self.value_skip_gain, self.value_gain = (nn.Parameter(torch.ones(1)) for _ in range(2))

    def forward(self, hidden_BTD: Tensor, cache: LayerCache | None = None) -> Tensor:
        q_BTD, k_BTD, *rest = self.qk(hidden_BTD).chunk(3 if self.has_values else 2, dim=-1)
        v_BTD = own_columns(hidden_BTD, self.group)
        if rest:
            skip_gain, value_gain = (to_ranks(gain, self.group) for gain in (self.value_skip_gain, self.value_gain))
            v_BTD = skip_gain * v_BTD + value_gain * rest[0]
        q_BHTK, k_BHTK, v_BHTK = (
            tokens_of_my_heads(part_BTD.unflatten(-1, (-1, self.d_head)).transpose(1, 2), self.sequence)
            for part_BTD in (q_BTD, k_BTD, v_BTD)
        )
        if self.rotary is not None:
            q_BHTK, k_BHTK = self.rotary.turn(q_BHTK, k_BHTK, cache.tokens if cache else 0)
        gains = [self.sequence.part(gain_H, 0).view(-1, 1, 1) for gain_H in (self.own_gain, self.softmax_gain, self.mean_gain)]
        mixed_BHTK = shaped_attention(q_BHTK, k_BHTK, v_BHTK, *gains, pattern=self.pattern, cache=cache)
        return all_columns(heads_of_my_tokens(mixed_BHTK, self.sequence).transpose(1, 2).flatten(2), self.group)


def shaped_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    own_gain_H11: Tensor,
    softmax_gain_H11: Tensor,
    mean_gain_H11: Tensor,
    *,
    pattern: Pattern,
    cache: LayerCache | None = None,
) -> Tensor:
    """(α·I + β·softmax(QKᵀ/√K) - γ·C)·V without its matrix: (B, H, T, K).

    With a cache the T tokens follow those that it holds, and it takes them in.
    """
    if cache is None:
        k_BHSK, v_BHSK = k_BHTK, v_BHTK
        mean_BHTK = running_mean(v_BHTK, pattern.window)
    elif pattern.window:
        k_BHSK, v_BHSK = cache.append(k_BHTK, v_BHTK)
        tokens = v_BHTK.size(2)
        # One token's window may come in the ring's order, in which only the sum of all has a meaning.
        one = tokens == 1 and v_BHSK.size(2) <= pattern.window
        mean_BHTK = v_BHSK.mean(2, keepdim=True) if one else running_mean(v_BHSK, pattern.window)[:, :, -tokens:]
    else:
        k_BHSK, v_BHSK = cache.append(k_BHTK, v_BHTK)
        counts_T1 = torch.arange(cache.tokens - v_BHTK.size(2) + 1, cache.tokens + 1, device=v_BHTK.device).unsqueeze(1)
        mean_BHTK = (cache.running_sum(v_BHTK) / counts_T1).to(v_BHTK.dtype)
    mixed_BHTK = softmax_gain_H11 * attend(q_BHTK, k_BHSK, v_BHSK, pattern=pattern)
    return mixed_BHTK.addcmul(v_BHTK, own_gain_H11).addcmul(mean_BHTK, mean_gain_H11, value=-1)


def running_mean(v_BHTK: Tensor, window: int = 0) -> Tensor:
    """Mean over each token and all before it, or those of its window: (B, H, T, K) -> (B, H, T, K)."""
    tokens = v_BHTK.size(2)
    wide = torch.promote_types(v_BHTK.dtype, torch.float32)
    sums_BHTK = v_BHTK.cumsum(dim=2, dtype=wide)
    if 0 < window < tokens:
        sums_BHTK = torch.cat([sums_BHTK[:, :, :window], sums_BHTK[:, :, window:] - sums_BHTK[:, :, :-window]], dim=2)
    counts_T1 = torch.arange(1, tokens + 1, device=v_BHTK.device).clamp(max=window or tokens).unsqueeze(1)
    return (sums_BHTK / counts_T1).to(v_BHTK.dtype)
