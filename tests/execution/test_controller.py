"""The controller against a simulated site in virtual time."""

from collections import Counter
from pathlib import Path

import pytest

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import MUTATING, Action, Operation
from orchestrator.domain.state import ClusterState
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.journal import LeaseLost
from orchestrator.lab.simulated_hands import SimulatedHands
from tests.execution.site import Rehearsal, a_controller, apply_request, lab_4

READY, QUARANTINED = NodeState.READY, NodeState.QUARANTINED


def test_the_lab_comes_up_and_the_sick_gpu_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    state = rehearsal.apply()
    assert Counter(rehearsal.states().values()) == {READY: 3, QUARANTINED: 1}
    assert "remap" in state.nodes["r02-n2"].because
    assert state.rollout.finished


def test_the_stale_nic_is_updated_once_and_its_version_read_back(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    state = rehearsal.apply()
    updates = [deed for deed in rehearsal.site.deeds if deed.action is Action.BMC_UPDATE]
    assert [(deed.node, deed.args["version"]) for deed in updates] == [("r01-n2", "28.39.1002")]
    components = state.nodes["r01-n2"].facts[Action.BMC_FIRMWARE].values["components"]
    assert {part["id"]: part["version"] for part in components}["NIC1"] == "28.39.1002"


def test_a_second_apply_touches_no_peer_and_writes_no_decision(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.apply()
    deeds, events = len(rehearsal.site.deeds), len(rehearsal.journal.events())
    state = rehearsal.apply()
    assert len(rehearsal.site.deeds) == deeds
    added = [event.kind for event in rehearsal.journal.events()[events:]]
    assert added == ["request.apply", "controller.took", "request.handled"]
    assert max(state.answers.items())[1].startswith("nothing to do")


def test_the_canary_is_ready_before_any_other_node_is_touched(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.apply()
    canary = rehearsal.journal.load().rollout.waves[0]
    ready_at_s = max(e.at_s for e in rehearsal.journal.events() if e.subject in canary and e.data.get("to") == "ready")
    others = [deed.at_s for deed in rehearsal.site.deeds if deed.node not in canary]
    assert min(others) > ready_at_s


def test_a_healed_gpu_is_proven_again_from_fresh_evidence(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.apply()
    rehearsal.site.nodes["r02-n2"].sick_gpus.clear()
    began = len(rehearsal.site.deeds)
    state = rehearsal.request("request.requalify", nodes=["r02-n2"], reason="GPU reset")
    assert state.nodes["r02-n2"].state is READY
    record = state.nodes["r02-n2"]
    assert min(fact.at_s for fact in record.facts.values()) >= record.proving_since_s
    again = {deed.action for deed in rehearsal.site.deeds[began:]}
    assert Action.BMC_POWER not in again and Action.BMC_BOOT_ONCE not in again, "a healthy image is not laid down twice"


def test_requalifying_a_ready_node_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.apply()
    deeds = len(rehearsal.site.deeds)
    state = rehearsal.request("request.requalify", nodes=["r01-n1"], reason="just so")
    assert "only quarantined and suspect nodes" in max(state.answers.items())[1]
    assert len(rehearsal.site.deeds) == deeds


def test_a_suspect_node_is_at_rest_until_a_person_lets_it_prove_itself_again(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    state = rehearsal.apply()
    controller = a_controller(rehearsal.journal, SimulatedHands(rehearsal.site), rehearsal.clock, tmp_path)
    suspicion = {"from": "ready", "to": "suspect", "because": "a run gave it up"}
    rehearsal.journal.commit([Event("node.moved", "r01-n1", suspicion)], controller.epoch, rehearsal.clock.now_s())
    controller.close()
    state = rehearsal.apply()
    assert state.nodes["r01-n1"].state is NodeState.SUSPECT
    state = rehearsal.request("request.requalify", nodes=["r01-n1"], reason="cable seated again")
    assert state.nodes["r01-n1"].state is READY


def test_expansion_touches_only_the_new_nodes(tmp_path: Path) -> None:
    spec = lab_4()
    rehearsal = Rehearsal(tmp_path, spec)
    rehearsal.apply()
    rehearsal.site.nodes["r02-n2"].sick_gpus.clear()
    rehearsal.request("request.requalify", nodes=["r02-n2"], reason="GPU reset")
    began = len(rehearsal.site.deeds)
    new = spec.nodes[0].model_copy(
        update={
            "name": "r01-n3",
            "serial": "LAB00005",
            "unit": 9,
            "bmc": "127.2.1.3",
            "address": "127.1.1.3",
            "mac": "02:00:00:00:01:03",
        }
    )
    larger = spec.model_copy(update={"nodes": (*spec.nodes, new)})
    rehearsal.site.extend(larger)
    rehearsal.apply(larger, "another sha")
    assert {deed.node for deed in rehearsal.site.deeds[began:]} == {"r01-n3"}
    assert set(rehearsal.states().values()) == {READY}


def test_a_machine_with_another_serial_is_never_written_to(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.site.nodes["r01-n1"].machine.fault("wrong_serial", rehearsal.site.now_s, serial="STRANGER")
    state = rehearsal.apply()
    assert state.nodes["r01-n1"].state is QUARANTINED
    assert "STRANGER" in state.nodes["r01-n1"].because
    assert [deed for deed in rehearsal.site.deeds if deed.node == "r01-n1"] == []


def test_the_failure_budget_stops_new_waves(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    for name in ("r01-n1", "r02-n1"):
        rehearsal.site.nodes[name].machine.fault("wrong_serial", rehearsal.site.now_s, serial="STRANGER")
    canaries = lab_4().rollout.model_copy(update={"canary": 2, "failure_budget": 1, "growth": 1})
    rehearsal.spec = lab_4().model_copy(update={"rollout": canaries})
    state = rehearsal.apply()
    assert "failure budget is 1" in state.rollout.stopped_because
    waiting = [name for name, where in rehearsal.states().items() if where is NodeState.ENROLLED]
    assert waiting and all(deed.node not in waiting for deed in rehearsal.site.deeds)


@pytest.mark.parametrize(
    "action", sorted(MUTATING & {a for a in Action if not a.startswith(("rank", "ssh.exec", "bmc.locate", "cell.leave"))})
)
def test_a_lost_answer_leads_to_looking_and_no_disruptive_step_is_done_twice(tmp_path: Path, action: Action) -> None:
    undisturbed = Rehearsal(tmp_path, seed=3)
    wanted = {name: str(record.state) for name, record in undisturbed.apply().nodes.items()}
    other = tmp_path / "other"
    other.mkdir()
    rehearsal = Rehearsal(other, seed=3)
    lost: list[str] = []

    def lose(operation: Operation) -> bool:
        if operation.action is action and operation.node not in lost:
            lost.append(operation.node)
            return True
        return False

    rehearsal.site.lose_answer = lose
    state = rehearsal.apply()
    assert lost, f"no {action} was made, so this test would prove nothing"
    assert {name: str(record.state) for name, record in state.nodes.items()} == wanted
    kinds = [event.kind for event in rehearsal.journal.events() if event.subject in lost]
    assert kinds.count("node.settled") == len(lost)
    disruptive = (Action.BMC_POWER, Action.BMC_UPDATE, Action.BMC_BOOT_ONCE, Action.BMC_CREDENTIAL, Action.CELL_JOIN)
    if action in disruptive:
        done = Counter((deed.node, str(deed.args)) for deed in rehearsal.site.deeds if deed.action is action)
        assert set(done.values()) == {1}


def test_power_on_waits_while_the_rack_has_no_watts_left(tmp_path: Path) -> None:
    tight = lab_4()
    racks = {name: rack.model_copy(update={"limit_w": tight.skus["lab-2g"].max_w}) for name, rack in tight.racks.items()}
    together = tight.rollout.model_copy(update={"canary": 4, "stage_limit_s": 60, "failure_budget": 4})
    rehearsal = Rehearsal(tmp_path, tight.model_copy(update={"racks": racks, "rollout": together}))
    rehearsal.apply()
    for rack in ("r01", "r02"):
        powered = {deed.node for deed in rehearsal.site.deeds if deed.action is Action.BMC_POWER and deed.node.startswith(rack)}
        assert len(powered) == 1, "the second node would exceed the rack"


def test_a_stale_controller_is_fenced_before_its_next_exchange(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    now_s = rehearsal.clock.now_s
    hands = SimulatedHands(rehearsal.site, may_act=lambda epoch: rehearsal.journal.holds(epoch, now_s()))
    old = a_controller(rehearsal.journal, hands, rehearsal.clock, tmp_path)
    rehearsal.journal.release(old.epoch)
    new = a_controller(rehearsal.journal, SimulatedHands(rehearsal.site), rehearsal.clock, tmp_path, holder="other:2:2:b")
    assert new.epoch == old.epoch + 1
    rehearsal.journal.request(apply_request(rehearsal.spec))
    with pytest.raises(LeaseLost):
        for _ in range(5):
            old.tick()
    assert rehearsal.site.deeds == []


def mid_stage(state: ClusterState) -> bool:
    return any(record.state is NodeState.POWERED for record in state.nodes.values())


def test_hours_without_a_controller_are_held_against_no_node(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    rehearsal.run(mid_stage)
    rehearsal.site.pass_to(rehearsal.site.now_s + 3 * 3600)
    state = rehearsal.run(everything_settled)
    assert sorted(str(record.state) for record in state.nodes.values()) == ["quarantined", "ready", "ready", "ready"]
    (slept,) = [event for event in rehearsal.journal.events() if event.kind == "controller.slept"]
    assert slept.data["idle_s"] >= 3 * 3600


def test_a_controller_that_was_frozen_while_nobody_else_decided_blames_no_node_for_it(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    controller = a_controller(rehearsal.journal, SimulatedHands(rehearsal.site), rehearsal.clock, rehearsal.home)
    controller.run(mid_stage)
    rehearsal.site.pass_to(rehearsal.site.now_s + 3 * 3600)
    controller.run(everything_settled)
    assert [record.cause for record in controller.state.nodes.values() if record.cause] == ["check failed"], "the planted fault"
    assert [event.kind for event in rehearsal.journal.events()].count("controller.slept") == 1
