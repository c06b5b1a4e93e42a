"""Power and power caps.

Node power: a DGX H100 under compute-heavy training draws about 76 % of its rating (arXiv 2412.08602); the rest of the time it
draws between that and idle, by what the GPUs wait for. Cap: a GPU's dynamic power goes with about the 2.4th power of its clock,
and matrix products and attention with the clock.
"""

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.cluster import GpuCluster
from orchestrator.planning.parallel.step_time import TERMS, StepTime

BUSY_SHARE_OF_RATING = 0.76
CLOCK_EXPONENT = 2.4
GPU_IDLE_SHARE = 0.12
"""A GPU's idle power over its rating: 80 W of 700 W for an H100."""
ACTIVITY = {
    **{"matmul_s": 1.0, "attention_s": 1.0, "recompute_s": 1.0, "ends_s": 0.9, "memory_bound_s": 0.75, "optimizer_s": 0.6},
    **{"tensor_s": 0.55, "context_s": 0.55, "data_s": 0.5, "boundary_s": 0.4},
    **{"bubble_s": 0.35, "straggler_s": 0.35, "launch_s": 0.35},
}
"""How far a node's power rises from idle to busy during each term."""


def node_power_w(step: StepTime, cluster: GpuCluster) -> Floats:
    """Mean draw of one node over a step, watts."""
    total = step.total_s
    activity = sum((getattr(step, name) * ACTIVITY[name] for name in TERMS), np.zeros(())) / total
    busy_w = max(BUSY_SHARE_OF_RATING * cluster.node_max_w, cluster.node_idle_w)
    if cluster.gpu_power_cap_w is not None:
        saved = cluster.gpus_per_node * BUSY_SHARE_OF_RATING * max(cluster.gpu.power_w - cluster.gpu_power_cap_w, 0.0)
        busy_w = max(busy_w - saved, cluster.node_idle_w)
    return cluster.node_idle_w + (busy_w - cluster.node_idle_w) * activity


def clock_share(cluster: GpuCluster) -> float:
    """The clock a power cap leaves, over the clock without: 1 where nothing is capped below what training draws."""
    if cluster.gpu_power_cap_w is None:
        return 1.0
    idle = GPU_IDLE_SHARE * cluster.gpu.power_w
    room = max(cluster.gpu_power_cap_w - idle, 0.02 * cluster.gpu.power_w)
    return float(min(1.0, (room / (cluster.gpu.power_w - idle)) ** (1.0 / CLOCK_EXPONENT)))


def capped(cases: Cases, cluster: GpuCluster) -> Cases:
    """The same cases at the clock the cluster's power cap leaves."""
    share = clock_share(cluster)
    return cases if share == 1.0 else cases.with_columns(peak=cases.peak * share, peak16=cases.peak16 * share)
