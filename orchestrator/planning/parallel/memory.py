"""Memory of the fullest rank: training state, activations in flight, buffers, the allocator's reserve and the CUDA context.

State: bytes per parameter are the framework's, sharded by ZeRO (Rajbhandari et al. 2020). Activations: Korthikanti et al.
2022, generalised to gated feed-forwards and grouped keys; what is kept per layer is counted in bytes per token. First and last
stage are both evaluated and the fuller one counts. `allocated` is what tensors hold, `reserved` what the allocator has taken,
`device` all that is used.
"""

from dataclasses import dataclass, fields

import numpy as np

from orchestrator.planning.parallel.cases import RECOMPUTE, SCHEDULES, Cases, Floats
from orchestrator.planning.parallel.constants import Table, kinds_of, look_up
from orchestrator.planning.parallel.sizes import block_parameters, stages_of

IN_FLIGHT = (1.0, 1.0, 2.0, 1.0, 0.5, 1.0 / 3.0)
"""By code of SCHEDULES: micro-batches kept by the first stage over those of 1F1B (Qi et al. 2024; 2024b)."""

MOST_TOKENS = 16_384
"""A micro-batch that a source leaves out is not taken to be longer: products of so many rows are as fast as they get."""
ROOM = 0.90
"""Of a GPU's memory, the share that the upper end of a prediction may take when a layout is said to fit. The rest is for what
steady training does not show: spikes when the optimizer is built, fragmentation. Chosen so that no published out-of-memory row
is said to fit."""


@dataclass(frozen=True, slots=True)
class MemoryConstants:
    """Fitted numbers of memory for each case."""

    activation_share: Floats
    """Activations kept, over the count of this file: what a framework fuses away or keeps twice."""
    selective_kept: Floats
    """Of activations without recomputation, the share that selective checkpointing keeps."""
    work_share: Floats
    """Working set of a recomputed layer, over the count of this file."""
    logits_bytes: Floats
    """Per token and vocabulary entry on the last stage."""
    reserve: Floats
    """Reserved over allocated of activations and buffers, on a GPU with room, and"""
    state_reserve: Floats
    """of training state."""
    context_bytes: Floats
    """CUDA context, libraries and NCCL's buffers."""
    gathered_layers: Floats
    """ZeRO-3: layers whose parameters are whole at a time."""
    extra_state_bytes: Floats
    """Per parameter, never sharded: buckets and fp32 copies that a framework keeps beside ZeRO."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest rank, one element per case."""

    state_bytes: Floats
    activation_bytes: Floats
    buffer_bytes: Floats
    """Gathered parameters, working set of recomputation, logits."""
    allocated_bytes: Floats
    reserved_bytes: Floats
    device_bytes: Floats


def memory_of(cases: Cases, table: Table) -> Memory:
    """Predict the memory of every case."""
    return memory_from(
        cases, MemoryConstants(**look_up(table, kinds_of(cases), [field.name for field in fields(MemoryConstants)]))
    )


def memory_from(cases: Cases, m: MemoryConstants) -> Memory:
    """The same from the constants of each case."""
    stages = stages_of(cases)
    middle = np.where(cases.pp > 2, stages.middle_layers, 0.0)
    vocabulary = cases.vocab * cases.hidden / cases.tp
    candidates = (
        _stage(cases, m, stages.first_parameters, stages.first_layers, _in_flight(cases, behind=0), cases.pp == 1, vocabulary),
        _stage(cases, m, stages.middle_parameters, middle, _in_flight(cases, behind=1), False, np.zeros(())),
        _stage(cases, m, stages.last_parameters, stages.last_layers, _in_flight(cases, behind=-1), True, vocabulary),
    )
    state, activations, buffers = candidates[0]
    for other in candidates[1:]:
        fuller = sum(other) > state + activations + buffers
        state, activations, buffers = (np.where(fuller, b, a) for a, b in zip((state, activations, buffers), other, strict=True))
    allocated = state + activations + buffers
    reserved = allocated + _fragments(cases, m, state, activations + buffers)
    return Memory(state, activations, buffers, allocated, reserved, reserved + m.context_bytes)


def _fragments(cases: Cases, m: MemoryConstants, state: Floats, moving: Floats) -> Floats:
    """What the caching allocator holds beyond what tensors hold, bytes: little beside state, which stays where it is; much beside
    what comes and goes, unless the GPU is nearly full, when it frees what it keeps before it gives up."""
    still = state * (m.state_reserve - 1.0)
    loose = moving * (m.reserve - 1.0)
    room = np.maximum(cases.memory - m.context_bytes - state - moving - still, 1.0)
    return still + loose * room / (loose + room)


def as_memory_allows(cases: Cases, table: Table) -> Cases:
    """The same cases with what a source leaves to memory decided: code -1 of recomputation becomes the least that fits, a
    micro-batch of 0 the largest power of two that fits, divides the replica's batch and has at most MOST_TOKENS."""
    cases = _with_recompute(cases, table)
    open_ones = cases.micro <= 0
    if not np.any(open_ones):
        return cases
    each = np.maximum(np.floor(cases.global_batch / cases.dp), 1.0)
    micro = np.where(open_ones, 1.0, cases.micro)
    for size in 2.0 ** np.arange(1, 8):
        tried = cases.with_columns(micro=np.where(open_ones, size, cases.micro))
        allowed = (each % size == 0) & (size * cases.seq / cases.cp <= MOST_TOKENS)
        micro = np.where(open_ones & allowed & (memory_of(tried, table).device_bytes <= cases.memory), size, micro)
    return cases.with_columns(micro=micro)


def _with_recompute(cases: Cases, table: Table) -> Cases:
    open_ones = cases.recompute < 0
    if not np.any(open_ones):
        return cases
    chosen = np.full(len(cases), float(RECOMPUTE["full"]))
    for code in (RECOMPUTE["selective"], RECOMPUTE["none"]):
        tried = cases.with_columns(recompute=np.full(len(cases), float(code)), micro=np.maximum(cases.micro, 1.0))
        chosen = np.where(memory_of(tried, table).device_bytes <= cases.memory, float(code), chosen)
    return cases.with_columns(recompute=np.where(open_ones, chosen, cases.recompute))


def state_bytes(cases: Cases, m: MemoryConstants, parameters: Floats) -> Floats:
    """Parameters, gradients and optimizer of `parameters` on one rank."""
    ranks = cases.shard_ranks
    weights = cases.state_p / np.where(cases.zero >= 3, ranks, 1.0)
    gradients = cases.state_g / np.where(cases.zero >= 2, ranks, 1.0)
    optimizer = np.where(cases.offload > 0, 0.0, cases.state_o / np.where(cases.zero >= 1, ranks, 1.0))
    return parameters * (weights + gradients + optimizer + m.extra_state_bytes * (cases.zero < 3))


def layer_activation_bytes(cases: Cases, scores_kept: Floats | float = 1.0) -> Floats:
    """What one layer keeps of one micro-batch without recomputation, bytes on one rank; `scores_kept`: 0 drops the scores.

    Per token: inputs and outputs of both norms (8h), query, key, value and attention output, the feed-forward's inner values
    before and after the activation; without flash attention also dropout masks and the scores, 5 bytes each (softmax in and
    out, mask).
    """
    tokens = cases.micro * cases.seq / cases.cp
    eager = cases.flash <= 0
    whole = cases.hidden * (8.0 + 2.0 * eager)
    split = cases.hidden * (4.0 + 4.0 * cases.kv_heads / cases.heads) + cases.ffn * (2.0 * (2.0 + cases.gated))
    scores = scores_kept * np.where(eager, 5.0 * cases.heads * cases.seq, 0.0)
    spread = np.where(cases.sequence_parallel > 0, cases.tp, 1.0)
    return tokens * (whole / spread + (split + scores) / cases.tp)


def _stage(
    cases: Cases,
    m: MemoryConstants,
    parameters: Floats,
    layers: Floats,
    flying: Floats,
    at_end: Floats | bool,
    vocabulary: Floats,
) -> tuple[Floats, Floats, Floats]:
    """State, activations and buffers of one stage, bytes. `at_end`: it computes the loss; `vocabulary`: parameters of its
    embedding, 0 without one."""
    tokens = cases.micro * cases.seq / cases.cp
    each = layer_activation_bytes(cases)
    spread = np.where(cases.sequence_parallel > 0, cases.tp, 1.0)
    boundary = 2.0 * tokens * cases.hidden / spread
    full, selective = cases.recompute >= 2, cases.recompute == 1
    core = layer_activation_bytes(cases, scores_kept=0.0)
    inner = 2.0 * tokens * cases.ffn / cases.tp
    some = np.choose(cases.selects.astype(np.intp), (each * m.selective_kept, core, each - inner))
    kept = np.where(full, boundary, m.activation_share * np.where(selective, some, each))
    # Sequence parallelism gathers a block's input whole, and its gradient beside it.
    whole = np.where((cases.sequence_parallel > 0) & (cases.tp > 1), 4.0 * tokens * cases.hidden, 0.0)
    work = np.where(full, core * m.work_share, 0.0) + whole
    # With a pipeline, sharded parameters are gathered once a step and gradients stay whole until its end (2 + 4 bytes).
    gathered = np.where(
        cases.zero >= 3,
        np.where(cases.pp > 1, 6.0 * parameters, 2.0 * m.gathered_layers * block_parameters(cases) / cases.tp),
        0.0,
    )
    ends = np.where(at_end, m.logits_bytes * tokens * cases.vocab / cases.tp, 0.0)
    # Where 16-bit gradients are summed in fp32 beside, each is cast whole first (DeepSpeed's BF16_Optimizer), the largest too.
    cast = np.where(cases.state_g >= 6.0, 4.0 * np.maximum(vocabulary, cases.hidden * cases.ffn / cases.tp), 0.0)
    flown = kept * layers * flying
    buffers = np.maximum(work + gathered + ends + cast, _step_bytes(cases, parameters) - flown)
    return state_bytes(cases, m, parameters), flown, buffers


def _step_bytes(cases: Cases, parameters: Floats) -> Floats:
    """fp32 copies of 16-bit gradients while the optimizer steps, when activations are gone: DeepSpeed's ZeRO 1 and 2 and its
    FP16_Optimizer cast the rank's own share whole."""
    ranks = np.where(cases.zero >= 1, cases.shard_ranks, 1.0)
    casts = (cases.low >= 0) & (cases.state_g < 4.0) & (cases.offload <= 0) & (cases.zero < 3)
    return np.where(casts, 4.0 * parameters / ranks, 0.0)


def _in_flight(cases: Cases, behind: int) -> Floats:
    """Micro-batches whose activations a stage keeps at once: the first stage (0 behind), one further on, or the last (-1)."""
    micro_batches = np.maximum(np.ceil(cases.global_batch / (cases.dp * cases.micro)), 1.0)
    factor = np.asarray(IN_FLIGHT)[cases.schedule.astype(np.intp)]
    if behind < 0:
        return np.minimum(np.where(cases.schedule >= 3, factor * cases.pp, factor), micro_batches)
    chunks = np.where(cases.vpp > 1, 1.0 + (cases.pp - 1.0) / (cases.pp * cases.vpp), 1.0)
    depth = np.where(cases.schedule >= 2, factor * cases.pp, factor * np.maximum(cases.pp - behind, 1.0)) * chunks
    depth = depth + (cases.schedule == SCHEDULES["zb-1p"])  # its weight gradients wait: one micro-batch's inputs more
    return np.where(cases.pp > 1, np.minimum(depth, micro_batches), 1.0)
