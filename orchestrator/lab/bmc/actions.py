"""POST and DELETE: logins, accounts, resets, updates. Each takes a checked JSON object and answers an
`Outcome`.

What a machine refuses becomes an extended error here: IllegalNow and PartBusy are 409, a broken rule is 400.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.lab.bmc.hardware import MANAGER_RESET_KINDS
from orchestrator.lab.bmc.messages import Json, Refused, message, refused
from orchestrator.lab.bmc.schemas import ROOT
from orchestrator.lab.bmc.services import (
    ACCOUNTS,
    FIRMWARE,
    MONITORS,
    SESSIONS,
    TRANSFER_PROTOCOLS,
    render_account,
    render_session,
    render_task,
    task_message,
)
from orchestrator.lab.bmc.sessions import SessionPoolFull
from orchestrator.lab.bmc.state import Bmc, Caller
from orchestrator.lab.machine import IllegalNow, ResetKind
from orchestrator.lab.machine_nouns import AccountRefused, NoSuchThing, NotSupportedHere, PartBusy
from orchestrator.lab.machine_updates import TaskState

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write answers: a status, perhaps a body, perhaps headers."""

    status: int
    body: Json | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    """Who logged in, where the request made a session."""


NO_CONTENT = Outcome(204)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an action or of a creation."""

    kind: type
    is_required: bool = False
    allowed: tuple[str, ...] = ()


Parameters = Mapping[str, Parameter]


def log_in(bmc: Bmc, body: Json, peer: str) -> Outcome:
    """POST to Sessions: the only write without a login."""
    _check_properties(body, {"UserName": Parameter(str, True), "Password": Parameter(str, True)})
    now_s = bmc.now_s
    account = bmc.machine.accounts.authenticate(body["UserName"], body["Password"], now_s)
    if account is None:
        raise refused(401, "NoValidSession", WWW_Authenticate='Basic realm="Redfish"')
    try:
        if bmc.machine.faults.get("session_pool_full"):
            raise SessionPoolFull
        session = bmc.sessions.create(account.id, account.username, peer, now_s)
    except SessionPoolFull:
        raise refused(503, "SessionLimitExceeded", Retry_After="30") from None
    answer = render_session(bmc, session)
    if account.must_change:
        answer["@Message.ExtendedInfo"] = [message("PasswordChangeRequired", f"{ROOT}{ACCOUNTS}/{account.id}")]
    headers = {"Location": f"{ROOT}{SESSIONS}/{session.id}", "X-Auth-Token": session.token}
    return Outcome(201, answer, headers, user=account.username)


def log_out(bmc: Bmc, session_id: str) -> Outcome:
    """DELETE of a session."""
    bmc.sessions.delete(session_id)
    return NO_CONTENT


ACCOUNT_PARAMETERS: Parameters = {
    "UserName": Parameter(str, True),
    "Password": Parameter(str, True),
    "RoleId": Parameter(str, True),
    "Enabled": Parameter(bool),
    "PasswordChangeRequired": Parameter(bool),
    "AccountTypes": Parameter(list),
}


def create_account(bmc: Bmc, body: Json, caller: Caller) -> Outcome:
    """POST to Accounts."""
    _check_properties(body, ACCOUNT_PARAMETERS)
    try:
        account = bmc.machine.accounts.create(
            body["UserName"],
            body["Password"],
            body["RoleId"],
            must_change=body.get("PasswordChangeRequired", False),
            enabled=body.get("Enabled", True),
        )
    except AccountRefused as error:
        value = "*" if error.property_name == "Password" else str(body[error.property_name])
        raise refused(400, "PropertyValueFormatError", value, error.property_name, resolution=str(error)) from error
    return Outcome(201, render_account(bmc, account), {"Location": f"{ROOT}{ACCOUNTS}/{account.id}"})


def delete_account(bmc: Bmc, account_id: str) -> Outcome:
    """DELETE of an account; its sessions end."""
    try:
        bmc.machine.accounts.delete(account_id)
    except AccountRefused as error:
        raise refused(409, "ResourceInUse", resolution=str(error)) from error
    bmc.sessions.end_all_of(account_id)
    return NO_CONTENT


def reset_system(bmc: Bmc, body: Json, caller: Caller) -> Outcome:
    """ComputerSystem.Reset; without ResetType it means On, as most BMCs take it."""
    kinds = tuple(str(kind) for kind in ResetKind)
    _check_parameters("ComputerSystem.Reset", body, {"ResetType": Parameter(str, allowed=kinds)})
    kind = body.get("ResetType", "On")
    try:
        bmc.machine.reset(kind, bmc.now_s)
    except IllegalNow as error:
        raise refused(409, "ActionParameterValueConflict", "ResetType", kind, resolution=str(error)) from error
    return NO_CONTENT


def reset_manager(bmc: Bmc, body: Json, caller: Caller) -> Outcome:
    """Manager.Reset: the BMC restarts, the host runs on."""
    _check_parameters("Manager.Reset", body, {"ResetType": Parameter(str, allowed=MANAGER_RESET_KINDS)})
    bmc.restart()
    return NO_CONTENT


def clear_log(bmc: Bmc, body: Json, caller: Caller) -> Outcome:
    """LogService.ClearLog."""
    _check_parameters("LogService.ClearLog", body, {})
    bmc.machine.clear_log(bmc.now_s)
    return NO_CONTENT


SIMPLE_UPDATE_PARAMETERS: Parameters = {
    "ImageURI": Parameter(str, True),
    "Targets": Parameter(list),
    "TransferProtocol": Parameter(str, allowed=TRANSFER_PROTOCOLS),
    "Username": Parameter(str),
    "Password": Parameter(str),
}


def simple_update(bmc: Bmc, body: Json, caller: Caller) -> Outcome:
    """UpdateService.SimpleUpdate: 202, the task, and its monitor in Location."""
    action = "UpdateService.SimpleUpdate"
    _check_parameters(action, body, SIMPLE_UPDATE_PARAMETERS)
    targets = tuple(_part_of(target, action) for target in body.get("Targets", []))
    try:
        task = bmc.machine.start_update(body["ImageURI"], bmc.now_s, targets)
    except (NoSuchThing, NotSupportedHere) as error:
        raise refused(
            400, "ActionParameterValueNotInList", str(list(targets)), "Targets", action, resolution=str(error)
        ) from error
    except PartBusy as error:
        raise refused(409, "ResourceInUse", resolution=str(error)) from error
    return Outcome(202, render_task(bmc, task), _monitor_headers(task.id))


def watch_task(bmc: Bmc, task_id: str) -> Outcome | None:
    """GET of a task monitor: 202 while the task is open, then what the operation would have answered."""
    task = bmc.machine.task(task_id, bmc.now_s)
    if task is None:
        return None
    if not task.state.is_final:
        return Outcome(202, render_task(bmc, task), _monitor_headers(task.id))
    if task.state is TaskState.EXCEPTION:
        raise Refused(400, [task_message(task)])
    return Outcome(200, render_task(bmc, task))


def _monitor_headers(task_id: str) -> dict[str, str]:
    return {"Location": f"{ROOT}{MONITORS}/{task_id}", "Retry-After": str(RETRY_AFTER_S)}


def _part_of(target: object, action: str) -> str:
    prefix = f"{ROOT}{FIRMWARE}/"
    if isinstance(target, str) and target.startswith(prefix):
        return target.removeprefix(prefix).rstrip("/")
    resolution = f"a target is the path of a firmware part, such as {prefix}BMC"
    raise refused(400, "ActionParameterValueNotInList", str(target), "Targets", action, resolution=resolution)


def _check_properties(body: Json, known: Parameters) -> None:
    _check(
        body,
        known,
        unknown=lambda name: message("PropertyUnknown", name, related=(f"#/{name}",)),
        missing=lambda name: message("PropertyMissing", name, related=(f"#/{name}",)),
        wrong_type=lambda name, value: message("PropertyValueTypeError", value, name),
        not_allowed=lambda name, value: message("PropertyValueNotInList", value, name),
    )


def _check_parameters(action: str, body: Json, known: Parameters) -> None:
    _check(
        body,
        known,
        unknown=lambda name: message("ActionParameterUnknown", action, name),
        missing=lambda name: message("ActionParameterMissing", action, name),
        wrong_type=lambda name, value: message("ActionParameterValueTypeError", value, name, action),
        not_allowed=lambda name, value: message("ActionParameterValueNotInList", value, name, action),
    )


def _check(
    body: Json,
    known: Parameters,
    unknown: Callable[[str], Json],
    missing: Callable[[str], Json],
    wrong_type: Callable[[str, str], Json],
    not_allowed: Callable[[str, str], Json],
) -> None:
    problems = [unknown(name) for name in body if name not in known and "@" not in name]
    for name, parameter in known.items():
        if name not in body:
            problems += [missing(name)] if parameter.is_required else []
            continue
        value = body[name]
        shown = "*" if name == "Password" else str(value)
        if not isinstance(value, parameter.kind):
            problems.append(wrong_type(name, shown))
        elif parameter.allowed and value not in parameter.allowed:
            problems.append(not_allowed(name, shown))
    if problems:
        raise Refused(400, problems)
