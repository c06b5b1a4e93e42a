"""Fleets of any size, made in code: racks of eight nodes, each rack with its leaf, four feeds."""

import functools

from orchestrator.domain.spec import ClusterSpec, Equipment, FirmwareComponent, Node, Rollout, Sku
from tests.execution.site import lab_4

NODES_PER_RACK = 8
FEEDS = ("A", "B", "C", "D")


def a_fleet(nodes: int, rollout: Rollout | None = None, *, headroom: float = 1.25) -> ClusterSpec:
    """`nodes` nodes of the lab's SKU. Racks and feeds carry `headroom` times what their nodes draw at most."""
    lab = _lab()
    (sku_name, sku), *_ = lab.skus.items()
    racks = -(-nodes // NODES_PER_RACK)
    rack, feed = next(iter(lab.racks.values())), next(iter(lab.feeds.values()))
    rack_w = sku.max_w * NODES_PER_RACK * headroom
    feed_w = rack_w * -(-racks // len(FEEDS))
    made = {
        "feeds": {name: feed.model_copy(update={"limit_w": feed_w}) for name in FEEDS},
        "racks": {
            _rack(i): rack.model_copy(update={"limit_w": rack_w, "feed": FEEDS[i % 4], "leaf": f"leaf-{i}"}) for i in range(racks)
        },
        "nodes": tuple(_node(lab.nodes[0], i, sku_name) for i in range(nodes)),
        "rollout": rollout or lab.rollout,
        "lab": None,
    }
    return lab.model_copy(update=made)


def with_a_leaf_per_rack(spec: ClusterSpec) -> ClusterSpec:
    """`spec` with a leaf switch in every rack, whose BMC and firmware the controller looks after too."""
    leaf = Sku(kind="leaf-switch", manufacturer="Rackray", model="LAB-LEAF", units=1, idle_w=10, max_w=50, ports=8)
    switches = tuple(
        Equipment(name=rack.replace("r", "leaf-"), rack=rack, unit=40, sku="leaf", serial=f"L{rack}", bmc=f"12.0.0.{place}")
        for place, rack in enumerate(spec.racks, start=1)
    )
    firmware = {"OS": FirmwareComponent(approved=("31.2014",), image="/firmware/leaf-os.bin")}
    more = {"skus": {**spec.skus, "leaf": leaf}, "firmware": {**spec.firmware, "leaf": firmware}, "equipment": switches}
    return spec.model_copy(update=more)


@functools.cache
def _lab() -> ClusterSpec:
    return lab_4()


def _rack(index: int) -> str:
    return f"r{index:04d}"


def _node(pattern: Node, index: int, sku: str) -> Node:
    rack, place = divmod(index, NODES_PER_RACK)
    low = f"{index // 62500}.{index // 250 % 250}.{index % 250 + 1}"
    return pattern.model_copy(
        update={
            "name": f"{_rack(rack)}-n{place + 1}",
            "rack": _rack(rack),
            "unit": 1 + 4 * place,
            "sku": sku,
            "serial": f"F{index:07d}",
            "bmc": f"10.{low}",
            "address": f"11.{low}",
            "mac": f"02:00:00:{index >> 16 & 255:02x}:{index >> 8 & 255:02x}:{index & 255:02x}",
        }
    )
