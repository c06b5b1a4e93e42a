"""The power sequence and the boot of a simulated machine, driven by times that the caller hands in."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.lab.machine_nouns import (
    Board,
    BootOverride,
    BootSource,
    BootStage,
    IllegalNow,
    OverrideEnabled,
    PowerState,
    ResetKind,
)

RAIL_SHARE_OF_BOOT = 0.2
"""The part of `boot_s` in which rails come up (PoweringOn); the rest is the self test (On)."""

Record = Callable[[float, str, str], None]
"""(at_s, severity, message) into the event log."""

_CHANGES_KEPT = 32

LEGAL_RESETS: dict[PowerState, frozenset[ResetKind]] = {
    PowerState.OFF: frozenset({ResetKind.ON}),
    PowerState.POWERING_ON: frozenset(
        {ResetKind.FORCE_OFF, ResetKind.FORCE_RESTART, ResetKind.POWER_CYCLE},
    ),
    PowerState.ON: frozenset(ResetKind) - {ResetKind.ON},
    PowerState.POWERING_OFF: frozenset({ResetKind.FORCE_OFF}),
}
"""As on most servers: `On` for a machine that is on, or `ForceOff` for one that is off, is refused (409)."""


@dataclass(frozen=True, slots=True)
class _Due:
    """The next thing the power sequence does by itself."""

    at_s: float
    do: Callable[[float], None]


class PowerSequencer:
    """Off → PoweringOn → On (self test) → hand-over to the board → PoweringOff → Off, and the boot
    override.
    """

    def __init__(
        self,
        board: Board,
        boot_s: float,
        shutdown_s: float,
        record: Record,
        on_boot: Callable[[float], None],
        on_power_lost: Callable[[float], None],
    ) -> None:
        self._board = board
        self._boot_s = boot_s
        self._shutdown_s = shutdown_s
        self._record = record
        self._on_boot = on_boot
        self._on_power_lost = on_power_lost
        self._due: _Due | None = None
        self._changes: list[tuple[float, PowerState]] = [(float("-inf"), PowerState.OFF)]
        self.stage = BootStage.NONE
        self.override = BootOverride()
        self.boots = 0
        """Hand-overs to an operating system since the machine was built."""
        self.last_boot: BootSource = BootSource.NONE

    @property
    def state(self) -> PowerState:
        """The state now."""
        return self._changes[-1][1]

    def state_at(self, at_s: float) -> PowerState:
        """The state at a moment that may lie in the past."""
        older = (state for since_s, state in reversed(self._changes) if since_s <= at_s)
        return next(older, self._changes[0][1])

    @property
    def due_s(self) -> float:
        """When `advance` has something to do; infinity if never."""
        return self._due.at_s if self._due else float("inf")

    def advance(self, now_s: float) -> None:
        """Do everything that has come due, each at its own time."""
        while self._due and self._due.at_s <= now_s:
            due, self._due = self._due, None
            due.do(due.at_s)

    def refuse_if_illegal(self, kind: ResetKind) -> None:
        """IllegalNow unless the table allows it."""
        if kind not in LEGAL_RESETS[self.state]:
            legal = ", ".join(sorted(LEGAL_RESETS[self.state]))
            raise IllegalNow(f"{kind} is refused while the machine is {self.state}; now legal: {legal}")

    def reset(self, kind: ResetKind, now_s: float) -> None:
        """Obey, or IllegalNow."""
        self.refuse_if_illegal(kind)
        match kind:
            case ResetKind.ON:
                self._rails_up(now_s)
            case ResetKind.FORCE_OFF:
                self._cut(now_s)
            case ResetKind.FORCE_RESTART | ResetKind.POWER_CYCLE:
                self._cut(now_s)
                self._rails_up(now_s)
            case ResetKind.GRACEFUL_SHUTDOWN:
                self._wind_down(now_s, then=self._cut)
            case ResetKind.GRACEFUL_RESTART:
                self._wind_down(now_s, then=self._cut_and_rails_up)

    def lose_power(self, now_s: float) -> None:
        """The feed went dark: whatever the state, the host is off now."""
        if self.state is not PowerState.OFF:
            self._cut(now_s)

    def _rails_up(self, now_s: float) -> None:
        self._become(PowerState.POWERING_ON, BootStage.NONE, now_s)
        self._record(now_s, "OK", "host power is on")
        self._due = _Due(now_s + RAIL_SHARE_OF_BOOT * self._boot_s, self._self_test)

    def _self_test(self, now_s: float) -> None:
        self._become(PowerState.ON, BootStage.POST, now_s)
        self._due = _Due(now_s + (1 - RAIL_SHARE_OF_BOOT) * self._boot_s, self._hand_over)

    def _hand_over(self, now_s: float) -> None:
        self.stage = BootStage.OS
        source = BootSource.HDD
        if self.override.enabled is not OverrideEnabled.DISABLED and self.override.target is not BootSource.NONE:
            source = self.override.target
        if self.override.enabled is OverrideEnabled.ONCE:
            self.override = BootOverride()
        self.boots += 1
        self.last_boot = source
        self._record(now_s, "OK", f"boot from {source}")
        self._on_boot(now_s)
        self._board.power_on(source)

    def _wind_down(self, now_s: float, then: Callable[[float], None]) -> None:
        self._become(PowerState.POWERING_OFF, self.stage, now_s)
        self._due = _Due(now_s + self._shutdown_s, then)

    def _cut(self, now_s: float) -> None:
        self._due = None
        self._become(PowerState.OFF, BootStage.NONE, now_s)
        self._record(now_s, "OK", "host power is off")
        self._board.power_off()
        self._on_power_lost(now_s)

    def _cut_and_rails_up(self, now_s: float) -> None:
        self._cut(now_s)
        self._rails_up(now_s)

    def _become(self, state: PowerState, stage: BootStage, at_s: float) -> None:
        self.stage = stage
        self._changes.append((at_s, state))
        del self._changes[:-_CHANGES_KEPT]
