"""Softmax attention in which a token sees all before it, a window, or a sparse pattern; never an n × n matrix but for the first.

Sliding window: Beltagy et al. 2020 (Longformer, arXiv 2004.05150).  Strided and fixed: Child et al. 2019 (Sparse
Transformers, arXiv 1904.10509, section 4), both of a pattern's two sets in every head (their "merged" heads).

On a CPU the queries are cut into chunks that meet only the keys they can see: n·(w + b) scores for a window w in chunks
of b, n·(2l + n/l) for a stride l, which is least, n√n, at l = √n.  On a GPU the same patterns are block masks for
FlexAttention.

Shapes: B sequences, H heads, G key/value heads, T queries, S keys, K head width; C chunks of L tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from model.shape import Sparse, TransformerShape


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which tokens a token sees; see the options of `TransformerShape`."""

    window: int = 0
    sparse: Sparse | None = None
    summary_tokens: int = 1
    window_block: int = 0

    @classmethod
    def of(cls, shape: TransformerShape) -> Pattern:
        return cls(shape.window, shape.sparse, shape.summary_tokens, shape.window_block)

    def sees(self, query: Any, key: Any) -> Any:
        """Whether the token at position `query` sees the one at `key`: ints, or tensors that are broadcast."""
        before = key <= query
        if not self.window:
            return before
        if self.sparse is Sparse.FIXED:
            same_block = key // self.window == query // self.window
            return before & (same_block | (key % self.window >= self.window - self.summary_tokens))
        near = query - key < self.window
        if self.sparse is Sparse.STRIDED:
            near = near | ((query - key) % self.window == 0)
        return before & near


ALL_BEFORE: Final = Pattern()


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    visible_B1TS: Tensor | None = None,
    *,
    pattern: Pattern = ALL_BEFORE,
) -> Tensor:
    """softmax(QKᵀ/√K)·V (Vaswani et al. 2017, equation 1): (B, H, T, K).

    A query sees what `visible` says; without it, the T queries are the last of the S tokens and see what the pattern says.
    One query with no more keys than the window sees all of them, whatever their order (`kv_cache` keeps them in a ring).
    """
    if visible_B1TS is not None:
        return _sdpa(q_BHTK, k_BGSK, v_BGSK, visible_B1TS)
    tokens, seen = q_BHTK.size(2), k_BGSK.size(2)
    if tokens == seen and pattern.window and seen > pattern.window:
        return _attend_in_parts(q_BHTK, k_BGSK, v_BGSK, pattern)
    mask_TS = None
    if tokens == 1 and pattern.sparse and seen > pattern.window:
        # A sparse pattern's one query looks its keys up, so that a token costs what it sees.
        positions_S = torch.arange(seen, device=q_BHTK.device)
        visible_S = positions_S[pattern.sees(seen - 1, positions_S)]
        k_BGSK, v_BGSK = k_BGSK.index_select(2, visible_S), v_BGSK.index_select(2, visible_S)
    elif 1 < tokens < seen:
        positions_S = torch.arange(seen, device=q_BHTK.device)
        mask_TS = pattern.sees(positions_S[-tokens:, None], positions_S)
    return _sdpa(q_BHTK, k_BGSK, v_BGSK, mask_TS, is_causal=tokens == seen and tokens > 1)


def _sdpa(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_TS: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
    shared = q_BHTK.size(1) != k_BGSK.size(1)
    return functional.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_TS, is_causal=is_causal, enable_gqa=shared
    )


def _attend_in_parts(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, pattern: Pattern) -> Tensor:
    if q_BHTK.is_cuda:
        return flex_attend(q_BHTK, k_BGTK, v_BGTK, pattern)
    if not pattern.sparse:
        return window_attend(q_BHTK, k_BGTK, v_BGTK, pattern)
    heads_each = q_BHTK.size(1) // k_BGTK.size(1)
    k_BHTK, v_BHTK = (x_BGTK.repeat_interleave(heads_each, dim=1) for x_BGTK in (k_BGTK, v_BGTK))
    attend_sparsely = strided_attend if pattern.sparse is Sparse.STRIDED else fixed_attend
    return attend_sparsely(q_BHTK, k_BHTK, v_BHTK, pattern)


def window_attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, pattern: Pattern) -> Tensor:
    """A sliding window, by chunks of `window_block` queries, each with its own keys and the window's before them."""
    window, length = pattern.window, pattern.window_block or pattern.window
    tokens = q_BHTK.size(2)
    # Up to the window's length nothing is hidden but what comes later.
    first_BHTK = _sdpa(*(x[:, :, :window] for x in (q_BHTK, k_BGTK, v_BGTK)), is_causal=True)
    q_BHTK, k_BGTK, v_BGTK = (_padded(x, length) for x in (q_BHTK, k_BGTK, v_BGTK))
    before = window // length
    chunks = q_BHTK.size(2) // length - before
    q_NHLK = _chunks_as_sequences(q_BHTK[:, :, window:].unflatten(2, (chunks, length)))
    # Neighbouring chunks side by side: as many views as a window has chunks, and one copy.
    k_NGSK, v_NGSK = (
        _chunks_as_sequences(torch.cat([x[:, :, i : i + chunks] for i in range(before + 1)], dim=3))
        for x in (k_BGTK.unflatten(2, (-1, length)), v_BGTK.unflatten(2, (-1, length)))
    )
    positions_S = torch.arange(window + length, device=q_BHTK.device)
    mask_LS = pattern.sees(positions_S[window:, None], positions_S)
    rest_NHLK = _sdpa(q_NHLK, k_NGSK, v_NGSK, mask_LS)
    rest_BHTK = rest_NHLK.unflatten(0, (-1, chunks)).transpose(1, 2).flatten(2, 3)
    return torch.cat([first_BHTK, rest_BHTK[:, :, : tokens - window]], dim=2)


def _chunks_as_sequences(x_BHCLK: Tensor) -> Tensor:
    """(B, H, C, L, K) -> (B·C, H, L, K): attention knows no dimension beside sequences and heads."""
    return x_BHCLK.transpose(1, 2).flatten(0, 1)


def _padded(x_BHTK: Tensor, multiple: int) -> Tensor:
    """Zeros after the last token up to a multiple; they come later than every real query, so no query sees them."""
    return functional.pad(x_BHTK, (0, 0, 0, -x_BHTK.size(2) % multiple))


def strided_attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, pattern: Pattern) -> Tensor:
    """The last l tokens, and every l-th before them: tokens of one remainder by l are a column that attends to itself."""
    length, tokens = pattern.window, q_BHTK.size(2)
    q_BHCLK, k_BHCLK, v_BHCLK = (_padded(x, length).unflatten(2, (-1, length)) for x in (q_BHTK, k_BHTK, v_BHTK))
    near_k, near_v = (torch.cat([functional.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3) for x in (k_BHCLK, v_BHCLK))
    chunk_C, at_L = _positions(q_BHCLK.size(2), length, q_BHTK.device)
    at_S = torch.arange(-length, length, device=q_BHTK.device)
    distance_LS = at_L[:, None] - at_S
    near_mask = (distance_LS >= 0) & (distance_LS < length) & ((chunk_C[:, None, None] > 0) | (at_S >= 0))
    columns_q, columns_k, columns_v = (x.transpose(2, 3) for x in (q_BHCLK, k_BHCLK, v_BHCLK))
    # The token itself is in the near set already.
    far_mask = chunk_C[:, None] > chunk_C
    near = (_scores(q_BHCLK, near_k, near_mask), near_v)
    far_scores = _scores(columns_q, columns_k, far_mask).transpose(2, 3)
    near_weights, far_weights = _softmax_over_both(near[0], far_scores)
    mixed_BHCLK = near_weights @ near[1] + (far_weights.transpose(2, 3) @ columns_v).transpose(2, 3)
    return mixed_BHCLK.flatten(2, 3)[:, :, :tokens]


def fixed_attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, pattern: Pattern) -> Tensor:
    """The token's own block up to itself, and the last c tokens of every block before."""
    length, tokens, last = pattern.window, q_BHTK.size(2), pattern.summary_tokens
    q_BHCLK, k_BHCLK, v_BHCLK = (_padded(x, length).unflatten(2, (-1, length)) for x in (q_BHTK, k_BHTK, v_BHTK))
    chunk_C, at_L = _positions(q_BHCLK.size(2), length, q_BHTK.device)
    near_scores = _scores(q_BHCLK, k_BHCLK, at_L[:, None] >= at_L)
    summary_k, summary_v = (x[:, :, :, -last:].flatten(2, 3).unsqueeze(2) for x in (k_BHCLK, v_BHCLK))
    far_mask = chunk_C[:, None, None] > chunk_C.repeat_interleave(last)
    near_weights, far_weights = _softmax_over_both(near_scores, _scores(q_BHCLK, summary_k, far_mask))
    return (near_weights @ v_BHCLK + far_weights @ summary_v).flatten(2, 3)[:, :, :tokens]


def _positions(chunks: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(chunks, device=device), torch.arange(length, device=device)


def _scores(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.size(-1))).masked_fill_(~visible, -math.inf)


def _softmax_over_both(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """One softmax over two sets of keys.  The near one always holds the token itself, so no row is empty."""
    weights = torch.cat([near, far], dim=-1).softmax(-1)
    near_weights, far_weights = weights.split((near.size(-1), far.size(-1)), dim=-1)
    return near_weights, far_weights


# ------------------------------------------------------------------ a GPU
def flex_attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, pattern: Pattern) -> Tensor:
    """The same by FlexAttention, which skips what a block mask hides (docs.pytorch.org, torch.nn.attention.flex_attention).

    Compiled on a GPU; elsewhere it is torch's plain reading of the mask, which tests compare with the chunks above.
    """
    # late: it brings torch's compiler along, which nothing else here needs
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = _compiled(flex_attention) if q_BHTK.is_cuda else flex_attention
    block_mask = _block_mask(pattern, q_BHTK.size(2), q_BHTK.device)
    return attention(q_BHTK, k_BGTK, v_BGTK, block_mask=block_mask, enable_gqa=q_BHTK.size(1) != k_BGTK.size(1))


@lru_cache(maxsize=1)
def _compiled(attention: Any) -> Any:
    return torch.compile(attention, dynamic=False)


@lru_cache(maxsize=16)
def _block_mask(pattern: Pattern, tokens: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return pattern.sees(query, key)

    # Not compiled, it would first make the whole mask, tokens x tokens: 17 GB for 131,072.
    make: Any = torch.compile(create_block_mask, dynamic=False) if device.type == "cuda" else create_block_mask
    with torch.inference_mode(False):
        return make(sees, None, None, tokens, tokens, device=str(device))
