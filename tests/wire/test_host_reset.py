"""F74 to its end: an update waits for a reset of the host; driven by the controller's decisions against a BMC on the wire."""

import dataclasses
import time

import pytest

from orchestrator.domain.node import NodeState, changed
from orchestrator.domain.operation import MUTATING, Action, Outcome, Status
from orchestrator.domain.plan import Hold, Move, Step
from orchestrator.planning.firmware_stage import SCHEDULED_S
from tests.wire.controller_view import NODE, NOW_S, View
from tests.wire.neighbours import Wire
from tests.wire.rows_updates import UPDATES_AND_POWER

F74 = next(row for row in UPDATES_AND_POWER if row.number == "F74")
LIMIT_S = 60.0


def stage_to_its_end(wire: Wire, node: str, view: View, target: object) -> tuple[Move, list[tuple[Action, str]]]:
    """The firmware stage, each step asked of the BMC; the move that ends it, and what was changed on the way."""
    now_s, made, end_s = NOW_S, list[tuple[Action, str]](), time.monotonic() + LIMIT_S
    boots_at_reset = 0
    while time.monotonic() < end_s:
        now_s += 1.0
        decision = view.decide(now_s)
        if isinstance(decision, Move):
            return decision, made
        if isinstance(decision, Hold):
            # The controller's time runs ahead; the BMC needs real seconds to boot and to write.
            now_s = decision.until_s
            time.sleep(0.03)
            continue
        assert isinstance(decision, Step), decision
        if decision.action is Action.SSH_IDENTIFY:
            # After the reset the node answers only once it has booted, however long that takes on a busy machine.
            is_up = wire.bmcs.machines[node].boots > boots_at_reset
            facts = {"serial": view.record.serial, "image_digest": "sha256:image", "kernel": "k"}
            status = Status.DONE if is_up else Status.UNREACHABLE
            outcome = Outcome("ssh", NODE, decision.action, status, facts if is_up else {}, "" if is_up else "booting")
        else:
            if decision.args.get("reset") == "On":
                boots_at_reset = wire.bmcs.machines[node].boots
            answered = wire.ask(node, target, decision.action, 20.0, **decision.args)
            outcome = dataclasses.replace(answered, node=NODE)
            assert outcome.status is Status.DONE, outcome
        if decision.action in MUTATING:
            made.append((decision.action, str(decision.args.get("reset", decision.args.get("component")))))
        view.take_in(outcome, decision.args, now_s)
    raise AssertionError(f"not within {LIMIT_S:.0f} s: {view.decide(now_s)}")


def a_node_with_a_stale_nic(wire: Wire) -> tuple[str, object, View]:
    node, target = wire.credentialed(on=True)
    wire.break_bmc(node, "stale_firmware", part="NIC1", version="28.36.1010")
    view = View(dataclasses.replace(F74, knows={}), target.serial)
    view.state.nodes[NODE] = changed(view.record, state=NodeState.CONFIGURED, facts={})
    return node, target, view


def test_an_update_that_waits_for_a_reset_gets_it_once_and_the_version_is_read_back(wire: Wire) -> None:
    node, target, view = a_node_with_a_stale_nic(wire)
    wire.break_bmc(node, "update_needs_reset")
    boots = wire.bmcs.machines[node].boots
    move, made = stage_to_its_end(wire, node, view, target)
    assert move.to is NodeState.FIRMWARE_OK and "read back as approved" in move.because
    assert made == [(Action.BMC_UPDATE, "NIC1"), (Action.BMC_POWER, "ForceOff"), (Action.BMC_POWER, "On")]
    assert wire.bmcs.machines[node].boots > boots


def test_a_reset_that_did_not_help_is_not_tried_again(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    node, target, view = a_node_with_a_stale_nic(wire)
    wire.break_bmc(node, "update_needs_reset")
    monkeypatch.setattr(wire.bmcs.machines[node]._power, "_on_boot", lambda now_s: None)
    move, made = stage_to_its_end(wire, node, view, target)
    assert move.to is NodeState.QUARANTINED
    assert "the update of NIC1 ended and the host was reset, but NIC1 runs 28.36.1010" in move.because
    assert [reset for action, reset in made if action is Action.BMC_POWER] == ["ForceOff", "On"]


def test_an_update_that_asks_for_nothing_and_changed_nothing_is_no_reason_for_a_reset(wire: Wire) -> None:
    node, target, view = a_node_with_a_stale_nic(wire)
    wire.break_bmc(node, "update_completes_unchanged")
    move, made = stage_to_its_end(wire, node, view, target)
    assert move.to is NodeState.QUARANTINED and made == [(Action.BMC_UPDATE, "NIC1")]


def has_booted(wire: Wire, node: str) -> None:
    """A boot under way would begin what is scheduled meanwhile."""
    end_s = time.monotonic() + LIMIT_S
    while not wire.bmcs.machines[node].boots:
        assert time.monotonic() < end_s, "it does not boot"
        time.sleep(0.02)


def test_an_update_scheduled_for_the_next_reset_gets_it_once_and_its_task_is_followed_to_its_end(wire: Wire) -> None:
    node, target, view = a_node_with_a_stale_nic(wire)
    has_booted(wire, node)
    wire.break_bmc(node, "update_scheduled")
    boots = wire.bmcs.machines[node].boots
    move, made = stage_to_its_end(wire, node, view, target)
    assert move.to is NodeState.FIRMWARE_OK and "read back as approved" in move.because
    assert made == [(Action.BMC_UPDATE, "NIC1"), (Action.BMC_POWER, "ForceOff"), (Action.BMC_POWER, "On")]
    assert wire.bmcs.machines[node].boots == boots + 1
    task = view.record.facts[Action.BMC_TASK].values
    assert task["state"] == "Completed" and not task["is_scheduled"]


def test_a_scheduled_update_that_the_reset_did_not_begin_is_not_reset_again(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    node, target, view = a_node_with_a_stale_nic(wire)
    has_booted(wire, node)
    wire.break_bmc(node, "update_scheduled")
    monkeypatch.setattr(wire.bmcs.machines[node]._power, "_on_boot", lambda now_s: None)
    move, made = stage_to_its_end(wire, node, view, target)
    assert move.to is NodeState.QUARANTINED
    assert move.because == "the host was reset, but the update of NIC1 that waits for it has not begun"
    assert [reset for action, reset in made if action is Action.BMC_POWER] == ["ForceOff", "On"]


def test_an_update_that_was_scheduled_a_moment_ago_may_begin_by_itself(wire: Wire) -> None:
    node, target, view = a_node_with_a_stale_nic(wire)
    has_booted(wire, node)
    wire.break_bmc(node, "update_scheduled")
    now_s = NOW_S
    while not view.record.facts.get(Action.BMC_TASK):
        now_s += 1.0
        decision = view.decide(now_s)
        assert isinstance(decision, Step), decision
        outcome = wire.ask(node, target, decision.action, 20.0, **decision.args)
        view.take_in(dataclasses.replace(outcome, node=NODE), decision.args, now_s)
    accepted_s = view.record.fact_at_s(Action.BMC_UPDATE)
    for now_s in (accepted_s + 10.0, accepted_s + SCHEDULED_S - 1.0):
        decision = view.decide(now_s)
        assert isinstance(decision, Step) and decision.action is Action.BMC_TASK, decision
