"""DeepSpeed behind three verbs: train a step, evaluate, and tell or take its state (`model/engine_state.py`).

Two engines, one behaviour: `FlatEngine` runs the whole model on every rank under ZeRO 0-3, `StagedEngine` runs
DeepSpeed's PipelineModule, stages x replicas under ZeRO-1.  Both return the loss of the global batch and the norm of
the whole gradient, the same numbers on every rank.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import resource
import time
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

# Before deepspeed is imported: it chooses its accelerator then, and without a GPU would look for one.
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from model.contract import RunSpec
from model.data import Batch
from model.engine_state import EngineState, Place
from model.engine_update import Losses, UpdateGate
from model.guard import Guard, Verdict
from model.peak import peak_tflops
from model.state import StateReader
from model.transformer import Block, LayerPlan, Transformer, cross_entropy, layer_plans


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


def join_ranks(timeout_s: float) -> None:
    """Meets the other ranks (gloo without a GPU, nccl with one); the environment says who and where.

    Raises torch.distributed's errors where the ranks do not meet within `timeout_s`, which also bounds every later
    collective.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 wants to rename; nobody who runs this can act on it.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*deprecated", category=FutureWarning)
    # DeepSpeed would compile a shared-memory all-reduce with the system's C++ compiler into every HOME, a minute or
    # more the first time; gloo does the same work, and no switch turns the compiling off.
    # By name, because the attribute `deepspeed.comm.torch` is torch itself, not this module.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )


class PeerLost(Exception):
    """Another rank ended or cannot be reached; that rank's own log says why."""


@contextmanager
def as_peer_lost() -> Iterator[None]:
    """Turns the backends' many ways of saying that a peer is gone into PeerLost."""
    try:
        yield
    except dist.DistError as error:
        raise PeerLost(f"the other ranks cannot be reached: {error}") from error
    except RuntimeError as error:
        # gloo has no error type of its own, but begins its messages with its source file.
        if "gloo" not in str(error):
            raise
        raise PeerLost(f"another rank went away: {error}") from error


def leave_ranks() -> None:
    """Ends the process group; the other ranks may still be working."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_every_rank() -> None:
    """Returns once all ranks have come here."""
    dist.barrier()


def from_rank_zero(value: Any) -> Any:
    """Rank 0's value on every rank.  Collective; for small things only, they are pickled."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def from_every_rank(value: Any) -> list[Any]:
    """The ranks' values in rank order, on every rank.  Collective; for small things only, they are pickled."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def build_engine(spec: RunSpec) -> Engine:
    """The engine for the run's layout; `join_ranks` comes first.  Collective: every rank calls it."""
    return StagedEngine(spec) if spec.layout.pipeline > 1 else FlatEngine(spec)


class Engine(ABC):
    """What the training loop sees."""

    def __init__(self, spec: RunSpec, module: nn.Module) -> None:
        self._spec = spec
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=module, model_parameters=_parameter_groups(module, spec), config=_deepspeed_config(spec)
        )
        self._device = self._deepspeed.device
        self._gate = UpdateGate(self._deepspeed.basic_optimizer, self._judge)
        self._losses = Losses(self._device)
        self._guard: Guard = Guard(spec.guard)
        self._verdict, self._judged = Verdict(), False
        self._seen = (math.nan, math.nan)

    @property
    @abstractmethod
    def replica(self) -> int:
        """Which data-parallel replica this rank is part of: it decides which micro-batches it gets."""

    @abstractmethod
    def _run(self, batches: list[Batch]) -> None:
        """Forward, backward and update over this replica's micro-batches, adding each one's loss to `_losses`."""

    @abstractmethod
    def evaluate(self, batches: list[Batch]) -> float:
        """Mean loss in nat per token over the replicas' batches without training, the same on every rank."""

    def train_step(self, step: int, batches: list[Batch], guard: Guard) -> StepResult:
        """Does step 1, 2, … of the run; `batches` are this replica's micro-batches of it.

        Just before the update `guard` is asked about loss and gradient norm; what it does not let pass is not applied.
        """
        # Rate and randomness are functions of the step, so they need no state of their own in a checkpoint.
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.optimizer.lr_at(step, self._spec.steps)
        _seed_dropout(self._spec.seed, step, dist.get_rank())
        self._guard, self._judged = guard, False
        self._losses.clear()
        begun_s = time.monotonic()
        self._gate.open(self._grad_norm)
        self._run(batches)
        ended_s = time.monotonic()
        if not self._judged:
            # DeepSpeed itself found a norm that is no number and dropped the gradients.
            self._judge(math.inf)
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

    def _grad_norm(self) -> float:
        """Of the whole gradient before clipping, once DeepSpeed has it."""
        return float(self._deepspeed.optimizer._global_grad_norm)

    @property
    def state(self) -> EngineState:
        """The training state, for checkpoints."""
        return EngineState(self._deepspeed, Place(self.replica, self._spec.layout.data))

    def any_rank(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on one.  Collective."""
        tensor = torch.tensor(int(flag), device=self._device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Takes a checkpoint's state, whatever layout wrote it, and returns what its writer noted.  Collective.

        Only for folders whose manifest was verified.  Raises StateError where the checkpoint is not of this model.
        """
        reader = StateReader(folder)
        self.state.restore(reader)
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

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = torch.from_numpy(batch.tokens_BT.copy()).to(self._device)
        return tokens, torch.from_numpy(batch.targets_BT.copy()).to(self._device)


class FlatEngine(Engine):
    """The whole model on every rank; ZeRO 0-3 over all ranks."""

    def __init__(self, spec: RunSpec) -> None:
        plans = layer_plans(spec.model.shape(), dropout=spec.model.dropout, seed=spec.seed)
        super().__init__(spec, Transformer(plans))

    @property
    def replica(self) -> int:
        return dist.get_rank()

    def _run(self, batches: list[Batch]) -> None:
        self._deepspeed.train()
        for batch in batches[:-1]:
            self._accumulate(batch)
            self._deepspeed.step()
        self._accumulate(batches[-1])
        if self._spec.layout.zero == 0:
            self._whole_norm = float(self._gradient_norm())
        self._deepspeed.step()

    def _accumulate(self, batch: Batch) -> None:
        loss = self._deepspeed(*self._tensors(batch))
        self._deepspeed.backward(loss)
        self._losses.add(loss)

    def _grad_norm(self) -> float:
        return self._whole_norm if self._spec.layout.zero == 0 else super()._grad_norm()

    def _gradient_norm(self) -> Tensor:
        # DeepSpeed reports no norm under ZeRO-0; after the last backward the gradients are averaged over the ranks.
        # In double, as DeepSpeed does it: torch's fp32 norm of a large tensor on a CPU is off by 1e-5.
        gradients = [p.grad for p in self._deepspeed.module.parameters() if p.grad is not None]
        return torch.stack([gradient.double().norm() for gradient in gradients]).norm()

    def evaluate(self, batches: list[Batch]) -> float:
        self._deepspeed.eval()
        self._losses.clear()
        with torch.no_grad():
            for batch in batches:
                self._losses.add(self._deepspeed(*self._tensors(batch)))
        return self._losses.mean()


class StagedEngine(Engine):
    """Pipeline stages x data-parallel replicas; rank = stage · replicas + replica."""

    def __init__(self, spec: RunSpec) -> None:
        layout = spec.layout
        # The tensor axis is 1 here; it stands in the topology so that ranks keep their order when it grows.
        topology = PipeModelDataParallelTopology(num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=layout.data)
        self._replica = int(topology.get_coord(dist.get_rank()).data)
        plans = layer_plans(spec.model.shape(), dropout=spec.model.dropout, seed=spec.seed)
        module = PipelineModule(
            [_pipeline_spec(plan) for plan in plans],
            topology=topology,
            loss_fn=self._counted_loss,
            # Blocks spread evenly, so that no stage is without one, whatever the vocabulary's size.
            partition_method=f"type:{Block.__name__}",
        )
        super().__init__(spec, module)

    @property
    def replica(self) -> int:
        return self._replica

    def _counted_loss(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        loss = cross_entropy(logits_BTV, targets_BT)
        self._losses.add(loss)
        return loss

    def _run(self, batches: list[Batch]) -> None:
        self._deepspeed.train_batch(data_iter=self._iterate(batches))

    def evaluate(self, batches: list[Batch]) -> float:
        self._losses.clear()
        self._deepspeed.eval_batch(data_iter=self._iterate(batches), num_micro_batches=len(batches))
        return self._losses.mean()

    def _iterate(self, batches: list[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        # Without the first and the last stage nobody reads the batch; DeepSpeed asks each stage for what it needs.
        return (self._tensors(batch) for batch in batches)


def _pipeline_spec(plan: LayerPlan) -> LayerSpec:
    if plan.tied_key is None:
        return LayerSpec(plan.module, *plan.arguments)
    return TiedLayerSpec(plan.tied_key, plan.module, *plan.arguments, forward_fn=plan.call, tied_weight_attr="weight")


def _parameter_groups(module: nn.Module, spec: RunSpec) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on biases and norms, which have one dimension."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": spec.optimizer.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _deepspeed_config(spec: RunSpec) -> dict[str, Any]:
    """DeepSpeed's configuration for the run (deepspeed.ai/docs/config-json)."""
    optimizer = spec.optimizer
    parameters = {"lr": optimizer.lr, "betas": list(optimizer.betas), "eps": optimizer.eps}
    return {
        "train_batch_size": spec.batch.global_sequences,
        "train_micro_batch_size_per_gpu": spec.batch.micro_sequences,
        "gradient_accumulation_steps": spec.micro_batches,
        # torch_adam: the other Adams of DeepSpeed compile C++ or CUDA on first use.
        "optimizer": {"type": "AdamW", "params": {**parameters, "torch_adam": True}},
        "gradient_clipping": optimizer.clip,
        "zero_optimization": {"stage": spec.layout.zero},
        "bf16": {"enabled": spec.precision == "bf16"},
        # Our own progress lines say more; a number this large keeps DeepSpeed's away.
        "steps_per_print": 10**9,
    }


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """First values have generators of their own; this one is for dropout, which must differ between ranks.

    A function of the step, as the learning rate is, so that a checkpoint has no random state to keep.
    """
    torch.manual_seed(zlib.crc32(f"{seed}/{step}/{rank}".encode()))
