"""How big a decoder-only Transformer is: parameters, FLOPs and bytes of training state.

Standard library only, nothing is allocated: planners import this file, and the built module is tested against it.

Two families are counted.  GPT (Radford et al. 2019; Brown et al. 2020): LayerNorm, biases, learned positions,
a two-matrix feed-forward.  Llama (Grattafiori et al. 2024): RMSNorm, no biases, rotary positions, a gated
three-matrix feed-forward, fewer key/value heads than heads.  `model/transformer.py` builds the GPT family.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Family(StrEnum):
    """Which counting rules hold for a shape."""

    GPT = "gpt"
    """LayerNorm, biases everywhere, learned positions, feed-forward max(0, xW1+b1)W2+b2 with GELU for max."""
    LLAMA = "llama"
    """RMSNorm, no biases, rotary positions (no parameters), gated feed-forward (silu(xW1) * xW3)W2."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters by part of the model; a tied head counts once, under `token_embedding`."""

    token_embedding: int
    position_embedding: int
    attention: int
    feed_forward: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.token_embedding + self.position_embedding + self.attention + self.feed_forward + self.norms + self.head

    def as_dict(self) -> dict[str, int]:
        """By part, with the sum under `total`."""
        return {
            "token_embedding": self.token_embedding,
            "position_embedding": self.position_embedding,
            "attention": self.attention,
            "feed_forward": self.feed_forward,
            "norms": self.norms,
            "head": self.head,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of training state on one rank; activations, buffers and fragmentation are not in it."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """The numbers that fix a decoder-only Transformer."""

    layers: int
    d_model: int
    heads: int
    d_ff: int
    vocabulary: int
    positions: int
    """The longest sequence in tokens."""
    kv_heads: int = 0
    """Key and value heads (grouped-query attention); 0 means as many as `heads`."""
    tied: bool = True
    """The output head is the token embedding."""
    family: Family = Family.GPT

    def __post_init__(self) -> None:
        for name in ("layers", "d_model", "heads", "d_ff", "vocabulary", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by {self.heads} heads")
        if self.kv_heads < 0 or self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    def attention_parameters(self) -> int:
        """One layer's W_Q, W_K, W_V, W_O and, in the GPT family, their biases."""
        d_kv = self.key_value_heads * self.d_head
        matrices = 2 * self.d_model * self.d_model + 2 * self.d_model * d_kv
        biases = 2 * self.d_model + 2 * d_kv
        return matrices + (biases if self.family is Family.GPT else 0)

    def feed_forward_parameters(self) -> int:
        """One layer's feed-forward: two matrices and biases (GPT) or three matrices (Llama)."""
        if self.family is Family.LLAMA:
            return 3 * self.d_model * self.d_ff
        return 2 * self.d_model * self.d_ff + self.d_ff + self.d_model

    def norm_parameters(self) -> int:
        """One norm: gain and bias (LayerNorm) or gain alone (RMSNorm)."""
        return self.d_model * (2 if self.family is Family.GPT else 1)

    def block_parameters(self) -> int:
        """One layer: attention, feed-forward and the two norms before them."""
        return self.attention_parameters() + self.feed_forward_parameters() + 2 * self.norm_parameters()

    def parameters(self) -> ParameterCount:
        """Every trainable parameter of the model, by part."""
        embedding = self.vocabulary * self.d_model
        return ParameterCount(
            token_embedding=embedding,
            position_embedding=self.positions * self.d_model if self.family is Family.GPT else 0,
            attention=self.layers * self.attention_parameters(),
            feed_forward=self.layers * self.feed_forward_parameters(),
            norms=(2 * self.layers + 1) * self.norm_parameters(),
            head=0 if self.tied else embedding,
        )

    def largest_stage_parameters(self, pipeline: int) -> int:
        """Parameters of the fullest of `pipeline` stages when the layers are spread evenly.

        Exact when `layers` is divisible by `pipeline`, otherwise an upper bound.  A tied embedding lies on the
        first and on the last stage, so that the stages together hold more than `parameters().total`.
        """
        count = self.parameters()
        if pipeline == 1:
            return count.total
        if not 1 <= pipeline <= self.layers:
            raise ValueError(f"{self.layers} layers cannot fill {pipeline} stages")
        blocks = -(-self.layers // pipeline) * self.block_parameters()
        first = count.token_embedding + count.position_embedding
        last = self.norm_parameters() + self.vocabulary * self.d_model
        return blocks + max(first, last)

    def forward_flops_per_token(self, sequence_tokens: int) -> int:
        """Floating-point operations of one forward pass per token; a multiply-add counts as two.

        Matrices: 2 per weight, the head included, look-ups free.  Attention scores and their weighted sum:
        4 * sequence * d_model per layer, the causal half not taken off, as in Narayanan et al. 2021
        (arXiv 2104.04473, appendix) and Chowdhery et al. 2022 (PaLM, appendix B).
        """
        d_kv = self.key_value_heads * self.d_head
        attention = 2 * self.d_model * self.d_model + 2 * self.d_model * d_kv
        feed_forward = (3 if self.family is Family.LLAMA else 2) * self.d_model * self.d_ff
        matrices = self.layers * (attention + feed_forward) + self.vocabulary * self.d_model
        return 2 * matrices + 4 * self.layers * sequence_tokens * self.d_model

    def backward_flops_per_token(self, sequence_tokens: int) -> int:
        """Twice the forward pass: one product for the input's gradient, one for the weight's."""
        return 2 * self.forward_flops_per_token(sequence_tokens)


BYTES_PER_PARAMETER: Final = {
    "fp32": (4, 4, 8),
    "bf16": (2, 2, 12),
}
"""precision -> (parameter, gradient, Adam state) bytes.  Adam keeps two fp32 moments, and in mixed precision an
fp32 master copy too: K = 12 in Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, section 3.1)."""


def state_bytes_per_rank(parameters: int, *, zero_stage: int, data_ranks: int, precision: str = "bf16") -> StateBytes:
    """What one rank holds of `parameters` under ZeRO (arXiv 1910.02054, figure 1).

    `parameters` is what one data-parallel replica's rank would hold without ZeRO (a pipeline stage's, say).
    Stage 1 shares the optimizer state among `data_ranks`, stage 2 the gradients too, stage 3 the parameters too;
    a share is rounded up, because DeepSpeed pads.

    Raises ValueError for a stage outside 0-3, fewer than one rank or an unknown precision.
    """
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO stage {zero_stage} does not exist; choose 0, 1, 2 or 3")
    if data_ranks < 1:
        raise ValueError(f"{data_ranks} data-parallel ranks; at least 1 is needed")
    if precision not in BYTES_PER_PARAMETER:
        raise ValueError(f"precision {precision!r} is unknown; choose {' or '.join(BYTES_PER_PARAMETER)}")
    share = -(-parameters // data_ranks)
    parameter, gradient, optimizer = BYTES_PER_PARAMETER[precision]
    return StateBytes(
        parameters_bytes=parameter * (share if zero_stage >= 3 else parameters),
        gradients_bytes=gradient * (share if zero_stage >= 2 else parameters),
        optimizer_bytes=optimizer * (share if zero_stage >= 1 else parameters),
    )


def _gpt(layers: int, d_model: int, heads: int, vocabulary: int = 50_257, positions: int = 1024) -> TransformerShape:
    return TransformerShape(
        layers=layers,
        d_model=d_model,
        heads=heads,
        d_ff=4 * d_model,
        vocabulary=vocabulary,
        positions=positions,
    )


def _llama(layers: int, d_model: int, heads: int, d_ff: int) -> TransformerShape:
    return TransformerShape(
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=8,
        d_ff=d_ff,
        vocabulary=128_256,
        positions=8192,
        tied=False,
        family=Family.LLAMA,
    )


PRESETS: Final = {
    "gpt2-125m": _gpt(12, 768, 12),
    "gpt2-355m": _gpt(24, 1024, 16),
    "gpt2-774m": _gpt(36, 1280, 20),
    "gpt2-1.5b": _gpt(48, 1600, 25),
    "gpt3-175b": _gpt(96, 12_288, 96, positions=2048),
    "llama-8b": _llama(32, 4096, 32, 14_336),
    "llama-70b": _llama(80, 8192, 64, 28_672),
    "llama-405b": _llama(126, 16_384, 128, 53_248),
}
"""Published shapes by name: GPT-2 (Radford et al. 2019), GPT-3 (arXiv 2005.14165), Llama 3 (arXiv 2407.21783)."""
