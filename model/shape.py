"""How big a Transformer is: parameters, FLOPs and bytes of training state.

Standard library only, nothing is allocated: planners import this file, and the built module is tested against it.

A shape is numbers and options.  Three families name the usual sets of options: GPT (Radford et al. 2019; Brown et al.
2020), Llama (Grattafiori et al. 2024) and Vaswani (et al. 2017, "Attention Is All You Need"); each option can also be
chosen by itself.  `model/transformer.py` builds every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from model.options import Activation, BlockKind, Family, Norm, Position, Sparse


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
    """The numbers and options that fix a decoder-only Transformer; the options' defaults are GPT's."""

    layers: int
    d_model: int
    heads: int
    d_ff: int
    vocabulary: int
    positions: int
    """The longest sequence in tokens."""
    kv_heads: int = 0
    """Key and value heads (grouped-query attention, Ainslie et al. 2023); 0 means as many as `heads`."""
    tied: bool = True
    """The output head is the token embedding."""
    norm: Norm = Norm.LAYER
    block: BlockKind = BlockKind.PRE_LN
    position: Position = Position.LEARNED
    activation: Activation = Activation.GELU
    biases: bool = True
    """Whether the linear layers add a bias; the head never does."""
    attention_biases: bool = True
    """Whether attention's four matrices add one too; without effect where `biases` is false."""
    d_key: int = 0
    """Width of one head's query and key; 0 means as wide as its value, d_model / heads."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by sqrt(d_model) (Vaswani et al. 2017, section 3.4)."""
    rotary_base: float = 10_000.0
    """Theta of RoPE; without effect for other positions."""
    norm_eps: float = 1e-5
    window: int = 0
    """Tokens that each token sees, itself included (sliding window, Beltagy et al. 2020); 0: all before it."""
    window_block: int = 0
    """Queries worked on together, a divisor of `window`, without effect on results; 0: as many as `window`."""
    sparse: Sparse | None = None
    summary_tokens: int = 1
    """Of each block of `fixed` attention, the c of its paper."""

    def __post_init__(self) -> None:
        for name in ("layers", "d_model", "heads", "d_ff", "vocabulary", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by {self.heads} heads")
        if self.kv_heads < 0 or self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.d_key < 0:
            raise ValueError(f"d_key is {self.d_key}; it must be at least 1, or 0 for d_model / heads")
        if self.position is Position.ROTARY and self.d_query_key % 2:
            raise ValueError(f"rotary positions turn pairs, and a head of {self.d_query_key} is not made of pairs")
        if self.position is Position.SINUSOIDAL and self.d_model % 2:
            raise ValueError(f"sinusoidal positions are pairs of sine and cosine, and d_model {self.d_model} is odd")
        for problem in filter(None, (self._block_problem(), self._window_problem())):
            raise ValueError(problem)

    def _block_problem(self) -> str | None:
        simple = self.block.is_simplified
        if self.norm is Norm.NONE and not simple:
            return f"{self.block} blocks need a norm, layer or rms; blocks that can do without are sas and sas-p"
        if simple and self.key_value_heads != self.heads:
            return f"{self.block} blocks have no values that heads could share; kv_heads must be 0 or {self.heads}"
        if simple and self.d_query_key != self.d_head:
            return f"{self.block} blocks have no values of another width; d_key must be 0 or {self.d_head}"
        if simple and self.sparse:
            return f"{self.block} blocks see all before a token or a window; sparse {self.sparse} is for pre-ln and post-ln"
        return None

    def _window_problem(self) -> str | None:
        if min(self.window, self.window_block) < 0:
            return f"window {self.window} and window_block {self.window_block} must be at least 0"
        if self.window_block and self.window % self.window_block:
            return f"window {self.window} is not a multiple of window_block {self.window_block}"
        if self.sparse and not self.window:
            return f"sparse {self.sparse} attention needs a window, which is its stride"
        if not 1 <= self.summary_tokens <= max(1, self.window):
            return f"summary_tokens is {self.summary_tokens}; it must lie between 1 and the window, {max(1, self.window)}"
        return None

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def d_query_key(self) -> int:
        """Width of one head's query and key."""
        return self.d_key or self.d_head

    @property
    def attention_widths(self) -> tuple[int, int, int]:
        """Width of all queries together, of all keys, and of all values."""
        return self.heads * self.d_query_key, self.key_value_heads * self.d_query_key, self.key_value_heads * self.d_head

    @property
    def is_gated(self) -> bool:
        return self.activation.is_gated

    def attention_parameters(self, tensor: int = 1) -> int:
        """One layer's W_Q, W_K, W_V, W_O and their biases; of one of `tensor` ranks, which hold W_O's bias each.

        Simplified blocks have W_Q, W_K, three gains for each head, and the gains of the block: two, with a skip three.
        """
        has_biases = self.biases and self.attention_biases
        if self.block.is_simplified:
            own = 2 * self.d_model * (self.d_model + (1 if has_biases else 0)) + 3 * self.heads
            return own // tensor + (3 if self.block is BlockKind.SAS else 2)
        matrices = self.d_model * (sum(self.attention_widths) + self.d_model) // tensor
        biases = sum(self.attention_widths) // tensor + self.d_model
        return matrices + (biases if has_biases else 0)

    def first_layer_parameters(self, tensor: int = 1) -> int:
        """What the first layer has beyond the others: with simplified blocks W_V, its bias and its two gains."""
        if not self.block.is_simplified:
            return 0
        has_biases = self.biases and self.attention_biases
        return self.d_model * (self.d_model + (1 if has_biases else 0)) // tensor + 2

    def feed_forward_parameters(self, tensor: int = 1) -> int:
        """One layer's feed-forward: two matrices, three if gated, and biases; of one of `tensor` ranks."""
        wide = (2 if self.is_gated else 1) * self.d_ff // tensor
        matrices = self.d_model * wide + self.d_ff // tensor * self.d_model
        return matrices + (wide + self.d_model if self.biases else 0)

    def norm_parameters(self) -> int:
        """One norm: gain and bias (LayerNorm) or gain alone (RMSNorm)."""
        return self.d_model * (1 if self.norm is Norm.RMS else 2)

    def norms_per_block(self) -> int:
        """Two; one where attention and feed-forward share their input; none where the blocks do without."""
        return 0 if self.norm is Norm.NONE else 1 if self.block is BlockKind.SAS_P else 2

    def final_norm_parameters(self) -> int:
        """The norm after the last layer, which post-LN has not."""
        return 0 if self.block is BlockKind.POST_LN else self.norm_parameters()

    def first_norm_parameters(self) -> int:
        """The norm before the first block, where the blocks have none."""
        return self.norm_parameters() if self.norm is Norm.NONE else 0

    def block_parameters(self, tensor: int = 1) -> int:
        """One layer but the first: attention, feed-forward and norms; of one of `tensor` ranks, which hold the norms each."""
        norms = self.norms_per_block() * self.norm_parameters()
        return self.attention_parameters(tensor) + self.feed_forward_parameters(tensor) + norms

    def position_parameters(self) -> int:
        """Learned positions; the other kinds have none."""
        return self.positions * self.d_model if self.position is Position.LEARNED else 0

    def parameters(self) -> ParameterCount:
        """Every trainable parameter of the model, by part."""
        embedding = self.vocabulary * self.d_model
        return ParameterCount(
            token_embedding=embedding,
            position_embedding=self.position_parameters(),
            attention=self.layers * self.attention_parameters() + self.first_layer_parameters(),
            feed_forward=self.layers * self.feed_forward_parameters(),
            norms=self.layers * self.norms_per_block() * self.norm_parameters()
            + self.first_norm_parameters()
            + self.final_norm_parameters(),
            head=0 if self.tied else embedding,
        )

    def largest_stage_parameters(self, pipeline: int, tensor: int = 1) -> int:
        """Parameters of the fullest rank when the layers are spread evenly over `pipeline` stages of `tensor` ranks.

        Exact when `layers` is divisible by `pipeline`, otherwise an upper bound.  A tied embedding lies on the first and
        on the last stage, so that the stages together hold more than `parameters().total`.  Raises ValueError for more
        stages than layers, and for a tensor degree that does not divide heads, key/value heads or d_ff.
        """
        blocks = self._checked_blocks(pipeline, tensor, self.layers)
        embedding = -(-self.vocabulary // tensor) * self.d_model
        first = embedding + self.position_parameters() + self.first_layer_parameters(tensor) + self.first_norm_parameters()
        last = self.final_norm_parameters() + embedding
        if pipeline == 1:
            return blocks + first + last - (embedding if self.tied else 0)
        return blocks + max(first, last)

    def _checked_blocks(self, pipeline: int, tensor: int, layers: int) -> int:
        """Parameters of one tensor rank's blocks on the fullest of `pipeline` stages."""
        if not 1 <= pipeline <= layers:
            raise ValueError(f"{layers} layers cannot fill {pipeline} stages")
        if tensor < 1 or any(number % tensor for number in (self.heads, self.key_value_heads, self.d_ff)):
            numbers = f"{self.heads} heads, {self.key_value_heads} key/value heads or d_ff {self.d_ff}"
            raise ValueError(f"{numbers} cannot be split over {tensor} tensor ranks")
        return -(-layers // pipeline) * self.block_parameters(tensor)

    def forward_flops_per_token(self, sequence_tokens: int) -> int:
        """Floating-point operations of one forward pass per token; a multiply-add counts as two.

        Matrices: 2 per weight, the head included, look-ups free.  Attention scores and their weighted sum:
        2 * tokens seen * (queries' + values' width) per layer, the causal half not taken off, as in Narayanan et al. 2021
        (arXiv 2104.04473, appendix) and Chowdhery et al. 2022 (PaLM, appendix B).
        """
        attention, feed_forward, scores = self._layer_weights(sequence_tokens)
        first_values = self.d_model * self.d_model if self.block.is_simplified else 0
        return 2 * (self.layers * (attention + feed_forward + scores) + first_values + self.vocabulary * self.d_model)

    def most_seen(self, sequence_tokens: int) -> int:
        """Tokens that the last of a sequence sees, itself included."""
        near = min(self.window or sequence_tokens, sequence_tokens)
        blocks_before = (sequence_tokens - near) // self.window if self.sparse else 0
        return near + blocks_before * (self.summary_tokens if self.sparse is Sparse.FIXED else 1)

    def backward_flops_per_token(self, sequence_tokens: int) -> int:
        """Twice the forward pass: one product for the input's gradient, one for the weight's."""
        return 2 * self.forward_flops_per_token(sequence_tokens)

    def _layer_weights(self, sequence_tokens: int) -> tuple[int, int, int]:
        """Multiply-adds per token of one attention's matrices, of a feed-forward, and of scores with their weighted sum."""
        values_and_output = 0 if self.block.is_simplified else self.attention_widths[2] + self.d_model
        attention = self.d_model * (sum(self.attention_widths[:2]) + values_and_output)
        feed_forward = (3 if self.is_gated else 2) * self.d_model * self.d_ff
        return attention, feed_forward, self.most_seen(sequence_tokens) * (self.attention_widths[0] + self.d_model)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderShape(TransformerShape):
    """The same with an encoder before the decoder, whose `layers` also attend to what the encoder gives.

    Source, target and output share one matrix (Vaswani et al. 2017, section 3.4); learned positions are two tables.
    """

    encoder_layers: int

    def __post_init__(self) -> None:
        # By name: a dataclass with slots is made twice, and super() would mean the first one.
        TransformerShape.__post_init__(self)
        if self.encoder_layers < 1:
            raise ValueError(f"encoder_layers is {self.encoder_layers}; it must be at least 1")
        if not self.tied:
            raise ValueError("an encoder-decoder shares one matrix between source, target and output; tied must be true")
        if self.block.is_simplified or self.window:
            raise ValueError("an encoder-decoder has pre-ln or post-ln blocks that see the whole sentence; window must be 0")

    def encoder_block_parameters(self, tensor: int = 1) -> int:
        """One encoder layer: attention, feed-forward and their two norms; of one of `tensor` ranks."""
        return TransformerShape.block_parameters(self, tensor)

    def block_parameters(self, tensor: int = 1) -> int:
        """One decoder layer: self-attention, cross-attention, feed-forward and their three norms; of one of `tensor` ranks."""
        return self.encoder_block_parameters(tensor) + self.attention_parameters(tensor) + self.norm_parameters()

    def position_parameters(self) -> int:
        """Learned positions of source and target; the other kinds have none."""
        return 2 * TransformerShape.position_parameters(self)

    def parameters(self) -> ParameterCount:
        """Every trainable parameter of the model, by part."""
        embedding = self.vocabulary * self.d_model
        return ParameterCount(
            token_embedding=embedding,
            position_embedding=self.position_parameters(),
            attention=(self.encoder_layers + 2 * self.layers) * self.attention_parameters(),
            feed_forward=(self.encoder_layers + self.layers) * self.feed_forward_parameters(),
            norms=(2 * self.encoder_layers + 3 * self.layers) * self.norm_parameters() + 2 * self.final_norm_parameters(),
            head=0,
        )

    def largest_stage_parameters(self, pipeline: int, tensor: int = 1) -> int:
        """An upper bound on the parameters of the fullest rank; exact on one stage.  Raises ValueError as the decoder's does."""
        layers = self.layers + self.encoder_layers
        blocks = self._checked_blocks(pipeline, tensor, layers)
        embedding = -(-self.vocabulary // tensor) * self.d_model
        others = self.position_parameters() + 2 * self.final_norm_parameters()
        if pipeline == 1:
            encoder = self.encoder_layers * (self.encoder_block_parameters(tensor) - self.block_parameters(tensor))
            return blocks + encoder + others + embedding
        return blocks + others + embedding

    def forward_flops_per_token(self, sequence_tokens: int) -> int:
        """Per token of source and target together, each of `sequence_tokens`; counted as the decoder's."""
        attention, feed_forward, scores = self._layer_weights(sequence_tokens)
        encoder = self.encoder_layers * (attention + feed_forward + scores)
        decoder = self.layers * (2 * attention + feed_forward + 2 * scores) + self.vocabulary * self.d_model
        return encoder + decoder


FAMILY_OPTIONS: Final[Mapping[Family, Mapping[str, Any]]] = MappingProxyType(
    {
        Family.GPT: {},
        Family.LLAMA: {
            "tied": False,
            "norm": Norm.RMS,
            "position": Position.ROTARY,
            "activation": Activation.SWIGLU,
            "biases": False,
            "rotary_base": 500_000.0,
        },
        Family.VASWANI: {
            "block": BlockKind.POST_LN,
            "position": Position.SINUSOIDAL,
            "activation": Activation.RELU,
            "attention_biases": False,
            "scaled_embedding": True,
        },
    }
)
"""Family -> the options in which it differs from TransformerShape's defaults, which are GPT's."""


def shape_of_family(family: Family, numbers: Mapping[str, int], options: Mapping[str, Any]) -> TransformerShape:
    """A shape of that family; an option that is None is the family's.  Raises ValueError for numbers that do not fit."""
    given = {name: value for name, value in options.items() if value is not None}
    fields: dict[str, Any] = {**FAMILY_OPTIONS[family], **given, **numbers}
    if fields.get("encoder_layers"):
        return EncoderDecoderShape(**fields)
    fields.pop("encoder_layers", None)
    return TransformerShape(**fields)


BYTES_PER_PARAMETER: Final = {
    "fp32": (4, 4, 8),
    "bf16": (2, 2, 12),
    "fp16": (2, 2, 12),
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
    if precision == "fp32" and zero_stage in (1, 2):
        optimizer += parameter  # DeepSpeed clones its partition as masters whatever its type; stage 3 updates fp32 in place
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
    numbers = {"layers": layers, "d_model": d_model, "heads": heads, "kv_heads": 8, "d_ff": d_ff}
    return shape_of_family(Family.LLAMA, {**numbers, "vocabulary": 128_256, "positions": 8192}, {})


def _vaswani(d_model: int, heads: int) -> TransformerShape:
    numbers = {"layers": 6, "encoder_layers": 6, "d_model": d_model, "heads": heads, "d_ff": 4 * d_model}
    return shape_of_family(Family.VASWANI, {**numbers, "vocabulary": 37_000, "positions": 512}, {})


PRESETS: Final = {
    "gpt2-125m": _gpt(12, 768, 12),
    "gpt2-355m": _gpt(24, 1024, 16),
    "gpt2-774m": _gpt(36, 1280, 20),
    "gpt2-1.5b": _gpt(48, 1600, 25),
    "gpt3-175b": _gpt(96, 12_288, 96, positions=2048),
    "llama-8b": _llama(32, 4096, 32, 14_336),
    "llama-70b": _llama(80, 8192, 64, 28_672),
    "llama-405b": _llama(126, 16_384, 128, 53_248),
    "transformer-base": _vaswani(512, 8),
    "transformer-big": _vaswani(1024, 16),
}
"""Published shapes by name: GPT-2 (Radford et al. 2019), GPT-3 (arXiv 2005.14165), Llama 3 (arXiv 2407.21783).

Vaswani et al. 2017, table 3, gives 65 M for base and 213 M for big; with 37,000 tokens the matrices it describes come to
63.0 M and 214.2 M (its tables are rounded, and the vocabulary is `about` 37,000)."""
