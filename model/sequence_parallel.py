"""Long sequences over several ranks: each holds some of the tokens, and in attention all tokens of some heads.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509): an all-to-all before attention and one after it; everything else
works on each token by itself and needs no other rank's.  Weights are whole on every rank, so that to ZeRO the ranks of a
sequence are replicas: the mean over their gradients is the gradient of the mean over their tokens.

Shapes: B sequences, H heads, T tokens of the whole sequence, P tokens of this rank's part, R ranks, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that share each sequence, and which of them this is: it holds the tokens of part `rank`."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """torch.distributed's process group; None on one rank."""

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part along `dim`, which the ranks divide evenly."""
        return whole if self.size == 1 else whole.chunk(self.size, dim)[self.rank]


WHOLE: Final = SequenceGroup()


def tokens_of_my_heads(part_BHPK: Tensor, group: SequenceGroup) -> Tensor:
    """Some tokens of all heads -> all tokens of some heads: (B, H, P, K) -> (B, H/R, T, K)."""
    if group.size == 1:
        return part_BHPK
    mine_RBHPK = _AllToAll.apply(torch.stack(part_BHPK.chunk(group.size, dim=1)), group)
    return mine_RBHPK.permute(1, 2, 0, 3, 4).flatten(2, 3)


def heads_of_my_tokens(whole_BHTK: Tensor, group: SequenceGroup) -> Tensor:
    """The way back: (B, H/R, T, K) -> (B, H, P, K)."""
    if group.size == 1:
        return whole_BHTK
    mine_RBHPK = _AllToAll.apply(torch.stack(whole_BHTK.chunk(group.size, dim=2)), group)
    return mine_RBHPK.transpose(0, 1).flatten(1, 2)


class _AllToAll(torch.autograd.Function):
    """Slice i goes to rank i, and the slice from rank i comes to place i; backward is the same again."""

    @staticmethod
    def forward(context: Any, slices: Tensor, group: SequenceGroup) -> Tensor:
        context.sequence_group = group
        return _exchanged(slices, group)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return _exchanged(gradients[0], context.sequence_group), None


def _exchanged(slices: Tensor, group: SequenceGroup) -> Tensor:
    slices = slices.contiguous()
    received = torch.empty_like(slices)
    dist.all_to_all_single(received, slices, group=group.group)
    return received
