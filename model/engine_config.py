"""What DeepSpeed is told about a run: its configuration, and the parameters it updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from model.contract import RunSpec
from model.dropout import DropoutClock
from model.layers import Recipe
from model.recompute import Recompute
from model.sequence_parallel import WHOLE, SequenceGroup
from model.tensor_parallel import ALONE, TensorGroup


def recipe_of(spec: RunSpec, group: TensorGroup = ALONE, sequence: SequenceGroup = WHOLE, *, is_drawn: bool = True) -> Recipe:
    """What the run's model is built from on a rank of these groups; not drawn where a checkpoint's values come instead."""
    return Recipe(
        shape=spec.model.shape(),
        seed=spec.seed if is_drawn else None,
        dropout=spec.model.dropout,
        label_smoothing=spec.model.label_smoothing,
        recompute=Recompute(spec.activation_checkpointing),
        group=group,
        sequence=sequence,
        clock=DropoutClock(spec.seed, sequence=sequence),
    )


def gpu_problems(spec: RunSpec) -> list[str]:
    """What the run asks for and this machine has no GPU for, each with the way out."""
    if torch.cuda.is_available() or spec.precision != "fp16":
        return []
    return ["precision: fp16 needs a GPU, and torch finds none here; bf16 or fp32 run on a CPU too"]


def parameter_groups(module: nn.Module, spec: RunSpec) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on biases and norms, which have one dimension."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if is_matrix(p)], "weight_decay": spec.optimizer.weight_decay},
        {"params": [p for p in parameters if not is_matrix(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it has two dimensions or more; one that ZeRO-3 has partitioned is told by the shape it had."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) >= 2


def clips_itself(spec: RunSpec) -> bool:
    """Whether the engine clips and not DeepSpeed: under ZeRO-0 in fp32 DeepSpeed would take the norm a second time, in copies."""
    return spec.layout.zero == 0 and spec.precision == "fp32"


def deepspeed_config(spec: RunSpec) -> dict[str, Any]:
    """DeepSpeed's configuration for the run (deepspeed.ai/docs/config-json)."""
    # DeepSpeed allocates a whole bucket, 500 million numbers by default, however small the model.
    bucket = min(500_000_000, spec.model.shape().parameters().total)
    zero: dict[str, Any] = {"stage": spec.layout.zero, "reduce_bucket_size": bucket}
    if spec.optimizer.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Pairs are counted in tokens: DeepSpeed, which only wants the numbers to fit, is told of micro-batches of one.
        # To it the ranks of a sequence are replicas, which is what they are to weights and gradients.
        "train_batch_size": (spec.batch.global_sequences or spec.micro_batches * spec.layout.data) * spec.layout.sequence,
        "train_micro_batch_size_per_gpu": spec.batch.micro_sequences or 1,
        "gradient_accumulation_steps": spec.micro_batches,
        "optimizer": _optimizer(spec),
        "gradient_clipping": 0.0 if clips_itself(spec) else spec.optimizer.clip,
        # An encoder-decoder's stages exchange two tensors with gradients; DeepSpeed can split only one over tensor ranks.
        "pipeline": {"pipe_partitioned": not spec.model.encoder_layers, "grad_partitioned": not spec.model.encoder_layers},
        "zero_optimization": zero,
        "bf16": {"enabled": spec.precision == "bf16"},
        # Loss scale 2^16 at first, halved at an overflow and doubled after 1,000 steps without one.
        "fp16": {"enabled": spec.precision == "fp16", "initial_scale_power": 16, "loss_scale_window": 1000},
        # Our own progress lines say more; a number this large keeps DeepSpeed's away.
        "steps_per_print": 10**9,
    }


def _optimizer(spec: RunSpec) -> dict[str, Any]:
    optimizer = spec.optimizer
    # torch_adam: the other Adams of DeepSpeed compile C++ or CUDA on first use.  An offloaded optimizer on a GPU's host
    # is worth that; on a machine without GPUs there is nothing to gain.
    is_compiled = optimizer.offload and torch.cuda.is_available()
    return {
        "type": "AdamW" if optimizer.kind == "adamw" else "Adam",
        "params": {
            "lr": optimizer.lr,
            "betas": list(optimizer.betas),
            "eps": optimizer.eps,
            "torch_adam": not is_compiled,
            # Without it DeepSpeed makes AdamW of "Adam".
            "adam_w_mode": optimizer.kind == "adamw",
            **({"fused": True} if optimizer.fused else {}),
        },
    }
