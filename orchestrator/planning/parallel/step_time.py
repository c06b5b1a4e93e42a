"""The step time of many layouts at once, term by term; the terms add up to the total.

Pipeline: with stages of time t_i per micro-batch, a 1F1B step of m micro-batches takes m * max(t) + (sum(t) - max(t)) / v, v
the virtual
stages per rank (Narayanan et al. 2021); zero-bubble schedules keep a share of the second part (Qi et al. 2024).
"""

from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.communication import boundary_s, context_s, data_s, tensor_s
from orchestrator.planning.parallel.compute import embedding_s, layer_time, loss_s, optimizer_s
from orchestrator.planning.parallel.constants import Constants
from orchestrator.planning.parallel.sizes import Stages, stages_of

BUBBLE_KEPT = (1.0, 0.5, 0.05, 0.1, 0.3, 0.6)
"""By code of SCHEDULES: the share of the 1F1B bubble that stays (Qi et al. 2024, table 5; Qi et al. 2024b)."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step by cause, one element per case; `total_s` is their sum."""

    matmul_s: Floats
    attention_s: Floats
    memory_bound_s: Floats
    recompute_s: Floats
    launch_s: Floats
    """Waiting for the host to launch kernels."""
    ends_s: Floats
    """Embedding, logits and loss."""
    tensor_s: Floats
    context_s: Floats
    boundary_s: Floats
    """Sends between pipeline stages."""
    bubble_s: Floats
    """Waiting for other pipeline stages, their imbalance included."""
    data_s: Floats
    """Gradient and parameter exchange that is not hidden behind computing."""
    straggler_s: Floats
    """Waiting for the slowest of all GPUs: of N equal ones whose times scatter by s, it is s sqrt(2 ln N) behind the mean."""
    optimizer_s: Floats

    @property
    def total_s(self) -> Floats:
        return sum((getattr(self, name) for name in TERMS), np.zeros(()))


TERMS = (
    *("matmul_s", "attention_s", "memory_bound_s", "recompute_s", "launch_s", "ends_s"),
    *("tensor_s", "context_s", "boundary_s", "bubble_s", "data_s", "straggler_s", "optimizer_s"),
)


def step_time(cases: Cases, k: Constants) -> StepTime:
    """Predict the step time of every case."""
    layer, tensor, context = layer_time(cases, k), tensor_s(cases, k), context_s(cases, k)
    busy = layer.busy_s + tensor + context
    held = _soft_max(busy, layer.floor_s)
    stages = stages_of(cases)
    micro_batches = np.maximum(np.ceil(cases.global_batch / (cases.dp * cases.micro)), 1.0)
    ends, sends = (embedding_s(cases, k), loss_s(cases, k)), boundary_s(cases, k) * k.boundary_exposed
    slowest, total = _stage_times(cases, stages, held, ends, sends)
    slowest = total / cases.pp + k.imbalance_share * (slowest - total / cases.pp)
    bubble = _bubble(cases, slowest, total)
    steady = micro_batches
    layers = stages.mean_layers * steady
    mean_ends = steady * (ends[0] + ends[1]) / cases.pp
    send = steady * _sends_per_micro_batch(cases) * sends
    data = _exposed_data(cases, k, data_s(cases, k, stages.parameters, micro_batches), busy * layers)
    imbalance = steady * slowest - layers * held - mean_ends - send
    scale = k.pace
    gpus = cases.dp * cases.tp * cases.pp * cases.cp
    late = k.straggle * np.sqrt(2.0 * np.log(gpus)) * steady * slowest
    return StepTime(
        matmul_s=layer.matmul_s * layers * scale,
        attention_s=layer.attention_s * layers * scale,
        memory_bound_s=layer.memory_bound_s * layers * scale,
        recompute_s=layer.recompute_s * layers * scale,
        launch_s=(held - busy) * layers * scale,
        ends_s=mean_ends * scale,
        tensor_s=tensor * layers * scale,
        context_s=context * layers * scale,
        boundary_s=send * scale,
        bubble_s=(bubble + imbalance) * scale,
        data_s=data,
        straggler_s=late * scale,
        optimizer_s=optimizer_s(cases, k, stages.parameters),
    )


def held_layer_s(cases: Cases, k: Constants) -> tuple[Floats, Floats, Floats]:
    """Seconds per micro-batch of one layer, of the embedding and of the loss, as the terms of `step_time` have them before
    `pace`."""
    layer = layer_time(cases, k)
    held = _soft_max(layer.busy_s + tensor_s(cases, k) + context_s(cases, k), layer.floor_s)
    return held, embedding_s(cases, k), loss_s(cases, k)


def _soft_max(a: Floats, b: Floats) -> Floats:
    """The larger of two, rounded where they are close: part of a layer is bound by one and part by the other."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    fourth = (low / high) ** 2
    fourth *= fourth
    return high * np.sqrt(np.sqrt(np.sqrt(1.0 + fourth * fourth)))


def _sends_per_micro_batch(cases: Cases) -> Floats:
    """Sends and receives that stand on one rank's path per micro-batch: one forward, one backward, for every virtual stage."""
    return np.where(cases.pp > 1, 2.0 * cases.vpp, 0.0)


def _stage_times(cases: Cases, stages: Stages, held: Floats, ends: tuple[Floats, Floats], sends: Floats) -> tuple[Floats, Floats]:
    """Seconds per micro-batch of the slowest stage, and of all stages together."""
    path = _sends_per_micro_batch(cases) * sends
    first, last = stages.first_layers * held + ends[0] + path, stages.last_layers * held + ends[1] + path
    alone = stages.mean_layers * held + ends[0] + ends[1]
    slowest = np.where(
        cases.pp > 1, np.maximum(np.maximum(first, last), np.where(cases.pp > 2, stages.middle_layers * held + path, 0.0)), alone
    )
    total = np.where(cases.pp > 1, cases.layers * held + ends[0] + ends[1] + cases.pp * path, alone)
    return slowest, total


def _bubble(cases: Cases, slowest: Floats, total: Floats) -> Floats:
    kept = np.asarray(BUBBLE_KEPT)[cases.schedule.astype(np.intp)]
    return kept * np.maximum(total - slowest, 0.0) / cases.vpp


def _exposed_data(cases: Cases, k: Constants, data: Floats, busy: Floats) -> Floats:
    """What overlap does not hide: the share that cannot be overlapped, or what is longer than the computing beside it."""
    sharded = cases.zero >= 3
    hidden = np.minimum(data * np.where(sharded, k.shard_overlap, k.data_overlap), busy * np.where(sharded, 0.9, 0.5))
    return data - hidden
