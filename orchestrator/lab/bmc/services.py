"""Rendering of the services of a BMC: root, sessions, accounts, updates, tasks."""

from orchestrator.lab.bmc.hardware import ok
from orchestrator.lab.bmc.messages import Json, message
from orchestrator.lab.bmc.schemas import ROOT, link, resource
from orchestrator.lab.bmc.sessions import Session
from orchestrator.lab.bmc.state import Bmc
from orchestrator.lab.machine_accounts import (
    LOCKOUT_DURATION_S,
    LOCKOUT_THRESHOLD,
    MAX_PASSWORD_LENGTH,
    MIN_PASSWORD_LENGTH,
    ROLE_PRIVILEGES,
    Account,
)
from orchestrator.lab.machine_updates import PartView, TaskState, UpdateTask

SESSIONS = "/SessionService/Sessions"
ACCOUNTS = "/AccountService/Accounts"
ROLES = "/AccountService/Roles"
FIRMWARE = "/UpdateService/FirmwareInventory"
TASKS = "/TaskService/Tasks"
MONITORS = "/TaskService/TaskMonitors"
SIMPLE_UPDATE_TARGET = "/UpdateService/Actions/UpdateService.SimpleUpdate"
TRANSFER_PROTOCOLS = ("HTTP", "HTTPS")
_NO_QUERIES = {
    "FilterQuery": False,
    "SelectQuery": False,
    "ExcerptQuery": False,
    "OnlyMemberQuery": False,
    "ExpandQuery": {"ExpandAll": False, "Levels": False, "Links": False, "NoLinks": False},
}


def service_root(bmc: Bmc) -> Json:
    """The one resource that needs no login."""
    body = resource(
        "/",
        "ServiceRoot",
        "RootService",
        "Root Service",
        RedfishVersion="1.15.0",
        UUID=bmc.uuid,
        Vendor=bmc.machine.spec.manufacturer,
        Product="Simulated BMC",
        ProtocolFeaturesSupported=_NO_QUERIES,
        Tasks=link("/TaskService"),
        Links={"Sessions": link(SESSIONS)},
    )
    systems = () if bmc.machine.spec.is_equipment else ("Systems",)
    names = (*systems, "Managers", "Chassis", "SessionService", "AccountService", "UpdateService")
    return {**body, **{name: link(f"/{name}") for name in (*names, "Registries", "JsonSchemas")}}


def session_service(bmc: Bmc) -> Json:
    """How sessions behave."""
    return resource(
        "/SessionService",
        "SessionService",
        "SessionService",
        "Session Service",
        ServiceEnabled=True,
        SessionTimeout=bmc.sessions.timeout_s,
        Sessions=link(SESSIONS),
        Status=ok(),
    )


def session_ids(bmc: Bmc) -> list[str]:
    """Every session that lives."""
    return [session.id for session in bmc.sessions.all(bmc.now_s)]


def session(bmc: Bmc, session_id: str) -> Json | None:
    """One session."""
    found = bmc.sessions.find(session_id, bmc.now_s)
    return render_session(bmc, found) if found else None


def render_session(bmc: Bmc, found: Session) -> Json:
    """A session without its token."""
    return resource(
        f"{SESSIONS}/{found.id}",
        "Session",
        found.id,
        "User Session",
        UserName=found.username,
        SessionType="Redfish",
        ClientOriginIPAddress=found.peer,
        CreatedTime=bmc.timestamp(found.created_s),
    )


def account_service(bmc: Bmc) -> Json:
    """The rules for accounts."""
    return resource(
        "/AccountService",
        "AccountService",
        "AccountService",
        "Account Service",
        ServiceEnabled=True,
        MinPasswordLength=MIN_PASSWORD_LENGTH,
        MaxPasswordLength=MAX_PASSWORD_LENGTH,
        AccountLockoutThreshold=LOCKOUT_THRESHOLD,
        AccountLockoutDuration=int(LOCKOUT_DURATION_S),
        Accounts=link(ACCOUNTS),
        Roles=link(ROLES),
        Status=ok(),
    )


def account_ids(bmc: Bmc) -> list[str]:
    """Every account."""
    return [account.id for account in bmc.machine.accounts.all()]


def account(bmc: Bmc, account_id: str) -> Json | None:
    """One account."""
    found = next((one for one in bmc.machine.accounts.all() if one.id == account_id), None)
    return render_account(bmc, found) if found else None


def render_account(bmc: Bmc, found: Account) -> Json:
    """An account; its password is always null."""
    return resource(
        f"{ACCOUNTS}/{found.id}",
        "ManagerAccount",
        found.id,
        "User Account",
        UserName=found.username,
        Password=None,
        RoleId=found.role,
        Enabled=found.enabled,
        Locked=found.is_locked(bmc.now_s),
        PasswordChangeRequired=found.must_change,
        AccountTypes=["Redfish"],
        Links={"Role": link(f"{ROLES}/{found.role}")},
    )


def role(bmc: Bmc, role_id: str) -> Json | None:
    """One of the three standard roles."""
    if role_id not in ROLE_PRIVILEGES:
        return None
    return resource(
        f"{ROLES}/{role_id}",
        "Role",
        role_id,
        f"{role_id} role",
        RoleId=role_id,
        IsPredefined=True,
        AssignedPrivileges=list(ROLE_PRIVILEGES[role_id]),
    )


def update_service(bmc: Bmc) -> Json:
    """How firmware is updated: an image is named, the BMC fetches it."""
    return resource(
        "/UpdateService",
        "UpdateService",
        "UpdateService",
        "Update Service",
        ServiceEnabled=True,
        FirmwareInventory=link(FIRMWARE),
        Status=ok(),
        Actions={
            "#UpdateService.SimpleUpdate": {
                "target": ROOT + SIMPLE_UPDATE_TARGET,
                "TransferProtocol@Redfish.AllowableValues": list(TRANSFER_PROTOCOLS),
            }
        },
    )


def part_ids(bmc: Bmc) -> list[str]:
    """Every firmware part."""
    return [part.id for part in bmc.machine.firmware(bmc.now_s)]


def part(bmc: Bmc, part_id: str) -> Json | None:
    """One line of the firmware inventory."""
    found = next((one for one in bmc.machine.firmware(bmc.now_s) if one.id == part_id), None)
    return _render_part(bmc, found) if found else None


def _render_part(bmc: Bmc, found: PartView) -> Json:
    return resource(
        f"{FIRMWARE}/{found.id}",
        "SoftwareInventory",
        found.id,
        found.name,
        Manufacturer=bmc.machine.spec.manufacturer,
        SoftwareId=found.id,
        Version=found.version,
        Updateable=found.updateable,
        Status=ok(found.health),
    )


def task_service(bmc: Bmc) -> Json:
    """How long operations are told."""
    return resource(
        "/TaskService",
        "TaskService",
        "TaskService",
        "Task Service",
        ServiceEnabled=True,
        DateTime=bmc.timestamp(bmc.now_s),
        CompletedTaskOverWritePolicy="Oldest",
        LifeCycleEventOnTaskStateChange=False,
        Tasks=link(TASKS),
        Status=ok(),
    )


def task_ids(bmc: Bmc) -> list[str]:
    """Every task the BMC still knows."""
    return [task.id for task in bmc.machine.tasks(bmc.now_s)]


def task(bmc: Bmc, task_id: str) -> Json | None:
    """One task."""
    found = bmc.machine.task(task_id, bmc.now_s)
    return render_task(bmc, found) if found else None


def render_task(bmc: Bmc, found: UpdateTask) -> Json:
    """A task with its message; TaskMonitor only while it is open, as DSP0266 asks."""
    failed = found.state is TaskState.EXCEPTION
    body = resource(
        f"{TASKS}/{found.id}",
        "Task",
        found.id,
        f"Update of {found.part_id or 'an unknown part'}",
        TaskState=str(found.state),
        TaskStatus="Critical" if failed else "OK",
        PercentComplete=found.percent,
        StartTime=bmc.timestamp(found.started_s),
        Messages=[task_message(found)],
    )
    if found.is_scheduled:
        body["Oem"] = {"Dell": {"JobState": "Scheduled", "JobType": "FirmwareUpdate", "PercentComplete": 0}}
    if found.ended_s is None:
        body["TaskMonitor"] = f"{ROOT}{MONITORS}/{found.id}"
    else:
        body["EndTime"] = bmc.timestamp(found.ended_s)
    return body


def task_message(found: UpdateTask) -> Json:
    """What became of an update, in the words of the Update registry; our own sentence is the Resolution."""
    device = found.part_id or "unknown"
    match found.state:
        case TaskState.EXCEPTION:
            return message("ApplyFailed", found.image_uri, device, resolution=found.message)
        case TaskState.COMPLETED if found.needs_reset:
            return message("AwaitToActivate", found.image_uri, device, resolution=found.message)
        case TaskState.PENDING:
            return message("JCP001", resolution="Reset the host: the update begins then.")
        case TaskState.COMPLETED:
            return message("UpdateSuccessful", device, found.image_uri, resolution=found.message)
        case _:
            return message("TargetDetermined", device, found.image_uri, resolution=found.message)
