"""Activation checkpointing: what a layer forgets after its forward pass and works out again for the backward one."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Recompute(StrEnum):
    """How much of a layer is worked out again."""

    NONE = "none"
    """Nothing: every intermediate result is kept."""
    SELECTIVE = "selective"
    """What is large and cheap: the activation between the two matrices of the feed-forward.  (Attention's scores, which
    Korthikanti et al. 2022, arXiv 2205.05198, mean by the word, are never kept by SDPA in the first place; and with ReLU
    there is nothing to forget, for its result serves its own gradient.)"""
    FULL = "full"
    """Everything: only the layer's input is kept (Chen et al. 2016, arXiv 1604.06174)."""


def recomputed(run: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """run(*arguments), forgetting its intermediate results; the backward pass runs it again, up to the last thing it needs.

    So a matrix product at its end is not done twice.  What is random in it must not use torch's default generators: their
    state is not kept.  Without gradients it is run(*arguments) alone.
    """
    if not torch.is_grad_enabled():
        return run(*arguments)
    # Re-entrant checkpointing would need inputs that require a gradient.  torch's selective checkpointing by operation
    # was tried and is not used: under ZeRO-3 (DeepSpeed 0.19.8, torch 2.13) gradients were wrong from the second step on.
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
