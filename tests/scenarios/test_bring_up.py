"""From delivery to a cluster in service, and two nodes more: what the commands said, and what the machines saw of them."""

from collections import Counter

import pytest

from tests.scenarios.conftest import Road

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FOUR = ("r01-n1", "r01-n2", "r02-n1", "r02-n2")
NEW = ("r01-n3", "r02-n3")
STALE, SICK = "r01-n2", "r02-n2"
BRING_UP = Counter(
    {
        "POST /redfish/v1/AccountService/Accounts": 1,
        "PATCH /redfish/v1/AccountService/Accounts/1": 1,
        "PATCH /redfish/v1/Systems/1": 1,
        "POST /redfish/v1/Systems/1/Actions/ComputerSystem.Reset": 1,
    }
)
"""All that a bring-up changes at a BMC: our account, the factory password, one boot from the network, power."""
UPDATE = "POST /redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate"
LIFECYCLE = ["identified", "credentialed", "powered", "imaged", "reachable", "configured", "firmware_ok", "accepted", "ready"]


def states(status: object) -> dict[str, str]:
    assert isinstance(status, dict)
    return {node["name"]: node["state"] for node in status["nodes"]}


def test_validate_answers_in_the_agreed_form(road: Road) -> None:
    assert road.validate.status == 0, str(road.validate)
    assert road.validate.json() == {"ok": True, "nodes": 4, "gpus": 8, "racks": 2, "problems": []}


def test_plan_only_looks_and_leaves_no_trace(road: Road) -> None:
    assert road.plan.status == 0, str(road.plan)
    for node in FOUR:
        asked = road.asked_by_plan[node]
        assert any(r.method == "GET" and r.status == 200 for r in asked), f"plan did not look at {node}"
        other = [r for r in asked if not r.is_look and not r.is_session]
        assert not other, f"plan sent {other} to {node}"
        opened = [r for r in asked if r.is_session and r.method == "POST" and r.status == 201]
        closed = [r for r in asked if r.is_session and r.method == "DELETE"]
        assert len(opened) == len(closed), f"plan left sessions open at {node}"
    assert not road.changed_by_plan, "plan wrote files"
    assert "state.db" not in road.changed_by_plan


def test_plan_names_every_step_with_its_wave_and_reason(road: Road) -> None:
    steps = road.plan.json()["steps"]
    assert {frozenset(step) for step in steps} == {frozenset({"node", "action", "because", "wave"})}
    assert all(step["because"] for step in steps)
    waves = {step["node"]: step["wave"] for step in steps}
    assert waves == {"r01-n1": 1, "r01-n2": 2, "r02-n1": 2, "r02-n2": 2}, "a canary, then the others"
    planned = {step["action"] for step in steps if step["node"] == "r01-n1"}
    assert {"bmc.credential", "bmc.boot_once", "bmc.power", "ansible.playbook", "node.probe", "cell.join"} <= planned


def test_apply_brings_three_nodes_into_service_and_says_why_the_fourth_is_not(road: Road) -> None:
    assert road.apply.status == 1, str(road.apply)
    assert "3 of 4 nodes are ready" in road.apply.stdout
    status = road.status.json()
    assert set(status) == {"nodes", "counts", "equipment", "equipment_counts"}
    assert {frozenset(node) for node in status["nodes"]} == {frozenset({"name", "state", "since", "because"})}
    assert status["counts"] == {"ready": 3, "quarantined": 1}
    assert states(status)[SICK] == "quarantined"
    assert "GPU 1" in next(node["because"] for node in status["nodes"] if node["name"] == SICK)


def test_every_node_in_service_went_through_the_whole_lifecycle(road: Road) -> None:
    for node in FOUR[:3]:
        moves = [event.data["to"] for event in road.events if event.kind == "node.moved" and event.subject == node]
        assert moves == LIFECYCLE, node


def test_a_bring_up_changes_at_each_bmc_what_it_has_to_and_nothing_else(road: Road) -> None:
    for node in FOUR:
        wanted = BRING_UP + Counter({UPDATE: 1} if node == STALE else {})
        assert road.writes(road.asked_by_apply, node) == wanted, node


def test_the_stale_firmware_was_updated_and_read_back(road: Road) -> None:
    assert road.audit.status == 0, str(road.audit)
    rows = road.audit.json()["nodes"]
    assert {frozenset(part) for row in rows for part in row["components"]} == {
        frozenset({"name", "installed", "wanted", "verdict"})
    }
    assert {row["name"]: [part["verdict"] for part in row["components"]] for row in rows} == dict.fromkeys(FOUR, ["ok"] * 3)
    nic = next(part for row in rows if row["name"] == STALE for part in row["components"] if part["name"] == "NIC1")
    assert nic["installed"] == "28.39.1002"


def test_a_second_apply_does_nothing_and_says_so(road: Road) -> None:
    assert road.again.status == 1, "one node is not in service: the cluster is not as required"
    assert "nothing to do" in road.again.stdout
    assert not [request for asked in road.asked_by_again.values() for request in asked], "it asked BMCs although all is settled"


def test_before_any_run_the_list_of_runs_is_empty(road: Road) -> None:
    assert road.runs.status == 0, str(road.runs)
    assert road.runs.json() == []


def test_a_healed_node_proves_itself_again_without_a_disruption(road: Road) -> None:
    assert road.requalify.status == 0, str(road.requalify)
    assert road.requalified.json()["counts"] == {"ready": 4}
    assert not road.writes(road.asked_by_requalify, SICK), "it needed neither power nor a new password"
    others = [request for node in FOUR[:3] for request in road.asked_by_requalify[node]]
    assert not others, "nodes in service were asked something"


def test_two_applies_at_once_end_alike_and_never_decide_together(road: Road) -> None:
    first, second = road.expansions
    assert (first.status, second.status) == (0, 0), f"{first}\n{second}"
    assert all("6 of 6" in done.stdout for done in road.expansions)
    assert road.expanded.json()["counts"] == {"ready": 6}
    decided = [event.epoch for event in road.events if event.epoch]
    assert decided == sorted(decided), "an epoch decided after a newer one had begun"
    requests = [event for event in road.events if event.kind == "request.apply"]
    handled = {event.data["request"] for event in road.events if event.kind == "request.handled"}
    assert {event.seq for event in requests} <= handled, "a request got no answer"


def test_an_expansion_touches_the_new_nodes_only(road: Road) -> None:
    before = {node["name"]: node["since"] for node in road.requalified.json()["nodes"]}
    after = {node["name"]: node["since"] for node in road.expanded.json()["nodes"]}
    assert {name: after[name] for name in FOUR} == before, "a node in service has moved"
    for node in FOUR:
        assert not road.asked_by_expansions[node], f"{node} is in service and was asked something"
    for node in NEW:
        assert road.writes(road.asked_by_expansions, node) == BRING_UP, node


def test_the_lab_goes_down_without_a_remainder(road: Road) -> None:
    assert road.down.status == 0, str(road.down)
    assert not road.leftovers
