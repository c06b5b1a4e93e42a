"""The firmware audit: equality with the approved set, never order, and what can be updated."""

from typing import Any

import pytest

from orchestrator.domain.firmware import Verdict
from orchestrator.domain.spec import FirmwareComponent
from orchestrator.planning.firmware import audit, to_update

NIC = FirmwareComponent(approved=("28.39.1002", "28.39.2048"), image="/firmware/nic.bin")
NIC_WITHOUT_IMAGE = FirmwareComponent(approved=("28.39.1002",))


def listed(version: str | None, identifier: str = "NIC1", *, updateable: bool = True) -> dict[str, Any]:
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
