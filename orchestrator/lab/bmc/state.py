"""What one BMC holds besides its machine: sessions, the clock, and who is asking."""

import datetime
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.lab.bmc.sessions import Session, Sessions
from orchestrator.lab.machine import Machine
from orchestrator.lab.machine_accounts import Account

BMC_RESTART_S = 2.0
"""How long connections are refused after `Manager.Reset`."""


@dataclass
class Bmc:
    """One BMC. Its machine speaks seconds of `clock`; `wall` gives Unix time for what is shown to people."""

    machine: Machine
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sessions: Sessions = field(default_factory=Sessions)
    _epoch_s: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once: read anew each time, the two clocks drift by microseconds, and a shown second would flicker.
        self._epoch_s = self.wall() - self.clock()

    @property
    def now_s(self) -> float:
        """Now, on the machine's clock."""
        return self.clock()

    @property
    def uuid(self) -> str:
        """The machine's UUID if it is one; otherwise one derived from its serial, always the same."""
        try:
            return str(uuid.UUID(self.machine.spec.uuid))
        except ValueError:
            return str(uuid.uuid5(uuid.NAMESPACE_OID, self.machine.spec.serial))

    def timestamp(self, at_s: float) -> str:
        """A moment of the machine's clock as Redfish writes time (ISO 8601, UTC)."""
        moment = datetime.datetime.fromtimestamp(self._epoch_s + at_s, datetime.UTC)
        return moment.isoformat(timespec="seconds").replace("+00:00", "Z")

    def restart(self) -> None:
        """The BMC reboots: sessions end and connections are refused for a while; the host is not touched."""
        self.sessions.end_all()
        self.machine.fault("bmc_gone", self.now_s, seconds=BMC_RESTART_S)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    account: Account
    session: Session | None
    """None with Basic authentication."""

    def may(self, privilege: str) -> bool:
        """Whether the account's role holds the privilege."""
        return privilege in self.account.privileges
