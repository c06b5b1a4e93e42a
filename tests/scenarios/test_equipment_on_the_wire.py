"""Switches and power shelves of a lab rack, brought up over Redfish: their BMCs show a chassis and no computer system."""

from collections.abc import Iterator

import pytest

from tests.scenarios.lab_world import PROJECT, LabWorld, skip_unless_possible

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SPEC = str(PROJECT / "cluster_specs" / "lab-rack.yaml")
EQUIPMENT = ("leaf-1", "nvswitch1", "shelf1", "shelf2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabWorld]:
    skip_unless_possible()
    world = LabWorld(tmp_path_factory.mktemp("rack"), hands="local")
    try:
        world.must("lab", "up", "--spec", SPEC)
        yield world
    finally:
        world.close()


def test_equipment_comes_up_by_redfish_alone(world: LabWorld) -> None:
    planned = world.must("plan", SPEC, "--json").json()["steps"]
    assert {step["node"] for step in planned if step["wave"] <= 2} == set(EQUIPMENT)
    applied = world.must("apply", SPEC, "--yes", "--limit", ",".join(EQUIPMENT))
    assert "4 of 4 pieces of equipment are ready" in applied.stdout
    status = world.must("status", "--json").json()
    assert {row["name"]: (row["state"], row["kind"]) for row in status["equipment"]} == {
        "leaf-1": ("ready", "leaf-switch"),
        "nvswitch1": ("ready", "switch-tray"),
        "shelf1": ("ready", "power-shelf"),
        "shelf2": ("ready", "power-shelf"),
    }
    assert [row["state"] for row in status["nodes"]] == ["enrolled"]
    assert status["equipment_counts"] == {"ready": 4}
    for name in EQUIPMENT:
        updates = sum("SimpleUpdate" in change for change in world.writes(name))
        assert updates == (name == "nvswitch1")
        assert not [request for request in world.requests(name) if request.path.startswith("/redfish/v1/Systems")]
    assert not world.requests("tray1") or not world.writes("tray1")


def test_the_audit_of_equipment_asks_its_bmc(world: LabWorld) -> None:
    audit = world.must("firmware", "audit", "nvswitch1,leaf-1", "--fresh", "--json").json()["nodes"]
    found = {(row["name"], part["name"]): part["installed"] for row in audit for part in row["components"]}
    assert found["nvswitch1", "EROT"] == "01.04.0031"
    assert found["leaf-1", "OS"] == "31.2014.1000"


def test_faults_of_nodes_cannot_happen_to_equipment(world: LabWorld) -> None:
    for fault in ("gpu_lost", "silent"):
        refused = world.rackray("lab", "fault", "shelf1", fault)
        assert refused.status != 0 and "equipment" in refused.stderr


def test_a_second_apply_writes_nothing_to_equipment(world: LabWorld) -> None:
    before = {name: world.writes(name) for name in EQUIPMENT}
    done = world.must("apply", SPEC, "--yes", "--limit", ",".join(EQUIPMENT))
    assert "nothing to do" in done.stdout
    assert {name: world.writes(name) for name in EQUIPMENT} == before
