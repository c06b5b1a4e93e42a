"""Every layout of a question with its numbers: the columns that plans, advice and predictions are read from."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.errors import BadInput
from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.cluster import GpuCluster, PlanJob
from orchestrator.planning.parallel.goodput import Goodput, goodput_of
from orchestrator.planning.parallel.intervals import ends
from orchestrator.planning.parallel.memory import ROOM, Memory, memory_of
from orchestrator.planning.parallel.power import capped
from orchestrator.planning.parallel.search import Limits, cases_of, data_degrees, layouts_of, node_counts
from orchestrator.planning.parallel.step_time import StepTime, step_time
from orchestrator.planning.parallel.validation import FITTED, Tables


@dataclass(frozen=True, slots=True)
class Evaluated:
    """All layouts of a question with their numbers."""

    layouts: list[tuple[int, ...]]
    cases: Cases
    step: StepTime
    total_s: Floats
    goodput: Goodput
    memory: Memory
    fits_yes: NDArray[np.bool_]
    fits_tight: NDArray[np.bool_]
    low: Floats
    high: Floats
    memory_low: Floats
    memory_high: Floats


def evaluate(job: PlanJob, cluster: GpuCluster, limits: Limits, tables: Tables = FITTED) -> Evaluated:
    """All layouts within the limits. Raises BadInput where none divides."""
    layouts = layouts_of(job, cluster, limits)
    if not layouts:
        raise nothing_divides(job, cluster)
    cases = capped(cases_of(layouts, job, cluster), cluster)
    step = step_time(cases, tables.constants_of(cases))
    memory = memory_of(cases, tables.memory)
    size = (len(layouts),)
    low, high = ends(cases, tables.step_intervals)
    memory_low, memory_high = ends(cases, tables.memory_intervals)
    device = np.broadcast_to(memory.device_bytes, size)
    room = np.broadcast_to(cases.memory, size)
    yes = device * memory_high <= room * ROOM
    return Evaluated(
        layouts=layouts,
        cases=cases,
        step=step,
        total_s=np.broadcast_to(step.total_s, size),
        goodput=goodput_of(cases, cluster),
        memory=memory,
        fits_yes=yes,
        fits_tight=(device * memory_low <= room) & ~yes,
        low=np.broadcast_to(low, size),
        high=np.broadcast_to(high, size),
        memory_low=np.broadcast_to(memory_low, size),
        memory_high=np.broadcast_to(memory_high, size),
    )


def nothing_divides(job: PlanJob, cluster: GpuCluster) -> BadInput:
    """Why no layout at all can be listed, with the nearest batches and the nearest number of nodes that would help."""
    batch, shape = job.global_sequences, job.shape
    degrees = data_degrees(job, cluster)
    above = min(-(-batch // degree) * degree for degree in degrees)
    below = max((batch // degree * degree for degree in degrees if batch >= degree), default=0)
    batches = " or ".join(str(size) for size in (below, above) if size)
    counts = sorted(node_counts(job, cluster), key=lambda nodes: (abs(nodes - cluster.nodes), nodes))
    nodes = next((n for n in counts if layouts_of(job, replace(cluster, nodes=n), Limits())), None)
    others = f", or {nodes} node{'' if nodes == 1 else 's'} instead of {cluster.nodes}" if nodes else ""
    return BadInput(
        f"no layout divides {cluster.gpus} GPUs, {shape.layers} layers, {shape.heads} heads and a batch of {batch}",
        f"use a batch of {batches} sequences{others}",
    )
