"""What failures leave of a run's time: checkpoints, steps done again, restarts.

Nodes fail independently at a constant rate, so that a fleet of n nodes fails n times as often. A checkpoint is written by the
ranks that hold distinct state: under ZeRO by all of them, without it by one replica, while the others wait. The interval is
Young's (1974), the wall-clock time of an interval with its checkpoint Daly's (2006, equation 13).
"""

from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.cluster import GpuCluster
from orchestrator.planning.parallel.sizes import model_parameters

LEAST_RATE = 1e-15
"""Failures per second below which a fleet is one that does not fail: one in thirty million years."""
BARRIER_S = 1.0
"""Of a checkpoint, what does not depend on its size."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """Shares of wall-clock time, one element per case; with `kept` they add up to 1."""

    kept: Floats
    """Spent on steps that count."""
    checkpoints: Floats
    again: Floats
    """Steps and checkpoints done again, or lost when a failure came."""
    restarts: Floats
    every_s: Floats
    """The checkpoint interval at which `kept` is largest; inf where nothing fails."""


def goodput_of(cases: Cases, cluster: GpuCluster) -> Goodput:
    """The goodput of every case on the cluster."""
    size = len(cases)
    write_s = np.broadcast_to(checkpoint_s(cases, cluster), (size,))
    rate = cluster.nodes * cluster.failures_per_node_day / 86_400.0
    none = np.zeros(size)
    if rate <= LEAST_RATE:
        return Goodput(np.ones(size), none, none, none, np.full(size, np.inf))
    every_s = np.sqrt(2.0 * write_s / rate)
    cycle_s = every_s + write_s
    # exp() of what no fleet survives would overflow; the share is 0 long before.
    failures = np.expm1(np.minimum(rate * cycle_s, 300.0))
    restart = np.exp(min(rate * cluster.restart_s, 300.0))
    needed_s = restart / rate * failures
    kept, checkpoints = every_s / needed_s, write_s / needed_s
    restarts = failures * cluster.restart_s / needed_s
    return Goodput(kept, checkpoints, np.maximum(1.0 - kept - checkpoints - restarts, 0.0), restarts, every_s)


def checkpoint_s(cases: Cases, cluster: GpuCluster) -> Floats:
    """Seconds that training stands still for one checkpoint: weights and optimizer state, written by whoever holds a share."""
    state_bytes = model_parameters(cases) * (cases.state_p + cases.state_o)
    one_replica = cases.pp * np.ceil(cases.tp / cluster.gpus_per_node)
    writers = np.where(cases.zero >= 1, float(cluster.nodes), np.minimum(one_replica, cluster.nodes))
    return state_bytes / (writers * cluster.storage_gb_s_per_node * 1e9) + BARRIER_S
