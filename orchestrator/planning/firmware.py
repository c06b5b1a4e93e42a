"""The firmware audit: what the BMC lists, against the spec's baseline. Pure; it never proposes a downgrade or an upgrade, only
the approved version.

Versions are compared for equality after stripping and never ordered: captured BMCs alone show 33 shapes of version string
("96.00.A6.00.01", "U58 v2.44 (01/17/2025)", "0a", "buildbrain-gcid-35803827"), so "newer" has no meaning that could be relied on.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from orchestrator.domain.firmware import ComponentVerdict, Verdict
from orchestrator.domain.spec import FirmwareComponent

OTHER_COPIES = ("Previous-", "Available-", "Current-", "Rollback-")
"""Prefixes under which some BMCs list copies that do not run (Dell lists Installed-, Previous-, Current-, Available-)."""


def audit(
    components: Iterable[Mapping[str, Any]],
    baseline: Mapping[str, FirmwareComponent],
    updating: Collection[str] = (),
) -> tuple[ComponentVerdict, ...]:
    """One verdict per component of the baseline, in its order.

    `components` are those of `Action.BMC_FIRMWARE`: id, name, version, updateable. `updating` names components with a task that
    has not ended. What the BMC lists beyond the baseline is not judged.
    """
    listed = list(components)
    return tuple(_judge(name, wanted, [c for c in listed if _is(c, name)], name in updating) for name, wanted in baseline.items())


def to_update(verdicts: Iterable[ComponentVerdict]) -> tuple[ComponentVerdict, ...]:
    """Those an update would mend."""
    return tuple(verdict for verdict in verdicts if not verdict.is_ok and verdict.can_update)


def _is(component: Mapping[str, Any], name: str) -> bool:
    """Whether this line of the inventory is the baseline's `name`; a second resource of one Id is listed as "ID (segment)"."""
    identifier = str(component.get("id") or "")
    return identifier == name or (identifier.startswith(f"{name} (") and not identifier.startswith(OTHER_COPIES))


def _judge(name: str, baseline: FirmwareComponent, found: list[Mapping[str, Any]], is_updating: bool) -> ComponentVerdict:
    approved = [version.strip() for version in baseline.approved]
    wanted = approved[0]
    versions = sorted({str(component.get("version") or "").strip() for component in found})
    installed = " / ".join(version or "?" for version in versions) if versions != [""] else ""
    verdict = _verdict(versions, approved, is_updating)
    says = {
        Verdict.OK: f"{installed} is approved",
        Verdict.STALE: f"{installed} is not approved; approved is {' or '.join(approved)}",
        Verdict.UNKNOWN_VERSION: f"the BMC gives no version; approved is {wanted}",
        Verdict.MISSING: f"the BMC does not list it; approved is {wanted}",
        Verdict.UPDATING: f"an update to {wanted} is under way",
    }[verdict]
    blocker = _blocker(baseline, found, verdict)
    can_update = not blocker and verdict in (Verdict.STALE, Verdict.UNKNOWN_VERSION)
    tail = f"; it is not updated: {blocker}" if blocker else "; it can be updated" if can_update else ""
    return ComponentVerdict(name, installed, wanted, verdict, can_update, says + tail)


def _verdict(versions: list[str], approved: list[str], is_updating: bool) -> Verdict:
    if is_updating:
        return Verdict.UPDATING
    if not versions:
        return Verdict.MISSING
    if all(version in approved for version in versions):
        return Verdict.OK
    # One readable version that is not approved is enough; several copies of a component must all be approved.
    return Verdict.STALE if any(version and version not in approved for version in versions) else Verdict.UNKNOWN_VERSION


def _blocker(baseline: FirmwareComponent, found: list[Mapping[str, Any]], verdict: Verdict) -> str:
    """Why a deviating component cannot be updated; empty if it can, or need not."""
    if verdict in (Verdict.OK, Verdict.UPDATING):
        return ""
    if not found:
        return "there is nothing to update"
    if not baseline.image:
        return "the baseline names no image"
    # Many BMCs do not say; then the update is tried, and the version read back decides.
    if all(component.get("updateable") is False for component in found):
        return "the BMC says that it cannot be updated through it"
    return ""
