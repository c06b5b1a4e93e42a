"""Fleets made in code: racks of equal nodes on two feeds, eight racks to a leaf."""

from orchestrator.domain.spec import ClusterSpec
from tests.execution.site import lab_4


def a_fleet(racks: int, per_rack: int, rack_w: float = 1e6, feed_w: float = 1e9, **policy: object) -> ClusterSpec:
    """`racks` × `per_rack` nodes named r01-n1, r01-n2, ...; `policy` replaces fields of `rollout`."""
    spec = lab_4()
    template, rack = spec.nodes[0], spec.racks["r01"]
    names = [f"r{number:02}" for number in range(1, racks + 1)]
    nodes = tuple(
        template.model_copy(
            update={
                "name": f"{name}-n{unit}",
                "rack": name,
                "unit": unit,
                "serial": f"SN-{name}-{unit}",
                "bmc": f"127.2.{number}.{unit}",
                "address": f"127.1.{number}.{unit}",
                "mac": f"02:00:00:00:{number:02x}:{unit:02x}",
            }
        )
        for number, name in enumerate(names, start=1)
        for unit in range(1, per_rack + 1)
    )
    return spec.model_copy(
        update={
            "nodes": nodes,
            "racks": {
                name: rack.model_copy(update={"limit_w": rack_w, "feed": "AB"[i % 2], "leaf": f"leaf-{i // 8 + 1}"})
                for i, name in enumerate(names)
            },
            "feeds": {key: feed.model_copy(update={"limit_w": feed_w}) for key, feed in spec.feeds.items()},
            "rollout": spec.rollout.model_copy(update=policy),
            "lab": spec.lab.model_copy(update={"plant": ()}) if spec.lab else None,
        }
    )
