"""What failed nodes share."""

from math import comb, isclose

import pytest

from orchestrator.domain.event import Event
from orchestrator.domain.node import Cause, Fact, NodeRecord, NodeState
from orchestrator.domain.operation import Action, Status
from orchestrator.domain.rollout import RolloutRecord
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.common_cause import common_causes, groups_of, judge, spare_the_silent
from orchestrator.planning.site import Site
from tests.planning.fleet import a_fleet

READY, QUARANTINED = NodeState.READY, NodeState.QUARANTINED


@pytest.fixture
def fleet() -> ClusterSpec:
    return a_fleet(racks=10, per_rack=8)


def records(spec: ClusterSpec, failed: set[str]) -> dict[str, NodeRecord]:
    return {node.name: NodeRecord(node.name, QUARANTINED if node.name in failed else READY) for node in spec.nodes}


def rollout_of(spec: ClusterSpec) -> RolloutRecord:
    return RolloutRecord(1, (tuple(node.name for node in spec.nodes),), finished=False)


def test_a_rack_with_most_of_the_failures_is_named_first(fleet: ClusterSpec) -> None:
    failed = {node.name for node in fleet.nodes if node.rack == "r03"} | {"r07-n1"}
    (first, *_) = common_causes(Site.of(fleet), rollout_of(fleet), records(fleet, failed))
    assert (first.kind, first.name, first.failed, first.size) == ("rack", "r03", 8, 8)
    assert first.p_value < 1e-6 and "rack r03: 8 of its 8 nodes failed" in str(first)


def test_failures_spread_over_the_racks_name_nothing(fleet: ClusterSpec) -> None:
    failed = {f"r{rack:02}-n{rack % 8 + 1}" for rack in range(1, 11)}
    assert common_causes(Site.of(fleet), rollout_of(fleet), records(fleet, failed)) == []


def test_two_failures_are_no_common_cause(fleet: ClusterSpec) -> None:
    assert common_causes(Site.of(fleet), rollout_of(fleet), records(fleet, {"r03-n1", "r03-n2"})) == []


def test_p_is_the_hypergeometric_tail_times_the_number_of_groups() -> None:
    members = {("rack", "a"): [f"a{i}" for i in range(8)], ("rack", "b"): [f"b{i}" for i in range(92)]}
    failed = {f"a{i}" for i in range(5)} | {"b0"}
    (cause,) = judge(members, failed, 100)
    tail = sum(comb(6, k) * comb(94, 8 - k) for k in range(5, 7)) / comb(100, 8)
    assert isclose(cause.p_value, 2 * tail, rel_tol=1e-9)


def silent(name: str, silences: int = 5) -> NodeRecord:
    return NodeRecord(name, NodeState.IDENTIFIED, silences=silences, last_status=str(Status.UNREACHABLE))


def doom(name: str) -> Event:
    return Event("node.moved", name, {"from": "identified", "to": "quarantined", "cause": str(Cause.UNREACHABLE), "because": ""})


def test_nodes_of_a_silent_rack_are_not_quarantined_and_the_rack_is_named(fleet: ClusterSpec) -> None:
    nodes = records(fleet, set())
    rack = [node.name for node in fleet.nodes if node.rack == "r03"]
    nodes |= {name: silent(name, 5 if name == "r03-n1" else 2) for name in rack}
    events = spare_the_silent([doom("r03-n1")], Site.of(fleet), rollout_of(fleet), nodes)
    assert [event.kind for event in events] == ["rollout.skipped", "rollout.stopped"]
    assert events[0].data["nodes"] == rack
    assert "rack r03 (8 of 8 nodes)" in events[1].data["because"]


def test_one_node_of_the_rack_that_answers_condemns_the_silent_one(fleet: ClusterSpec) -> None:
    nodes = records(fleet, set())
    nodes |= {name: silent(name) for name in (f"r03-n{i}" for i in range(1, 8))}
    assert spare_the_silent([doom("r03-n1")], Site.of(fleet), rollout_of(fleet), nodes) == [doom("r03-n1")]


def test_a_failed_check_in_a_silent_rack_is_still_a_failed_check(fleet: ClusterSpec) -> None:
    event = Event("node.moved", "r03-n1", {"from": "firmware_ok", "to": "quarantined", "cause": str(Cause.CHECK), "because": ""})
    nodes = records(fleet, set()) | {f"r03-n{i}": silent(f"r03-n{i}") for i in range(1, 9)}
    assert spare_the_silent([event], Site.of(fleet), rollout_of(fleet), nodes) == [event]


def test_all_six_groupings_are_looked_at_each_with_its_own_p_value(fleet: ClusterSpec) -> None:
    """One group of each kind holds all failures, spread evenly over the groups of every other kind."""
    index = {node.name: number for number, node in enumerate(fleet.nodes)}
    lots = {name: f"pallet-{number % 10}" for name, number in index.items()}
    nodes = tuple(node.model_copy(update={"lot": lots[node.name]}) for node in fleet.nodes)
    spec = fleet.model_copy(update={"nodes": nodes})
    failed = {name for name, lot in lots.items() if lot == "pallet-3"}
    causes = common_causes(Site.of(spec), rollout_of(spec), records(spec, failed))
    assert [(cause.kind, cause.name, cause.failed) for cause in causes] == [("lot", "pallet-3", 8)]
    parts = {"components": [{"id": "BIOS", "version": "2.7"}]}
    record = NodeRecord("r01-n1", facts={Action.BMC_FIRMWARE: Fact(1.0, parts)})
    kinds = [kind for kind, _ in groups_of(Site.of(spec), record)]
    assert kinds == ["rack", "feed", "leaf", "SKU", "lot", "firmware"]
