"""A decoder-only pre-LN Transformer, read from top to bottom.

Shapes stand in the names: B sequences, T tokens, D model width, H heads, K head width, V vocabulary.
The layers are a list of plans, so that the flat module below and DeepSpeed's pipeline give every parameter the
same name and the same first value, whatever the layout.

The equations are from Vaswani et al. 2017 (arXiv 1706.03762); the norm stands before each sub-layer and GELU in
place of max(0, x), as in GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.shape import Family, TransformerShape


@dataclass(frozen=True)
class LayerPlan:
    """One entry of the layer list: what to build, and how to call it."""

    module: type[nn.Module]
    arguments: tuple[Any, ...] = ()
    tied_key: str | None = None
    """Plans with the same key share one module, the one the first of them built."""
    call: Callable[[nn.Module, Tensor], Tensor] | None = field(default=None)
    """How to call the module; None calls it with the input alone."""


def layer_plans(shape: TransformerShape, *, dropout: float, seed: int) -> list[LayerPlan]:
    """The model as a list: embedding, positions, blocks, last norm, head.

    Layer i's parameters are named `i.…`, the tied embedding's `tied_modules.embedding.weight`.
    Raises ValueError for a family other than GPT.
    """
    if shape.family is not Family.GPT or shape.key_value_heads != shape.heads:
        raise ValueError(f"only the {Family.GPT} family with as many key/value heads as heads is built, not {shape}")
    embedding = (shape.vocabulary, shape.d_model, seed)
    if shape.tied:
        first = LayerPlan(TokenEmbedding, embedding, tied_key="embedding")
        last = LayerPlan(TokenEmbedding, embedding, tied_key="embedding", call=project_to_vocabulary)
    else:
        first = LayerPlan(TokenEmbedding, embedding)
        last = LayerPlan(Head, (shape.vocabulary, shape.d_model, seed))
    blocks = [LayerPlan(Block, (shape, dropout, seed, index)) for index in range(shape.layers)]
    positions = LayerPlan(Positions, (shape.positions, shape.d_model, dropout, seed))
    return [first, positions, *blocks, LayerPlan(nn.LayerNorm, (shape.d_model,)), last]


class Transformer(nn.Module):
    """The whole model on one rank, with the parameter names of the pipeline."""

    def __init__(self, plans: list[LayerPlan]) -> None:
        super().__init__()
        self.tied_modules = nn.ModuleDict()
        self._calls: list[tuple[str, bool, Callable[[nn.Module, Tensor], Tensor] | None]] = []
        for index, plan in enumerate(plans):
            if plan.tied_key is None:
                self.add_module(str(index), plan.module(*plan.arguments))
            elif plan.tied_key not in self.tied_modules:
                self.tied_modules[plan.tied_key] = plan.module(*plan.arguments)
            self._calls.append((plan.tied_key or str(index), plan.tied_key is not None, plan.call))

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        hidden = tokens_BT
        for name, tied, call in self._calls:
            module = self.tied_modules[name] if tied else self.get_submodule(name)
            hidden = call(module, hidden) if call else module(hidden)
        return hidden

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nat per token, a scalar."""
        return cross_entropy(self.logits(tokens_BT), targets_BT)


class TokenEmbedding(nn.Module):
    """Token ids (B, T) -> vectors (B, T, D); as a tied head, vectors (B, T, D) -> logits (B, T, V)."""

    def __init__(self, vocabulary: int, d_model: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((vocabulary, d_model), seed, "token_embedding"))

    def forward(self, inputs: Tensor, to_logits: bool = False) -> Tensor:
        # Both uses go through forward: ZeRO-3 gathers a weight only around its own module's call.
        return functional.linear(inputs, self.weight) if to_logits else functional.embedding(inputs, self.weight)


def project_to_vocabulary(embedding: nn.Module, hidden_BTD: Tensor) -> Tensor:
    """The tied head: logits (B, T, V) = hidden (B, T, D) times the embedding's transpose."""
    return embedding(hidden_BTD, to_logits=True)


class Head(nn.Module):
    """The untied head: vectors (B, T, D) -> logits (B, T, V)."""

    def __init__(self, vocabulary: int, d_model: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((vocabulary, d_model), seed, "head"))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return functional.linear(hidden_BTD, self.weight)


class Positions(nn.Module):
    """Adds a learned vector per position, then drops out: (B, T, D) -> (B, T, D)."""

    def __init__(self, positions: int, d_model: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((positions, d_model), seed, "positions"))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.dropout(hidden_BTD + self.weight[: hidden_BTD.size(1)])


class Block(nn.Module):
    """x + Attention(LN(x)), then x + FFN(LN(x)): (B, T, D) -> (B, T, D)."""

    def __init__(self, shape: TransformerShape, dropout: float, seed: int, index: int) -> None:
        super().__init__()
        # Each of the 2·layers residual additions contributes 1/(2·layers) of the variance (GPT-2, section 2.3).
        scale = 1 / math.sqrt(2 * shape.layers)
        self.attention_norm = nn.LayerNorm(shape.d_model)
        self.attention = CausalSelfAttention(shape, seed, f"block.{index}.attention", scale)
        self.feed_forward_norm = nn.LayerNorm(shape.d_model)
        self.feed_forward = FeedForward(shape, seed, f"block.{index}.feed_forward", scale)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.dropout(self.attention(self.attention_norm(hidden_BTD)))
        return hidden_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_BTD)))


class CausalSelfAttention(nn.Module):
    """Concat(head_1 … head_H)·W_O with head = softmax(QKᵀ/√K)·V, each token seeing itself and those before."""

    def __init__(self, shape: TransformerShape, seed: int, name: str, residual_scale: float) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = linear(shape.d_model, 3 * shape.d_model, seed, f"{name}.qkv")
        self.output = linear(shape.d_model, shape.d_model, seed, f"{name}.output", residual_scale)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        sequences, tokens, width = hidden_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            part_BTD.view(sequences, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part_BTD in self.qkv(hidden_BTD).chunk(3, dim=-1)
        )
        seen_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.output(seen_BHTK.transpose(1, 2).reshape(sequences, tokens, width))


class FeedForward(nn.Module):
    """gelu(xW_1 + b_1)W_2 + b_2: (B, T, D) -> (B, T, D)."""

    def __init__(self, shape: TransformerShape, seed: int, name: str, residual_scale: float) -> None:
        super().__init__()
        self.widen = linear(shape.d_model, shape.d_ff, seed, f"{name}.widen")
        self.narrow = linear(shape.d_ff, shape.d_model, seed, f"{name}.narrow", residual_scale)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.narrow(functional.gelu(self.widen(hidden_BTD)))


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood of the targets in nat per token; computed in fp32 whatever the precision."""
    return functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


def normal(size: tuple[int, ...], seed: int, name: str, scale: float = 1.0) -> Tensor:
    """First values N(0, (0.02·scale)²), drawn from the run's seed and the parameter's own name.

    So a parameter starts the same in every layout, whichever rank builds it and in whatever order.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return torch.empty(size).normal_(0.0, 0.02 * scale, generator=generator)


def linear(inputs: int, outputs: int, seed: int, name: str, scale: float = 1.0) -> nn.Linear:
    """A linear layer with seeded weights (outputs, inputs) and zero biases."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(normal((outputs, inputs), seed, name, scale))
        layer.bias.zero_()
    return layer
