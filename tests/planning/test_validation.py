from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.spec import ClusterSpec, Feed, GpuSku, Node, Rack, Sku
from orchestrator.drivers.spec_reader import read_spec
from orchestrator.planning.power_checks import draw_by_feed_w, draw_by_rack_w, kilowatts
from orchestrator.planning.validation import check_spec

SPECS = Path(__file__).parents[2] / "cluster_specs"
LAB_4 = read_spec(SPECS / "lab-4.yaml", check_spec).spec


def a_spec(nodes: list[tuple[str, int]], rack_limits_w: list[float], feed_limit_w: float, node_w: float) -> ClusterSpec:
    """Nodes as (rack, unit), each one unit high and drawing `node_w`; every rack on one feed."""
    sku = Sku(manufacturer="M", model="M", units=1, idle_w=1, max_w=node_w, gpus=GpuSku(model="G", count=1))
    machines = tuple(
        Node(name=f"n{i}", rack=rack, unit=unit, sku="s", serial=f"S{i}", bmc=f"127.2.0.{i + 1}", address=f"127.1.0.{i + 1}")
        for i, (rack, unit) in enumerate(nodes)
    )
    racks = {f"r{i}": Rack(units=40, limit_w=limit_w, feed="A", leaf="l") for i, limit_w in enumerate(rack_limits_w)}
    changed = {
        "skus": {"s": sku},
        "racks": racks,
        "feeds": {"A": Feed(limit_w=feed_limit_w)},
        "nodes": machines,
        "firmware": {},
        "lab": None,
    }
    return LAB_4.model_copy(update=changed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.lists(st.integers(1, 40_000), min_size=3, max_size=3),
    st.integers(1, 100_000),
    st.integers(2, 3_000),
)
def test_a_rack_or_feed_is_named_exactly_when_its_nodes_draw_more_than_it_carries(
    homes: list[int], rack_limits_w: list[int], feed_limit_w: int, node_w: int
) -> None:
    places = [(f"r{home}", 1 + homes[:index].count(home)) for index, home in enumerate(homes)]
    spec = a_spec(places, [float(w) for w in rack_limits_w], float(feed_limit_w), float(node_w))
    wanted = {("racks", f"r{i}", "limit_w") for i, limit_w in enumerate(rack_limits_w) if homes.count(i) * node_w > limit_w}
    if len(homes) * node_w > feed_limit_w:
        wanted.add(("feeds", "A", "limit_w"))
    assert {finding.path for finding in check_spec(spec)} == wanted
    assert sum(draw_by_rack_w(spec).values()) == draw_by_feed_w(spec)["A"] == len(homes) * node_w


def test_the_way_out_of_an_overload_moves_as_few_nodes_as_it_takes() -> None:
    spec = a_spec([("r0", unit) for unit in range(1, 6)], [7_000.0], 99_000.0, 2_600.0)
    (finding,) = check_spec(spec)
    assert finding.message == "rack r0 draws 13.0 of 7.0 kW, 6.0 kW over"
    assert finding.hint.startswith("move 3 of its 5 nodes to another rack")


def test_a_rack_may_carry_exactly_its_limit() -> None:
    assert (
        check_spec(
            a_spec([("r0", unit) for unit in range(1, 4)], [0.3], 0.3, 0.1 + 1e-17).model_copy(update={"skus": tenth_of_a_watt()})
        )
        == []
    )


def tenth_of_a_watt() -> dict[str, Sku]:
    """Three times 0.1 is more than 0.3 for floats; for breakers it is not."""
    return {"s": Sku(manufacturer="M", model="M", units=1, idle_w=0.1, max_w=0.1, gpus=GpuSku(model="G", count=1))}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["r0", "r1"]), st.integers(1, 60)), min_size=1, max_size=12))
def test_room_in_racks_is_judged_as_a_picture_of_the_units_would(places: list[tuple[str, int]]) -> None:
    spec = a_spec(places, [1e6, 1e6], 1e6, 10.0)
    shared = len(places) - len(set(places))
    above = sum(1 for _, unit in places if unit > 40)
    findings = check_spec(spec)
    assert len([finding for finding in findings if "shared with" in finding.message]) == shared
    assert len([finding for finding in findings if "above its 40" in finding.message]) == above
    assert len(findings) == shared + above


def test_a_suggested_unit_is_free() -> None:
    spec = a_spec([("r0", 1), ("r0", 2), ("r0", 2), ("r0", 4)], [1e6], 1e6, 10.0)
    (finding,) = check_spec(spec)
    assert finding.hint == "unit 3 is the lowest with room for it"
    full = a_spec([("r0", unit) for unit in [*range(1, 41), 40]], [1e6], 1e6, 10.0)
    (finding,) = check_spec(full)
    assert finding.hint == "rack r0 has no room for 1 unit: move it to another rack"


def test_a_tall_machine_hides_no_later_overlap() -> None:
    tall = LAB_4.skus["lab-2g"].model_copy(update={"units": 20})
    short = LAB_4.skus["lab-2g"].model_copy(update={"units": 1})
    first, second, third, _ = LAB_4.nodes
    nodes = (
        first.model_copy(update={"unit": 1, "sku": "tall"}),
        second.model_copy(update={"unit": 2}),
        third.model_copy(update={"unit": 19, "rack": "r01"}),
    )
    spec = LAB_4.model_copy(update={"skus": {"tall": tall, "lab-2g": short}, "nodes": nodes, "lab": None})
    overlaps = [finding for finding in check_spec(spec) if "shared with" in finding.message]
    assert [finding.path for finding in overlaps] == [("nodes", 1, "unit"), ("nodes", 2, "unit")]
    assert all(finding.other == ("nodes", 0, "unit") for finding in overlaps)


def test_both_ends_of_a_point_to_point_subnet_are_usable() -> None:
    subnets = LAB_4.subnets.model_copy(update={"bmc": "127.2.1.0/31"})
    nodes = tuple(
        node.model_copy(update={"bmc": bmc}) for node, bmc in zip(LAB_4.nodes[:2], ("127.2.1.0", "127.2.1.1"), strict=True)
    )
    spec = LAB_4.model_copy(update={"subnets": subnets, "nodes": nodes, "lab": None})
    assert check_spec(spec) == []


def test_ipv6_addresses_are_checked_as_well() -> None:
    subnets = LAB_4.subnets.model_copy(update={"bmc": "fd00:2::/64"})
    nodes = tuple(node.model_copy(update={"bmc": f"fd00:2::{i}"}) for i, node in enumerate(LAB_4.nodes, 1))
    assert check_spec(LAB_4.model_copy(update={"subnets": subnets, "nodes": nodes})) == []
    wrong = (
        nodes[0].model_copy(update={"bmc": "fd00:2:0::"}),
        nodes[1].model_copy(update={"bmc": "fd00:2::1:0:0:0:1"}),
        *nodes[2:],
    )
    messages = [finding.message for finding in check_spec(LAB_4.model_copy(update={"subnets": subnets, "nodes": wrong}))]
    assert any("not in its canonical form" in message for message in messages)
    assert any("outside subnets.bmc fd00:2::/64" in message for message in messages)


def test_an_address_given_twice_is_found_however_it_is_dressed() -> None:
    nodes = (LAB_4.nodes[0], LAB_4.nodes[1].model_copy(update={"address": "::ffff:127.1.1.1"}), *LAB_4.nodes[2:])
    messages = [finding.message for finding in check_spec(LAB_4.model_copy(update={"nodes": nodes}))]
    assert "nodes[1] (r01-n2) has the address ::ffff:127.1.1.1, also that of nodes[0] (r01-n1)" in messages


@pytest.mark.parametrize(
    ("watts", "text"),
    [(0, "0.0"), (13_000, "13.0"), (12_040, "12.04"), (5_199, "5.199"), (0.1, "0.0001"), (1.25e6, "1250.0"), (0.5, "0.001")],
)
def test_kilowatts_show_at_least_one_decimal_and_lose_no_watt(watts: float, text: str) -> None:
    assert kilowatts(watts) == text


def test_a_redundancy_pair_of_one_node_is_no_pair() -> None:
    first, second, *rest = LAB_4.nodes
    alone = (first.model_copy(update={"pair": "heads"}), second, *rest)
    (finding,) = check_spec(LAB_4.model_copy(update={"nodes": alone}))
    assert finding.path == ("nodes", 0, "pair") and "r01-n1 is the only machine of the redundancy pair heads" in finding.message
    both = (alone[0], second.model_copy(update={"pair": "heads"}), *rest)
    assert check_spec(LAB_4.model_copy(update={"nodes": both})) == []
