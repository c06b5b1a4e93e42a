"""A bring-up through BMCs and SSH ports that misbehave for a while: nobody helps, nothing is repeated, every node gets there."""

from collections.abc import Iterator

import pytest

from orchestrator.domain.operation import Action, Status
from tests.scenarios.lab_world import LabWorld, skip_unless_possible, write_spec

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FIRST, SECOND = "r01-n1", "r01-n2"
STALE = {"node": FIRST, "fault": "stale_firmware", "component": "NIC1", "version": "28.36.1010"}


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabWorld]:
    skip_unless_possible()
    world = LabWorld(tmp_path_factory.mktemp("passing"), hands="local")
    try:
        yield world
    finally:
        left = world.close()
    assert not left, f"the lab left behind: {left}"


def ended(world: LabWorld, node: str, action: Action, *statuses: Status) -> list[str]:
    """Reasons of the node's exchanges of that kind that ended like this."""
    events = world.events("node.ended", node)
    return [e.data["reason"] for e in events if e.data["action"] == action and e.data["status"] in statuses]


def test_nodes_whose_bmc_and_ssh_misbehave_for_a_while_get_there_by_themselves(world: LabWorld) -> None:
    spec = str(write_spec(world.folder / "two.yaml", [FIRST, SECOND], [STALE]))
    world.must("lab", "up", "--spec", spec)
    # The first: no session to be had, old news about its power, away and back and away again after its update.
    world.must("lab", "fault", FIRST, "session_pool_full")
    world.must("lab", "fault", FIRST, "power_state_stale", "seconds=2")
    world.must("lab", "fault", FIRST, "bmc_flaps_after_update", "period_s=2", "seconds=8")
    # The second: busy at first, and an sshd that drops every login until somebody looks after it.
    world.must(
        "lab", "fault", SECOND, "http_error", "path_prefix=/redfish/v1/Systems", "status=503", "retry_after_s=1", "remaining=2"
    )
    world.must("lab", "fault", SECOND, "ssh_full")
    apply = world.start("apply", spec, "--yes")
    world.wait_until(
        lambda: len(ended(world, SECOND, Action.SSH_IDENTIFY, Status.UNREACHABLE)) >= 2,
        "two logins of the second were dropped",
        apply,
    )
    world.must("lab", "fault", SECOND, "ssh_full", "--heal")
    done = apply.wait()
    assert done.status == 0, str(done)
    assert world.must("status", "--json").json()["counts"] == {"ready": 2}

    busy = [reason for action in Action for reason in ended(world, SECOND, action, Status.REFUSED)]
    assert len(busy) == 2 and all("answered 503" in reason for reason in busy)
    assert ended(world, FIRST, Action.BMC_FIRMWARE, Status.UNREACHABLE) + ended(world, FIRST, Action.BMC_TASK, Status.UNREACHABLE)
    for node in (FIRST, SECOND):
        resets = {path: times for path, times in world.writes(node).items() if "ComputerSystem.Reset" in path}
        assert list(resets.values()) == [1], f"{node}: power was switched {resets}"
    assert world.writes(FIRST)["POST /redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate"] == 1
