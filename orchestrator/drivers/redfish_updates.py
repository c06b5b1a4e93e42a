"""A BMC's firmware: the inventory, one update, and the task that carries it out (DSP0266; UpdateService, TaskService)."""

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.domain.errors import PeerRefused
from orchestrator.drivers.redfish_client import Answer, extended_infos, shown
from orchestrator.drivers.redfish_reading import allowed, follow, inner, last_segment, link, listed, members, number, text
from orchestrator.drivers.redfish_session import RedfishSession

LOG = logging.getLogger(__name__)
VANISHED = "Vanished"
"""Our word for a task the BMC does not know any more: only the version tells what came of it."""
MOST_MESSAGES = 20
RESET_MESSAGES = frozenset({"ResetRequired", "ResetRecommended", "AwaitToActivate", "SystemResetRequired"})
"""Ids that mean "installed, and not in effect yet": of DMTF's Base and Update registries, the last one of HPE's."""
SCHEDULED_MESSAGE, SCHEDULED_JOB = "JCP001", "Scheduled"
"""What an iDRAC says of an update that it installs when the host is reset next, not before: `Oem.Dell` of its task, DellJob."""
ENDED = ("Completed", "Exception", "Killed", "Cancelled")
_RESET, _HOST = r"(?:reset|re-?boot|re-?start|power[- ]?cycl\w*)", r"(?:host|system|server|machine)"
HOST_RESET = re.compile(rf"\b{_RESET}\w*\b[^.]*\b{_HOST}\b|\b{_HOST}\b[^.]*\b{_RESET}", re.IGNORECASE)
"""The same in vendors' own words: "reset the host to apply it", "a system reboot is required"."""


def inventory(session: RedfishSession) -> list[dict[str, Any]]:
    """id, name, version and updateable of every component; None where the BMC does not say (DSP0268: both are optional)."""
    components: dict[str, dict[str, Any]] = {}
    for member in members(session, follow(session, "UpdateService", "FirmwareInventory")):
        uri = member["@odata.id"]
        component = _component(session, uri)
        identifier = text(component, "Id") or last_segment(uri)
        if identifier in components:
            # Two resources of one Id: both are kept, so that the audit sees two versions if there are two.
            identifier = f"{identifier} ({last_segment(uri)})"
        components[identifier] = {
            "id": identifier,
            "name": text(component, "Name") or identifier,
            "version": text(component, "Version"),
            "updateable": updateable if isinstance(updateable := component.get("Updateable"), bool) else None,
        }
    return list(components.values())


def start_update(session: RedfishSession, component: str, image_uri: str, version: str) -> dict[str, Any]:
    """SimpleUpdate of one component. Facts: task (URI; empty if the BMC names none), component, version.

    Raises PeerRefused, AnswerLost as everywhere.
    """
    where = session.client.where
    service = session.get(follow(session, "UpdateService"))
    action = inner(service, "Actions", "#UpdateService.SimpleUpdate")
    target = text(action, "target")
    if target is None:
        raise PeerRefused(f"the BMC at {where} offers no SimpleUpdate", "update this component with the vendor's tool")
    uri = _component_uri(session, service, component)
    body: dict[str, Any] = {"ImageURI": image_uri, "Targets": [uri]}
    protocol = urlsplit(image_uri).scheme.upper()
    if protocol in allowed(action, "TransferProtocol"):
        body["TransferProtocol"] = protocol
    before = _task_uris(session)
    answer = session.write("POST", target, body)
    return {"task": _task_uri(session, answer, before), "component": component, "version": version}


def look_at_task(session: RedfishSession, uri: str) -> dict[str, Any]:
    """task, state, status, percent, messages, needs_reset, is_scheduled. The URI may be a task's or a task monitor's."""
    answer = session.find(uri)
    if answer is None:
        gone = f"the BMC at {session.client.where} does not know this task any more"
        nothing = {"status": None, "percent": None, "needs_reset": False, "is_scheduled": False}
        return {"task": uri, "state": VANISHED, "messages": [gone], **nothing}
    state = text(answer.body, "TaskState")
    if state is None:
        # A monitor answers 202 while the work runs and the work's own answer when it has ended (DSP0266, "Asynchronous").
        state = "Running" if answer.status == 202 else "Completed"
    return {
        "task": uri,
        "state": state,
        "status": text(answer.body, "TaskStatus"),
        "percent": number(answer.body, "PercentComplete"),
        "messages": _messages(answer.body),
        "needs_reset": _needs_reset(answer.body),
        "is_scheduled": state not in ENDED and _is_scheduled(answer.body, state),
    }


def list_tasks(session: RedfishSession) -> list[dict[str, Any]] | None:
    """task, name, state, percent of every task the BMC still remembers, newest last; None where it has no TaskService."""
    uris = _task_uris(session)
    if uris is None:
        return None
    tasks = []
    for uri in sorted(uris, key=_age):
        answer = session.find(uri)
        if answer is None:
            continue  # it vanished between the list and the look, as tasks do
        tasks.append(
            {
                "task": uri,
                "name": text(answer.body, "Name") or last_segment(uri),
                "state": text(answer.body, "TaskState") or "Running",
                "percent": number(answer.body, "PercentComplete"),
                "started": text(answer.body, "StartTime") or "",
            }
        )
    # Where every task says when it began that is its order; else the order of their numbers stands.
    if all(task["started"] for task in tasks):
        tasks.sort(key=lambda task: str(task["started"]))
    return [{key: task[key] for key in ("task", "name", "state", "percent")} for task in tasks]


def _age(uri: str) -> tuple[int, str]:
    """Orders task URIs by the number they end in: 9 before 10."""
    digits = re.search(r"(\d+)$", uri)
    return (int(digits.group(1)) if digits else 0, uri)


def _component(session: RedfishSession, uri: str) -> Mapping[str, Any]:
    try:
        return session.get(uri)
    except PeerRefused as refused:
        # One unreadable line must not hide the others; the audit says "unknown version" for it.
        LOG.warning("%s", refused)
        return {}


def _component_uri(session: RedfishSession, service: Mapping[str, Any], component: str) -> str:
    collection = link(service, "FirmwareInventory")
    uris = [member["@odata.id"] for member in members(session, collection)] if collection else []
    found = next((uri for uri in uris if last_segment(uri) == component), None)
    if found is None:
        raise PeerRefused(
            f"the BMC at {session.client.where} has no firmware component {component}",
            f"it has {', '.join(sorted(map(last_segment, uris))) or 'none'}",
        )
    if session.get(found).get("Updateable") is False:
        raise PeerRefused(f"the BMC at {session.client.where} says that {component} cannot be updated through it")
    return found


def _task_uri(session: RedfishSession, answer: Answer, before: set[str] | None) -> str:
    """Where the accepted update can be watched: the task itself, else its monitor, else the one task that is new.

    Empty where none is named: the update was accepted all the same, and only the version tells its end.
    """
    kind = str(answer.body.get("@odata.type", ""))
    named = link(answer.body) if ".Task" in kind else None
    try:
        if named or answer.headers.get("location"):
            return session.client.path_of(named or answer.headers["location"])
    except PeerRefused as foreign:
        # A link that is not followed does not undo what was accepted.
        LOG.warning("%s", foreign)
    after = _task_uris(session)
    new = (after or set()) - (before or set())
    if before is not None and len(new) == 1:
        return new.pop()
    LOG.warning("the BMC at %s accepted an update and named no task", session.client.where)
    return ""


def _task_uris(session: RedfishSession) -> set[str] | None:
    """Every task the BMC lists now; None where it lists none to us."""
    try:
        tasks = follow(session, "Tasks", "Tasks")
        return {session.client.path_of(link(member)) for member in members(session, tasks)}
    except PeerRefused as refused:
        LOG.info("%s", refused)
        return None


def _messages(body: Mapping[str, Any]) -> list[str]:
    texts = [shown(str(info.get("Message") or info.get("MessageId") or "")) for info in _infos(body)]
    return [message for message in texts if message][-MOST_MESSAGES:]


def _infos(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [info for info in listed(body, "Messages") if isinstance(info, Mapping)] + extended_infos(body)


def _needs_reset(body: Mapping[str, Any]) -> bool:
    """Whether what was installed takes effect only when the host is reset: by a message's id, or in its own words."""
    for info in _infos(body):
        if str(info.get("MessageId") or "").rpartition(".")[2] in RESET_MESSAGES:
            # These speak of any resource; a manager restarts by itself, and the host's power does not reach it.
            arguments = " ".join(map(str, listed(info, "MessageArgs")))
            return "/Managers/" not in arguments
        if HOST_RESET.search(str(info.get("Message") or "")):
            return True
    return False


def _is_scheduled(body: Mapping[str, Any], state: str) -> bool:
    """Whether the update only begins once the host is reset: said by an iDRAC's job, or by a pending task in its own words."""
    if job := text(inner(body, "Oem", "Dell"), "JobState"):
        return job == SCHEDULED_JOB
    ids = (str(info.get("MessageId") or "") for info in _infos(body))
    return any(each.rpartition(".")[2] == SCHEDULED_MESSAGE for each in ids) or (state == "Pending" and _needs_reset(body))
