"""PATCH: which properties can be written, how each is checked and applied.

Properties that are good are written even when others are bad; the answer then carries a message for each
bad one (DSP0266, "PATCH (update)").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.lab.bmc.messages import Json, Refused, message
from orchestrator.lab.bmc.sessions import MAX_TIMEOUT_S, MIN_TIMEOUT_S
from orchestrator.lab.bmc.state import Bmc
from orchestrator.lab.machine import BootSource, OverrideEnabled
from orchestrator.lab.machine_nouns import AccountRefused

Check = Callable[[object], str]
"""Answers the key of a Base message if a value is no good, or an empty string."""


@dataclass(frozen=True, slots=True)
class Writable:
    """One property that PATCH may set; nested ones are named `Boot/BootSourceOverrideTarget`."""

    check: Check
    apply: Callable[[Bmc, str, object], None]
    """(bmc, id of the resource, value)"""


Writables = Mapping[str, Writable]
"""In the order in which they are applied."""


def text(value: object) -> str:
    """Any string."""
    return "" if isinstance(value, str) else "PropertyValueTypeError"


def flag(value: object) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else "PropertyValueTypeError"


def one_of(*allowed: str) -> Check:
    """One of some strings."""

    def check(value: object) -> str:
        return text(value) or ("" if value in allowed else "PropertyValueNotInList")

    return check


def between(low: int, high: int) -> Check:
    """A whole number in a range."""

    def check(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int):
            return "PropertyValueTypeError"
        return "" if low <= value <= high else "PropertyValueNotInList"

    return check


def write(bmc: Bmc, resource_id: str, writables: Writables, shown: Json, body: Json) -> list[Json]:
    """Apply what can be applied; the messages about what cannot. Refused (400) if nothing could be applied.

    shown: the resource as it is, to tell a read-only property from an unknown one.
    """
    wanted = _flatten({key: value for key, value in body.items() if "@" not in key}, writables)
    if not wanted:
        raise Refused(400, [message("NoOperation" if body else "EmptyJSON")])
    problems = {name: _problem(name, value, writables, shown) for name, value in wanted.items()}
    applied = 0
    for name, writable in writables.items():
        if name not in wanted or problems[name]:
            continue
        try:
            writable.apply(bmc, resource_id, wanted[name])
            applied += 1
        except AccountRefused as error:
            shown_value = "*" if name == "Password" else str(wanted[name])
            problems[name] = message("PropertyValueFormatError", shown_value, name, related=(f"#/{name}",), resolution=str(error))
    messages = [problem for problem in problems.values() if problem]
    if not applied:
        raise Refused(400, messages)
    return messages


def _flatten(body: Json, writables: Writables) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in body.items():
        if isinstance(value, dict) and any(key.startswith(f"{name}/") for key in writables):
            flat.update({f"{name}/{inner}": one for inner, one in value.items()})
        else:
            flat[name] = value
    return flat


def _problem(name: str, value: object, writables: Writables, shown: Json) -> Json | None:
    pointer = f"#/{name}"
    if name not in writables:
        key = "PropertyNotWritable" if _is_shown(name, shown) else "PropertyUnknown"
        return message(key, name.rpartition("/")[2], related=(pointer,))
    key = writables[name].check(value)
    if key:
        shown_value = "*" if name == "Password" else str(value)
        return message(key, shown_value, name.rpartition("/")[2], related=(pointer,))
    return None


def _is_shown(name: str, shown: Json) -> bool:
    outer, _, inner = name.partition("/")
    return inner in shown.get(outer, {}) if inner else outer in shown


def _set_asset_tag(bmc: Bmc, _: str, value: object) -> None:
    bmc.machine.asset_tag = str(value)


def _set_led(bmc: Bmc, _: str, value: object) -> None:
    bmc.machine.is_identify_led_lit = bool(value)


def _set_timeout(bmc: Bmc, _: str, value: object) -> None:
    bmc.sessions.timeout_s = int(str(value))


def _nothing(bmc: Bmc, _: str, value: object) -> None:
    """For a property with one legal value: setting it changes nothing."""


CHASSIS_WRITABLES: Writables = {
    "AssetTag": Writable(text, _set_asset_tag),
    "LocationIndicatorActive": Writable(flag, _set_led),
}
SYSTEM_WRITABLES: Writables = {
    **CHASSIS_WRITABLES,
    # The target comes before its enabling: a target alone counts once, and `Continuous` then lengthens it.
    "Boot/BootSourceOverrideTarget": Writable(one_of(*BootSource), lambda bmc, _, value: _set_boot(bmc, target=str(value))),
    "Boot/BootSourceOverrideEnabled": Writable(
        one_of(*OverrideEnabled), lambda bmc, _, value: _set_boot(bmc, enabled=str(value))
    ),
    "Boot/BootSourceOverrideMode": Writable(one_of("UEFI"), _nothing),
    "Boot/HttpBootUri": Writable(text, lambda bmc, _, value: _set_boot(bmc, http_boot_uri=str(value))),
}
SESSION_SERVICE_WRITABLES: Writables = {"SessionTimeout": Writable(between(MIN_TIMEOUT_S, MAX_TIMEOUT_S), _set_timeout)}
ACCOUNT_WRITABLES: Writables = {
    "UserName": Writable(text, lambda bmc, one, value: bmc.machine.accounts.rename(one, str(value))),
    "Password": Writable(text, lambda bmc, one, value: bmc.machine.accounts.set_password(one, str(value))),
    "RoleId": Writable(text, lambda bmc, one, value: bmc.machine.accounts.set_role(one, str(value))),
    "Enabled": Writable(flag, lambda bmc, one, value: bmc.machine.accounts.set_enabled(one, value is True)),
    "PasswordChangeRequired": Writable(flag, lambda bmc, one, value: bmc.machine.accounts.set_must_change(one, value is True)),
    "Locked": Writable(
        lambda value: "" if value is False else "PropertyValueNotInList",
        lambda bmc, one, _: bmc.machine.accounts.unlock(one),
    ),
}


def _set_boot(bmc: Bmc, target: str | None = None, enabled: str | None = None, http_boot_uri: str | None = None) -> None:
    bmc.machine.set_boot(bmc.now_s, target=target, enabled=enabled, http_boot_uri=http_boot_uri)
