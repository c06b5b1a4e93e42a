"""Training frameworks as the planner sees them: which fitted constants they share and what they keep in memory.

A framework's name is free text in tables of runs; `software_of` maps it to a family by words in the name. Families differ in
kernels (fused or eager, flash attention or materialised scores), overlap and state bytes; the numbers are fitted in
`constants.py`.
"""

import re
from dataclasses import dataclass

from model.shape import BYTES_PER_PARAMETER


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """What a family of frameworks does, as far as its documentation or source says."""

    name: str
    words: tuple[str, ...]
    """Parts of a framework's name that show it belongs here; the first family that matches wins."""
    flash: bool = True
    """Attention scores are never written to memory."""
    sequence_parallel: bool = True
    """With tensor parallelism, norms and their activations are split over the sequence (Korthikanti et al. 2022)."""
    fused_loss: bool = False
    """Cross entropy without a whole fp32 copy of the logits."""
    default_zero: int = 1
    default_recompute: str = "none"
    """What is assumed when a source does not say (with flash attention NVIDIA's recipes recompute nothing); "auto": what
    memory forces to."""
    parameter_bytes: float = 2.0
    gradient_bytes: float = 4.0
    optimizer_bytes: float = 12.0
    """Of one parameter, unsharded."""
    bf16_copy_bytes: float = 0.0
    """More gradient bytes when training in bf16: BLOOM's BF16 optimizer accumulates in fp32 beside the 16-bit gradients."""
    tensor: bool = True
    """Can split layers over tensor ranks."""
    context: bool = True
    """Can split sequences over context ranks."""
    context_by_heads: bool = False
    """Around attention, ranks of one sequence trade their tokens of all heads for all tokens of some heads (DeepSpeed-Ulysses,
    Jacobs et al. 2023); otherwise keys and values go round them (ring attention)."""
    whole_blocks: bool = False
    """Cuts a pipeline by blocks alone, the last stages with one less where they do not divide (DeepSpeed's `type:Block`);
    otherwise embedding and head count as a layer each where only so they divide."""
    recomputes: bool = True
    """Can checkpoint activations."""
    zero_stages: tuple[int, ...] = (0, 1)
    pipeline_zero: tuple[int, ...] = (0, 1)
    """Stages that go with a pipeline: DeepSpeed's excludes sharded gradients, Megatron's optimizer is stage 1 as well."""
    masterless_zero0: bool = True
    """Trains in 16 bit without ZeRO."""
    offloads: bool = True
    """Can keep the optimizer's state in the host's memory."""
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16", "fp8", "fp4")
    fp32_copies: bool = False
    """Stages 1 and 2 keep a copy of fp32 parameters as masters too: DeepSpeed clones its partition whatever its type."""
    micro_batches_as_stages: bool = False
    """Where a source names no micro-batch, a step has as many micro-batches as pipeline stages (torchtitan's default);
    otherwise one of a single sequence is assumed with a pipeline."""
    interleaves: bool = True
    """Can put several virtual stages on a rank."""
    assumed_chunks: int = 1
    """Virtual stages that are assumed at most where a source names none: NVIDIA's recipes interleave as a rule, and torchtitan's
    interleaved schedules take two unless told otherwise."""
    selects: str = "core"
    """What selective checkpointing drops and repeats: the attention "core" with its scores (Korthikanti et al. 2022), the
    feed-forward's inner "activation" (our engine), or about "half" of a layer, some of its matrix products too."""
    constants_of: str = ""
    """The family whose fitted constants it has, where too few of its own runs are published."""
    kin: str = "~torch"
    """Families that share kernels and habits, and so a part of their constants: Megatron with materialised scores ("~eager"),
    Megatron with Transformer Engine ("~te"), PyTorch's own kernels with FlashAttention ("~torch"). Empty: of its own kind."""


OWN_BYTES = BYTES_PER_PARAMETER["bf16"]
"""What this project's engine keeps, from the one home of these numbers."""

SOFTWARES: tuple[Software, ...] = (
    Software(
        name="deepspeed-rackray",
        words=("rackray",),
        interleaves=False,
        sequence_parallel=False,
        context_by_heads=True,
        whole_blocks=True,
        pipeline_zero=(1,),
        masterless_zero0=False,
        selects="activation",
        precisions=("fp32", "bf16", "fp16"),
        fp32_copies=True,
        zero_stages=(0, 1, 2, 3),
        parameter_bytes=float(OWN_BYTES[0]),
        gradient_bytes=float(OWN_BYTES[1]),
        optimizer_bytes=float(OWN_BYTES[2]),
    ),
    Software(
        name="megatron-deepspeed",
        kin="~eager",
        fp32_copies=True,
        words=("megatron-deepspeed", "megatron deepspeed", "deepspeed-megatron", "gpt-neox", "neox"),
        flash=False,
        sequence_parallel=False,
        default_recompute="full",
        gradient_bytes=2.0,
        default_zero=0,
        interleaves=False,
        bf16_copy_bytes=4.0,
    ),
    Software(
        name="zero-bubble",
        kin="~eager",
        assumed_chunks=6,
        words=("zb-", "zero bubble", "zero-bubble", "zbpp", "fork 1f1b", "megatron-lm fork"),
        flash=False,
        sequence_parallel=False,
        default_zero=0,
    ),
    Software(
        name="megatron-2022",
        kin="~eager",
        words=("megatron-lm 2022", "megatron-lm 2023", "korthikanti", "megatron-lm + sp", "megatron-lm sp"),
        flash=False,
        default_recompute="selective",
        default_zero=0,
        interleaves=False,
        constants_of="megatron-2021",
    ),
    Software(
        name="megatron-2021",
        kin="~eager",
        words=("megatron-lm 2020", "megatron-lm 2021", "megatron-lm 2019", "megatron-turing", "mt-nlg", "sc21", "ptd-p"),
        flash=False,
        sequence_parallel=False,
        default_recompute="full",
        default_zero=0,
        interleaves=False,
    ),
    Software(name="megatron-bridge", kin="~te", assumed_chunks=6, words=("megatron-bridge", "mbridge"), fused_loss=True),
    Software(
        name="megatron-core",
        kin="~te",
        assumed_chunks=6,
        words=("megatron-core", "megatron core", "mcore", "megatron-lm"),
        fused_loss=True,
    ),
    Software(name="nemo", kin="~te", assumed_chunks=6, words=("nemo",)),
    Software(
        name="megatron",
        kin="~te",
        assumed_chunks=6,
        words=("megatron", "megascale", "primus"),
        fused_loss=True,
        constants_of="megatron-core",
    ),
    # Both recompute all unless told otherwise: Pax's SAVE_NOTHING, MaxText's `remat_policy: full`.
    Software(
        name="paxml",
        kin="",
        words=("paxml", "praxis", "pax "),
        zero_stages=(0, 1, 2, 3),
        default_zero=3,
        default_recompute="full",
    ),
    Software(
        name="xla",
        kin="",
        words=("xla", "maxtext", "jax", "levanter", "easylm", "flax", "axlearn", "t5x"),
        zero_stages=(0, 1, 2, 3),
        default_zero=3,
        default_recompute="full",
    ),
    Software(
        name="composer",
        words=("composer", "mosaic", "llm-foundry", "llmfoundry"),
        zero_stages=(0, 1, 2, 3),
        default_zero=3,
        default_recompute="none",
    ),
    Software(
        name="torchtitan",
        micro_batches_as_stages=True,
        assumed_chunks=2,
        words=("torchtitan",),
        pipeline_zero=(0, 1, 2, 3),
        offloads=False,
        selects="half",
        zero_stages=(0, 1, 2, 3),
        default_zero=3,
        default_recompute="selective",
        gradient_bytes=4.0,
        parameter_bytes=4.0,
        optimizer_bytes=8.0,
    ),
    # Sums gradients in fp32 beside the 16-bit ones.
    Software(name="nanotron", interleaves=False, words=("nanotron",), default_recompute="none", gradient_bytes=6.0),
    Software(name="internevo", words=("internevo", "internlm"), default_recompute="none", gradient_bytes=2.0),
    Software(name="colossal", words=("colossal",), default_recompute="full"),
    Software(
        name="deepspeed",
        fp32_copies=True,
        words=("deepspeed", "zero-3", "zero-2", "zero3", "zero2", "zero++", "mics"),
        zero_stages=(0, 1, 2, 3),
        default_zero=3,
        default_recompute="full",
        gradient_bytes=2.0,
    ),
    Software(
        name="fsdp",
        selects="half",
        parameter_bytes=4.0,
        optimizer_bytes=8.0,
        words=(
            "fsdp",
            "lit-gpt",
            "litgpt",
            "kempner",
            "olmo",
            "fairscale",
            "lightning",
            "accelerate",
            "hugging",
            "llama-recipes",
            "ddp",
            "pytorch",
        ),
        zero_stages=(0, 1, 2, 3),
        default_zero=3,
        default_recompute="none",
    ),
    Software(name="other", words=("",), zero_stages=(0, 1, 2, 3), default_recompute="auto", selects="half"),
)
"""In the order in which names are matched; the last one takes every name."""


KIN = {software.name: software.kin for software in SOFTWARES}
"""Family → its kin."""


def software_of(framework: str) -> Software:
    """The family a framework's name belongs to; "other" when no word of the table occurs in it."""
    name = framework.lower().replace("_", "-")
    return next(software for software in SOFTWARES if any(word in name for word in software.words))


def shards_in_nodes(framework: str) -> bool:
    """Whether a framework's name says that ZeRO's state is spread over the GPUs of a node only, and copied from node to node."""
    return re.search(r"hybrid|hsdp|mics\b", framework.lower()) is not None


def optimizer_bytes(software: Software, low: int, zero: int) -> float:
    """Bytes of optimizer state per parameter: in fp32 (`low` -1) two moments, and masters where the framework copies them."""
    if low >= 0:
        return software.optimizer_bytes
    return 12.0 if software.fp32_copies and zero in (1, 2) else 8.0


def gradient_bytes(software: Software, low: int, in_bf16: bool) -> float:
    """Bytes of gradients per parameter at the precision code `low`; in bf16 some frameworks sum in fp32 beside."""
    return 4.0 if low < 0 else software.gradient_bytes + (software.bf16_copy_bytes if in_bf16 else 0.0)


def schedule_of(framework: str) -> str:
    """The pipeline schedule a framework's name states: "zb-2p", "zb-1p", "zb-v", "zb-v-half", "zb-v-min"; otherwise "1f1b"."""
    name = framework.lower()
    for word, schedule in (
        ("zb-2p", "zb-2p"),
        ("zb-1p", "zb-1p"),
        ("half", "zb-v-half"),
        ("v-min", "zb-v-min"),
        ("zb-v", "zb-v"),
    ):
        if word in name:
            return schedule
    return "1f1b"
