"""Keys and values of tokens already seen, so that generating one more costs one token's work."""

from __future__ import annotations

import torch
from torch import Tensor

from model.shape import TransformerShape


class LayerCache:
    """One layer's keys and values: B sequences, G key/value heads, S tokens so far, K head width."""

    def __init__(self, size: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._k_BGSK = torch.empty(size, dtype=dtype, device=device)
        self._v_BGSK = torch.empty(size, dtype=dtype, device=device)
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


class KeyValueCache:
    """The caches of all layers of a single-process model."""

    def __init__(self, shape: TransformerShape, *, sequences: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (sequences, shape.key_value_heads, tokens, shape.d_head)
        self.layers = [LayerCache(size, dtype, device) for _ in range(shape.layers)]
        self.tokens = 0
        """Tokens that have gone through the whole model."""
