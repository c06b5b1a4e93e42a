"""Firmware as the audit speaks of it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What one component's installed version means."""

    OK = "ok"
    """It is one of the approved versions."""
    STALE = "stale"
    """It is readable and not approved; older or newer is not said, because versions of firmware have no common order."""
    UNKNOWN_VERSION = "unknown-version"
    """The BMC lists the component without a version."""
    MISSING = "missing"
    """The baseline names it and the BMC does not list it."""
    UPDATING = "updating"
    """An update of it is under way; the version read now proves nothing."""


@dataclass(frozen=True, slots=True)
class ComponentVerdict:
    """One component of the baseline, judged."""

    name: str
    """As the baseline calls it: the Id in the BMC's firmware inventory."""
    installed: str
    """The version the BMC gives, stripped; empty if it gives none. Several copies that differ are joined by " / "."""
    wanted: str
    """The version an update would install: the first approved one."""
    verdict: Verdict
    can_update: bool
    """Whether rackray can install `wanted` by itself."""
    because: str
    """One sentence: what is so, and why it can or cannot be updated."""

    @property
    def is_ok(self) -> bool:
        """Whether the baseline is met."""
        return self.verdict is Verdict.OK

    def __str__(self) -> str:
        return f"{self.name}: {self.because}"
