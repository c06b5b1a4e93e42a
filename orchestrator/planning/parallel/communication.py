"""Time of collectives, level by level: NVLink domain, rail under one leaf, spine.

Volumes per rank (Thakur et al. 2005; NCCL): an all-reduce moves 2(n-1)/n of its bytes, a reduce-scatter or all-gather (n-1)/n. A
group that leaves the NVLink domain goes at the network's share of one GPU, times the ranks of the group that share a node: a
hierarchical ring enters and leaves each node once, on as many rails. Above the leaf it has what the spine leaves of that rate.
Latency is NCCL's own (`nccl.py`); what training adds to it (launching, waiting for the slowest) and takes from the rates is
fitted.
"""

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import Constants
from orchestrator.planning.parallel.nccl import SPINE_S, fastest_s

SLOW_BYTES_S = 51e9
"""A node's network up to 400 Gbit/s (Omni-Path, older Ethernet) reaches less of its rate than InfiniBand at 800 Gbit/s and
more."""
BUCKET_PARAMETERS = 40e6
"""Gradients are sent in pieces of at least so many (Megatron's and PyTorch's buckets are 25 to 100 MB)."""
BUCKET_PARAMETERS_PER_RANK = 1e6
"""And of at least so many for each rank, so that its share stays long beside the latency (Megatron-Core's
`DistributedDataParallelConfig.bucket_size`)."""


def collective_s(
    cases: Cases, k: Constants, size: Floats, ranks: Floats, stride: Floats, rounds: float, pieces: Floats | float = 1.0
) -> Floats:
    """Seconds of `rounds` (2: all-reduce; 1: reduce-scatter or all-gather) over `size` bytes in groups of `ranks`.

    `stride` is how far apart neighbours of the group are in the order of ranks: 1 for tensor groups, tp for data groups. The
    bytes go in `pieces` collectives one after the other.
    """
    inside = np.clip(np.floor(cases.domain / stride), 1.0, ranks)
    nodes = np.ceil(ranks / inside)
    leaves = ranks > inside
    spans_leaves = ranks * stride > cases.leaf_gpus
    near = size / (cases.nvlink * k.nvlink_reach)
    share = np.where(spans_leaves, cases.spine_share, 1.0)
    far = size / (network_bytes_s(cases, k) * inside * share)
    wire = rounds * (ranks - 1.0) / ranks * np.where(leaves, np.maximum(near, far), near)
    seconds = pieces * fastest_s(wire / pieces, rounds, ranks, nodes, spans_leaves.astype(np.float64))
    late = np.where(
        leaves, k.network_alpha_s * np.log2(np.maximum(ranks / inside, 1.0) + 1.0) + k.nvlink_alpha_s, k.nvlink_alpha_s
    )
    return np.where(ranks > 1, seconds + rounds * late, 0.0)


def network_bytes_s(cases: Cases, k: Constants) -> Floats:
    """What collectives reach of one GPU's share of its node's network."""
    return cases.network * k.network_reach * _slow_share(cases, k)


def _slow_share(cases: Cases, k: Constants) -> Floats:
    return np.where(cases.network * cases.per_node <= SLOW_BYTES_S, k.slow_network, 1.0)


def tensor_s(cases: Cases, k: Constants) -> Floats:
    """Tensor parallelism's collectives of one layer and micro-batch, forward, backward and recomputed, seconds exposed."""
    size = cases.micro * cases.seq / cases.cp * cases.hidden * 2.0
    one = collective_s(cases, k, size, cases.tp, np.ones(()), 2.0)
    return one * np.where(cases.recompute >= 2, 6.0, 4.0) * k.tensor_exposed


def context_s(cases: Cases, k: Constants) -> Floats:
    """Context parallelism's exchanges of one layer and micro-batch, seconds exposed.

    Ring attention: keys and values go round once forward and twice backward, partly behind computing. By heads (Jacobs et al.
    2023): four all-to-alls of a rank's query, key, value and output, once forward, once backward, once more where all is
    recomputed; attention waits for them.
    """
    tokens, kv = cases.micro * cases.seq, cases.kv_heads / cases.heads
    ring = collective_s(cases, k, tokens * 2.0 * cases.hidden * kv / cases.tp * 2.0, cases.cp, cases.tp, 1.0)
    if not np.any(cases.by_heads):
        return 3.0 * ring * k.context_exposed
    own = tokens / cases.cp * (2.0 + 2.0 * kv) * cases.hidden / cases.tp * 2.0
    heads = collective_s(cases, k, own, cases.cp, cases.tp, 1.0, 4.0) * np.where(cases.recompute >= 2, 3.0, 2.0)
    return np.where(cases.by_heads > 0, heads, 3.0 * ring * k.context_exposed)


def boundary_s(cases: Cases, k: Constants) -> Floats:
    """One hidden state from stage to stage, seconds: over NVLink, under one leaf, or over the spine."""
    # Each tensor rank sends its part (Narayanan et al. 2021, section 4.1; DeepSpeed's pipeline engine does the same).
    size = cases.micro * cases.seq / cases.cp * cases.hidden * 2.0 / cases.tp
    apart = cases.dp * cases.tp * cases.cp
    inside = apart * cases.pp <= cases.domain
    over_spine = np.minimum(apart / cases.leaf_gpus, 1.0)
    share = 1.0 - over_spine + over_spine * cases.spine_share
    far = size / (cases.network * k.boundary_reach * _slow_share(cases, k) * share)
    rate_s = np.where(inside, size / (cases.nvlink * k.nvlink_reach), far)
    late = np.where(inside, k.nvlink_alpha_s, k.boundary_alpha_s + SPINE_S * over_spine)
    return np.where(cases.pp > 1, rate_s + late, 0.0)


def data_s(cases: Cases, k: Constants, parameters: Floats, micro_batches: Floats) -> Floats:
    """Gradient and parameter exchange of a step among data (and context) replicas, seconds before overlap.

    ZeRO 0: one all-reduce. 1: reduce-scatter and all-gather. 2: the reduce-scatter of every micro-batch. 3: parameters are
    gathered twice and gradients scattered once per micro-batch (Rajbhandari et al. 2020), layer by layer; with a pipeline the
    gathered parameters stay for the step, as torchtitan does it. Where a shard group is smaller than all replicas, the groups
    sum their shares of the gradients once more (MiCS: Zhang et al. 2022).
    """
    every, ranks = cases.dp * cases.cp, cases.shard_ranks
    buckets = np.maximum(parameters / np.maximum(BUCKET_PARAMETERS, BUCKET_PARAMETERS_PER_RANK * ranks), 1.0)
    pieces = np.where(cases.zero >= 3, np.maximum(cases.layers / cases.pp, 1.0), buckets)
    gradient = collective_s(cases, k, parameters * k.gradient_wire_bytes, ranks, cases.tp, 1.0, pieces)
    weights = collective_s(cases, k, parameters * 2.0, ranks, cases.tp, 1.0, pieces)
    whole = collective_s(cases, k, parameters * k.gradient_wire_bytes, every, cases.tp, 2.0, buckets)
    share = parameters * k.gradient_wire_bytes / ranks
    groups = collective_s(cases, k, share, every / ranks, cases.tp * ranks, 2.0, np.maximum(buckets / ranks, 1.0))
    each = np.where(cases.pp > 1, 1.0, micro_batches)
    times = np.where(cases.zero >= 2, each, 1.0)
    gathers = np.where(cases.zero >= 3, np.where(cases.pp > 1, 1.0, 2.0 * each), 1.0)
    return np.where(cases.zero == 0, whole, gradient * times + groups + weights * gathers)
