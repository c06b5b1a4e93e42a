"""Where the shards of a tensor-parallel parameter begin and end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """Which tensor-parallel shard of a parameter this is.

    Along `dim` the parameter has `parts` (a fused matrix several), each cut into `size` chunks as torch.chunk does.
    """

    dim: int
    parts: tuple[int, ...]
    rank: int
    size: int

    def of(self, whole: Tensor) -> Tensor:
        """The shard of a whole parameter."""
        return torch.cat(self.chunks(whole), self.dim)

    def chunks(self, whole: Tensor) -> list[Tensor]:
        """The shard's chunk of each part, as views into the whole."""
        views, begin = [], 0
        for part, length in zip(self.parts, self.lengths(), strict=True):
            views.append(whole.narrow(self.dim, begin + min(part, self.rank * -(-part // self.size)), length))
            begin += part
        return views

    def lengths(self) -> list[int]:
        """How long each part's chunk is along `dim`; the last ranks' may be shorter, or empty."""
        steps = [-(-part // self.size) for part in self.parts]
        return [
            min(part, (self.rank + 1) * step) - min(part, self.rank * step) for part, step in zip(self.parts, steps, strict=True)
        ]

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shard's shape."""
        return (*whole[: self.dim], sum(self.lengths()), *whole[self.dim + 1 :])
