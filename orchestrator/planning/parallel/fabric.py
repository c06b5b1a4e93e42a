"""What a spec says about the network between its machines: how many share a leaf, and what the spines leave of the rate."""

from collections import Counter
from dataclasses import dataclass

from orchestrator.domain.pattern import Pattern
from orchestrator.domain.spec import ClusterSpec

MOST_CABLES = 2_000_000
RAIL = "/rail"
"""In the name of a machine's port on the compute fabric."""


@dataclass(frozen=True, slots=True)
class Fabric:
    """The compute fabric as collectives see it."""

    leaf_nodes: int
    """Machines that reach each other without a spine."""
    spine_share: float
    """Cables from leaves to spines over cables from machines to leaves, at most 1: of the rate, what is left above the leaf."""


def fabric_of(spec: ClusterSpec, sku: str) -> Fabric:
    """The fabric of the spec's machines of that SKU; without cables in the spec, spines without oversubscription."""
    leaves = Counter(spec.racks[node.rack].leaf for node in spec.nodes if node.sku == sku)
    down = sum(_cables(link.ends) for link in spec.links if RAIL in link.ends)
    up = sum(_cables(link.ends) for link in spec.links if RAIL not in link.ends and RAIL not in link.to)
    share = min(1.0, up / down) if up and down else 1.0
    return Fabric(leaf_nodes=max(leaves.values(), default=1), spine_share=share)


def _cables(ends: str) -> int:
    return len(Pattern.parse(ends, MOST_CABLES))
