"""Every layout a framework could run on a cluster, as columns.

What is enumerated: tensor degrees up to the NVLink domain that divide the heads, pipelines that divide the layers (or those + 2),
virtual stages, context degrees for long sequences, ZeRO stages, micro-batches that divide the batch, recomputation, offload.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.domain.layout import Layout, Recompute
from orchestrator.planning.parallel.cases import RECOMPUTE, Cases
from orchestrator.planning.parallel.cluster import GpuCluster, PlanJob
from orchestrator.planning.parallel.columns import PEAK_WORDS, columns_of
from orchestrator.planning.parallel.sizes import stage_layers
from orchestrator.planning.parallel.software import Software, optimizer_bytes, schedule_of, shards_in_nodes, software_of
from orchestrator.planning.parallel.spellings import precision_code

TENSOR = (1, 2, 4, 8, 16)
MOST_STAGES = 64
MICRO = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
LONG_SEQUENCE = 8192
"""Tokens from which context parallelism is considered."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be enumerated; None leaves a degree open."""

    recompute: tuple[Recompute, ...] = tuple(Recompute)
    offload: tuple[bool, ...] = (False,)
    fixed: Layout | None = None
    """Only this one."""


def layouts_of(job: PlanJob, cluster: GpuCluster, limits: Limits) -> list[tuple[int, ...]]:
    """Layouts as tuples (data, tensor, pipeline, virtual, context, zero, micro, recompute code, offload)."""
    software = software_of(job.framework)
    if limits.fixed is not None:
        return [as_tuple(limits.fixed)]
    found: list[tuple[int, ...]] = []
    codes = [RECOMPUTE[choice] for choice in limits.recompute if software.recomputes or choice is Recompute.NONE]
    for tensor in _tensor_degrees(job, cluster, software):
        for context in context_degrees(job, software, tensor):
            for pipeline, virtual in _pipelines(job, cluster.gpus // (tensor * context), software):
                if cluster.gpus % (tensor * context * pipeline):
                    continue
                data = cluster.gpus // (tensor * context * pipeline)
                if job.global_sequences % data:
                    continue
                for zero in zero_stages(job, data * context, pipeline):
                    for micro in _micro_batches(job.global_sequences // data, pipeline, virtual):
                        found += [
                            (data, tensor, pipeline, virtual, context, zero, micro, code, int(off))
                            for code in codes
                            for off in limits.offload
                            if not off or (zero and software.offloads)
                        ]
    return found


def data_degrees(job: PlanJob, cluster: GpuCluster) -> set[int]:
    """The data degrees that the cluster, the layers and the heads allow, whatever the batch."""
    software, found = software_of(job.framework), set()
    for tensor in _tensor_degrees(job, cluster, software):
        for context in context_degrees(job, software, tensor):
            ranks = cluster.gpus // (tensor * context)
            found |= {
                cluster.gpus // (tensor * context * pipeline)
                for pipeline, _ in _pipelines(job, ranks, software)
                if cluster.gpus % (tensor * context * pipeline) == 0
            }
    return found


def node_counts(job: PlanJob, cluster: GpuCluster) -> set[int]:
    """Numbers of nodes on which some layout may divide the batch, the layers and the heads, up to 8 more than the cluster's."""
    software, batch = software_of(job.framework), job.global_sequences
    data = [d for small in range(1, math.isqrt(batch) + 1) if batch % small == 0 for d in (small, batch // small)]
    # Of any number of GPUs: `layouts_of` says which of them divide.
    inner = {
        tensor * context * pipeline
        for tensor in TENSOR
        for context in context_degrees(job, software, tensor)
        for pipeline in range(1, min(job.shape.layers, MOST_STAGES) + 1)
        if stage_layers(job.shape.layers, pipeline)
    }
    gpus = {size for d in data for i in inner if (size := d * i) % cluster.gpus_per_node == 0}
    return {nodes for size in gpus if (nodes := size // cluster.gpus_per_node) <= cluster.nodes + 8}


def cases_of(layouts: list[tuple[int, ...]], job: PlanJob, cluster: GpuCluster) -> Cases:
    """The layouts as cases of this job on this cluster."""
    software, gpu, shape = software_of(job.framework), cluster.gpu, job.shape
    low = _precision_code(job.precision)
    columns = np.array(layouts, dtype=np.float64).T
    same = {
        **columns_of(job.framework, software, gpu, low, job.precision == "bf16"),
        **{"layers": shape.layers, "hidden": shape.d_model, "heads": shape.heads, "kv_heads": shape.key_value_heads},
        **{"ffn": shape.d_ff, "vocab": shape.vocabulary, "gated": shape.is_gated, "tied": shape.tied},
        **{"seq": job.sequence_tokens, "global_batch": job.global_sequences},
        "attended": _attended(shape.most_seen(job.sequence_tokens) / job.sequence_tokens),
        **{"domain": cluster.nvlink_domain, "per_node": cluster.gpus_per_node},
        "network": cluster.network_gbit_s_per_node * 1e9 / 8.0 / cluster.gpus_per_node,
        **{"leaf_gpus": cluster.leaf_nodes * cluster.gpus_per_node, "spine_share": cluster.spine_share},
    }
    names = ("dp", "tp", "pp", "vpp", "cp", "zero", "micro", "recompute", "offload")
    fixed = {name: np.array([float(value)]) for name, value in same.items()}
    in_nodes = np.maximum(cluster.gpus_per_node // columns[names.index("tp")], 1.0)
    fixed["shard"] = in_nodes if shards_in_nodes(job.framework) else np.zeros(1)
    of_stage = np.array([optimizer_bytes(software, low, zero) for zero in range(4)])
    fixed["state_o"] = of_stage[columns[names.index("zero")].astype(np.intp)]
    return Cases({**fixed, **dict(zip(names, columns, strict=True))}, (gpu.family,), (software.constants_of or software.name,))


def _attended(most_seen: float) -> float:
    """Share of causal attention's work that is left where a token sees at most `most_seen` of the sequence before it: a window of
    w of s tokens leaves s w - w^2 / 2 of s^2 / 2 pairs."""
    return 2.0 * most_seen - most_seen**2


def peak_word(precision: str) -> str:
    """The word by which a GPU's peak is looked up (`GpuType.peak_tflops`) for a job's precision."""
    return PEAK_WORDS[_precision_code(precision)]


def _precision_code(precision: str) -> int:
    low = precision_code(precision)
    assert low is not None  # noqa: S101 - check_job refused other words
    return low


def layout_of(values: tuple[int, ...]) -> Layout:
    """A layout from its tuple."""
    data, tensor, pipeline, virtual, context, zero, micro, code, off = values
    words = {code: Recompute(word) for word, code in RECOMPUTE.items()}
    return Layout(
        data=data,
        tensor=tensor,
        pipeline=pipeline,
        virtual_stages=virtual,
        context=context,
        zero=zero,
        micro_sequences=micro,
        recompute=words[code],
        offload=bool(off),
    )


def as_tuple(layout: Layout) -> tuple[int, ...]:
    """A layout in the order of `layouts_of`."""
    return (
        *(layout.data, layout.tensor, layout.pipeline, layout.virtual_stages, layout.context, layout.zero),
        *(layout.micro_sequences, RECOMPUTE[layout.recompute], int(layout.offload)),
    )


def _tensor_degrees(job: PlanJob, cluster: GpuCluster, software: Software) -> list[int]:
    if not software.tensor:
        return [1]
    most = min(cluster.nvlink_domain, 16)
    shape = job.shape
    shared = math.gcd(shape.heads, shape.d_ff, cluster.gpus)
    # Megatron's descendants copy key/value heads where there are fewer than tensor ranks; our engine shares them out.
    shared = math.gcd(shared, shape.key_value_heads) if software.name == "deepspeed-rackray" else shared
    return [t for t in TENSOR if t <= most and shared % t == 0]


def context_degrees(job: PlanJob, software: Software, tensor: int) -> list[int]:
    """How many ranks may share a sequence beside so many tensor ranks."""
    if not software.context or job.sequence_tokens < LONG_SEQUENCE:
        return [1]
    return [c for c in (1, 2, 4, 8, 16) if not context_problem(job, software, tensor, c)]


def context_problem(job: PlanJob, software: Software, tensor: int, context: int) -> str:
    """Why a sequence cannot be shared by `context` ranks; empty where it can. Ring attention cuts it into two parts for each."""
    shape, parts = job.shape, context if software.context_by_heads else 2 * context
    if context == 1:
        return ""
    if not software.context:
        return f"{job.framework} keeps a sequence on one rank"
    if job.sequence_tokens % parts:
        return f"{job.sequence_tokens} tokens do not divide into {parts} parts"
    shared = math.gcd(shape.heads, shape.key_value_heads)
    if software.context_by_heads and shared % (tensor * context):
        return f"{shared} heads do not divide by tensor {tensor} x context {context}"
    return ""


def _pipelines(job: PlanJob, ranks: int, software: Software) -> Iterator[tuple[int, int]]:
    layers = job.shape.layers
    yield 1, 1
    for pipeline in range(2, min(layers, ranks, MOST_STAGES) + 1):
        share = 0 if ranks % pipeline else stage_layers(layers, pipeline)
        if share:
            yield pipeline, 1
            if software.interleaves and schedule_of(job.framework) == "1f1b":
                yield from ((pipeline, v) for v in (2, 4, 5, 10) if v <= share and share % v == 0)


def zero_stages(job: PlanJob, ranks: int, pipeline: int) -> tuple[int, ...]:
    """The ZeRO stages that the job's framework runs on so many data (and context) ranks beside a pipeline."""
    software = software_of(job.framework)
    whole = software.masterless_zero0 or job.precision == "fp32"
    legal = [s for s in software.zero_stages if (pipeline == 1 or s in software.pipeline_zero) and (s > 0 or whole)]
    # Nothing is shared with nobody: the lowest stage that runs is as good as any other.
    return tuple(legal if ranks > 1 else legal[:1])


def _micro_batches(per_replica: int, pipeline: int, virtual: int) -> Iterator[int]:
    for micro in MICRO:
        if per_replica % micro == 0 and (virtual == 1 or (per_replica // micro) % pipeline == 0):
            yield micro
