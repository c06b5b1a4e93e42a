"""Every value of every resource replaced by every kind of nonsense: our own errors at most, and facts that are plain JSON."""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import RackrayError
from orchestrator.domain.operation import Target
from orchestrator.drivers.redfish import RedfishBmc
from orchestrator.drivers.redfish_client import Answer, RedfishClient, pinned_context
from orchestrator.drivers.redfish_session import RedfishSession
from orchestrator.drivers.secrets import SecretStore

R = "/redfish/v1/"
ESCAPE, FOREIGN = "\x1b[31m\n", "https://evil.example/redfish/v1/"
JUNK: tuple[Any, ...] = (None, 7, -1e400, 10**400, True, "x", ESCAPE, FOREIGN, [], [None, 5], {}, {"a": 1})


def link(uri: str) -> dict[str, str]:
    return {"@odata.id": R + uri}


TREE: Mapping[str, dict[str, Any]] = {
    R: {"Systems": link("S"), "UpdateService": link("U"), "Tasks": link("T"), "AccountService": link("A"), "Managers": link("M")},
    R + "S": {"Members": [link("S/1")]},
    R + "S/1": {
        "SerialNumber": "SER",
        "Model": "LAB",
        "PowerState": "On",
        "LocationIndicatorActive": False,
        "Status": {"Health": "OK"},
        "Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"},
        "Actions": {"#ComputerSystem.Reset": {"target": R + "S/1/Reset", "ResetType@Redfish.AllowableValues": ["On"]}},
        "Links": {"Chassis": [link("C/1")], "ManagedBy": [link("M/1")]},
        "LogServices": link("L"),
    },
    R + "M": {"Members": [link("M/1")]},
    R + "M/1": {"FirmwareVersion": "7.10"},
    R + "C/1": {"EnvironmentMetrics": link("C/1/E")},
    R + "C/1/E": {"PowerWatts": {"Reading": 350}, "PowerControl": [{"PowerConsumedWatts": 1}]},
    R + "L": {"Members": [link("L/SEL")]},
    R + "L/SEL": {"Entries": link("L/SEL/E")},
    R + "L/SEL/E": {"Members": [{**link("L/SEL/E/1"), "Created": "2026-01-01T00:00:00Z", "Severity": "OK", "Message": "hello"}]},
    R + "U": {"FirmwareInventory": link("U/F"), "Actions": {"#UpdateService.SimpleUpdate": {"target": R + "U/Go"}}},
    R + "U/F": {"Members": [link("U/F/NIC")], "Members@odata.nextLink": None},
    R + "U/F/NIC": {"Id": "NIC", "Name": "NIC", "Version": "1", "Updateable": True},
    R + "T": {"Tasks": link("T/T")},
    R + "T/T": {"Members": [link("T/T/1")]},
    R + "T/T/1": {
        "TaskState": "Running",
        "TaskStatus": "OK",
        "PercentComplete": 5,
        "StartTime": "x",
        "Messages": [{"Message": "m"}],
    },
    R + "A": {"Accounts": link("A/A")},
    R + "A/A": {"Members": [link("A/A/1")]},
    R + "A/A/1": {"Id": "1", "UserName": "root"},
}
ANSWERS: Mapping[str, tuple[int, dict[str, Any], dict[str, str]]] = {
    R + "SessionService/Sessions": (201, {}, {"x-auth-token": "t", "location": R + "SessionService/Sessions/1"}),
    R + "S/1/Reset": (204, {}, {}),
    R + "U/Go": (202, {**link("T/T/1"), "@odata.type": "#Task.v1_7_1.Task"}, {}),
    R + "A/A": (201, {}, {}),
}
VERBS: Mapping[str, Callable[[RedfishBmc], Mapping[str, Any]]] = {
    "identify": lambda bmc: bmc.identify(),
    "observe": lambda bmc: bmc.observe(),
    "reset": lambda bmc: bmc.reset("On"),
    "boot_once": lambda bmc: bmc.boot_once("Pxe"),
    "firmware": lambda bmc: bmc.firmware(),
    "update": lambda bmc: bmc.update("NIC", "https://images/x", "2"),
    "task": lambda bmc: bmc.task(R + "T/T/1"),
    "tasks": lambda bmc: bmc.tasks(),
    "locate": lambda bmc: bmc.locate(True),
    "events": lambda bmc: bmc.events(),
}


class Recorded(RedfishClient):
    """A client whose BMC is a dictionary."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        super().__init__("127.2.201.150", 443, pinned_context("a BMC", "ab" * 32))
        self.tree = tree

    def send(
        self,
        method: str,
        link: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        changes: bool | None = None,
    ) -> Answer:
        path = self.path_of(link)
        if method == "POST":
            status, answer, answer_headers = ANSWERS.get(path, (404, {}, {}))
            return Answer(status, answer_headers, answer)
        found = self.tree.get(path)
        if method != "GET":
            return Answer(204, {})
        return Answer(404, {}) if found is None else Answer(200, {}, found)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SecretStore:
    home: Path = tmp_path_factory.mktemp("home")
    (home / "secrets").mkdir(mode=0o700)
    store = SecretStore(home, environment={})
    store.bmc_password("n1", create=True)
    return store


def bmc_of(client: RedfishClient, store: SecretStore) -> RedfishBmc:
    return RedfishBmc("n1", Target(serial="SER"), RedfishSession(client), store, is_known=True)


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (key,)
        yield from ((key, *rest) for rest in places(inside))


def replaced(body: dict[str, Any], place: tuple[Any, ...], junk: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    at: Any = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = junk
    return changed


@pytest.mark.parametrize("verb", VERBS)
def test_a_sound_tree_gives_facts(verb: str, store: SecretStore) -> None:
    assert VERBS[verb](bmc_of(Recorded(TREE), store))


@pytest.mark.parametrize("verb", VERBS)
def test_no_nonsense_gets_past_our_own_errors_or_into_the_facts(
    verb: str, store: SecretStore, caplog: pytest.LogCaptureFixture
) -> None:
    tried, client = 0, Recorded(TREE)
    caplog.set_level(logging.CRITICAL)
    for uri, body in TREE.items():
        for place in places(body):
            for junk in JUNK:
                client.tree = {**TREE, uri: replaced(body, place, junk)}
                tried += 1
                try:
                    facts = VERBS[verb](bmc_of(client, store))
                except RackrayError:
                    continue
                text = json.dumps(facts, allow_nan=False, ensure_ascii=False)
                assert "\x1b" not in text and "\\u001b" not in text, (uri, place, junk)
    assert tried > 500
