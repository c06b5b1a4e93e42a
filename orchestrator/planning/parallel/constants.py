"""The constants of the step-time model: what each means, its physical start, and how the right one is looked up.

`STARTS` holds what data sheets and published micro-benchmarks say (ceilings of matrix products: "MAMF" in
stas00/ml-engineering; the
share of NCCL's rate that is left in training: vTrain, MICRO 2024; bytes and passes counted from the kernels). `fitted.py`
holds what
the rows made of them. A constant may differ by GPU family, by framework family, by both, and by whether a network lies between:
each of these is a factor on the general value, so that a GPU or a framework without rows of its own has what all others have in
common (partial pooling; Gelman and Hill 2007, chapter 12).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.software import KIN

Table: TypeAlias = Mapping[str, Mapping[str, float]]
"""Constant → key → number. Key "": the general value. The other keys ("family", "~kin", "software", "software@fabric",
"family|software") hold factors on it; all that apply are multiplied."""

SHARES = frozenset(
    {"data_overlap", "shard_overlap", "context_exposed", "tensor_exposed", "boundary_exposed", "wave_power", "imbalance_share"}
    | {"slow_network", "nvlink_reach", "network_reach", "boundary_reach", "gemm", "gemm_low", "gemm_4bit", "flash_reach"}
)
"""Constants that cannot exceed 1."""


@dataclass(frozen=True, slots=True)
class Constants:
    """The fitted numbers for each case; every field broadcasts against the cases."""

    gemm: Floats
    """Matrix products in 16 bit: share of the peak that the best shapes reach."""
    gemm_low: Floats
    """The same in 8 bit."""
    gemm_4bit: Floats
    """The same in 4 bit."""
    cast_passes: Floats
    """Passes over activations to cast them for 8-bit and 4-bit products."""
    imbalance_share: Floats
    """Of the slowest pipeline stage over the mean, the share that is waited for."""
    boundary_exposed: Floats
    """Of sends between stages, the share not hidden."""
    shard_overlap: Floats
    """Of ZeRO-3's gathers and scatters, the share hidden behind computing."""
    wave_power: Floats
    """How strongly part-empty waves count: 1 fully, 0 not at all."""
    inner_half: Floats
    """Inner dimension at which a product reaches half its rate; `column_half` and `row_half` alike."""
    column_half: Floats
    row_half: Floats
    odd_cost: Floats
    """Time added per dimension that is no multiple of 64."""
    backward_matmul: Floats
    """Backward products over twice the forward ones."""
    selective_share: Floats
    """Of the forward products, the share that selective checkpointing repeats."""
    flash_reach: Floats
    """Flash attention: share of the 16-bit peak."""
    head_half: Floats
    """Head size at which it reaches half of that."""
    scores_reach: Floats
    """Attention through materialised scores: share of the peak of its products."""
    score_passes: Floats
    """Passes over the scores."""
    odd_head: Floats
    """Time added when the head size is no multiple of 8 (no tensor cores), and"""
    whole_passes: Floats
    """Forward passes over activations of the whole width, and"""
    split_passes: Floats
    """of the width that tensor parallelism splits."""
    backward_passes: Floats
    """Backward passes over forward ones."""
    loss_passes: Floats
    """Passes over fp32 logits."""
    launch_s: Floats
    """The host launches one layer, forward and backward, no faster than this."""
    end_fixed_s: Floats
    """Per micro-batch at the embedding and at the loss."""
    step_fixed_s: Floats
    """Per step."""
    optimizer_bytes: Floats
    """Moved per parameter by Adam."""
    nvlink_reach: Floats
    """Share of NVLink's rate in training. Alone a collective reaches 0.77 on an A100 and 0.82 on an H100 (nccl-tests). A fit
    tells it badly from what else tensor parallelism costs, so that it may leave its start only by a little."""
    nvlink_alpha_s: Floats
    """Per collective, more than NCCL alone takes: launching it, and waiting for the slowest rank."""
    network_reach: Floats
    """Share of the network's rate in training."""
    network_alpha_s: Floats
    """The same per collective and doubling of nodes."""
    boundary_reach: Floats
    """Share of the network's rate for sends between stages."""
    boundary_alpha_s: Floats
    """Per send."""
    tensor_exposed: Floats
    """Of tensor parallelism's collectives, the share not hidden."""
    context_exposed: Floats
    """Of context parallelism's, the same."""
    gradient_wire_bytes: Floats
    """Bytes on the wire per gradient."""
    data_overlap: Floats
    """Of gradient exchange below ZeRO-3, the share hidden."""
    pace: Floats
    """Everything but data exchange and optimizer, over what the terms say."""
    straggle: Floats
    """Standard deviation of a GPU's time per step, over its mean."""
    odd_head_64: Floats
    """when it is no multiple of 64."""
    slow_network: Floats
    """Factor on `network_reach` up to 400 Gbit/s per node."""
    launch_jitter: Floats
    """Factor added to it at eight tensor ranks: each collective waits for the slowest host thread."""


HOPPER_ON = ("H100", "H100-500W", "B200", "B300")
FLASH_2 = ("composer", "torchtitan", "fsdp", "nanotron", "internevo", "colossal", "deepspeed", "deepspeed-rackray", "other")
"""Families that call FlashAttention-2, written for A100: on Hopper it reaches half of what kernels made for it do (Shah et al.
2024, FlashAttention-3: 35 % of the peak instead of 75 %). NVIDIA's and JAX's frameworks call cuDNN's."""

STARTS: Table = {
    "gemm": {"": 0.8, "A100": 1.09, "H100": 1, "H100-500W": 0.875, "B200": 0.97, "B300": 0.97, "V100": 1, "MI300X": 0.637},
    "gemm_low": {"": 0.7, "H100": 1, "B200": 1.09, "B300": 1.14, "MI300X": 0.643},
    "gemm_4bit": {"": 0.5},
    "cast_passes": {"": 2.0},
    "imbalance_share": {"": 0.7},
    "boundary_exposed": {"": 0.5},
    "shard_overlap": {"": 0.8},
    "wave_power": {"": 0.5},
    "inner_half": {"": 150.0},
    "column_half": {"": 50.0},
    "row_half": {"": 150.0},
    "odd_cost": {"": 0.05},
    "backward_matmul": {"": 1.0},
    "selective_share": {"": 0.2},
    "flash_reach": {
        **{"": 0.45, "A100": 1, "H100": 0.933, "B200": 1, "B300": 1.11},
        **{f"{family}|{software}": 0.5 for family in HOPPER_ON for software in FLASH_2},
    },
    "head_half": {"": 32.0},
    "scores_reach": {"": 0.4},
    "score_passes": {"": 6.0},
    "odd_head": {"": 5.0},
    "whole_passes": {"": 12.0},
    "split_passes": {"": 3.0},
    "backward_passes": {"": 1.5},
    "loss_passes": {"": 8.0},
    "launch_s": {"": 2e-3},
    "end_fixed_s": {"": 5e-4},
    "step_fixed_s": {"": 1e-2},
    "optimizer_bytes": {"": 36.0},
    "nvlink_reach": {"": 0.72},
    "nvlink_alpha_s": {"": 1.5e-5},
    "network_reach": {"": 0.7},
    "network_alpha_s": {"": 2e-5},
    "boundary_reach": {"": 0.7},
    "boundary_alpha_s": {"": 5e-5},
    "tensor_exposed": {"": 1.0},
    "context_exposed": {"": 0.3},
    "gradient_wire_bytes": {"": 3.0},
    "data_overlap": {"": 0.5, "megatron-deepspeed": 0.3},
    "pace": {"": 1.0},
    "straggle": {"": 0.005},
    "odd_head_64": {"": 0.1},
    "slow_network": {"": 0.8},
    "launch_jitter": {"": 0.1},
}

MEMORY_STARTS: Table = {
    "activation_share": {"": 1.0},
    "selective_kept": {"": 0.5},
    "work_share": {"": 1.0},
    "logits_bytes": {"": 8.0},
    "reserve": {"": 1.4},
    "state_reserve": {"": 1.03},
    "context_bytes": {"": 1.5e9},
    "gathered_layers": {"": 2.0},
    "extra_state_bytes": {"": 0.05},
}
"""Where the constants of `memory.py` start; they are explained there."""

FABRICS = ("node", "network")
"""Whether all GPUs of a run share a node, or a network lies between some."""


def keys_of(family: str, software: str, fabric: str) -> tuple[str, ...]:
    """The keys whose numbers a case multiplies, the most general first."""
    return ("", family, *filter(None, [KIN[software]]), software, f"{software}@{fabric}", f"{family}|{software}")


@dataclass(frozen=True, slots=True)
class Kinds:
    """The distinct (GPU family, framework family, fabric) of many cases."""

    triples: tuple[tuple[str, str, str], ...]
    index: NDArray[np.intp]
    """Per case, which of them it is."""

    def has(self, key: str) -> NDArray[np.bool_]:
        """Per case, whether it multiplies the number of `key`."""
        return np.array([key in keys_of(*triple) for triple in self.triples], dtype=np.bool_)[self.index]


def kinds_of(cases: Cases) -> Kinds:
    """The kinds of the given cases."""
    size = len(cases)
    crosses = np.broadcast_to(cases.dp * cases.tp * cases.pp * cases.cp > cases.per_node, (size,)).astype(np.intp)
    if len(cases.families) == len(cases.softwares) == 1:
        return Kinds(tuple((cases.families[0], cases.softwares[0], fabric) for fabric in FABRICS), crosses)
    families, softwares = (np.broadcast_to(np.array(keys), (size,)).tolist() for keys in (cases.families, cases.softwares))
    triples = list(zip(families, softwares, (FABRICS[c] for c in crosses.tolist()), strict=True))
    distinct = sorted(set(triples))
    position = {triple: i for i, triple in enumerate(distinct)}
    return Kinds(tuple(distinct), np.array([position[triple] for triple in triples], dtype=np.intp))


def resolve(table: Table, cases: Cases, kinds: Kinds | None = None) -> Constants:
    """The constants of step time for every case."""
    return Constants(**look_up(table, kinds or kinds_of(cases), [field.name for field in fields(Constants)]))


def look_up(table: Table, kinds: Kinds, names: Sequence[str]) -> dict[str, Floats]:
    """Each named constant for every case: the general value times the factors that the table holds for its kind."""
    values: dict[str, Floats] = {}
    for name in names:
        row = table[name]
        each = np.array([math.prod(row.get(key, 1.0) for key in keys_of(*triple)) for triple in kinds.triples])
        each = np.minimum(each, 1.0) if name in SHARES else each
        values[name] = each[kinds.index] if len(set(each.tolist())) > 1 else each[:1]
    return values
