"""Keys and values of tokens already seen, so that generating one more costs one token's work."""

from __future__ import annotations

import torch
from torch import Tensor

from model.shape import TransformerShape


class LayerCache:
    """One layer's keys and values: B sequences, G key/value heads, S tokens so far, K head width."""

    def __init__(self, shape: TransformerShape, sequences: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (sequences, shape.key_value_heads, tokens)
        self._k_BGSK = torch.empty((*size, shape.d_query_key), dtype=dtype, device=device)
        self._v_BGSK = torch.empty((*size, shape.d_head), dtype=dtype, device=device)
        self.tokens = 0

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of T more tokens and gives those of all S tokens.  Raises ValueError where it is full."""
        end = self.tokens + k_BGTK.size(2)
        if end > self._k_BGSK.size(2):
            raise ValueError(f"the cache has room for {self._k_BGSK.size(2)} tokens, not for {end}")
        self._k_BGSK[:, :, self.tokens : end] = k_BGTK
        self._v_BGSK[:, :, self.tokens : end] = v_BGTK
        self.tokens = end
        return self._k_BGSK[:, :, :end], self._v_BGSK[:, :, :end]

    def keep(self, rows_R: Tensor) -> None:
        """From now on sequence i is what sequence `rows_R[i]` was; a beam search goes on from its best prefixes."""
        kept = [old.new_empty((len(rows_R), *old.shape[1:])) for old in (self._k_BGSK, self._v_BGSK)]
        for new, old in zip(kept, (self._k_BGSK, self._v_BGSK), strict=True):
            torch.index_select(old[:, :, : self.tokens], 0, rows_R, out=new[:, :, : self.tokens])
        self._k_BGSK, self._v_BGSK = kept


class KeyValueCache:
    """The caches of all layers of a single-process model."""

    def __init__(self, shape: TransformerShape, *, sequences: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = [LayerCache(shape, sequences, tokens, dtype, device) for _ in range(shape.layers)]
        self.tokens = 0
        """Tokens that have gone through the whole model."""
