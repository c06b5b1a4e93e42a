"""What NCCL itself reckons a collective takes: latency and rate of its algorithms and protocols.

The numbers are those of NCCL 2.2x, `src/graph/tuning.cc`: `baseLatencies`, `hwLatencies` and the shares of the rate that the
protocols reach. A ring all-reduce takes 2(n-1) steps of which 2(nodes-1) cross the network, a tree two times the depth of nodes
and the chain inside one; NCCL takes whichever is fastest for the size, and so does this.
"""

from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One algorithm in one protocol."""

    tree: bool
    base_s: float
    """Once per collective."""
    near_s: float
    """Per step over NVLink."""
    far_s: float
    """Per step over the network."""
    rate: float
    """Share of the wire's rate that is left for data."""


WAYS = (
    Way(tree=False, base_s=6.6e-6, near_s=0.6e-6, far_s=2.7e-6, rate=0.5),
    Way(tree=False, base_s=14.0e-6, near_s=1.9e-6, far_s=4.0e-6, rate=0.92),
    Way(tree=False, base_s=8.4e-6, near_s=3.4e-6, far_s=14.0e-6, rate=1.0),
    Way(tree=True, base_s=6.8e-6, near_s=0.6e-6, far_s=5.0e-6, rate=0.46),
    Way(tree=True, base_s=14.0e-6, near_s=1.25e-6, far_s=8.5e-6, rate=0.85),
    Way(tree=True, base_s=8.4e-6, near_s=4.0e-6, far_s=14.0e-6, rate=0.92),
)
"""Rings and trees in the protocols LL, LL128 and Simple."""
SPINE_S = 1.2e-6
"""More per step whose cable leads over a spine: two switches of 0.3 us each way and some hundred metres of fibre."""


def fastest_s(wire_s: Floats, rounds: float, ranks: Floats, nodes: Floats, spines: Floats) -> Floats:
    """Seconds of the fastest way to do a collective that moves its bytes in `wire_s` at the wire's full rate.

    `rounds`: 2 for an all-reduce, 1 for a reduce-scatter or an all-gather, which have no tree. `spines`: the share of steps
    between nodes that lead over a spine.
    """
    apart = np.maximum(nodes - 1.0, 0.0)
    close = np.maximum(ranks - 1.0 - apart, 0.0)
    depth = np.log2(np.maximum(nodes, 1.0))
    chain = np.maximum(ranks / np.maximum(nodes, 1.0) - 1.0, 0.0)
    best: Floats | None = None
    for way in WAYS:
        if way.tree and rounds < 2.0:
            continue
        hop_s = way.far_s + SPINE_S * spines
        steps_s = rounds * ((chain * way.near_s + depth * hop_s) if way.tree else (close * way.near_s + apart * hop_s))
        seconds = way.base_s + steps_s + wire_s / way.rate
        best = seconds if best is None else np.minimum(best, seconds)
    assert best is not None  # noqa: S101 - there is always a ring
    return best
