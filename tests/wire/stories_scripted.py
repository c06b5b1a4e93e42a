"""Ways to break a scripted BMC: odd shapes of answers, foreign links, tasks that are never named."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.domain.operation import Action
from tests.drivers.redfish_oddities import RESET, ROOT, SYSTEM, Reply, Seen, link, sound_tree
from tests.wire.faults import Inject, Met
from tests.wire.neighbours import Wire

OBSERVE, POWER, FIRMWARE, TASK, UPDATE = (
    Action.BMC_OBSERVE,
    Action.BMC_POWER,
    Action.BMC_FIRMWARE,
    Action.BMC_TASK,
    Action.BMC_UPDATE,
)
ON = {"reset": "On"}
NIC = {"component": "NIC1", "image_uri": "https://127.3.0.1/firmware/nic.bin", "version": "28.39.1002"}
INVENTORY = "/redfish/v1/UpdateService/FirmwareInventory"
TASKS, FLASH = "/redfish/v1/TaskService/Tasks", "/redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate"
HTML = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>hi</html>")
Tree = Mapping[tuple[str, str], Any]


def whole_tree() -> dict[tuple[str, str], Any]:
    """A sound BMC with an inventory of two, tasks and an event log."""
    root = {**sound_tree()["GET", ROOT].body, "Tasks": link("/redfish/v1/TaskService")}
    service = {"FirmwareInventory": link(INVENTORY), "Actions": {"#UpdateService.SimpleUpdate": {"target": FLASH}}}
    accepted = Reply(202, {"@odata.type": "#Task.v1_0.Task", "@odata.id": TASKS + "/1"})
    return {
        ("GET", ROOT): Reply(200, root),
        ("GET", "/redfish/v1/UpdateService"): Reply(200, service),
        ("GET", INVENTORY): Reply(200, {"Members": [link(INVENTORY + "/BMC"), link(INVENTORY + "/NIC1")]}),
        ("GET", INVENTORY + "/BMC"): Reply(200, {"Id": "BMC", "Version": "7.10", "Updateable": True}),
        ("GET", INVENTORY + "/NIC1"): Reply(200, {"Id": "NIC1", "Version": "28.39.1002", "Updateable": True}),
        ("GET", "/redfish/v1/TaskService"): Reply(200, {"Tasks": link(TASKS)}),
        ("GET", TASKS): Reply(200, {"Members": []}),
        ("GET", TASKS + "/1"): Reply(200, {"TaskState": "Running", "TaskStatus": "OK", "PercentComplete": 40}),
        ("POST", FLASH): accepted,
    }


def answers(odd: Callable[[], Tree], args: Mapping[str, Any] | None = None) -> Inject:
    """A BMC that gives these answers, and sound ones once it is healed."""

    def inject(wire: Wire) -> Iterator[Met]:
        bmc, node, target = wire.odd()
        bmc.tree |= whole_tree()
        sound = dict(bmc.tree)
        bmc.tree |= odd()
        yield Met(node, target, args or {})
        bmc.tree = sound

    return inject


def drips(wire: Wire) -> Iterator[Met]:
    """An answer that comes byte by byte, from a BMC that we are logged in to."""
    bmc, node, target = wire.odd()
    assert wire.ask(node, target, OBSERVE).facts["power"] == "On"
    sound = bmc.tree["GET", SYSTEM]
    bmc.tree["GET", SYSTEM] = Reply(raw=b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 10_000, drip_s=0.05)
    yield Met(node, target)
    bmc.tree["GET", SYSTEM] = sound


def system(**changed: Any) -> Tree:
    """The system with some of its properties changed; None leaves one out."""
    body = {**sound_tree()["GET", SYSTEM].body, **changed}
    return {("GET", SYSTEM): Reply(200, {key: value for key, value in body.items() if value is not ...})}


def inventory(*members: Any, versions: Mapping[str, Any] | None = None, **more: Any) -> Tree:
    """A firmware inventory of these members, each with the version named for it."""
    tree: dict[tuple[str, str], Any] = {("GET", INVENTORY): Reply(200, {"Members": list(members), **more})}
    for path, body in (versions or {}).items():
        tree["GET", f"{INVENTORY}/{path}"] = Reply(200, body)
    return tree


def part(version: Any, **more: Any) -> dict[str, Any]:
    return {"Version": version, "Updateable": True, **more}


def versions_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {component["id"]: component["version"] for component in facts["components"]}


SOUND = {"BMC": "7.10", "NIC1": "28.39.1002"}


def are_sound(facts: Mapping[str, Any]) -> bool:
    return versions_of(facts) == SOUND


def never(bmc_reply: Reply) -> Tree:
    return {("POST", RESET): bmc_reply}


def needs_etag(accepts: Callable[[str | None], bool], etag: str) -> Tree:
    """PATCH of the system answers 412 until the If-Match is one that it accepts."""
    state: dict[str, Any] = {"Boot": {"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None"}}

    def patch(seen: Seen) -> Reply:
        if not accepts(seen.headers.get("if-match")):
            return Reply(412, {})
        state.update(seen.body)
        return Reply(204)

    def get(seen: Seen) -> Reply:
        return Reply(200, {**sound_tree()["GET", SYSTEM].body, **state}, {"ETag": etag})

    return {("PATCH", SYSTEM): patch, ("GET", SYSTEM): get}


def paged(wire: Wire) -> Iterator[Met]:
    """120 components in three pages of 50 at most."""
    bmc, node, target = wire.odd()
    bmc.tree |= whole_tree() | _pages([f"P{number}" for number in range(118)] + ["BMC", "NIC1"])
    yield Met(node, target)


def _pages(names: list[str]) -> Tree:
    tree: dict[tuple[str, str], Any] = {}
    for start in range(0, len(names), 50):
        uri = INVENTORY + (f"?$skip={start}" if start else "")
        more = {"Members@odata.nextLink": f"{INVENTORY}?$skip={start + 50}"} if start + 50 < len(names) else {}
        tree["GET", uri] = Reply(200, {"Members": [link(f"{INVENTORY}/{name}") for name in names[start : start + 50]], **more})
    for name in names:
        tree["GET", f"{INVENTORY}/{name}"] = Reply(200, {"Id": name, "Version": SOUND.get(name, "1"), "Updateable": True})
    return tree


def expanded_log() -> Tree:
    """A log whose collection shows its entries with most fields left out, as `$expand` makes some BMCs do."""
    entries = "/redfish/v1/Systems/1/LogServices/SEL/Entries"
    whole = {"Created": "2026-01-02T03:04:05Z", "Severity": "Critical", "Message": "PSU 1 failed"}
    zero = {"Created": "0000-00-00T00:00:00Z", "Severity": "OK", "Message": "clock was not set"}
    return {
        **system(LogServices=link("/redfish/v1/Systems/1/LogServices")),
        ("GET", "/redfish/v1/Systems/1/LogServices"): Reply(200, {"Members": [link("/redfish/v1/Systems/1/LogServices/SEL")]}),
        ("GET", "/redfish/v1/Systems/1/LogServices/SEL"): Reply(200, {"Entries": link(entries)}),
        ("GET", entries): Reply(200, {"Members": [{**link(entries + "/1"), "Id": "1"}, {**link(entries + "/2"), "Id": "2"}]}),
        ("GET", entries + "/1"): Reply(200, whole),
        ("GET", entries + "/2"): Reply(200, zero),
    }


def own_address(wire: Wire) -> Iterator[Met]:
    bmc, node, target = wire.odd()
    bmc.tree["GET", "/redfish/v1/Systems"] = Reply(200, {"Members": [link(f"https://{bmc.address}:{bmc.port}{SYSTEM}")]})
    yield Met(node, target)


BOTH = (link(INVENTORY + "/BMC"), link(INVENTORY + "/NIC1"))
