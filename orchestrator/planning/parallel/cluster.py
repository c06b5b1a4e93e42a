"""The cluster a plan is made for, and the job it is made about, as the planner needs them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from model.shape import PRESETS, EncoderDecoderShape, TransformerShape
from orchestrator.domain.errors import BadInput
from orchestrator.domain.job import JobSpec
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.words import counted
from orchestrator.planning.parallel.fabric import fabric_of
from orchestrator.planning.parallel.gpus import GPUS, GpuType, find_gpu
from orchestrator.planning.parallel.software import software_of
from orchestrator.planning.power_caps import LEAST_GPU_SHARE
from orchestrator.planning.run_launch import model_spec

MOST_GPUS, MOST_FAILURES = 10_000_000, 86_400.0
NODE_FAILURES_PER_DAY = 0.0038
"""Interruptions per node and day of Llama 3's 54 days on 2,048 nodes: 419 unexpected ones (Grattafiori et al. 2024, table 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCluster:
    """Equal nodes and the network between them."""

    gpu: GpuType
    nodes: int
    gpus_per_node: int
    network_gbit_s_per_node: float
    nvlink_domain: int
    node_idle_w: float
    node_max_w: float
    leaf_nodes: int = 32
    """Nodes on one leaf switch, or one set of rail switches; 32 in NVIDIA's DGX SuperPOD reference architecture."""
    spine_share: float = 1.0
    """Of a node's network rate, what the spines leave: 1 without oversubscription."""
    failures_per_node_day: float = NODE_FAILURES_PER_DAY
    restart_s: float = 600.0
    """From a failure to training again: noticing, replacing, launching, loading."""
    storage_gb_s_per_node: float = 2.0
    """Rate at which one node writes a checkpoint."""
    gpu_power_cap_w: float | None = None
    """nvidia-smi's power limit; None: the data sheet's."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanJob:
    """What is to be trained and how it is told to the planner."""

    shape: TransformerShape
    global_sequences: int
    sequence_tokens: int
    steps: int
    precision: str = "bf16"
    """bf16, fp16, fp32, fp8 or fp4: of the matrix products."""
    framework: str = "rackray"
    """Any name that `software.py` knows; "rackray" is this project's own DeepSpeed engine."""


def planned_sku(spec: ClusterSpec) -> tuple[str, int]:
    """The spec's most frequent GPU machine, which plans are made for, and how many there are. Raises BadInput without any."""
    count = Counter(node.sku for node in spec.nodes if spec.skus[node.sku].gpus.count)
    if not count:
        raise BadInput(
            f"no node of {spec.cluster} has a GPU", "give the planner a cluster with --gpu, --gpus-per-node and --nodes"
        )
    return count.most_common(1)[0]


def cluster_of(
    spec: ClusterSpec, nodes: int, network_gbit_s_per_node: float | None = None, gpus_per_node: int | None = None
) -> GpuCluster:
    """The cluster of `nodes` machines of the spec's most frequent GPU machine, or of `gpus_per_node` GPUs of each.

    The spec states no speed of the network; left out, it is that of the vendor's reference system.
    Raises BadInput where the spec has no GPU machine, too few of them, fewer GPUs on each than asked for, or a GPU whose data
    sheet is not in the table.
    """
    name, available = planned_sku(spec)
    sku = spec.skus[name]
    if nodes > available:
        raise BadInput(
            f"{nodes} nodes are asked for and {spec.cluster} has {available} of {name}",
            f"needs {counted(nodes - available, 'more node')}",
        )
    used = gpus_per_node or sku.gpus.count
    if used > sku.gpus.count:
        raise BadInput(
            f"{used} GPUs of each node are asked for and {name} has {sku.gpus.count}", f"use at most {sku.gpus.count} per node"
        )
    gpu = known_gpu(sku.gpus.model)
    fabric = fabric_of(spec, name)
    return GpuCluster(
        leaf_nodes=fabric.leaf_nodes,
        spine_share=fabric.spine_share,
        gpu=gpu,
        nodes=nodes,
        gpus_per_node=used,
        network_gbit_s_per_node=network_gbit_s_per_node or gpu.internode_gbit_s_per_gpu * sku.gpus.count,
        nvlink_domain=max((sku.gpus.nvlink_domain or sku.gpus.count) * used // sku.gpus.count, 1),
        node_idle_w=float(sku.idle_w),
        node_max_w=float(sku.max_w),
    )


def cluster_by_hand(gpu: str, nodes: int, gpus_per_node: int = 8, network_gbit_s_per_node: float | None = None) -> GpuCluster:
    """A cluster from a GPU's name and counts. Raises BadInput for an unknown GPU or counts below 1."""
    kind = known_gpu(gpu)
    if nodes < 1 or gpus_per_node < 1:
        raise BadInput(f"{nodes} nodes of {gpus_per_node} GPUs are no cluster", "give at least one of each")
    return GpuCluster(
        gpu=kind,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        network_gbit_s_per_node=network_gbit_s_per_node or kind.internode_gbit_s_per_gpu * gpus_per_node,
        nvlink_domain=max(gpus_per_node, kind.nvlink_domain if kind.nvlink_domain > 16 else 1),
        # A DGX H100 draws 10.2 kW at most with 8 GPUs of 700 W: the rest of the machine takes about 575 W per GPU; idle 100 W.
        node_idle_w=gpus_per_node * (kind.power_w * 0.25 + 100.0),
        node_max_w=gpus_per_node * (kind.power_w + 575.0),
    )


def known_gpu(name: str) -> GpuType:
    """The GPU of that name. Raises BadInput with the names that are known."""
    gpu = find_gpu(name)
    if gpu is None:
        raise BadInput(f"unknown GPU {name!r}", f"known: {', '.join(GPUS)}")
    return gpu


def shape_of(job: JobSpec, preset: str | None = None) -> TransformerShape:
    """The shape a job trains, or a published one by name. Raises BadInput for an unknown name or a shape that cannot be."""
    if preset is not None:
        if preset not in PRESETS:
            raise BadInput(f"unknown model {preset!r}", f"known: {', '.join(PRESETS)}")
        return PRESETS[preset]
    if job.model is None:
        raise BadInput(f"job {job.name} runs a command, not a model", "give a job with `model`, or --preset")
    try:
        return model_spec(job.model).shape()
    except ValueError as error:
        raise BadInput(str(error), "change the model's numbers in the job file") from error


def plan_job_of(job: JobSpec, shape: TransformerShape, precision: str | None = None, framework: str = "rackray") -> PlanJob:
    """The planner's view of a job file. Raises BadInput for a job that trains no model."""
    if job.batch is None:
        raise BadInput(f"job {job.name} runs a command, not a model", "only jobs with `model` and `batch` can be planned")
    return PlanJob(
        shape=shape,
        # An encoder-decoder's batch is counted in tokens; `check_job` refuses it.
        global_sequences=job.batch.global_sequences or 0,
        sequence_tokens=job.batch.sequence_tokens,
        steps=job.steps,
        precision=precision or job.precision,
        framework=framework,
    )


def check_cluster(cluster: GpuCluster) -> None:
    """Raises BadInput for numbers that no cluster has: nothing is planned with infinities, or below what a GPU can be set to."""
    said = {
        "Gbit/s per node": (cluster.network_gbit_s_per_node, 0.0),
        "failures per node and day": (cluster.failures_per_node_day, None),
        "seconds of a restart": (cluster.restart_s, None),
        "GB/s of storage per node": (cluster.storage_gb_s_per_node, 0.0),
    }
    for words, (value, above) in said.items():
        if not math.isfinite(value) or value < 0.0 or value == above:
            raise BadInput(f"{value:g} {words} cannot be", f"give a number {'above' if above == 0.0 else 'of at least'} 0")
    if cluster.failures_per_node_day > MOST_FAILURES:
        raise BadInput(
            f"{cluster.failures_per_node_day:g} failures per node and day cannot be",
            f"give at most {MOST_FAILURES:,.0f}, one a second",
        )
    if cluster.gpus > MOST_GPUS:
        raise BadInput(f"{cluster.gpus:,} GPUs are more than any cluster has", f"plan for at most {MOST_GPUS:,}")
    cap_w, gpu = cluster.gpu_power_cap_w, cluster.gpu
    if cap_w is not None and not LEAST_GPU_SHARE * gpu.power_w <= cap_w <= gpu.power_w:
        least_w = LEAST_GPU_SHARE * gpu.power_w
        raise BadInput(
            f"{gpu.name} takes no power cap of {cap_w:g} W",
            f"choose between {least_w:.0f} W and its rating of {gpu.power_w:.0f} W",
        )


def check_job(job: PlanJob, known_precisions: Sequence[str] = ("bf16", "fp16", "fp32", "fp8", "fp4")) -> None:
    """Raises BadInput for a batch, a sequence or a precision that no layout could train."""
    if isinstance(job.shape, EncoderDecoderShape):
        raise BadInput(
            f"a model with {job.shape.encoder_layers} encoder layers cannot be planned",
            "only decoder-only Transformers are modelled; train it with a layout of your own",
        )
    if job.precision not in known_precisions:
        raise BadInput(f"unknown precision {job.precision!r}", f"choose one of {', '.join(known_precisions)}")
    if job.global_sequences < 1 or job.sequence_tokens < 1:
        raise BadInput(
            f"a batch of {job.global_sequences} sequences of {job.sequence_tokens} tokens is none", "give at least 1 of each"
        )
    most = job.shape.positions
    fixed = job.shape.position_parameters() > 0 or software_of(job.framework).name == "deepspeed-rackray"
    if job.sequence_tokens > most and fixed:
        raise BadInput(
            f"sequences of {job.sequence_tokens} tokens are asked for and the model has {most} positions",
            f"use sequences of at most {most} tokens, or a model with more positions",
        )
