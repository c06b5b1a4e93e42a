"""The firmware audit: equality with the approved set, never order, and what can be updated."""

from typing import Any

import pytest

from orchestrator.domain.firmware import Verdict
from orchestrator.domain.node import Fact, NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Decision, Move, Step
from orchestrator.domain.spec import FirmwareComponent
from orchestrator.planning.firmware import audit, to_update
from orchestrator.planning.next_step import next_step
from orchestrator.planning.site import Site
from tests.execution.site import lab_4

NIC = FirmwareComponent(approved=("28.39.1002", "28.39.2048"), image="/firmware/nic.bin")
NIC_WITHOUT_IMAGE = FirmwareComponent(approved=("28.39.1002",))


def listed(version: str | None, identifier: str = "NIC1", *, updateable: bool | None = True) -> dict[str, Any]:
    return {"id": identifier, "name": "NIC", "version": version, "updateable": updateable}


@pytest.mark.parametrize(
    ("components", "verdict", "installed", "can_update"),
    [
        ([listed("28.39.1002")], Verdict.OK, "28.39.1002", False),
        ([listed("28.39.2048")], Verdict.OK, "28.39.2048", False),
        ([listed("  28.39.1002 ")], Verdict.OK, "28.39.1002", False),
        ([listed("28.36.1010")], Verdict.STALE, "28.36.1010", True),
        # Looks newer, and is as little approved as an older one.
        ([listed("29.00.0000")], Verdict.STALE, "29.00.0000", True),
        ([listed("28.36.1010", updateable=False)], Verdict.STALE, "28.36.1010", False),
        # The BMC does not say whether it can be updated: then it is tried.
        ([listed("28.36.1010", updateable=None)], Verdict.STALE, "28.36.1010", True),
        ([listed(None)], Verdict.UNKNOWN_VERSION, "", True),
        ([listed("")], Verdict.UNKNOWN_VERSION, "", True),
        ([], Verdict.MISSING, "", False),
        ([listed("28.39.1002", "Previous-NIC1")], Verdict.MISSING, "", False),
        # One Id twice, on different versions: one bad copy is enough.
        ([listed("28.39.1002"), listed("28.36.1010", "NIC1 (7)")], Verdict.STALE, "28.36.1010 / 28.39.1002", True),
        ([listed("28.39.1002"), listed(None, "NIC1 (7)")], Verdict.UNKNOWN_VERSION, "? / 28.39.1002", True),
    ],
)
def test_verdicts(components: list[dict[str, Any]], verdict: Verdict, installed: str, can_update: bool) -> None:
    (found,) = audit(components, {"NIC1": NIC})
    assert (found.verdict, found.installed, found.wanted, found.can_update) == (verdict, installed, "28.39.1002", can_update)
    assert to_update([found]) == ((found,) if can_update else ())
    assert found.because


def test_without_an_image_a_deviation_is_reported_and_not_updated() -> None:
    (found,) = audit([listed("28.36.1010")], {"NIC1": NIC_WITHOUT_IMAGE})
    assert found.verdict is Verdict.STALE and not found.can_update
    assert "names no image" in found.because


def test_a_component_under_update_is_neither_ok_nor_stale() -> None:
    (found,) = audit([listed("28.39.1002")], {"NIC1": NIC}, updating={"NIC1"})
    assert found.verdict is Verdict.UPDATING and not found.is_ok and not found.can_update


def test_the_order_is_the_baselines_and_extra_components_are_not_judged() -> None:
    baseline = {"B": NIC_WITHOUT_IMAGE, "A": NIC_WITHOUT_IMAGE}
    found = audit([listed("1", "A"), listed("2", "B"), listed("3", "C")], baseline)
    assert [verdict.name for verdict in found] == ["B", "A"]


def configured(*components: dict[str, Any]) -> Decision:
    """What is next for a node of the lab in `configured` whose BMC lists `components` beside what the baseline wants."""
    site = Site.of(lab_4())
    baseline = site.baseline("r01-n1")
    named = {component["id"] for component in components}
    sound = [
        {"id": name, "name": name, "version": part.approved[0], "updateable": True}
        for name, part in baseline.items()
        if name not in named
    ]
    facts = {Action.BMC_FIRMWARE: Fact(5.0, {"components": [*sound, *components]}), Action.BMC_TASKS: Fact(6.0, {"tasks": []})}
    return next_step(NodeRecord("r01-n1", NodeState.CONFIGURED, facts=facts), site, 10.0)


def test_bring_up_updates_what_the_bmc_says_it_can_update() -> None:
    decision = configured(listed("0.1", "NIC1"))
    assert isinstance(decision, Step) and (decision.action, decision.args["component"]) == (Action.BMC_UPDATE, "NIC1")


def test_bring_up_never_sends_an_image_for_what_the_bmc_says_it_cannot_update() -> None:
    decision = configured(listed("0.1", "NIC1", updateable=False))
    assert isinstance(decision, Move) and decision.to is NodeState.QUARANTINED
    assert "NIC1: 0.1 is not approved" in decision.because and "cannot be updated" in decision.because


def test_bring_up_updates_the_one_that_can_be_before_it_gives_up_on_the_one_that_cannot() -> None:
    names = list(Site.of(lab_4()).baseline("r01-n1"))
    stuck = next(name for name in names if name != "NIC1")
    decision = configured(listed("0.1", stuck, updateable=False), listed("0.1", "NIC1"))
    assert isinstance(decision, Step) and decision.args["component"] == "NIC1"
