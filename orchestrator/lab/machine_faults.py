"""What can be wrong with a simulated machine: one table of faults, and the set of those that are active.

The kinds follow the catalogue of BMC misbehaviour seen in the field (Ironic's release notes, DMTF forum,
vendors' errata): lost answers, BMCs that reboot, tasks that vanish, resets that are accepted and ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from orchestrator.domain.errors import BadInput

Value = str | int | float
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a fault: how to read it, and what it is if nobody says."""

    read: Callable[[str], Value]
    default: object = _REQUIRED

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is _REQUIRED


@dataclass(frozen=True, slots=True)
class FaultKind:
    """What a fault does, in one sentence, and what it can be told."""

    meaning: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)


NOUNS: Mapping[object, str] = {int: "whole number", float: "number"}
"""What an argument that cannot be read was to be; every text can be read."""
FOR_EVER_S = 1e12
"""Default length of a fault that only `heal` ends."""

FAULTS: Mapping[str, FaultKind] = MappingProxyType(
    {
        "stale_firmware": FaultKind(
            "a firmware part reports an old version; updating it works",
            {"part": Argument(str), "version": Argument(str)},
        ),
        "wrong_serial": FaultKind(
            "the machine behind this BMC is another one (swapped cables)",
            {"serial": Argument(str, "SWAPPED-0001")},
        ),
        "psu_failed": FaultKind("one power supply is dead; redundancy is lost", {"psu": Argument(int, 1)}),
        "inlet_hot": FaultKind("the inlet air is too hot", {"celsius": Argument(float, 48.0)}),
        "update_fails": FaultKind(
            "every update ends in Exception part of the way",
            {"percent": Argument(int, 40), "part": Argument(str, "")},
        ),
        "update_completes_unchanged": FaultKind("every update says Completed and the version stays", {"part": Argument(str, "")}),
        "update_needs_reset": FaultKind(
            "an update says Completed; the version changes at the next boot", {"part": Argument(str, "")}
        ),
        "update_scheduled": FaultKind(
            "an update begins only when the host boots next, as an iDRAC's scheduled jobs do", {"part": Argument(str, "")}
        ),
        "update_stuck": FaultKind("every update stays Running for ever", {"part": Argument(str, "")}),
        "bmc_restarts_after_update": FaultKind(
            "the BMC refuses connections for a while after each update", {"seconds": Argument(float, 2.0)}
        ),
        "task_vanishes": FaultKind("tasks answer 404 as soon as they are finished"),
        "reset_ignored": FaultKind("a reset is accepted with 204 and nothing happens"),
        "power_state_stale": FaultKind("PowerState shows a change only after some seconds", {"seconds": Argument(float, 5.0)}),
        "session_pool_full": FaultKind("no more session can be created"),
        "bmc_slow": FaultKind(
            "answers are late; what was asked is done at once",
            {"seconds": Argument(float, 2.0), "path_prefix": Argument(str, "/"), "method": Argument(str, "")},
        ),
        "bmc_silent": FaultKind("connections are accepted, nothing is ever answered", {"seconds": Argument(float, FOR_EVER_S)}),
        "bmc_gone": FaultKind("connections are refused, open ones are reset", {"seconds": Argument(float, FOR_EVER_S)}),
        "bmc_flaps": FaultKind(
            "connections are refused for a share of every period",
            {"period_s": Argument(float, 4.0), "down_share": Argument(float, 0.5), "seconds": Argument(float, FOR_EVER_S)},
        ),
        "bmc_flaps_after_update": FaultKind(
            "the BMC flaps for a while after each update", {"period_s": Argument(float, 4.0), "seconds": Argument(float, 30.0)}
        ),
        "connections_limited": FaultKind("connections beyond so many are reset", {"most": Argument(int, 2)}),
        "http_error": FaultKind(
            "requests below a path are answered with an error",
            {
                "path_prefix": Argument(str, "/redfish"),
                "status": Argument(int, 503),
                "remaining": Argument(int, 1_000_000_000),
                "retry_after_s": Argument(int, 0),
                "method": Argument(str, ""),
            },
        ),
        "lost_answer": FaultKind(
            "the request is obeyed, then the connection is reset without an answer",
            {
                "path_prefix": Argument(str, "/redfish"),
                "remaining": Argument(int, 1),
                "method": Argument(str, "POST"),
            },
        ),
        "truncated_json": FaultKind(
            "answers are whole HTTP, but their JSON ends in the middle",
            {"path_prefix": Argument(str, "/redfish"), "remaining": Argument(int, 1_000_000_000)},
        ),
        "reset_mid_body": FaultKind(
            "the connection is reset in the middle of an answer",
            {"path_prefix": Argument(str, "/redfish"), "remaining": Argument(int, 1_000_000_000)},
        ),
    }
)


class UnknownFault(BadInput):
    """No such fault, or an argument it does not take."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One active fault."""

    name: str
    since_s: float
    arguments: Mapping[str, Value]

    def text(self, argument: str) -> str:
        """An argument as text."""
        return str(self.arguments[argument])

    def number(self, argument: str) -> float:
        """An argument as a number."""
        return float(self.arguments[argument])


def parse_fault(name: str, given: Mapping[str, object], now_s: float) -> Fault:
    """A fault with every argument read and defaulted; UnknownFault names what is legal."""
    kind = FAULTS.get(name)
    if kind is None:
        raise UnknownFault(f"no fault is called {name!r}; a machine knows {', '.join(sorted(FAULTS))}")
    strays = sorted(set(given) - set(kind.arguments))
    if strays:
        legal = ", ".join(kind.arguments) or "none"
        raise UnknownFault(f"fault {name} takes no argument {', '.join(strays)}; it takes {legal}")
    arguments: dict[str, Value] = {}
    for key, argument in kind.arguments.items():
        if key not in given and argument.is_required:
            raise UnknownFault(f"fault {name} needs {key}=…")
        value = given.get(key, argument.default)
        try:
            arguments[key] = argument.read(str(value))
        except ValueError as error:
            raise UnknownFault(f"fault {name}: {key}={value!r} is no {NOUNS[argument.read]}") from error
    return Fault(name, now_s, MappingProxyType(arguments))


class ActiveFaults:
    """The faults a machine has now. Counted ones (`remaining`) end by themselves; others end by `heal`."""

    def __init__(self) -> None:
        self._active: dict[str, Fault] = {}
        self._remaining: dict[str, int] = {}

    def add(self, fault: Fault) -> None:
        """Make it active; a second fault of the same name replaces the first."""
        self._active[fault.name] = fault
        if "remaining" in fault.arguments:
            self._remaining[fault.name] = int(fault.number("remaining"))

    def remove(self, name: str) -> Fault | None:
        """End it; None if it was not active."""
        self._remaining.pop(name, None)
        return self._active.pop(name, None)

    def get(self, name: str) -> Fault | None:
        """The active fault of that name, or None."""
        return self._active.get(name)

    def lasting(self, name: str, now_s: float) -> Fault | None:
        """An active fault whose `seconds` have not passed yet; one that is over is forgotten."""
        fault = self._active.get(name)
        if fault is not None and now_s >= fault.since_s + fault.number("seconds"):
            del self._active[name]
            return None
        return fault

    def concerns(self, name: str, method: str, path: str) -> Fault | None:
        """The active fault of that name if it is about this request."""
        fault = self._active.get(name)
        if fault is None or not path.startswith(fault.text("path_prefix")) or fault.arguments["method"] not in ("", method):
            return None
        return fault

    def is_bmc_gone(self, now_s: float) -> bool:
        """Whether the BMC refuses connections at this moment."""
        if self.lasting("bmc_gone", now_s):
            return True
        flaps = self.lasting("bmc_flaps", now_s)
        if flaps is None or flaps.number("period_s") <= 0:
            return False
        share = (now_s - flaps.since_s) / flaps.number("period_s") % 1.0
        return share < flaps.number("down_share")

    def concerning_part(self, name: str, part_id: str) -> Fault | None:
        """The active fault of that name if it is about this firmware part, or about all of them."""
        fault = self._active.get(name)
        return fault if fault is not None and fault.text("part") in ("", part_id) else None

    def take(self, name: str, method: str, path: str) -> Fault | None:
        """Use up one of a counted fault's `remaining` if this request is one it is about."""
        fault = self._active.get(name)
        if fault is None or not path.startswith(fault.text("path_prefix")):
            return None
        if fault.arguments.get("method", "") not in ("", method):
            return None
        self._remaining[name] -= 1
        if self._remaining[name] <= 0:
            self.remove(name)
        return fault

    def names(self) -> tuple[str, ...]:
        """Every active fault, sorted."""
        return tuple(sorted(self._active))
