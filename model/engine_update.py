"""Stands between the gradients and the update: the last moment at which a step can still be left out.

DeepSpeed's engines do backward, clipping and update in one call, the pipeline's even the whole step.  All of them end in
`step()` of a torch optimizer, so the gate is that optimizer's own hook (docs.pytorch.org, `register_step_pre_hook`): where
the update is not to be applied it takes the gradients away, and Adam passes over parameters that have none.  Neither
weights nor moments nor Adam's count change then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Losses:
    """Losses of a step's micro-batches, wherever they are computed."""

    def __init__(self, device: torch.device) -> None:
        self._sum_and_count = torch.zeros(2, device=device)

    def clear(self) -> None:
        self._sum_and_count.zero_()

    def add(self, loss: Tensor) -> None:
        """Adds one micro-batch's mean loss."""
        self._sum_and_count[0] += loss.detach()
        self._sum_and_count[1] += 1

    def mean(self) -> float:
        """Over the micro-batches of all ranks; those of other stages add none.  Collective."""
        everywhere = self._sum_and_count.clone()
        dist.all_reduce(everywhere)
        return float(everywhere[0] / everywhere[1])


class LossScale:
    """fp16's factor on the loss, which DeepSpeed halves after a step whose gradients overflowed."""

    def __init__(self, optimizer: Any) -> None:
        scaler = getattr(optimizer, "loss_scaler", None)
        self._scaler = scaler if getattr(scaler, "dynamic", False) else None
        if self._scaler is not None:
            # DeepSpeed would raise in the middle of a step, on its way to no exit code of ours.
            self._scaler.raise_error_at_min_scale = False

    @property
    def can_fall(self) -> bool:
        """Whether a smaller one is left to try; False at the least one, where an overflow means NaN, and in other precisions."""
        return self._scaler is not None and self._scaler.cur_scale > self._scaler.min_scale


class UpdateGate:
    """Asks once per step, when the update is about to be applied."""

    def __init__(self, optimizer: torch.optim.Optimizer, may_pass: Callable[[float], bool]) -> None:
        """`may_pass` gets the gradient's norm; it may be collective, for every rank comes here in every step."""
        self._may_pass = may_pass
        self._norm: Callable[[], float] = lambda: math.nan
        self._answer: bool | None = None
        self._kept: list[tuple[Tensor, Tensor | None]] = []
        self.reached_s: float | None = None
        """When the update of this step began, by the monotonic clock; None where it was never reached."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def open(self, norm: Callable[[], float]) -> None:
        """Before each step; `norm` tells the gradient's norm at the time of the update."""
        self._norm, self._answer, self.reached_s = norm, None, None

    def _before(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        # ZeRO calls the optimizer once for each of its groups; one answer holds for all.
        if self._answer is None:
            self.reached_s = time.monotonic()
            self._answer = self._may_pass(self._norm())
        if not self._answer:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self._kept = [(parameter, parameter.grad) for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None

    def _after(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        # Given back, for DeepSpeed reuses some of these buffers in the next step.
        for parameter, gradient in self._kept:
            parameter.grad = gradient
        self._kept = []
