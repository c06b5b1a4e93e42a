"""Keys and values of tokens already seen, so that generating one more costs one token's work.

Where a token sees a window only, its last tokens are all that is kept, in a ring: memory does not grow with the text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.shape import TransformerShape


class LayerCache:
    """One layer's keys and values: B sequences, G key/value heads, S tokens so far, K head width."""

    def __init__(self, shape: TransformerShape, sequences: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """`tokens` is the longest text; where a window is enough, there is room for it and for no more."""
        self._window = 0 if shape.sparse else shape.window
        size = (sequences, shape.key_value_heads, self._window or tokens)
        self._k_BGSK = torch.empty((*size, shape.d_query_key), dtype=dtype, device=device)
        self._v_BGSK = torch.empty((*size, shape.d_head), dtype=dtype, device=device)
        self._sum_BG1K: Tensor | None = None
        self.tokens = 0

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of T more tokens and gives those of all S tokens that are kept or new.

        Of one token more in a full ring, the window's tokens, in the ring's order.  Raises ValueError where there is no room.
        """
        tokens, room = k_BGTK.size(2), self._k_BGSK.size(2)
        end = self.tokens + tokens
        if end <= room:
            self._k_BGSK[:, :, self.tokens : end] = k_BGTK
            self._v_BGSK[:, :, self.tokens : end] = v_BGTK
            self.tokens = end
            return self._k_BGSK[:, :, :end], self._v_BGSK[:, :, :end]
        if not self._window:
            raise ValueError(f"the cache has room for {room} tokens, not for {end}")
        if tokens == 1:
            self._put(k_BGTK, v_BGTK)
            return self._k_BGSK, self._v_BGSK
        seen = tuple(torch.cat([self._in_order(kept), new], dim=2) for kept, new in self._pairs(k_BGTK, v_BGTK))
        self.tokens += max(0, tokens - room)
        self._put(k_BGTK[:, :, -room:], v_BGTK[:, :, -room:])
        return seen[0], seen[1]

    def running_sum(self, v_BGTK: Tensor) -> Tensor:
        """Sum of the values of all tokens up to each of the T new ones, (B, G, T, K) in fp32 or more."""
        wide = torch.promote_types(v_BGTK.dtype, torch.float32)
        sums_BGTK = v_BGTK.cumsum(dim=2, dtype=wide)
        if self._sum_BG1K is not None:
            sums_BGTK = sums_BGTK + self._sum_BG1K
        self._sum_BG1K = sums_BGTK[:, :, -1:].clone()
        return sums_BGTK

    def size_bytes(self) -> int:
        """Memory of what is kept."""
        kept = [self._k_BGSK, self._v_BGSK, *([] if self._sum_BG1K is None else [self._sum_BG1K])]
        return sum(tensor.untyped_storage().nbytes() for tensor in kept)

    def _pairs(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self._k_BGSK, k_BGTK), (self._v_BGSK, v_BGTK)

    def _put(self, k_BGTK: Tensor, v_BGTK: Tensor) -> None:
        """Into the ring, over the oldest."""
        room = self._k_BGSK.size(2)
        slots_T = torch.arange(self.tokens, self.tokens + k_BGTK.size(2), device=k_BGTK.device) % room
        for kept, new in self._pairs(k_BGTK, v_BGTK):
            kept[:, :, slots_T] = new
        self.tokens += k_BGTK.size(2)

    def _in_order(self, ring_BGSK: Tensor) -> Tensor:
        """The ring's tokens, oldest first."""
        room = ring_BGSK.size(2)
        return ring_BGSK[:, :, : self.tokens] if self.tokens <= room else ring_BGSK.roll(-(self.tokens % room), dims=2)

    def keep(self, rows_R: Tensor) -> None:
        """From now on sequence i is what sequence `rows_R[i]` was; a beam search goes on from its best prefixes."""
        kept = [old.new_empty((len(rows_R), *old.shape[1:])) for old in (self._k_BGSK, self._v_BGSK)]
        for new, old in zip(kept, (self._k_BGSK, self._v_BGSK), strict=True):
            torch.index_select(old[:, :, : self.tokens], 0, rows_R, out=new[:, :, : self.tokens])
        self._k_BGSK, self._v_BGSK = kept
        if self._sum_BG1K is not None:
            self._sum_BG1K = self._sum_BG1K.index_select(0, rows_R)


class KeyValueCache:
    """The caches of all layers of a single-process model."""

    def __init__(self, shape: TransformerShape, *, sequences: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = [LayerCache(shape, sequences, tokens, dtype, device) for _ in range(shape.layers)]
        self.tokens = 0
        """Tokens that have gone through the whole model."""

    def size_bytes(self) -> int:
        """Memory of all layers' keys, values and sums."""
        return sum(layer.size_bytes() for layer in self.layers)
