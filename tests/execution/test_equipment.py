"""Switches and power shelves go through the same controller: identity, password, firmware, a last look; and nothing else."""

from pathlib import Path

import pytest

from orchestrator.domain.node import EQUIPMENT_BRING_UP, NodeRecord, NodeState, can_move
from orchestrator.domain.operation import Action
from orchestrator.domain.spec import ClusterSpec, Equipment, FirmwareComponent, LabFault, Sku
from orchestrator.domain.spec_power import Supplies
from orchestrator.drivers.spec_reader import read_spec
from orchestrator.lab.machine import MachineError
from orchestrator.planning.estimate import StageTimes, rest_of_node
from orchestrator.planning.placement import placeable
from orchestrator.planning.power_book import PowerBook
from orchestrator.planning.preview import preview
from orchestrator.planning.site import Site
from orchestrator.planning.validation import check_spec
from tests.execution.site import SPECS, Rehearsal, lab_4

LEAF = Sku(kind="leaf-switch", manufacturer="NVIDIA", model="Q3400", units=1, idle_w=300, max_w=500, ports=8)
SHELF = Sku(
    kind="power-shelf",
    manufacturer="Delta",
    model="ORV3",
    units=1,
    idle_w=50,
    max_w=100,
    supplies=Supplies(count=6, capacity_w=5500),
)
BY_BMC_ALONE = {Action.BMC_CREDENTIAL, Action.BMC_UPDATE}


def with_equipment(*faults: LabFault, shelf_bmc: str | None = "127.2.9.2") -> ClusterSpec:
    """lab-4 without its own faults, with a leaf switch whose firmware has an image, and a power shelf."""
    spec = lab_4()
    assert spec.lab is not None
    firmware = {"OS": FirmwareComponent(approved=("31.2014",), image="/firmware/leaf-os.bin")}
    return spec.model_copy(
        update={
            "skus": {**spec.skus, "leaf": LEAF, "shelf": SHELF},
            "firmware": {**spec.firmware, "leaf": firmware},
            "equipment": (
                Equipment(name="leaf-a", rack="r01", unit=40, sku="leaf", serial="LEAF1", bmc="127.2.9.1"),
                Equipment(name="shelf-a", rack="r02", unit=40, sku="shelf", serial="SHELF1", bmc=shelf_bmc),
            ),
            "lab": spec.lab.model_copy(update={"plant": faults}),
        }
    )


def test_equipment_is_ready_first_and_only_its_bmc_was_touched(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, with_equipment())
    state = rehearsal.apply()
    assert set(rehearsal.states().values()) == {NodeState.READY}
    assert state.rollout.waves[:2] == (("leaf-a",), ("shelf-a",))
    events = [event for event in rehearsal.journal.events() if event.kind == "node.moved" and event.subject == "leaf-a"]
    assert [event.data["to"] for event in events] == [*map(str, EQUIPMENT_BRING_UP[1:]), "ready"]
    ready_at_s = max(event.at_s for event in events)
    deeds = {name: [deed for deed in rehearsal.site.deeds if deed.node == name] for name in rehearsal.states()}
    assert {deed.action for name in ("leaf-a", "shelf-a") for deed in deeds[name]} <= BY_BMC_ALONE
    assert min(deed.at_s for name in deeds if name.startswith("r0") for deed in deeds[name]) > ready_at_s


def test_stale_firmware_of_a_switch_is_updated_and_read_back(tmp_path: Path) -> None:
    stale = LabFault(node="leaf-a", fault="stale_firmware", component="OS", version="30.1")
    rehearsal = Rehearsal(tmp_path, with_equipment(stale))
    state = rehearsal.apply()
    updates = [(deed.node, deed.args["version"]) for deed in rehearsal.site.deeds if deed.action is Action.BMC_UPDATE]
    assert updates == [("leaf-a", "31.2014")]
    record = state.nodes["leaf-a"]
    assert record.state is NodeState.READY
    assert record.facts[Action.BMC_FIRMWARE].values["components"][0]["version"] == "31.2014"
    assert record.fact_at_s(Action.BMC_OBSERVE) > record.fact_at_s(Action.BMC_UPDATE)


def test_another_switch_behind_the_address_is_quarantined_and_never_written_to(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, with_equipment())
    rehearsal.site.nodes["leaf-a"].machine.fault("wrong_serial", rehearsal.site.now_s, serial="LEAF9")
    state = rehearsal.apply()
    assert state.nodes["leaf-a"].state is NodeState.QUARANTINED
    assert "LEAF9" in state.nodes["leaf-a"].because
    assert not [deed for deed in rehearsal.site.deeds if deed.node == "leaf-a"]


def test_equipment_that_its_bmc_calls_critical_is_quarantined(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, with_equipment())
    rehearsal.site.nodes["shelf-a"].machine.fault("inlet_hot", rehearsal.site.now_s, celsius=60)
    state = rehearsal.apply()
    assert state.nodes["shelf-a"].state is NodeState.QUARANTINED
    assert "power-shelf calls its health Critical" in state.nodes["shelf-a"].because
    assert sum(record.state is NodeState.READY for record in state.nodes.values()) == 5


def test_equipment_without_a_bmc_is_left_alone_and_draws_all_the_same(tmp_path: Path) -> None:
    spec = with_equipment(shelf_bmc=None)
    rehearsal = Rehearsal(tmp_path, spec)
    assert "shelf-a" not in rehearsal.apply().nodes
    book = PowerBook(Site.of(spec))
    assert (book.load_w(("rack", "r01")), book.load_w(("rack", "r02"))) == (500, 100)


def test_equipment_is_never_placed_and_is_counted_apart(tmp_path: Path) -> None:
    spec = with_equipment()
    site = Site.of(spec)
    state = Rehearsal(tmp_path, spec).apply()
    assert [name for name in site.computes if placeable(site, state.nodes[name])] == ["r01-n1", "r01-n2", "r02-n1", "r02-n2"]
    assert next(iter(state.answers.values())) == "4 nodes and 2 pieces of equipment to bring up"


def test_a_switch_is_drained_and_proves_itself_again_without_a_system(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, with_equipment())
    rehearsal.apply()
    state = rehearsal.request("request.drain", nodes=["leaf-a"], reason="new optics")
    assert state.nodes["leaf-a"].state is NodeState.MAINTENANCE
    state = rehearsal.request("request.requalify", nodes=["leaf-a"], reason="optics changed")
    assert state.nodes["leaf-a"].state is NodeState.READY
    machine = rehearsal.site.nodes["leaf-a"].machine
    with pytest.raises(MachineError, match="no computer system"):
        machine.reset("ForceOff", rehearsal.site.now_s)


def test_every_step_of_an_nvl72_rack_is_planned_equipment_first() -> None:
    site = Site.of(read_spec(SPECS / "example-gb200-nvl72.yaml", check_spec).spec)
    planned = preview(site, {}, {})
    waves = {each.step.node: each.wave for each in planned}
    equipment = [name for name in site.nodes if name not in site.computes]
    assert len(equipment) == 17 and len(waves) == 35
    assert max(waves[name] for name in equipment) < min(waves[name] for name in site.computes)
    assert {each.step.action for each in planned if each.step.node == "shelf1"} == {
        Action.BMC_IDENTIFY,
        Action.BMC_CREDENTIAL,
        Action.BMC_FIRMWARE,
        Action.BMC_OBSERVE,
    }


def test_busbar_trays_draw_through_their_racks_power_shelves() -> None:
    book = PowerBook(Site.of(read_spec(SPECS / "example-gb200-nvl72.yaml", check_spec).spec))
    book.charge("tray01")
    without = book.load_w(("pdu", "tap-a"))
    book.charge("tray02")
    assert book.load_w(("pdu", "tap-a")) - without == pytest.approx(6667 / 2)
    shelves_w = 4 * 300
    # With feed A gone its four shelves are dead: their own losses are gone, and the others carry the whole busbar.
    grown_w = book.load_w(("pdu", "tap-b"), lost="A") - book.load_w(("pdu", "tap-b"))
    assert grown_w == pytest.approx(book.load_w(("pdu", "tap-a")) - shelves_w)


def test_the_time_left_of_equipment_needs_only_the_stages_it_has(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, with_equipment())
    rehearsal.apply()
    times = StageTimes().learn([event for event in rehearsal.journal.events() if event.subject in ("leaf-a", "cluster")])
    assert rest_of_node(NodeRecord("leaf-b", kind="leaf-switch"), "leaf", times, 0.0) is not None
    assert rest_of_node(NodeRecord("r09-n1"), "lab-2g", times, 0.0) is None


def test_moves_of_nodes_are_no_moves_of_equipment() -> None:
    assert can_move(NodeState.CREDENTIALED, NodeState.POWERED)
    assert not can_move(NodeState.CREDENTIALED, NodeState.POWERED, "leaf-switch")
    assert can_move(NodeState.CREDENTIALED, NodeState.FIRMWARE_OK, "leaf-switch")
    assert not can_move(NodeState.READY, NodeState.ALLOCATED, "power-shelf")
    assert not can_move(NodeState.IMAGED, NodeState.QUARANTINED, "power-shelf")
