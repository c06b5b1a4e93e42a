"""What to change: layouts that cannot be run, models that fit nowhere, and the smallest change that would make it possible."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from orchestrator.domain.errors import BadInput
from orchestrator.domain.layout import Layout, Recompute
from orchestrator.planning.parallel.cluster import GpuCluster, PlanJob
from orchestrator.planning.parallel.evaluate import Evaluated, evaluate
from orchestrator.planning.parallel.search import Limits, context_problem, layout_of, layouts_of
from orchestrator.planning.parallel.software import software_of
from orchestrator.planning.parallel.validation import FITTED, Tables

MOST_TIMES = 64
"""How many times the nodes are tried at most."""


def check_precision(job: PlanJob, cluster: GpuCluster) -> None:
    """Raises BadInput for a precision that the GPU or the framework does not have."""
    software, gpu = software_of(job.framework), cluster.gpu
    if job.precision not in software.precisions:
        known = ", ".join(software.precisions)
        raise BadInput(f"{job.framework} does not train in {job.precision}", f"choose one of {known}, or another --framework")
    if (job.precision == "fp8" and not gpu.fp8_tflops) or (job.precision == "fp4" and not gpu.fp4_tflops):
        raise BadInput(f"{gpu.name} has no {job.precision} units", "use bf16, or a GPU that has them")


def check_layout(job: PlanJob, cluster: GpuCluster, layout: Layout) -> None:
    """Raises BadInput, with the way out, for a layout that cannot be run."""
    _check_framework(job, layout)
    software, shape = software_of(job.framework), job.shape
    at_once = layout.data * layout.micro_sequences
    micro_batches, rounds = job.global_sequences // at_once, -(-job.global_sequences // (at_once * layout.pipeline))
    rules = (
        (
            layout.gpus != cluster.gpus,
            f"{layout} is {layout.gpus} GPUs and the cluster has {cluster.gpus}",
            "make the product of the degrees equal",
        ),
        (
            shape.heads % layout.tensor,
            f"{shape.heads} heads do not divide by tensor {layout.tensor}",
            "choose a tensor degree that divides the heads",
        ),
        (
            (problem := context_problem(job, software, layout.tensor, layout.context)),
            problem,
            "choose a context degree that divides them, or 1",
        ),
        (
            layout.pipeline > shape.layers,
            f"{shape.layers} layers cannot fill {layout.pipeline} stages",
            f"choose pipeline {shape.layers} or less",
        ),
        (
            job.global_sequences % at_once,
            f"{job.global_sequences} sequences do not divide by data {layout.data} x micro-batch {layout.micro_sequences}",
            f"use a batch of {-(-job.global_sequences // at_once) * at_once}",
        ),
        (
            # Embedding and head may count as a layer each.
            layout.virtual_stages * layout.pipeline > shape.layers + 2,
            f"{shape.layers} layers cannot fill {layout.virtual_stages} virtual stages on each of {layout.pipeline} ranks",
            f"choose {max(shape.layers // layout.pipeline, 1)} virtual stages or fewer",
        ),
        (
            layout.virtual_stages > 1 and micro_batches % layout.pipeline,
            f"{micro_batches} micro-batches cannot be interleaved over {layout.pipeline} stages",
            f"use a batch of {at_once * layout.pipeline * rounds}, or no interleaving",
        ),
        (
            layout.pipeline > 1 and layout.zero not in software.pipeline_zero,
            f"a pipeline excludes ZeRO-{layout.zero}",
            f"use ZeRO {' or '.join(map(str, software.pipeline_zero))}, or pipeline 1",
        ),
        (
            layout.zero == 0 and not software.masterless_zero0 and job.precision != "fp32",
            f"ZeRO-0 keeps no fp32 copy of {job.precision} weights",
            "use ZeRO 1, which needs no more memory, or precision fp32",
        ),
    )
    _raise_first(rules)


def _raise_first(rules: Iterable[tuple[object, str, str]]) -> None:
    """`rules`: whether it is broken, what to say, the way out."""
    for broken, message, hint in rules:
        if broken:
            raise BadInput(message, hint)


def _check_framework(job: PlanJob, layout: Layout) -> None:
    """Raises BadInput for degrees below 1, and for what the job's framework does not do at all."""
    software, shape = software_of(job.framework), job.shape
    least = min(layout.data, layout.tensor, layout.pipeline, layout.virtual_stages, layout.context, layout.micro_sequences)
    shared = math.gcd(shape.heads, shape.key_value_heads, shape.d_ff)
    lacks = f"{job.framework} has no"
    rules = (
        (least < 1, f"{layout}: a degree of {least} is none", "give degrees of at least 1"),
        (
            layout.zero not in software.zero_stages,
            f"{lacks} ZeRO-{layout.zero}",
            f"use ZeRO {' or '.join(map(str, software.zero_stages))}",
        ),
        (layout.tensor > 1 and not software.tensor, f"{lacks} tensor parallelism", "use tensor 1"),
        (layout.virtual_stages > 1 and not software.interleaves, f"{lacks} interleaved stages", "use 1 virtual stage"),
        (layout.virtual_stages > 1 and layout.pipeline == 1, "one stage has nothing to interleave", "use 1 virtual stage"),
        (layout.recompute is not Recompute.NONE and not software.recomputes, f"{lacks} recomputation", "use recomputation none"),
        (layout.offload and not software.offloads, f"{lacks} optimizer in the host's memory", "keep it on the GPU"),
        (layout.offload and layout.zero == 0, "ZeRO-0 keeps the optimizer's state with the weights", "use ZeRO 1 or more"),
        (
            software.name == "deepspeed-rackray" and shared % layout.tensor,
            f"{shape.heads} heads, {shape.key_value_heads} key/value heads and d_ff {shape.d_ff} do not divide by tensor "
            f"{layout.tensor}",
            f"choose a tensor degree that divides {shared}",
        ),
    )
    _raise_first(rules)


def smallest_change(job: PlanJob, cluster: GpuCluster, limits: Limits, tables: Tables = FITTED) -> str:
    """The least that would make some layout fit: more nodes, what `limits` rule out, or larger GPUs and smaller models."""
    ways = []
    more = _nodes_that_fit(job, cluster, limits, tables)
    if more:
        ways.append(_nodes(more - cluster.nodes))
    wider = (
        ("selective or full checkpointing of activations", Limits(offload=limits.offload)),
        ("the optimizer's state in the host's memory (--offload)", replace(limits, offload=(True,))),
    )
    ways += [words for words, tried in wider if tried != limits and _some_fit(job, cluster, tried, tables)]
    return f"needs {', or '.join(ways)}" if ways else "needs GPUs with more memory, or a smaller model"


def changes_that_fit(job: PlanJob, cluster: GpuCluster, layout: Layout, tables: Tables = FITTED) -> list[str]:
    """The single changes to `layout` that would make it fit, the ones that cost least first; empty where none does."""
    return [
        words
        for words, other, on in _changes(job, cluster, layout)
        if _can_run(job, on, other) and _some_fit(job, on, Limits(fixed=other), tables)
    ]


def _can_run(job: PlanJob, cluster: GpuCluster, layout: Layout) -> bool:
    try:
        check_layout(job, cluster, layout)
    except BadInput:
        return False
    return True


def _changes(job: PlanJob, cluster: GpuCluster, layout: Layout) -> Iterator[tuple[str, Layout, GpuCluster]]:
    """Words, the changed layout, the cluster it needs; only what the job's framework can run."""
    software = software_of(job.framework)
    legal = software.zero_stages if layout.pipeline == 1 else software.pipeline_zero
    yield from ((f"ZeRO-{zero}", replace(layout, zero=zero), cluster) for zero in legal if zero > layout.zero)
    if layout.recompute is Recompute.NONE and software.recomputes:
        yield "selective checkpointing", replace(layout, recompute=Recompute.SELECTIVE), cluster
    if layout.recompute is not Recompute.FULL and software.recomputes:
        yield "full checkpointing", replace(layout, recompute=Recompute.FULL), cluster
    smaller = [m for m in range(layout.micro_sequences - 1, 0, -1) if layout.micro_sequences % m == 0]
    yield from ((f"micro-batches of {m}", replace(layout, micro_sequences=m), cluster) for m in smaller)
    if software.offloads and layout.zero >= 1 and not layout.offload:
        yield "the optimizer's state in the host's memory", replace(layout, offload=True), cluster
    for times in (2, 4, 8):
        shared = replace(layout, context=layout.context * times, data=layout.data // times)
        if layout.data % times == 0:
            yield f"sequences shared by {shared.context} ranks (context {shared.context}, data {shared.data})", shared, cluster
    for times in (2, 4, 8):
        data = layout.data * times
        if layout.zero >= 1 and job.global_sequences % (data * layout.micro_sequences) == 0:
            nodes = cluster.nodes * times
            yield f"{_nodes(nodes - cluster.nodes)} (data {data})", replace(layout, data=data), replace(cluster, nodes=nodes)


def nothing_fits(found: Evaluated, job: PlanJob, cluster: GpuCluster) -> str:
    """One sentence: the leanest layout still needs too much."""
    device = np.broadcast_to(found.memory.device_bytes, found.total_s.shape)
    least = int(np.argmin(device))
    return (
        f"no layout of this model fits {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}: the leanest "
        f"({layout_of(found.layouts[least])}) needs {device[least] / 2**30:.0f} GiB of "
        f"{cluster.gpu.memory_gib:.0f} GiB on its fullest GPU"
    )


def _some_fit(job: PlanJob, cluster: GpuCluster, limits: Limits, tables: Tables) -> bool:
    return bool(layouts_of(job, cluster, limits)) and bool(np.any(evaluate(job, cluster, limits, tables).fits_yes))


def _nodes_that_fit(job: PlanJob, cluster: GpuCluster, limits: Limits, tables: Tables) -> int | None:
    """The smallest number of nodes, up to 64 times as many, on which some layout fits."""
    few, times = range(cluster.nodes + 1, cluster.nodes + 9), (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, MOST_TIMES)
    for nodes in sorted({*few, *(cluster.nodes * n for n in times)}):
        if _some_fit(job, replace(cluster, nodes=nodes), limits, tables):
            return nodes
    return None


def _nodes(count: int) -> str:
    return f"{count} more node{'' if count == 1 else 's'}"
