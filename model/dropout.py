"""Dropout whose masks are a function of seed, step, micro-batch and place, and of nothing else.

So a mask is the same in every layout: on all tensor ranks, which hold the same activations; on whichever stage and
replica a micro-batch runs; and when a layer is recomputed.  No random state needs to be saved for it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.sequence_parallel import WHOLE, SequenceGroup


@dataclass(frozen=True, slots=True)
class Moment:
    """Which micro-batch of which step is going through a layer."""

    step: int
    micro_batch: int
    """Number in the global batch, so that no two replicas have the same one in a step."""


@dataclass(slots=True)
class DropoutClock:
    """The present moment, set by the training loop; one for a whole model."""

    seed: int
    now: Moment = Moment(0, 0)
    sequence: SequenceGroup = WHOLE
    """Where each rank has some of the tokens, it takes their part of the whole sequence's mask."""


class Dropout(nn.Module):
    """Zeroes each value with probability `share` while training and divides the others by 1 - share.

    On sub-layer outputs and on embeddings (Vaswani et al. 2017, section 5.4), which all tensor ranks hold whole.
    """

    def __init__(self, share: float, name: str, clock: DropoutClock) -> None:
        super().__init__()
        self.share, self.name, self.clock = share, name, clock

    def forward(self, hidden: Tensor, moment: Moment | None = None) -> Tensor:
        """`moment` is the one the layer was first run in, where it is recomputed; None is the clock's."""
        if not self.training or self.share == 0.0:
            return hidden
        moment = moment or self.clock.now
        place = f"{self.clock.seed}/{moment.step}/{moment.micro_batch}/{self.name}"
        generator = torch.Generator(hidden.device).manual_seed(zlib.crc32(place.encode()))
        whole = torch.empty_like(hidden).repeat_interleave(self.clock.sequence.size, dim=-2)
        kept = self.clock.sequence.part(whole.bernoulli_(1.0 - self.share, generator=generator), -2)
        return hidden * kept.mul(1.0 / (1.0 - self.share))
