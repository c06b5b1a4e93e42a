"""The planner: `plan(shape, cluster, job)` ranks every layout, `predict` says what one will do.

Pure functions over the tables of `fitted.py`: no I/O, no clock, no randomness; the same question has the same answer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.errors import BadInput
from orchestrator.domain.layout import Fits, Layout, Prediction, Recompute
from orchestrator.planning.parallel.advice import check_layout, check_precision, nothing_fits, smallest_change
from orchestrator.planning.parallel.cases import RECOMPUTE, Cases, Floats
from orchestrator.planning.parallel.cluster import GpuCluster, PlanJob, check_cluster, check_job
from orchestrator.planning.parallel.constants import Constants
from orchestrator.planning.parallel.evaluate import Evaluated, evaluate
from orchestrator.planning.parallel.power import node_power_w
from orchestrator.planning.parallel.search import Limits, as_tuple, layout_of, peak_word
from orchestrator.planning.parallel.simulate import Chunk, pipeline_s, steady_s
from orchestrator.planning.parallel.sizes import stages_of
from orchestrator.planning.parallel.software import schedule_of
from orchestrator.planning.parallel.step_time import TERMS, held_layer_s
from orchestrator.planning.parallel.validation import FITTED, Tables

MOST_REPLAYED = 16
"""Candidates whose pipelines are played event by event at most: those that are shown, and more while the next one is faster by
the closed form than the best is when played. Playing finds waits that the closed form does not, and hardly ever savings."""


Objective = Literal["time", "energy"]
"""What plans are ranked by: `run_s` or `run_kwh` of the whole run."""
LEAST_KEPT = 1e-3
"""A fleet that keeps less of its time than this trains nothing: no table of layouts would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The ranked layouts of one question."""

    job: PlanJob
    cluster: GpuCluster
    ranked: tuple[Prediction, ...]
    """Best first, by the objective: layouts whose memory fits for certain, or, without any, those that are tight."""
    considered: int
    fitting: int
    tight: int
    alternatives: tuple[tuple[str, Prediction], ...]
    """What differs from the best in one respect → the best layout that does, or the leanest where none of them fits."""
    limits: Limits
    objective: Objective

    @property
    def best(self) -> Prediction:
        return self.ranked[0]


def predict(job: PlanJob, cluster: GpuCluster, layout: Layout, tables: Tables = FITTED) -> Prediction:
    """What `layout` will need and do, its pipeline played event by event. Raises BadInput where it does not divide the cluster,
    the batch, the layers or the heads, and where failures leave no time."""
    check_job(job)
    check_cluster(cluster)
    check_precision(job, cluster)
    check_layout(job, cluster, layout)
    found = evaluate(job, cluster, Limits(fixed=layout), tables)
    _check_kept(found, cluster)
    return _replayed(found, 0, job, cluster, tables)


def plan(
    job: PlanJob,
    cluster: GpuCluster,
    limits: Limits | None = None,
    keep: int = 5,
    tables: Tables = FITTED,
    objective: Objective = "time",
) -> Plan:
    """Every layout the job's framework could run on the cluster, the best `keep` of them ranked by the time of the whole run
    (step time over the share of time that checkpoints and failures leave), or by its energy.

    Raises BadInput where no layout divides, none fits into memory, or failures leave no time: one sentence, and the smallest
    change that would make it possible.
    """
    check_job(job)
    check_cluster(cluster)
    check_precision(job, cluster)
    limits = limits or Limits()
    found = evaluate(job, cluster, limits, tables)
    candidates = found.fits_yes if np.any(found.fits_yes) else found.fits_tight
    if not np.any(candidates):
        raise BadInput(nothing_fits(found, job, cluster), smallest_change(job, cluster, limits, tables))
    _check_kept(found, cluster)
    run_s = job.steps * found.total_s / found.goodput.kept
    power_w = node_power_w(found.step, cluster) if objective == "energy" else 1.0
    # The energy of a run in watt-seconds of one node, or its time: what `_cost` says of a prediction.
    cost = np.where(candidates, run_s * power_w, np.inf)

    @cache
    def tell(index: int) -> Prediction:
        return _replayed(found, index, job, cluster, tables)

    ranked: list[Prediction] = []
    for index in np.argsort(cost, kind="stable")[: max(keep, MOST_REPLAYED)].tolist():
        if cost[index] == np.inf or (len(ranked) >= keep and cost[index] >= min(_cost(p, objective) for p in ranked)):
            break
        ranked.append(tell(index))
    ranked = sorted(ranked, key=lambda p: _cost(p, objective))[:keep]
    return Plan(
        job=job,
        cluster=cluster,
        ranked=tuple(ranked),
        considered=len(found.layouts),
        fitting=int(found.fits_yes.sum()),
        tight=int(found.fits_tight.sum()),
        alternatives=_alternatives(found, candidates, cost, ranked[0].layout, tell),
        limits=limits,
        objective=objective,
    )


def _cost(told: Prediction, objective: Objective) -> float:
    return told.run_s * (told.node_power_w if objective == "energy" else 1.0)


def _check_kept(found: Evaluated, cluster: GpuCluster) -> None:
    """Raises BadInput where the fleet fails so often that hardly anything of its time is kept."""
    kept = float(np.max(found.goodput.kept))
    if kept < LEAST_KEPT:
        every_s = 86_400.0 / (cluster.nodes * cluster.failures_per_node_day)
        raise BadInput(
            f"{cluster.nodes} nodes that fail every {every_s:.3g} s and take {cluster.restart_s:g} s to restart keep "
            f"less than {100 * LEAST_KEPT:g}% of their time",
            "check --failures (per node and day) and --restart-min, or use fewer nodes",
        )


def other_fleets(of: Plan, tables: Tables = FITTED) -> list[tuple[int, Prediction]]:
    """The best plan on a quarter, half, twice and four times the nodes of a plan, within its limits and by its objective, where
    there is one: what more nodes gain and lose."""
    found = []
    cluster = of.cluster
    for nodes in dict.fromkeys((cluster.nodes // 4, cluster.nodes // 2, cluster.nodes * 2, cluster.nodes * 4)):
        if nodes < 1:
            continue
        on = replace(cluster, nodes=nodes)
        try:
            found.append((nodes, plan(of.job, on, of.limits, keep=1, tables=tables, objective=of.objective).best))
        except BadInput:
            continue  # no layout divides or fits there: that size has no row
    return found


# ---------------------------------------------------------------------- telling
def _at(values: Floats, index: int, size: int) -> float:
    return float(np.broadcast_to(values, (size,))[index])


def _prediction(found: Evaluated, index: int, job: PlanJob, cluster: GpuCluster, missed_s: float = 0.0) -> Prediction:
    size = len(found.layouts)
    terms = {name.removesuffix("_s"): _at(getattr(found.step, name), index, size) for name in TERMS}
    terms["bubble"] += missed_s
    step_s = float(found.total_s[index]) + missed_s
    tokens = job.global_sequences * job.sequence_tokens
    flops = 3 * job.shape.forward_flops_per_token(job.sequence_tokens) * tokens
    good = found.goodput
    kept = float(good.kept[index])
    run_s = job.steps * step_s / kept
    device = _at(found.memory.device_bytes, index, size)
    step = replace(found.step, bubble_s=found.step.bubble_s + missed_s)
    power_w = _at(node_power_w(step, cluster), index, size)
    fits = Fits.YES if found.fits_yes[index] else Fits.TIGHT if found.fits_tight[index] else Fits.NO
    memory = found.memory
    parts = {
        "state": memory.state_bytes,
        "activations": memory.activation_bytes,
        "buffers": memory.buffer_bytes,
        "reserve": memory.reserved_bytes - memory.allocated_bytes,
        "context": memory.device_bytes - memory.reserved_bytes,
    }
    peak_flops_s = cluster.gpu.peak_tflops(peak_word(job.precision)) * 1e12
    every_s = float(good.every_s[index])
    return Prediction(
        layout=layout_of(found.layouts[index]),
        step_s=step_s,
        step_low_s=step_s * float(found.low[index]),
        step_high_s=step_s * float(found.high[index]),
        terms_s=terms,
        tokens_per_s=tokens / step_s,
        mfu=flops / (step_s * cluster.gpus * peak_flops_s),
        memory_bytes=device,
        memory_low_bytes=device * float(found.memory_low[index]),
        memory_high_bytes=device * float(found.memory_high[index]),
        memory_parts_bytes={name: _at(part, index, size) for name, part in parts.items()},
        gpu_memory_bytes=_at(found.cases.memory, index, size),
        fits=fits,
        node_power_w=power_w,
        energy_kwh_per_step=power_w * cluster.nodes * step_s / 3.6e6,
        goodput=kept,
        lost={name: float(getattr(good, name)[index]) for name in ("checkpoints", "again", "restarts")},
        checkpoint_every_s=every_s if math.isfinite(every_s) else None,
        run_s=run_s,
        run_kwh=power_w * cluster.nodes * run_s / 3.6e6,
    )


def _replayed(found: Evaluated, index: int, job: PlanJob, cluster: GpuCluster, tables: Tables) -> Prediction:
    """The prediction with what playing its pipeline event by event adds to the closed form, or takes from it."""
    layout = layout_of(found.layouts[index])
    # Only 1F1B, plain or interleaved, is played.
    if layout.pipeline == 1 or schedule_of(job.framework) != "1f1b":
        return _prediction(found, index, job, cluster)
    case = found.cases.take(np.array([index]))
    constants = tables.constants_of(case)
    chunks = _chunks(case, constants, layout)
    micro_batches = job.global_sequences // (layout.data * layout.micro_sequences)
    missed_s = (pipeline_s(chunks, micro_batches, 0.0) - steady_s(chunks, micro_batches)) * float(constants.pace.item())
    return _prediction(found, index, job, cluster, missed_s)


def _chunks(case: Cases, constants: Constants, layout: Layout) -> list[list[Chunk]]:
    """Seconds per micro-batch of every virtual stage: layers, and at the ends embedding and loss."""
    stages = stages_of(case)
    layer_s, embedding, loss = (float(value.item()) for value in held_layer_s(case, constants))
    counts = [float(stages.middle_layers.item())] * layout.pipeline
    counts[0], counts[-1] = float(stages.first_layers.item()), float(stages.last_layers.item())
    share = float(constants.imbalance_share.item())
    mean = sum(counts) / len(counts)
    mean_end = (embedding + loss) / layout.pipeline
    forward = 0.25 if layout.recompute is Recompute.FULL else 1.0 / 3.0
    chunks = []
    for v in range(layout.virtual_stages):
        row = []
        for rank, count in enumerate(counts):
            end = (embedding if rank == 0 and v == 0 else 0.0) + (
                loss if rank == layout.pipeline - 1 and v == layout.virtual_stages - 1 else 0.0
            )
            even = (mean * layer_s + mean_end) / layout.virtual_stages
            busy = even + share * (count * layer_s / layout.virtual_stages + end - even)
            row.append(Chunk(busy * forward, busy * (1.0 - forward)))
        chunks.append(row)
    return chunks


# ---------------------------------------------------------------------- why not the others
def _alternatives(
    found: Evaluated, candidates: NDArray[np.bool_], cost: Floats, best: Layout, tell: Callable[[int], Prediction]
) -> tuple[tuple[str, Prediction], ...]:
    """For each respect, the best of the candidates that differ from the first choice in it; the leanest where none of them is."""
    columns = np.array(found.layouts)
    chosen, codes = as_tuple(best), {code: str(word) for word, code in RECOMPUTE.items()}
    respects = {"tensor": 1, "pipeline": 2, "interleaving": 3, "context": 4, "ZeRO stage": 5, "micro-batch": 6}
    respects |= {"recomputation": 7, "optimizer": 8}
    words = {7: codes, 8: {0: "on the GPU", 1: "on the host"}}
    answers: list[tuple[str, Prediction]] = []
    for word, column in respects.items():
        for value in _neighbours(sorted(set(columns[:, column].tolist())), chosen[column]):
            differs = columns[:, column] == value
            if np.any(differs & candidates):
                index = int(np.argmin(np.where(differs, cost, np.inf)))
            else:
                device = np.broadcast_to(found.memory.device_bytes, differs.shape)
                index = int(np.argmin(np.where(differs, device, np.inf)))
            answers.append((f"{word} {words.get(column, {}).get(value, value)}", tell(index)))
    return tuple(answers)


def _neighbours(values: list[int], chosen: int) -> list[int]:
    """The next smaller and the next larger of the values."""
    below, above = [v for v in values if v < chosen], [v for v in values if v > chosen]
    return below[-1:] + above[:1]
