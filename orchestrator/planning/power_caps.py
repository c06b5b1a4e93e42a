"""The power caps that `on_feed_loss: throttle` demands of a run's nodes, and what they leave for each GPU. Pure.

Nothing slows a machine down in the seconds after a feed is lost, except its own supplies when they are overdrawn: a breaker
further up simply trips. So the cap that must hold *after* the worst loss is in force whenever a run is on the node.
"""

import functools
from dataclasses import dataclass

from orchestrator.domain.spec import ClusterSpec, Sku
from orchestrator.planning.parallel.gpus import find_gpu
from orchestrator.planning.power_loss import power_report

LEAST_GPU_SHARE = 0.2
"""A GPU takes no limit far below its rating: 100 W of a V100's 300, 200 W of an H100's 700 by nvidia-smi."""

gpu_called = functools.cache(find_gpu)
"""Thousands of nodes have the same few GPUs, and a name is looked up by patterns."""


@dataclass(frozen=True, slots=True)
class PowerCap:
    """What one node may draw so that no single loss overloads anything."""

    node_w: float
    gpu_w: float | None
    """For each of its GPUs: None where the node has none, or none whose data sheet is known."""

    def __str__(self) -> str:
        gpu = f", {self.gpu_w:.0f} W per GPU" if self.gpu_w is not None else ""
        return f"{self.node_w / 1000:.2f} kW per node{gpu}"


def caps_of(spec: ClusterSpec) -> dict[str, PowerCap]:
    """The cap of every compute node that needs one. `spec` is valid."""
    policies = {spec.power.on_feed_loss} if spec.power is not None else set()
    policies |= {rack.on_feed_loss for rack in spec.racks.values() if rack.on_feed_loss is not None}
    if spec.power is None or "throttle" not in policies:
        return {}
    caps_w = power_report(spec).caps_w
    return {
        node.name: PowerCap(caps_w[node.name], gpu_cap_w(spec.sku_of(node), caps_w[node.name]))
        for node in spec.nodes
        if node.name in caps_w
    }


def gpu_cap_w(sku: Sku, node_w: float) -> float | None:
    """Watts per GPU under a node's cap: the rest of the machine is reckoned with all it draws besides the GPUs' ratings."""
    gpu = gpu_called(sku.gpus.model) if sku.gpus.count else None
    if gpu is None:
        return None
    rest_w = max(sku.max_w - sku.gpus.count * gpu.power_w, 0.0)
    return max((node_w - rest_w) / sku.gpus.count, LEAST_GPU_SHARE * gpu.power_w)
