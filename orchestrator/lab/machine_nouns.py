"""The nouns of a simulated machine: what it is made of, what state it can be in, and how it says no.

MachineError                       every refusal of a machine; the BMC turns each kind into an HTTP status
├── IllegalNow                     the state forbids it (409): `On` for a machine that is on
├── NotSupportedHere               the machine cannot do this at all (400)
├── NoSuchThing                    no such account, task or part (404)
├── AccountRefused                 a rule for accounts is broken (400)
└── PartBusy                       another update of the same part is under way (409)
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class PowerState(StrEnum):
    """The values of Redfish's `PowerState` (DSP0268, Resource.PowerState) that this machine takes."""

    OFF = "Off"
    """Only the BMC has power; nothing of the operating system lives."""
    POWERING_ON = "PoweringOn"
    """Rails come up; no instruction has been executed."""
    ON = "On"
    """The boot firmware or the operating system runs; `BootStage` says which."""
    POWERING_OFF = "PoweringOff"
    """The operating system was asked to end and has not ended yet."""


class BootStage(StrEnum):
    """The values of Redfish's `BootProgress.LastState` that this machine takes."""

    NONE = "None"
    """The machine is off, or just got power."""
    POST = "SystemHardwareInitializationComplete"
    """The boot firmware runs its power-on self test."""
    OS = "OSBootStarted"
    """The boot firmware handed over to the disk or to the network."""


class ResetKind(StrEnum):
    """The values of Redfish's `ResetType` that this machine obeys."""

    ON = "On"
    FORCE_OFF = "ForceOff"
    GRACEFUL_SHUTDOWN = "GracefulShutdown"
    FORCE_RESTART = "ForceRestart"
    GRACEFUL_RESTART = "GracefulRestart"
    POWER_CYCLE = "PowerCycle"


class BootSource(StrEnum):
    """Where the boot firmware looks for an operating system (Redfish `BootSourceOverrideTarget`)."""

    NONE = "None"
    """No override. `Board.power_on` never sees this one: it is told HDD, the normal boot order."""
    HDD = "Hdd"
    PXE = "Pxe"
    UEFI_HTTP = "UefiHttp"
    CD = "Cd"

    @property
    def is_network(self) -> bool:
        """Whether the site's image service is asked, not the disk."""
        return self in (BootSource.PXE, BootSource.UEFI_HTTP)


class OverrideEnabled(StrEnum):
    """How long a boot override holds (Redfish `BootSourceOverrideEnabled`)."""

    DISABLED = "Disabled"
    ONCE = "Once"
    """For the next boot only; consumed when the boot firmware hands over."""
    CONTINUOUS = "Continuous"


@dataclass(frozen=True, slots=True)
class BootOverride:
    """What the next boot does; DISABLED/NONE is the normal boot order."""

    target: BootSource = BootSource.NONE
    enabled: OverrideEnabled = OverrideEnabled.DISABLED
    http_boot_uri: str = ""


class Board(Protocol):
    """What the power switch and the boot firmware really do: on the wire a set of namespaces, in virtual
    time nothing.

    Both verbs are called from inside `Machine.tick` and other verbs, so they must return at once; work that
    takes time belongs in a thread of the board.
    """

    def power_on(self, boot: BootSource) -> None:
        """The self test has passed: start the operating system from `boot` (HDD, PXE, UEFI_HTTP or CD)."""

    def power_off(self) -> None:
        """End every process of the node at once."""


class EmptyBoard:
    """A board that does nothing: for virtual time, where the simulated Hands play the operating system."""

    def power_on(self, boot: BootSource) -> None:
        """Nothing starts."""

    def power_off(self) -> None:
        """Nothing ends."""


@dataclass(frozen=True, slots=True)
class FirmwarePart:
    """One line of the firmware inventory."""

    id: str
    """As in `/redfish/v1/UpdateService/FirmwareInventory/{id}`."""
    name: str
    version: str
    updateable: bool = True

    @property
    def on_standby_power(self) -> bool:
        """Whether it runs while the host is off, so that a power cut of the host does not disturb its update.

        True for the BMC and what belongs to it (ids that begin with BMC).
        """
        return self.id.upper().startswith("BMC")


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What the factory built; nothing of it changes afterwards, except the firmware versions it starts
    with.
    """

    name: str
    serial: str
    manufacturer: str
    model: str
    uuid: str
    factory_username: str
    factory_password: str = field(repr=False)
    gpu_model: str = ""
    gpu_count: int = 0
    is_equipment: bool = False
    """A switch, a power shelf or the like: on whenever it has power, without a system to boot, log in to or reset."""
    boot_s: float = 1.5
    """Power-on to the hand-over to the operating system: rails and self test."""
    update_s: float = 3.0
    firmware: tuple[FirmwarePart, ...] = ()
    draw_idle_w: float = 400.0
    draw_max_w: float = 1500.0
    shutdown_s: float = 0.5
    """How long the operating system takes to end when it is asked to."""
    psu_count: int = 2
    cpu_count: int = 2
    memory_gib: int = 512

    def __post_init__(self) -> None:
        if self.boot_s < 0 or self.update_s < 0 or self.shutdown_s < 0:
            raise ValueError(f"machine {self.name}: boot_s, update_s and shutdown_s must not be negative")
        if not 0 <= self.draw_idle_w <= self.draw_max_w:
            raise ValueError(
                f"machine {self.name}: draw_idle_w is {self.draw_idle_w}; it must lie between 0 and draw_max_w, {self.draw_max_w}"
            )
        ids = [part.id for part in self.firmware]
        if len(set(ids)) != len(ids):
            raise ValueError(f"machine {self.name}: two firmware parts have one id in {ids}")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the system event log."""

    number: int
    at_s: float
    severity: str
    """OK, Warning or Critical."""
    message: str
    sensor: str
    """The part it speaks of: `System`, a firmware part's id, a power supply."""


class MachineError(Exception):
    """A machine refused a verb; the text is for operators."""


class IllegalNow(MachineError):
    """The machine's state forbids the verb."""


class NotSupportedHere(MachineError):
    """This machine cannot do it in any state."""


class NoSuchThing(MachineError):
    """No account, task or firmware part of that name."""


class AccountRefused(MachineError):
    """A rule for accounts is broken; `property_name` is the Redfish property at fault."""

    def __init__(self, message: str, property_name: str) -> None:
        super().__init__(message)
        self.property_name = property_name


class PartBusy(MachineError):
    """Another update of the same part is not finished."""
