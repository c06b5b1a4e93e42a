"""Time of collectives: alpha-beta over NVLink and over the network.

Volumes per rank (Thakur et al. 2005; NCCL): an all-reduce moves 2(n-1)/n of its bytes, a reduce-scatter or all-gather
(n-1)/n. A group
that leaves the NVLink domain goes at the network's share of one GPU, times the ranks of the group that share a node: a
hierarchical ring enters and leaves each node once. Inside training a collective reaches less than alone; `*_reach` are fitted so.
"""

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import Constants

SLOW_BYTES_S = 51e9
"""A node's network up to 400 Gbit/s (Omni-Path, older Ethernet) reaches less of its rate than InfiniBand at 800 Gbit/s and
more."""


def ring_s(cases: Cases, k: Constants, size: Floats, ranks: Floats, stride: Floats, rounds: float) -> Floats:
    """Seconds of `rounds` (2: all-reduce; 1: reduce-scatter or all-gather) over `size` bytes in groups of `ranks`.

    `stride` is how far apart neighbours of the group are in the order of ranks: 1 for tensor groups, tp for data groups.
    """
    inside = np.clip(np.floor(cases.domain / stride), 1.0, ranks)
    leaves = ranks > inside
    near = size / (cases.nvlink * k.nvlink_reach)
    reach = k.network_reach * np.where(cases.network * cases.per_node <= SLOW_BYTES_S, k.slow_network, 1.0)
    far = size / (cases.network * inside * reach)
    wire = rounds * (ranks - 1.0) / ranks * np.where(leaves, np.maximum(near, far), near)
    steps = np.where(
        leaves, k.network_alpha_s * np.log2(np.maximum(ranks / inside, 1.0) + 1.0) + k.nvlink_alpha_s, k.nvlink_alpha_s
    )
    return np.where(ranks > 1, wire + rounds * steps, 0.0)


def tensor_s(cases: Cases, k: Constants) -> Floats:
    """Tensor parallelism's collectives of one layer and micro-batch, forward, backward and recomputed, seconds exposed."""
    size = cases.micro * cases.seq / cases.cp * cases.hidden * 2.0
    one = ring_s(cases, k, size, cases.tp, np.ones(()), 2.0)
    return one * np.where(cases.recompute >= 2, 6.0, 4.0) * k.tensor_exposed


def context_s(cases: Cases, k: Constants) -> Floats:
    """Context parallelism's exchange of keys and values of one layer and micro-batch, seconds exposed."""
    size = cases.micro * cases.seq * 2.0 * cases.hidden * cases.kv_heads / cases.heads / cases.tp * 2.0
    one = ring_s(cases, k, size, cases.cp, cases.tp, 1.0)
    return 3.0 * one * k.context_exposed


def boundary_s(cases: Cases, k: Constants) -> Floats:
    """One hidden state from stage to stage, seconds."""
    size = cases.micro * cases.seq / cases.cp * cases.hidden * 2.0
    size = size / np.where(cases.sequence_parallel > 0, cases.tp, 1.0)
    inside = cases.dp * cases.tp * cases.cp * cases.pp <= cases.domain
    rate = np.where(inside, cases.nvlink * k.nvlink_reach, cases.network * k.boundary_reach)
    return np.where(cases.pp > 1, size / rate + np.where(inside, k.nvlink_alpha_s, k.boundary_alpha_s), 0.0)


def data_s(cases: Cases, k: Constants, parameters: Floats, micro_batches: Floats) -> Floats:
    """Gradient and parameter exchange of a step among data (and context) replicas, seconds before overlap.

    ZeRO 0: one all-reduce. 1: reduce-scatter and all-gather. 2: the reduce-scatter of every micro-batch. 3: parameters are
    gathered
    twice and gradients scattered once per micro-batch (Rajbhandari et al. 2020); with a
    pipeline the gathered parameters stay for the step, as torchtitan does it.
    """
    ranks = cases.dp * cases.cp
    gradient = ring_s(cases, k, parameters * k.gradient_wire_bytes, ranks, cases.tp, 1.0)
    weights = ring_s(cases, k, parameters * 2.0, ranks, cases.tp, 1.0)
    each = np.where(cases.pp > 1, 1.0, micro_batches)
    times = np.where(cases.zero >= 2, each, 1.0)
    gathers = np.where(cases.zero >= 3, np.where(cases.pp > 1, 1.0, 2.0 * each), 1.0)
    return np.where(cases.zero == 0, gradient * 2.0, gradient * times + weights * gathers)
