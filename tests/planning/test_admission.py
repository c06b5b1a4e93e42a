"""What admission promises, whatever fails: the failure budget, the blast radius, watts at each instant, who goes on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action, Operation
from orchestrator.domain.plan import Step
from orchestrator.domain.rollout import RolloutRecord
from orchestrator.domain.spec import ClusterSpec
from orchestrator.execution.controller import everything_settled
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.lab.simulation import SimulatedSite
from orchestrator.planning.fleet_book import FleetBook
from orchestrator.planning.power_book import PowerBook
from orchestrator.planning.rollout import admit, why_stop
from orchestrator.planning.site import Site
from tests.execution.site import Rehearsal, a_controller, apply_request
from tests.planning.fleet import a_fleet

READY, QUARANTINED, ENROLLED = NodeState.READY, NodeState.QUARANTINED, NodeState.ENROLLED
FEW = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
LOOK = Action.BMC_IDENTIFY


class CountingHands(SimulatedHands):
    """Hands that remember of whom anything was asked."""

    def __init__(self, site: SimulatedSite) -> None:
        super().__init__(site)
        self.asked: set[str] = set()

    def submit(self, operations: Sequence[Operation]) -> None:
        self.asked.update(operation.node for operation in operations)
        super().submit(operations)


class Watched(Rehearsal):
    """A bring-up that is looked at after every tick."""

    def watch(self) -> Iterator[None]:
        self.journal.request(apply_request(self.spec))
        self.hands = CountingHands(self.site)
        controller = a_controller(self.journal, self.hands, self.clock, self.home)
        self.state = controller.state
        done = False
        while not done:
            moved = controller.tick()
            yield
            done = everything_settled(controller.state)
            if not moved and not done:
                self.clock.wait_s(0.5)
        controller.close()


@FEW
@given(
    canary=st.integers(1, 6),
    growth=st.sampled_from([1.0, 2.0, 4.0]),
    budget=st.integers(0, 4),
    wave_budget=st.none() | st.integers(0, 2),
    bad=st.sets(st.integers(0, 8), max_size=9),
)
def test_failures_never_exceed_the_budget_by_more_than_what_was_in_flight(
    canary: int, growth: float, budget: int, wave_budget: int | None, bad: set[int]
) -> None:
    policy: dict[str, Any] = {"canary": canary, "growth": growth, "failure_budget": budget, "wave_failure_budget": wave_budget}
    with TemporaryDirectory() as folder:
        site = Watched(Path(folder), a_fleet(racks=3, per_rack=3, **policy), seed=len(bad))
        for index in bad:
            name = site.spec.nodes[index].name
            site.site.nodes[name].machine.fault("wrong_serial", site.site.now_s, serial="STRANGER")
        in_flight_at_stop: set[str] | None = None
        for _ in site.watch():
            nodes = site.state.nodes
            if site.state.rollout.stopped_because and in_flight_at_stop is None:
                in_flight_at_stop = set(site.hands.asked)
            if in_flight_at_stop is not None:
                assert site.hands.asked <= in_flight_at_stop, "a node began after the breaker had stopped the rollout"
        failed = [name for name, record in site.state.nodes.items() if record.state is QUARANTINED]
        if in_flight_at_stop is None:
            assert len(failed) <= budget and set(nodes) == site.hands.asked
        else:
            per_wave = Counter(index for index, wave in enumerate(site.state.rollout.waves) for name in wave if name in failed)
            assert len(failed) > budget or max(per_wave.values()) > (wave_budget if wave_budget is not None else 99)


def test_unreachable_and_timed_out_nodes_count_against_the_budget(tmp_path: Path) -> None:
    site = Rehearsal(tmp_path, a_fleet(racks=2, per_rack=2, canary=4, failure_budget=0, stage_limit_s=60))
    site.site.nodes["r01-n1"].power_on = lambda boot: None  # type: ignore[method-assign]
    state = site.apply()
    assert state.nodes["r01-n1"].state is QUARANTINED and state.nodes["r01-n1"].cause in ("timed out", "unreachable")
    assert FleetBook(Site.of(site.spec), state.rollout, state.nodes).failed == {"r01-n1": None}


def test_the_tick_that_sees_the_last_allowed_failure_starts_no_other_node() -> None:
    spec = a_fleet(racks=1, per_rack=4, canary=4, failure_budget=0)
    names = [node.name for node in spec.nodes]
    nodes = {name: NodeRecord(name) for name in names} | {names[0]: NodeRecord(names[0], QUARANTINED)}
    rollout = RolloutRecord(1, (tuple(names),), finished=False)
    admitted, refused = admit([Step(names[1], LOOK, "")], rollout, nodes, Site.of(spec))
    assert admitted == [] and "failure budget is 0" in refused[0].because


def test_max_unavailable_takes_off_the_nodes_that_are_unhealthy_already() -> None:
    spec = a_fleet(racks=1, per_rack=8, canary=8, failure_budget=8, max_unavailable=4)
    names = [node.name for node in spec.nodes]
    sick = {names[0]: NodeState.QUARANTINED, names[1]: NodeState.MAINTENANCE, names[2]: READY}
    nodes = {name: NodeRecord(name, sick.get(name, ENROLLED)) for name in names}
    rollout = RolloutRecord(1, (tuple(names),), finished=False)
    admitted, refused = admit([Step(name, LOOK, "") for name in names[3:]], rollout, nodes, Site.of(spec))
    assert [step.node for step in admitted] == names[3:5], "four may be out, two are: two may begin"
    assert "max_unavailable is 4" in refused[0].because


def test_a_node_in_no_rollout_is_not_worked_on() -> None:
    spec = a_fleet(racks=1, per_rack=2)
    nodes = {node.name: NodeRecord(node.name) for node in spec.nodes}
    rollout = RolloutRecord(1, (("r01-n1",),), finished=False)
    admitted, refused = admit([Step("r01-n2", LOOK, "")], rollout, nodes, Site.of(spec))
    assert admitted == [] and "no rollout includes it" in refused[0].because


def down_now(site: Rehearsal, spec: ClusterSpec) -> Counter[tuple[str, str]]:
    """Nodes per rack, feed and leaf that are really off the air after a power-on: on, and not yet up."""
    found: Counter[tuple[str, str]] = Counter()
    for node in spec.nodes:
        machine = site.site.nodes[node.name]
        if machine.boot and not machine.is_up:
            rack = spec.racks[node.rack]
            found.update([("rack", node.rack), ("feed", rack.feed), ("leaf", rack.leaf)])
    return found


@pytest.mark.parametrize(
    ("field", "kind", "limit"), [("down_per_rack", "rack", 1), ("down_per_feed", "feed", 2), ("down_per_leaf", "leaf", 3)]
)
def test_no_more_nodes_of_a_rack_feed_or_leaf_are_down_at_once_than_allowed(
    tmp_path: Path, field: str, kind: str, limit: int
) -> None:
    site = Watched(tmp_path, a_fleet(racks=3, per_rack=4, canary=12, **{field: limit}))
    most = 0
    for _ in site.watch():
        most = max([most, *(count for (each, _), count in down_now(site, site.spec).items() if each == kind)])
    assert {record.state for record in site.state.nodes.values()} == {READY}
    assert most == limit, "the limit is kept, and used"


def drawn_w(site: Rehearsal, on_since_s: dict[str, float], factor: float, inrush_s: float) -> dict[tuple[str, str], float]:
    """The most every rack and feed could draw at this instant, from what the machines do."""
    load: dict[tuple[str, str], float] = {}
    for node in site.spec.nodes:
        machine = site.site.nodes[node.name]
        if not machine.is_on:
            on_since_s.pop(node.name, None)
            continue
        since_s = on_since_s.setdefault(node.name, site.clock.now_s())
        rushing = site.clock.now_s() - since_s < inrush_s
        watts = machine.sku.max_w * (factor if rushing else 1.0)
        for part in (("rack", node.rack), ("feed", site.spec.racks[node.rack].feed)):
            load[part] = load.get(part, 0.0) + watts
    return load


@settings(FEW, max_examples=5)
@given(
    per_rack_nodes=st.sampled_from([2.5, 4.0, 6.0]),
    feed_nodes=st.sampled_from([5.0, 9.0, 40.0]),
    factor=st.sampled_from([1.0, 1.5, 2.0]),
    inrush_s=st.sampled_from([2.0, 10.0]),
)
def test_no_rack_or_feed_carries_more_than_its_limit_at_any_instant(
    per_rack_nodes: float, feed_nodes: float, factor: float, inrush_s: float
) -> None:
    policy = {"canary": 16, "failure_budget": 16, "stage_limit_s": 60.0, "inrush_factor": factor, "inrush_s": inrush_s}
    with TemporaryDirectory() as folder:
        spec = a_fleet(racks=3, per_rack=4, rack_w=2600 * per_rack_nodes, feed_w=2600 * feed_nodes, **policy)
        site = Watched(Path(folder), spec, seed=3)
        on_since_s: dict[str, float] = {}
        for _ in site.watch():
            for (kind, name), watts in drawn_w(site, on_since_s, factor, inrush_s).items():
                limit_w = 2600 * (per_rack_nodes if kind == "rack" else feed_nodes)
                assert watts <= limit_w + 1e-6, f"{kind} {name} carries {watts} of {limit_w} W"
        assert on_since_s, "nothing was powered on, so nothing was proven"


def test_more_headroom_is_more_speed(tmp_path: Path) -> None:
    took_s = []
    for index, share in enumerate((5.0, 20.0)):
        folder = tmp_path / str(index)
        folder.mkdir()
        policy = {"canary": 8, "failure_budget": 8, "inrush_factor": 2.0, "inrush_s": 20.0}
        site = Rehearsal(folder, a_fleet(racks=2, per_rack=4, rack_w=2600 * share, **policy))
        began_s = site.clock.now_s()
        assert {record.state for record in site.apply().nodes.values()} == {READY}
        took_s.append(site.clock.now_s() - began_s)
    assert took_s[1] < took_s[0] - 20.0


def test_full_load_waits_while_the_rack_carries_too_much() -> None:
    spec = a_fleet(racks=1, per_rack=3, rack_w=2600 * 2)
    names = [node.name for node in spec.nodes]
    on = {"pins": {"bmc_certificate_sha256": "x"}, "state": NodeState.FIRMWARE_OK}
    nodes = {name: NodeRecord(name, **on) for name in names}  # type: ignore[arg-type]
    rollout = RolloutRecord(1, (tuple(names),), finished=False)
    admitted, refused = admit([Step(names[0], Action.NODE_COMPUTE, "")], rollout, nodes, Site.of(spec))
    assert admitted == [] and "rack r01 would carry 7800 W of 5200 W" in refused[0].because


def test_books_kept_record_by_record_equal_books_made_anew(tmp_path: Path) -> None:
    site = Watched(tmp_path, a_fleet(racks=2, per_rack=4, canary=2, growth=2, failure_budget=4, inrush_factor=1.5))
    site.site.nodes["r01-n2"].machine.fault("wrong_serial", site.site.now_s, serial="STRANGER")
    kept: FleetBook | None = None
    index = Site.of(site.spec)
    for _ in site.watch():
        if kept is None or kept.rollout is not site.state.rollout:
            kept = FleetBook(index, site.state.rollout, site.state.nodes)
        for record in site.state.nodes.values():
            kept.follow(record)
        fresh = FleetBook(index, site.state.rollout, site.state.nodes)
        assert (set(kept.in_work), set(kept.failed), kept.open_wave) == (set(fresh.in_work), set(fresh.failed), fresh.open_wave)
        assert {k: v for k, v in kept.down_in.items() if v} == {k: v for k, v in fresh.down_in.items() if v}
        for part in (("rack", "r01"), ("rack", "r02"), ("feed", "A"), ("feed", "B")):
            assert abs(kept.power.load_w(part) - fresh.power.load_w(part)) < 1e-6
    assert why_stop(FleetBook(index, site.state.rollout, site.state.nodes), site.spec.rollout) == ""


def test_a_node_that_proves_itself_again_is_reckoned_as_on_before_anything_was_read() -> None:
    spec = a_fleet(racks=1, per_rack=1)
    again = NodeRecord("r01-n1", NodeState.IDENTIFIED, pins={"bmc_certificate_sha256": "x"})
    new = NodeRecord("r01-n1", NodeState.IDENTIFIED)
    assert PowerBook.of({"r01-n1": again}, Site.of(spec)).load_w(("rack", "r01")) == 2600
    assert PowerBook.of({"r01-n1": new}, Site.of(spec)).load_w(("rack", "r01")) == 0


def dual_fed(feed_nodes: float, on_feed_loss: str, count: int = 6) -> ClusterSpec:
    """One rack whose nodes hang on two PDUs, one below each feed; a feed carries `feed_nodes` nodes."""
    spec = a_fleet(racks=1, per_rack=count, feed_w=2600 * feed_nodes)
    data = spec.model_dump(mode="json")
    data["skus"]["lab-2g"]["supplies"] = {"count": 4, "capacity_w": 2600, "least": 1}
    data["power"] = {
        "on_feed_loss": on_feed_loss,
        "elements": {f"pdu-{feed}": {"kind": "pdu", "fed_by": feed, "limit_w": 1e6} for feed in "AB"},
    }
    data["racks"]["r01"]["pdus"] = ["pdu-A", "pdu-B"]
    return ClusterSpec.model_validate(data)


@pytest.mark.parametrize(("on_feed_loss", "admitted"), [("survive", 4), ("lose", 8)])
def test_power_on_leaves_room_for_the_loss_of_a_feed_where_machines_must_survive_it(on_feed_loss: str, admitted: int) -> None:
    """Eight nodes on two feeds of four nodes each: all fit, four fit when one feed must carry them alone."""
    spec = dual_fed(4.0, on_feed_loss, count=10)
    nodes = {node.name: NodeRecord(node.name, NodeState.CREDENTIALED) for node in spec.nodes}
    rollout = RolloutRecord(1, (tuple(nodes),), finished=False)
    steps = [Step(name, Action.BMC_POWER, "", {"reset": "On"}) for name in nodes]
    went, refused = admit(steps, rollout, nodes, Site.of(spec))
    assert len(went) == admitted
    assert ("with feed" in refused[0].because) is (on_feed_loss == "survive")


def test_one_half_of_a_redundancy_pair_goes_down_at_a_time(tmp_path: Path) -> None:
    spec = a_fleet(racks=2, per_rack=2, canary=4)
    halves = ("r01-n1", "r02-n1")
    nodes = tuple(node.model_copy(update={"pair": "heads" if node.name in halves else None}) for node in spec.nodes)
    site = Watched(tmp_path, spec.model_copy(update={"nodes": nodes}))
    together, others = 0, 0
    for _ in site.watch():
        down = {name for name, machine in site.site.nodes.items() if machine.boot and not machine.is_up}
        together = max(together, len(down & set(halves)))
        others = max(others, len(down))
    assert {record.state for record in site.state.nodes.values()} == {READY}
    assert together == 1 and others == 3, "the halves one after the other, the others beside them"


def test_what_waits_for_the_other_half_says_so() -> None:
    spec = a_fleet(racks=1, per_rack=2)
    spec = spec.model_copy(update={"nodes": tuple(node.model_copy(update={"pair": "heads"}) for node in spec.nodes)})
    nodes = {node.name: NodeRecord(node.name, NodeState.CREDENTIALED) for node in spec.nodes}
    rollout = RolloutRecord(1, (tuple(nodes),), finished=False)
    steps = [Step(name, Action.BMC_POWER, "", {"reset": "On"}) for name in nodes]
    admitted, (refused,) = admit(steps, rollout, nodes, Site.of(spec))
    assert [step.node for step in admitted] == ["r01-n1"]
    assert refused.because == "1 node of pair heads is down for power or firmware, the limit is 1"


@pytest.mark.parametrize("action", [Action.BMC_UPDATE, Action.NODE_COMPUTE])
@pytest.mark.parametrize(("feed_nodes", "goes"), [(2.5, False), (3.0, True)])
def test_firmware_and_burn_in_are_admitted_against_the_loss_of_a_feed(action: Action, feed_nodes: float, goes: bool) -> None:
    """Three machines are on, found so or switched on by hand; one feed alone must carry them when the other is lost."""
    spec = dual_fed(feed_nodes, "survive", count=3)
    on = {"pins": {"bmc_certificate_sha256": "x"}, "state": NodeState.CONFIGURED}
    nodes = {node.name: NodeRecord(node.name, **on) for node in spec.nodes}  # type: ignore[arg-type]
    rollout = RolloutRecord(1, (tuple(nodes),), finished=False)
    admitted, refused = admit([Step("r01-n1", action, "")], rollout, nodes, Site.of(spec))
    assert bool(admitted) is goes
    assert goes or "feed B would carry 7800 W of 6500 W with feed A lost" in refused[0].because
