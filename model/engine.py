"""DeepSpeed behind three verbs: train a step, evaluate, and tell or take its state (`model/engine_state.py`).

Two engines, one behaviour: `FlatEngine` runs all layers on every rank under ZeRO 0-3, `StagedEngine` runs DeepSpeed's
PipelineModule under ZeRO-1; both on stages x replicas x sequence x tensor ranks.  Both return the loss of the
global batch and the norm of the whole gradient, the same numbers on every rank.
"""

from __future__ import annotations

import math
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First of all that imports deepspeed: it settles which accelerator that takes.
from model.engine_ranks import Grid, grid_of

# isort: split
import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from model.contract import RunSpec
from model.data import MicroBatch
from model.dropout import DropoutClock, Moment
from model.encoder_decoder import loss_of, model_of, plans_of
from model.engine_build import build_in_place
from model.engine_config import clips_itself, deepspeed_config, parameter_groups, recipe_of
from model.engine_state import EngineState, Place
from model.engine_update import Losses, LossScale, UpdateGate
from model.guard import Guard, Verdict
from model.layers import Recipe
from model.peak import peak_tflops
from model.state import StateReader
from model.transformer import Block, LayerPlan


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step gave, the same on every rank."""

    loss: float
    """Mean over the global batch before the update, in nat per token."""
    grad_norm: float
    """Euclidean norm of the whole gradient before clipping."""
    verdict: Verdict
    """Whether the update was applied, and if not, why."""
    forward_backward_s: float
    update_s: float
    """Clipping and norm belong to the pass before under ZeRO, the update and the gathering of weights to this."""


def build_engine(spec: RunSpec, *, is_drawn: bool = True) -> Engine:
    """The engine for the run's layout; `join_ranks` comes first.  Collective: every rank calls it.

    Weights that are not drawn are NaN until `restore`.
    """
    grid = grid_of(spec.layout)
    recipe = recipe_of(spec, grid.tensor_group, grid.sequence_group, is_drawn=is_drawn)
    return StagedEngine(spec, grid, recipe) if spec.layout.pipeline > 1 else FlatEngine(spec, grid, recipe)


class Engine(ABC):
    """What the training loop sees."""

    def __init__(self, spec: RunSpec, grid: Grid, recipe: Recipe, module: nn.Module) -> None:
        self._spec, self._grid, self._clock = spec, grid, recipe.clock
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=parameter_groups(module, spec),
            config=deepspeed_config(spec),
            mpu=grid.process_groups,
        )
        self._device = self._deepspeed.device
        self._loss_scale = LossScale(self._deepspeed.optimizer)
        self._gate = UpdateGate(self._deepspeed.basic_optimizer, self._judge)
        self._losses = Losses(self._device)
        self._guard: Guard = Guard(spec.guard)
        self._verdict, self._judged = Verdict(), False
        self._seen = (math.nan, math.nan)

    @property
    def replica(self) -> int:
        """Which data-parallel replica this rank is part of: it decides which micro-batches it gets."""
        return self._grid.replica

    @abstractmethod
    def _run(self, batches: Sequence[MicroBatch], moments: list[Moment]) -> None:
        """Forward, backward and update over this replica's micro-batches, adding each one's loss to `_losses`."""

    @abstractmethod
    def evaluate(self, batches: Sequence[MicroBatch]) -> float:
        """Mean loss in nat per token over the replicas' batches without training, the same on every rank."""

    def train_step(self, step: int, batches: Sequence[MicroBatch], guard: Guard) -> StepResult:
        """Does step 1, 2, … of the run; `batches` are this replica's micro-batches of it.

        Just before the update `guard` is asked about loss and gradient norm; what it does not let pass is not applied.
        """
        # Rate and dropout are functions of the step, so they need no state of their own in a checkpoint.
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.lr_at(step)
        moments = [Moment(step, index * self._spec.layout.data + self.replica) for index in range(len(batches))]
        self._guard, self._judged = guard, False
        self._losses.clear()
        can_scale_less = self._loss_scale.can_fall
        begun_s = time.monotonic()
        self._gate.open(self._grad_norm)
        self._run(batches, moments)
        ended_s = time.monotonic()
        if not self._judged:
            # DeepSpeed itself found a norm that is no number and dropped the gradients.
            self._judge_dropped(can_scale_less)
        updated_s = self._gate.reached_s or ended_s
        return StepResult(*self._seen, self._verdict, updated_s - begun_s, ended_s - updated_s)

    def _judge(self, grad_norm: float) -> bool:
        """Whether the update may be applied, the same on every rank.  Collective."""
        self._judged = True
        self._seen = self._losses.mean(), grad_norm
        self._verdict = self._guard.judge(*self._seen)
        # The numbers are the same everywhere up to the order of a sum; a limit might fall between two of them.
        if self.any_rank(not self._verdict.is_applied) and self._verdict.is_applied:
            self._verdict = self._guard.overruled(*self._seen)
        return self._verdict.is_applied

    def _judge_dropped(self, can_scale_less: bool) -> None:
        if can_scale_less:
            # The loss scale was too high; DeepSpeed has lowered it and the run goes on.
            self._seen = self._losses.mean(), math.inf
            self._verdict = Verdict("overflow", "the loss scale was too high for fp16", is_applied=False)
        else:
            self._judge(math.inf)

    def _grad_norm(self) -> float:
        """Of the whole gradient before clipping, once DeepSpeed has it."""
        return float(self._deepspeed.optimizer._global_grad_norm)

    @property
    def state(self) -> EngineState:
        """The training state, for checkpoints."""
        tensor = self._grid.tensor_group
        zero_ranks = self._spec.layout.data * self._spec.layout.sequence
        return EngineState(self._deepspeed, Place(self._grid.zero_rank, zero_ranks, tensor.rank, tensor.size))

    def any_rank(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on one.  Collective."""
        tensor = torch.tensor(int(flag), device=self._device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Takes a checkpoint's state, whatever layout wrote it, and returns what its writer noted.  Collective.

        Only for folders whose manifest was verified.  Raises StateError where the checkpoint is not of this model.
        """
        reader, state = StateReader(folder), self.state
        state.restore(reader)
        state.restore_loss_scale(reader.notes.get("loss_scale", {}))
        return reader.notes

    def peak_tflops(self) -> float | None:
        """What this rank's GPU can do in the run's precision; None where that is not known."""
        is_gpu = self._device.type == "cuda"
        return peak_tflops(torch.cuda.get_device_name(self._device), self._spec.precision) if is_gpu else None

    def memory_bytes(self) -> int:
        """The most this rank has used so far: GPU memory, or the process's resident memory where there is no GPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Frees DeepSpeed's hooks and buffers; the process group stays."""
        self._deepspeed.destroy()

    def _tensors(self, batch: MicroBatch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The batch on this rank's device; of each sequence, the part that this rank holds."""
        part = self._grid.sequence_group.part
        inputs, labels = (
            tuple(part(torch.from_numpy(array.copy()), 1).contiguous().to(self._device) for array in arrays)
            for arrays in (batch.inputs, batch.labels)
        )
        return inputs, labels


class FlatEngine(Engine):
    """All layers on every rank; ZeRO 0-3 over the replicas."""

    def __init__(self, spec: RunSpec, grid: Grid, recipe: Recipe) -> None:
        super().__init__(spec, grid, recipe, build_in_place(lambda: model_of(recipe), spec, grid))
        if clips_itself(spec) and spec.layout.data * spec.layout.sequence == 1:
            # Nobody to average with: DeepSpeed would copy every gradient into a buffer and back again.
            self._deepspeed.enable_backward_allreduce = False

    def _run(self, batches: Sequence[MicroBatch], moments: list[Moment]) -> None:
        self._deepspeed.train()
        for batch, self._clock.now in zip(batches, moments, strict=True):
            inputs, labels = self._tensors(batch)
            loss = self._deepspeed(*inputs, *labels)
            self._deepspeed.backward(loss)
            self._losses.add(loss)
            if batch is batches[-1] and self._spec.layout.zero == 0:
                self._whole_norm = float(self._gradient_norm())
                self._clip(self._whole_norm)
            self._deepspeed.step()

    def _grad_norm(self) -> float:
        return self._whole_norm if self._spec.layout.zero == 0 else super()._grad_norm()

    def _gradient_norm(self) -> Tensor:
        # DeepSpeed reports no norm under ZeRO-0; after the last backward the gradients are averaged over the replicas.
        # In double, as DeepSpeed does it: torch's fp32 norm of a large tensor on a CPU is off by 1e-5.
        group = self._grid.tensor_group
        square = torch.zeros((), dtype=torch.float64, device=self._device)
        for parameter in self._deepspeed.module.parameters():
            is_shard = getattr(parameter, "tensor_model_parallel", False)
            if parameter.grad is not None and (is_shard or group.rank == 0):
                square += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) ** 2
        if group.size > 1:
            dist.all_reduce(square, group=group.group)
        return square.sqrt()

    def _clip(self, norm: float) -> None:
        """Scales the gradients so that their norm is at most the run's clip, by the same formula as DeepSpeed and torch."""
        share = self._spec.optimizer.clip / (norm + 1e-6)
        if clips_itself(self._spec) and 0.0 < share < 1.0:
            gradients = [p.grad for p in self._deepspeed.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, share)

    def evaluate(self, batches: Sequence[MicroBatch]) -> float:
        self._deepspeed.eval()
        self._losses.clear()
        with torch.no_grad():
            for batch in batches:
                inputs, labels = self._tensors(batch)
                self._losses.add(self._deepspeed(*inputs, *labels))
        return self._losses.mean()


class StagedEngine(Engine):
    """Pipeline stages x replicas x tensor ranks, by DeepSpeed's pipeline engine."""

    def __init__(self, spec: RunSpec, grid: Grid, recipe: Recipe) -> None:
        self._loss = loss_of(recipe)
        self._stages = build_in_place(lambda: self._make_stages(spec, grid, recipe), spec, grid)
        self._stages.clock = recipe.clock
        super().__init__(spec, grid, recipe, self._stages)

    def _make_stages(self, spec: RunSpec, grid: Grid, recipe: Recipe) -> _Stages:
        return _Stages(
            [_pipeline_spec(plan) for plan in plans_of(recipe)],
            topology=grid.topology,
            loss_fn=self._counted_loss,
            # Blocks spread evenly, so that no stage is without one, whatever the vocabulary's size.
            # The name is looked for in those of the layers: an encoder's and a decoder's blocks have it too.
            partition_method=f"type:{Block.__name__}",
            # Pairs are padded to the longest of their micro-batch only.
            dynamic_shape=bool(spec.model.encoder_layers),
        )

    def _counted_loss(self, logits_BTW: Tensor, labels: Any) -> Tensor:
        loss = self._loss(logits_BTW, labels)
        self._losses.add(loss)
        return loss

    def _run(self, batches: Sequence[MicroBatch], moments: list[Moment]) -> None:
        self._loss.train()
        self._stages.coming = iter(moments)
        self._deepspeed.train_batch(data_iter=self._iterate(batches))

    def evaluate(self, batches: Sequence[MicroBatch]) -> float:
        self._loss.eval()
        self._stages.coming = None
        self._losses.clear()
        self._deepspeed.eval_batch(data_iter=self._iterate(batches), num_micro_batches=len(batches))
        return self._losses.mean()

    def _iterate(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[Any, Any]]:
        # Without the first and the last stage nobody reads the batch; DeepSpeed asks each stage for what it needs.
        for batch in batches:
            inputs, labels = self._tensors(batch)
            yield _bare(inputs), _bare(labels)


class _Stages(PipelineModule):
    """This rank's stage, which tells the dropout clock whose turn it is: micro-batches pass every stage in order."""

    clock: DropoutClock
    coming: Iterator[Moment] | None = None
    """Of the micro-batches still to pass; None in an evaluation."""

    def forward(self, inputs: Any) -> Any:
        if self.coming is not None:
            self.clock.now = next(self.coming)
        return super().forward(inputs)


def _bare(tensors: tuple[Tensor, ...]) -> Any:
    """A layer or loss of one input takes it as it is."""
    return tensors[0] if len(tensors) == 1 else tensors


def _pipeline_spec(plan: LayerPlan) -> LayerSpec:
    if plan.tied_key is not None:
        return TiedLayerSpec(plan.tied_key, plan.module, *plan.arguments, forward_fn=plan.call, tied_weight_attr="weight")
    return LayerSpec(plan.module, *plan.arguments)
