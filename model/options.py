"""What a Transformer can be made of, as closed sets.  Standard library only."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """A usual set of options, by name."""

    GPT = "gpt"
    """Pre-LN, LayerNorm, biases everywhere, learned positions, GELU, tied head."""
    LLAMA = "llama"
    """Pre-norm, RMSNorm, no biases, rotary positions, gated feed-forward (SwiGLU), untied head."""
    VASWANI = "vaswani"
    """Post-LN, LayerNorm, biases, sinusoidal positions added to embeddings times sqrt(d_model), ReLU, tied head."""


class Norm(StrEnum):
    """What normalises the vectors of the residual stream."""

    LAYER = "layer"
    """LayerNorm (Ba et al. 2016): centred, gain and bias."""
    RMS = "rms"
    """RMSNorm (Zhang & Sennrich 2019): not centred, gain alone."""
    NONE = "none"
    """None inside the blocks, which simplified blocks can do without; one LayerNorm before the first and one after the last."""


class BlockKind(StrEnum):
    """How a layer is put together."""

    PRE_LN = "pre-ln"
    """x + f(norm(x)), and one norm more after the last layer."""
    POST_LN = "post-ln"
    """norm(x + f(x)), as in Vaswani et al. 2017, section 3.1."""
    SAS = "sas"
    """Simplified: shaped attention without values, projection and skip, then the feed-forward (arXiv 2311.01906, figure 9)."""
    SAS_P = "sas-p"
    """The same with attention and feed-forward side by side on one input, and no skip at all (its figure 10)."""

    @property
    def is_simplified(self) -> bool:
        return self in (BlockKind.SAS, BlockKind.SAS_P)


class Sparse(StrEnum):
    """What a token sees beyond its neighbours (Child et al. 2019, arXiv 1904.10509, section 4); `window` is their stride l."""

    STRIDED = "strided"
    """The last l tokens, and every l-th before them."""
    FIXED = "fixed"
    """Its own block of l tokens up to itself, and the last `summary_tokens` of each block before."""


class Position(StrEnum):
    """How a token knows where it stands."""

    LEARNED = "learned"
    """A trained vector per position is added to the embedding."""
    SINUSOIDAL = "sinusoidal"
    """Sines and cosines are added to the embedding (Vaswani et al. 2017, section 3.5)."""
    ROTARY = "rotary"
    """Queries and keys are turned by an angle that grows with the position (Su et al. 2021, RoPE)."""


class Activation(StrEnum):
    """What stands between the two matrices of the feed-forward."""

    RELU = "relu"
    GELU = "gelu"
    SWIGLU = "swiglu"
    """silu(xW_1) * xW_3, with a third matrix (Shazeer 2020)."""

    @property
    def is_gated(self) -> bool:
        return self is Activation.SWIGLU
