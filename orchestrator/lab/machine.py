"""One simulated machine: power, boot, accounts, firmware, sensors and faults; the truth behind both faces
of the lab.

The BMC on the wire (`orchestrator.lab.bmc`) and the simulated Hands in virtual time drive the same object.
It has no clock, no thread and no socket: every verb takes `now_s` (seconds on any monotonic clock) and
first brings the machine to that moment, so that asking late and asking often give the same answers. It is
not thread-safe: one thread owns it.
"""

import hashlib
from dataclasses import dataclass, replace

from orchestrator.lab.machine_accounts import Accounts
from orchestrator.lab.machine_faults import FAULTS, ActiveFaults, Fault, UnknownFault, parse_fault
from orchestrator.lab.machine_nouns import (
    Board,
    BootOverride,
    BootSource,
    BootStage,
    EmptyBoard,
    FirmwarePart,
    IllegalNow,
    LogEntry,
    MachineError,
    MachineSpec,
    NotSupportedHere,
    OverrideEnabled,
    PowerState,
    ResetKind,
)
from orchestrator.lab.machine_power import PowerSequencer
from orchestrator.lab.machine_updates import FirmwareCatalog, PartView, Updates, UpdateTask

__all__ = [
    "Board",
    "BootOverride",
    "BootSource",
    "EmptyBoard",
    "FirmwarePart",
    "IllegalNow",
    "Machine",
    "MachineError",
    "MachineSpec",
    "OverrideEnabled",
    "PowerState",
    "ResetKind",
    "UnknownFault",
]

STANDBY_W = 35.0
"""Draw of a machine that is off: BMC and power supplies."""
INLET_CRITICAL_C = 45.0
LOG_ENTRIES_KEPT = 500


@dataclass(frozen=True, slots=True)
class Psu:
    """One power supply."""

    number: int
    health: str
    """OK or Critical."""
    draw_w: float


@dataclass(frozen=True, slots=True)
class Sensors:
    """What the chassis measures now."""

    inlet_c: float
    inlet_health: str
    draw_w: float
    psus: tuple[Psu, ...]
    fan_rpm: int

    @property
    def is_redundant(self) -> bool:
        """Whether the machine survives the loss of one more power supply."""
        return sum(psu.health == "OK" for psu in self.psus) >= 2


class Machine:
    """See the module. Verbs that a BMC offers come first, then what tests and `rackray lab fault` do to it."""

    def __init__(self, spec: MachineSpec, board: Board | None = None, firmware_catalog: FirmwareCatalog | None = None) -> None:
        self.spec = spec
        self.faults = ActiveFaults()
        self.accounts = Accounts(spec.factory_username, spec.factory_password)
        self.asset_tag = ""
        self.is_identify_led_lit = False
        self.load = 0.0
        """How busy the machine is, 0 to 1; it moves the power draw."""
        self._log: list[LogEntry] = []
        self._log_number = 0
        self._planted: dict[str, tuple[str, str]] = {}
        # `is None`, not `or`: a catalog that is empty now may be filled later by its owner.
        catalog = {} if firmware_catalog is None else firmware_catalog
        self._updates = Updates(spec.firmware, spec.update_s, catalog, self.faults, self._record)
        self._power = PowerSequencer(
            EmptyBoard() if board is None else board,
            spec.boot_s,
            spec.shutdown_s,
            self._record,
            on_boot=self._updates.host_booted,
            on_power_lost=self._updates.host_power_lost,
        )

    # Time.

    @property
    def due_s(self) -> float:
        """When the machine next changes by itself (a boot ends, an update ends); infinity if nothing is
        under way.

        In virtual time: tick it at exactly this moment, and ask again.
        """
        return min(self._power.due_s, self._updates.due_s)

    def tick(self, now_s: float) -> None:
        """Bring the machine to `now_s`; may call the board. Cheap when nothing is under way."""
        # In the order of time, whatever the caller's rhythm: an update that ended before a power cut has ended well.
        while (due_s := self.due_s) <= now_s:
            self._updates.advance(due_s)
            self._power.advance(due_s)
            self._after_updates()
        self._updates.advance(now_s)

    def bmc_answers(self, now_s: float) -> bool:
        """Whether its BMC can be talked to at this moment; on the wire the sockets follow the same faults."""
        self.tick(now_s)
        return not self.faults.is_bmc_gone(now_s) and self.faults.lasting("bmc_silent", now_s) is None

    # What a BMC offers.

    @property
    def serial(self) -> str:
        """The serial the machine reports, which a fault may have swapped."""
        swapped = self.faults.get("wrong_serial")
        return swapped.text("serial") if swapped else self.spec.serial

    def power_state(self, now_s: float) -> PowerState:
        """The state the BMC reports; late by `power_state_stale`."""
        self.tick(now_s)
        if self.spec.is_equipment:
            return PowerState.ON
        stale = self.faults.get("power_state_stale")
        return self._power.state_at(now_s - stale.number("seconds")) if stale else self._power.state

    def boot_stage(self, now_s: float) -> BootStage:
        """How far the boot has come."""
        self.tick(now_s)
        return self._power.stage

    @property
    def boots(self) -> int:
        """Hand-overs to an operating system since the machine was built."""
        return self._power.boots

    @property
    def last_boot(self) -> BootSource:
        """What the last boot started from; NONE if it never booted."""
        return self._power.last_boot

    def reset(self, kind: ResetKind | str, now_s: float) -> None:
        """Power on, off or around; IllegalNow if the state forbids it, ValueError for an unknown kind.

        NotSupportedHere: equipment has no power button.
        """
        self.tick(now_s)
        if self.spec.is_equipment:
            raise NotSupportedHere(f"{self.spec.name} has no computer system that could be reset")
        kind = ResetKind(kind)
        self._power.refuse_if_illegal(kind)
        if self.faults.get("reset_ignored"):
            return
        self._power.reset(kind, now_s)

    @property
    def boot_override(self) -> BootOverride:
        """What the next boot does."""
        return self._power.override

    def set_boot(
        self,
        now_s: float,
        target: BootSource | str | None = None,
        enabled: OverrideEnabled | str | None = None,
        http_boot_uri: str | None = None,
    ) -> BootOverride:
        """Change the boot override; what is None stays. A target without `enabled` counts for the next boot
        only.
        """
        self.tick(now_s)
        override = self._power.override
        if target is not None:
            override = replace(override, target=BootSource(target))
            if enabled is None and override.enabled is OverrideEnabled.DISABLED:
                enabled = OverrideEnabled.ONCE
        if enabled is not None:
            override = replace(override, enabled=OverrideEnabled(enabled))
        if http_boot_uri is not None:
            override = replace(override, http_boot_uri=http_boot_uri)
        if override.enabled is OverrideEnabled.DISABLED or override.target is BootSource.NONE:
            override = BootOverride(http_boot_uri=override.http_boot_uri)
        self._power.override = override
        return override

    def firmware(self, now_s: float) -> tuple[PartView, ...]:
        """The firmware inventory."""
        self.tick(now_s)
        return self._updates.parts()

    def start_update(self, image_uri: str, now_s: float, targets: tuple[str, ...] = ()) -> UpdateTask:
        """Begin an update from the image the URI names (its path is looked up in the firmware catalog).

        The task starts New, is Running with a percentage, ends Completed or Exception after
        `spec.update_s`; the version changes when it completes. An unknown image is a task that ends in
        Exception. An older version than the installed one is written like any other. Errors: NoSuchThing,
        NotSupportedHere, PartBusy.
        """
        self.tick(now_s)
        return self._updates.start(image_uri, targets, now_s)

    def tasks(self, now_s: float) -> tuple[UpdateTask, ...]:
        """Every update task the BMC still knows."""
        self.tick(now_s)
        return self._updates.tasks()

    def task(self, task_id: str, now_s: float) -> UpdateTask | None:
        """One task, or None if the BMC does not know it (any more)."""
        return next((task for task in self.tasks(now_s) if task.id == task_id), None)

    def sensors(self, now_s: float) -> Sensors:
        """Readings, derived from the state alone: the same state always reads the same."""
        state = self.power_state(now_s)
        hot = self.faults.get("inlet_hot")
        inlet_c = hot.number("celsius") if hot else 21.0 + _spread(self.spec.serial) * 3.0
        draw_w = self._draw_w(state)
        dead = self.faults.get("psu_failed")
        dead_number = int(dead.number("psu")) if dead else 0
        alive = sum(number != dead_number for number in range(1, self.spec.psu_count + 1)) or 1
        psus = tuple(
            Psu(number, "Critical", 0.0) if number == dead_number else Psu(number, "OK", round(draw_w / alive, 1))
            for number in range(1, self.spec.psu_count + 1)
        )
        health = "Critical" if inlet_c >= INLET_CRITICAL_C else "OK"
        fan_rpm = 0 if state is PowerState.OFF else round(4000 + 90 * inlet_c + 6000 * self.load)
        return Sensors(round(inlet_c, 1), health, draw_w, psus, fan_rpm)

    def health(self, now_s: float) -> str:
        """OK, Warning (a power supply is dead) or Critical (too hot, a part is broken)."""
        sensors = self.sensors(now_s)
        if sensors.inlet_health != "OK" or any(part.health != "OK" for part in self._updates.parts()):
            return "Critical"
        return "OK" if all(psu.health == "OK" for psu in sensors.psus) else "Warning"

    def log(self, now_s: float) -> tuple[LogEntry, ...]:
        """The system event log, oldest first."""
        self.tick(now_s)
        return tuple(self._log)

    def clear_log(self, now_s: float) -> None:
        """Empty the system event log; numbers go on."""
        self.tick(now_s)
        self._log.clear()

    # What only tests and `rackray lab fault` do.

    def fault(self, name: str, now_s: float, **arguments: object) -> Fault:
        """Break something (see `machine_faults.FAULTS`); UnknownFault says what is legal."""
        self.tick(now_s)
        fault = parse_fault(name, arguments, now_s)
        if name == "stale_firmware":
            part_id, version = fault.text("part"), fault.text("version")
            before = self._updates.set_version(part_id, version)
            self._planted[part_id] = (self._planted.get(part_id, (before, ""))[0], version)
        if name == "psu_failed":
            self._check_psu(int(fault.number("psu")))
            self._record(now_s, "Critical", "power supply failed", f"PSU{int(fault.number('psu'))}")
        if name == "inlet_hot":
            self._record(now_s, "Critical", f"inlet at {fault.number('celsius'):.0f} °C", "Inlet")
        self.faults.add(fault)
        return fault

    def heal(self, name: str, now_s: float) -> bool:
        """End a fault; False if it was not active, UnknownFault if there is no such fault.

        Stale parts get back the versions they had, unless an update has changed them meanwhile.
        """
        self.tick(now_s)
        if name not in FAULTS:
            raise UnknownFault(f"no fault is called {name!r}; a machine knows {', '.join(sorted(FAULTS))}")
        ended = self.faults.remove(name)
        if ended is not None and name == "stale_firmware":
            for part_id, (before, planted) in self._planted.items():
                if self._updates.part(part_id).version == planted:
                    self._updates.set_version(part_id, before)
            self._planted.clear()
        return ended is not None

    def lose_power(self, now_s: float) -> None:
        """The feed went dark: the host is off now, whatever it did."""
        self.tick(now_s)
        if self.spec.is_equipment:
            return  # it starts by itself when its power is back
        self._power.lose_power(now_s)

    def _draw_w(self, state: PowerState) -> float:
        match state:
            case PowerState.OFF:
                return STANDBY_W
            case PowerState.POWERING_ON:
                return round(0.5 * self.spec.draw_idle_w, 1)
            case _:
                return round(self.spec.draw_idle_w + self.load * (self.spec.draw_max_w - self.spec.draw_idle_w), 1)

    def _check_psu(self, number: int) -> None:
        if not 1 <= number <= self.spec.psu_count:
            raise UnknownFault(f"{self.spec.name} has power supplies 1 to {self.spec.psu_count}, not {number}")

    def _after_updates(self) -> None:
        for task in self._updates.finished:
            restart = self.faults.get("bmc_restarts_after_update")
            if restart and task.ended_s is not None:
                self.faults.add(parse_fault("bmc_gone", {"seconds": restart.number("seconds")}, task.ended_s))
            flaps = self.faults.get("bmc_flaps_after_update")
            if flaps and task.ended_s is not None:
                self.faults.add(parse_fault("bmc_flaps", dict(flaps.arguments), task.ended_s))
        self._updates.finished.clear()

    def _record(self, at_s: float, severity: str, message: str, sensor: str = "System") -> None:
        self._log_number += 1
        self._log.append(LogEntry(self._log_number, at_s, severity, message, sensor))
        del self._log[:-LOG_ENTRIES_KEPT]


def _spread(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
