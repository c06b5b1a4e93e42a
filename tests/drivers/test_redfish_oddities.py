"""What captured BMCs do at their worst: foreign links, nonsense, half answers, odd shapes. Nothing of it is believed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.deadline import within
from orchestrator.domain.errors import AnswerLost, IdentityMismatch, PeerRefused, PeerUnreachable
from orchestrator.drivers.redfish_updates import _is_scheduled
from tests.drivers.redfish_oddities import RESET, ROOT, SESSIONS, SYSTEM, OddBmc, Reply, Seen, link, sound_tree

INVENTORY = "/redfish/v1/UpdateService/FirmwareInventory"
HTML = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>hi</html>")


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[OddBmc]:
    bmc = OddBmc(tmp_path, "127.2.201.100")
    yield bmc
    bmc.stop()


@pytest.mark.parametrize(
    "foreign",
    [
        "https://evil.example/redfish/v1/Systems/1",
        "//evil.example/redfish/v1/Systems/1",
        "http://127.2.201.100/redfish/v1/Systems/1",
        "https://127.2.201.100@evil.example/redfish/v1/Systems/1",
        "https://127.2.201.100:1/redfish/v1/Systems/1",
        "file:///etc/passwd",
        "/etc/passwd",
        "\\\\evil.example\\redfish",
        "",
        7,
    ],
)
def test_a_link_to_another_place_is_not_followed(odd: OddBmc, foreign: object) -> None:
    odd.tree["GET", "/redfish/v1/Systems"] = Reply(200, {"Members": [{"@odata.id": foreign}]})
    bmc = odd.open()
    with pytest.raises(PeerRefused):
        bmc.observe()
    assert odd.requests("GET") == [ROOT, "/redfish/v1/Systems"]
    bmc.close()


def test_a_foreign_host_is_named_and_a_link_with_our_own_authority_is_followed(odd: OddBmc) -> None:
    bmc = odd.open()
    odd.tree["GET", "/redfish/v1/Systems"] = Reply(200, {"Members": [link("https://evil.example/redfish/v1/Systems/1")]})
    with pytest.raises(PeerRefused, match=r"evil\.example"):
        bmc.observe()
    own = f"https://{odd.address}:{odd.port}{SYSTEM}"
    odd.tree["GET", "/redfish/v1/Systems"] = Reply(200, {"Members": [link(own)]})
    assert bmc.observe()["power"] == "On"
    bmc.close()


def test_every_new_connection_is_checked_and_the_token_stays_here(odd: OddBmc) -> None:
    system = sound_tree()["GET", SYSTEM]
    odd.tree["GET", SYSTEM] = Reply(200, system.body, {"Connection": "close"})
    bmc = odd.open()
    assert bmc.observe()["power"] == "On"
    before = len(odd.seen)
    odd.show_another_certificate()
    with pytest.raises(IdentityMismatch, match="is pinned"):
        bmc.observe()
    bmc.close()
    assert len(odd.seen) == before


def test_two_exchanges_at_once_share_one_session_and_renew_it_once(odd: OddBmc) -> None:
    bmc = odd.open()
    bmc.observe()
    odd.tree["GET", SYSTEM] = lambda seen: (
        Reply(401, {}) if seen.headers["x-auth-token"] == "token-1" else sound_tree()["GET", SYSTEM]
    )
    second = sound_tree()["POST", SESSIONS]
    odd.tree["POST", SESSIONS] = Reply(201, second.body, {**second.headers, "X-Auth-Token": "token-2"})
    powers: list[str] = []
    threads = [threading.Thread(target=lambda: powers.append(bmc.observe()["power"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert powers == ["On", "On"]
    assert odd.requests("POST") == [SESSIONS, SESSIONS]
    bmc.close()


def test_a_redirect_is_not_followed(odd: OddBmc) -> None:
    odd.tree["GET", ROOT] = Reply(302, None, {"Location": "https://evil.example/"})
    with pytest.raises(PeerRefused, match="302"):
        odd.open().observe()


def test_a_session_that_lives_elsewhere_is_refused_without_sending_the_token_there(odd: OddBmc) -> None:
    odd.tree["POST", SESSIONS] = Reply(201, {}, {"X-Auth-Token": "t", "Location": "https://evil.example/s/1"})
    with pytest.raises(PeerRefused, match=r"evil\.example"):
        odd.open().observe()


@pytest.mark.parametrize(
    "nonsense",
    [
        HTML,
        Reply(200, [1, 2]),
        Reply(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"Power":'),
        Reply(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"PowerState":'),
        Reply(reset=True),
    ],
)
def test_nonsense_is_no_power_state(odd: OddBmc, nonsense: Reply) -> None:
    bmc = odd.open()
    assert bmc.observe()["power"] == "On"
    odd.tree["GET", SYSTEM] = nonsense
    with within(0.6), pytest.raises((PeerRefused, PeerUnreachable)):
        bmc.observe()
    odd.tree["GET", SYSTEM] = sound_tree()["GET", SYSTEM]
    assert bmc.observe()["power"] == "On"
    bmc.close()


@pytest.mark.parametrize("lost", [Reply(reset=True), HTML, Reply(500, {}), Reply(504, {}), Reply(raw=b"HTTP/1.1 20")])
def test_after_a_write_anything_but_a_clear_answer_is_unknown(odd: OddBmc, lost: Reply) -> None:
    odd.tree["POST", RESET] = lost
    bmc = odd.open()
    with within(0.6), pytest.raises(AnswerLost):
        bmc.reset("On")
    assert odd.requests("POST").count(RESET) == 1
    bmc.close()


def test_one_byte_at_a_time_cannot_outlast_the_deadline(odd: OddBmc) -> None:
    bmc = odd.open()
    bmc.observe()
    odd.tree["GET", SYSTEM] = Reply(raw=b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 10_000, drip_s=0.05)
    started_s = time.monotonic()
    with within(0.7), pytest.raises(PeerUnreachable):
        bmc.observe()
    assert time.monotonic() - started_s < 1.5
    bmc.close()


def test_retry_after_and_passing_states_are_told_from_a_plain_no(odd: OddBmc) -> None:
    bmc = odd.open()
    passing = {"MessageId": "iLO.2.15.InvalidOperationForSystemState", "Message": "not now"}
    never = {"MessageId": "Base.1.8.ActionNotSupported", "Message": "never\x1b[31m"}
    odd.tree["POST", RESET] = [
        Reply(503, {}, {"Retry-After": "12"}),
        # One object where a list is due.
        Reply(400, {"error": {"@Message.ExtendedInfo": passing}}),
        Reply(409, {"error": {"message": "job queued"}}),
        Reply(400, {"error": {"@Message.ExtendedInfo": [never]}}),
    ]
    found = []
    for _ in range(4):
        with pytest.raises(PeerRefused) as refused:
            bmc.reset("On")
        found.append((refused.value.retryable, refused.value.retry_after_s))
    assert found == [(True, 12.0), (True, 0.0), (True, 0.0), (False, 0.0)]
    assert "never" in str(refused.value) and "\x1b" not in str(refused.value)
    bmc.close()


def test_a_401_is_answered_by_one_new_login_and_never_by_more(odd: OddBmc) -> None:
    bmc = odd.open()
    odd.tree["GET", SYSTEM] = [Reply(401, {}), sound_tree()["GET", SYSTEM], Reply(401, {})]
    assert bmc.observe()["power"] == "On"
    assert odd.requests("POST") == [SESSIONS, SESSIONS]
    with pytest.raises(PeerRefused, match="401"):
        bmc.observe()
    assert len(odd.requests("POST")) == 3
    bmc.close()


def test_a_wrong_password_is_tried_once(odd: OddBmc) -> None:
    odd.tree["POST", SESSIONS] = Reply(401, {})
    with pytest.raises(PeerRefused) as refused:
        odd.open().observe()
    assert not refused.value.retryable and odd.requests("POST") == [SESSIONS]


def test_pages_repeats_and_wrong_counts_of_a_collection(odd: OddBmc) -> None:
    first = {"Members": [link(INVENTORY + "/A"), link(INVENTORY + "/A"), None], "Members@odata.count": 77}
    first["Members@odata.nextLink"] = INVENTORY + "?$skip=2"
    second = {"Members": [link(INVENTORY + "/B%231"), link(INVENTORY + "/C d")], "Members@odata.nextLink": INVENTORY}
    odd.tree |= {
        ("GET", "/redfish/v1/UpdateService"): Reply(200, {"FirmwareInventory": link(INVENTORY)}),
        ("GET", INVENTORY): Reply(200, first),
        ("GET", INVENTORY + "?$skip=2"): Reply(200, second),
        ("GET", INVENTORY + "/A"): Reply(200, {"Id": "A", "Version": " 96.00.A6.00.01  ", "Updateable": True}),
        ("GET", INVENTORY + "/B%231"): Reply(200, {"Version": None}),
        ("GET", INVENTORY + "/C%20d"): Reply(500, {}),
    }
    bmc = odd.open()
    assert bmc.firmware()["components"] == [
        {"id": "A", "name": "A", "version": "96.00.A6.00.01", "updateable": True},
        {"id": "B#1", "name": "B#1", "version": None, "updateable": None},
        {"id": "C d", "name": "C d", "version": None, "updateable": None},
    ]
    odd.tree["GET", INVENTORY] = Reply(200, {"Members": None})
    assert bmc.firmware()["components"] == []
    bmc.close()


def test_a_baseboard_listed_as_a_system_is_not_mistaken_for_the_server(odd: OddBmc) -> None:
    board = "/redfish/v1/Systems/HGX_Baseboard_0"
    odd.tree["GET", "/redfish/v1/Systems"] = Reply(200, {"Members": [link(board), link(SYSTEM)]})
    odd.tree["GET", board] = Reply(200, {"SerialNumber": "BOARD-1", "PowerState": "Off"})
    bmc = odd.open()
    assert bmc.observe()["power"] == "On"
    bmc.close()
    with pytest.raises(IdentityMismatch, match="SER-odd"):
        odd.open(serial="SER-wanted").observe()


def test_an_update_accepted_without_a_task_is_found_in_the_task_list_or_has_none(odd: OddBmc) -> None:
    tasks, action = "/redfish/v1/TaskService/Tasks", "/redfish/v1/UpdateService/Actions/SimpleUpdate"
    root = {**sound_tree()["GET", ROOT].body, "Tasks": link("/redfish/v1/TaskService")}
    service = {"FirmwareInventory": link(INVENTORY), "Actions": {"#UpdateService.SimpleUpdate": {"target": action}}}
    empty, one = Reply(200, {"Members": []}), Reply(200, {"Members": [link(tasks + "/5")]})
    odd.tree |= {
        ("GET", ROOT): Reply(200, root),
        ("GET", "/redfish/v1/UpdateService"): Reply(200, service),
        ("GET", INVENTORY): Reply(200, {"Members": [link(INVENTORY + "/NIC")]}),
        ("GET", INVENTORY + "/NIC"): Reply(200, {"Version": "1"}),
        ("GET", "/redfish/v1/TaskService"): Reply(200, {"Tasks": link(tasks)}),
        ("GET", tasks): [empty, one],
        ("POST", action): Reply(204),
    }
    bmc = odd.open()
    assert bmc.update("NIC", "https://images/nic.bin", "2")["task"] == tasks + "/5"
    # No task is new: accepted, and nothing to watch. A foreign Location is not followed, and takes nothing back.
    assert bmc.update("NIC", "https://images/nic.bin", "2")["task"] == ""
    odd.tree["POST", action] = Reply(202, None, {"Location": "https://evil.example/tasks/1"})
    assert bmc.update("NIC", "https://images/nic.bin", "2")["task"] == ""
    bmc.close()


def test_a_boot_override_that_is_accepted_and_not_kept_is_a_refusal(odd: OddBmc) -> None:
    odd.tree["PATCH", SYSTEM] = Reply(200, {})
    bmc = odd.open()
    with pytest.raises(PeerRefused, match="reads back"):
        bmc.boot_once("Pxe")
    bmc.close()


def test_a_weak_etag_is_tried_as_a_strong_one_after_a_412(odd: OddBmc) -> None:
    system = {**sound_tree()["GET", SYSTEM].body, "IndicatorLED": "Off"}
    odd.tree["GET", SYSTEM] = Reply(200, system, {"ETag": 'W/"77"'})
    odd.tree["PATCH", SYSTEM] = lambda seen: Reply(204 if seen.headers["if-match"] == '"77"' else 412, None)
    bmc = odd.open()
    assert bmc.locate(True) == {"lit": True}
    assert [seen.headers["if-match"] for seen in odd.seen if seen.method == "PATCH"] == ['W/"77"', '"77"']
    bmc.close()


def test_a_password_quoted_by_the_bmc_does_not_reach_the_message(odd: OddBmc) -> None:
    ours = odd.store.bmc_password("odd").reveal()
    quoted = f"The value '{ours}' for the property Password is of a different format"
    odd.tree["POST", SESSIONS] = Reply(400, {"error": {"message": quoted}})
    with pytest.raises(PeerRefused) as refused:
        odd.open().observe()
    assert "is of a different format" in str(refused.value) and ours not in str(refused.value)


def test_a_bmc_with_fixed_slots_gets_our_account_in_an_empty_one(odd: OddBmc) -> None:
    """The way of BMCs that take no POST: slot 1 is reserved, slot 2 is the factory's, slot 3 is empty."""
    accounts = "/redfish/v1/AccountService/Accounts"
    (odd.folder / "secrets" / "factory.csv").touch(mode=0o600)
    header = "node,serial,username,password,bmc_certificate_sha256"
    (odd.folder / "secrets" / "factory.csv").write_text(f"{header}\nodd,SER-odd,root,factory-pw,\n")
    slots = {"1": {"UserName": ""}, "2": {"UserName": "root", "Password": "factory-pw"}, "3": {"UserName": ""}}

    def log_in(seen: Seen) -> Reply:
        known = any((s["UserName"], s.get("Password")) == (seen.body["UserName"], seen.body["Password"]) for s in slots.values())
        return sound_tree()["POST", SESSIONS] if known and seen.body["UserName"] else Reply(401, {})

    def change(seen: Seen) -> Reply:
        slots[seen.path.rsplit("/", 1)[1]].update(seen.body)
        return Reply(200, {})

    odd.tree |= {
        ("GET", ROOT): Reply(200, {**sound_tree()["GET", ROOT].body, "AccountService": link("/redfish/v1/AccountService")}),
        ("GET", "/redfish/v1/AccountService"): Reply(200, {"Accounts": link(accounts)}),
        ("GET", accounts): Reply(200, {"Members": [link(f"{accounts}/{slot}") for slot in slots]}),
        ("POST", accounts): Reply(405, {}),
        ("POST", SESSIONS): log_in,
    }
    for slot in slots:
        uri = f"{accounts}/{slot}"
        shown = {"@odata.id": uri, "Id": slot}
        odd.tree["GET", uri] = lambda seen, slot=slot, shown=shown: Reply(200, {**shown, "UserName": slots[slot]["UserName"]})
        odd.tree["PATCH", uri] = change
    bmc = odd.open()
    assert bmc.replace_factory_password() == {"account": "ours", "changed": True}
    ours = odd.store.bmc_password("odd").reveal()
    assert slots["1"] == {"UserName": ""}
    assert slots["2"]["Password"] == ours
    assert slots["3"] == {"UserName": "rackray", "Password": ours, "RoleId": "Administrator", "Enabled": True}
    bmc.close()


@pytest.mark.parametrize(
    ("body", "is_scheduled"),
    [
        ({"TaskState": "Starting", "Oem": {"Dell": {"JobState": "Scheduled"}}}, True),
        (
            {"TaskState": "Starting", "Messages": [{"MessageId": "IDRAC.2.8.JCP001", "Message": "Task successfully scheduled."}]},
            True,
        ),
        ({"TaskState": "Starting", "Messages": [{"MessageId": "JCP001"}]}, True),
        ({"TaskState": "Pending", "Messages": [{"Message": "Downloaded. A system reboot is required to install it."}]}, True),
        ({"TaskState": "Pending", "Messages": [{"Message": "Waiting for another update."}]}, False),
        ({"TaskState": "Pending"}, False),
        ({"TaskState": "Running", "Messages": [{"MessageId": "JCP001"}], "Oem": {"Dell": {"JobState": "Running"}}}, False),
        ({"TaskState": "Starting", "Oem": {"Dell": "Scheduled"}, "Messages": {"MessageId": 7}}, False),
    ],
)
def test_a_job_that_waits_for_a_reset_is_known_by_its_own_words_alone(body: dict[str, Any], is_scheduled: bool) -> None:
    assert _is_scheduled(body, body["TaskState"]) is is_scheduled
