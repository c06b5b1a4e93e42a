"""How a model is spread over GPUs, and what is predicted of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Recompute(StrEnum):
    """Which activations the backward pass computes again instead of keeping them."""

    NONE = "none"
    SELECTIVE = "selective"
    """About half of a layer's: the attention and what is cheap."""
    FULL = "full"
    """All but each layer's input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Degrees of parallelism and what goes with them; data x tensor x pipeline x context is the number of GPUs."""

    data: int
    tensor: int = 1
    pipeline: int = 1
    virtual_stages: int = 1
    """Chunks of layers per pipeline rank: more than 1 interleaves them."""
    context: int = 1
    """Ranks that share one sequence."""
    zero: int = 1
    micro_sequences: int = 1
    recompute: Recompute = Recompute.NONE
    offload: bool = False
    """Optimizer state in the host's memory."""

    @property
    def gpus(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    def __str__(self) -> str:
        parts = [f"data {self.data}"]
        parts += [
            f"{word} {degree}"
            for word, degree in (("tensor", self.tensor), ("pipeline", self.pipeline), ("context", self.context))
            if degree > 1
        ]
        if self.virtual_stages > 1:
            parts.append(f"interleaved {self.virtual_stages}")
        parts += [f"ZeRO-{self.zero}", f"micro-batch {self.micro_sequences}"]
        if self.recompute is not Recompute.NONE:
            parts.append(f"{self.recompute} recomputation")
        return ", ".join(parts + (["optimizer on the host"] if self.offload else []))


class Fits(StrEnum):
    """Whether a layout's memory fits, given how wrong predictions of memory have been."""

    YES = "yes"
    """Even the upper end of the prediction leaves a tenth of what the GPU has."""
    TIGHT = "tight"
    """The upper end leaves less than that, or is above what the GPU has; the lower end is not."""
    NO = "no"
    """Even the lower end of the prediction is above what the GPU has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a layout is expected to need and to do."""

    layout: Layout
    step_s: float
    step_low_s: float
    """Nine runs of ten lie between `step_low_s` and `step_high_s`."""
    step_high_s: float
    terms_s: Mapping[str, float] = field(default_factory=dict)
    """Cause → seconds; their sum is `step_s`."""
    tokens_per_s: float
    mfu: float
    """Model FLOP/s (causal attention counted whole, as in PaLM) over the GPUs' peak by data sheet, a power cap or not."""
    memory_bytes: float
    """On the fullest GPU, all of it: tensors, the allocator's reserve, the CUDA context."""
    memory_low_bytes: float
    memory_high_bytes: float
    memory_parts_bytes: Mapping[str, float] = field(default_factory=dict)
    """"state", "activations", "buffers", "reserve" (held by the allocator beyond tensors), "context"; they add up to
    `memory_bytes`."""
    gpu_memory_bytes: float
    fits: Fits
    node_power_w: float
    energy_kwh_per_step: float
    goodput: float
    """Share of wall-clock time that ends up in kept steps: checkpoints, failures and repeated steps taken off."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """Where the rest goes: "checkpoints", "again" (steps repeated), "restarts"; with `goodput` they add up to 1."""
    checkpoint_every_s: float | None
    """The interval at which that share is largest (Young 1974; Daly 2006); None where nothing fails."""
    run_s: float
    """Wall-clock time of all steps of the job at that goodput: what plans are ranked by."""
    run_kwh: float
    """Energy of all of it."""
