"""The Redfish service on the wire: TLS, logins, power, boot, firmware, conditions, the access log."""

import ssl
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from bmc_bench import FACTORY, OURS, PORT, SPEC, Bench, BenchBmc, a_bench

from orchestrator.lab.bmc.certificates import make_certificate
from orchestrator.lab.bmc.service import BmcEndpoint, BmcFarm
from orchestrator.lab.bmc.state import Bmc
from orchestrator.lab.machine import BootSource, Machine

SYSTEM = "/redfish/v1/Systems/1"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
SESSIONS = "/redfish/v1/SessionService/Sessions"
ACCOUNTS = "/redfish/v1/AccountService/Accounts"
FIRMWARE = "/redfish/v1/UpdateService/FirmwareInventory"
SIMPLE_UPDATE = "/redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate"
NIC_IMAGE = "https://127.3.0.1:8480/firmware/nic.bin"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with a_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def bmc(bench: Bench) -> BenchBmc:
    return bench.add(1)


def message_id(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["@Message.ExtendedInfo"][0]["MessageId"]).rpartition(".")[2]


def resolution(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["@Message.ExtendedInfo"][0]["Resolution"])


def test_a_certificate_proves_one_address_and_the_key_is_private(bench: Bench) -> None:
    first, second = bench.add(1), bench.add(2)
    assert stat.S_IMODE(first.certificate.key_path.stat().st_mode) == 0o600
    with first.client() as client:
        assert client.get(SYSTEM).json()["SerialNumber"] == "LAB-0001"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get(f"{second.url}/redfish/v1")
    with pytest.raises(ssl.SSLError), httpx.Client(verify=True, trust_env=False) as stranger:
        try:
            stranger.get(f"{first.url}/redfish/v1")
        except httpx.ConnectError as error:
            raise ssl.SSLError(str(error)) from error


def test_until_the_factory_password_is_changed_nothing_else_is_answered(bench: Bench) -> None:
    bmc = bench.add(1, password_changed=False)
    with bmc.client(FACTORY) as client:
        assert client.get("/redfish/v1/").status_code == 200
        for refused in (client.get(SYSTEM), client.post(RESET, json={"ResetType": "On"}), client.get(ACCOUNTS)):
            assert (refused.status_code, message_id(refused)) == (403, "PasswordChangeRequired")
        account = refused.json()["error"]["@Message.ExtendedInfo"][0]["MessageArgs"][0]
        assert client.get(account).json()["PasswordChangeRequired"] is True
        assert client.patch(account, json={"Enabled": True}).status_code == 403
        assert client.patch(account, json={"Password": FACTORY[1]}).status_code == 400
        assert client.patch(account, json={"Password": OURS[1]}).status_code == 200
        assert client.get(SYSTEM).status_code == 401
    with bmc.client(OURS) as client:
        assert client.get(SYSTEM).status_code == 200
    assert bmc.board.deeds == []


def test_a_session_with_the_factory_password_says_where_to_change_it(bench: Bench) -> None:
    bmc = bench.add(1, password_changed=False)
    with bmc.client(None) as client:
        login = client.post(SESSIONS, json={"UserName": FACTORY[0], "Password": FACTORY[1]})
        token = {"X-Auth-Token": login.headers["X-Auth-Token"]}
        assert "Accounts/1" in login.json()["@Message.ExtendedInfo"][0]["Message"]
        assert client.get(SYSTEM, headers=token).status_code == 403
        assert client.patch(f"{ACCOUNTS}/1", json={"Password": OURS[1]}, headers=token).status_code == 200
        assert client.get(SYSTEM, headers=token).status_code == 200


def test_a_session_lives_from_login_to_logout(bmc: BenchBmc) -> None:
    with bmc.client(None) as client:
        assert client.get(SYSTEM).headers["WWW-Authenticate"].startswith("Basic")
        login = client.post(SESSIONS, json={"UserName": OURS[0], "Password": OURS[1]})
        token, location = {"X-Auth-Token": login.headers["X-Auth-Token"]}, login.headers["Location"]
        assert (login.status_code, client.get(SYSTEM, headers=token).status_code) == (201, 200)
        assert client.delete(location, headers=token).status_code == 204
        assert client.get(SYSTEM, headers=token).status_code == 401


def test_an_idle_session_ends_and_a_used_one_does_not(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client(None) as client:
        assert bmc.client().patch("/redfish/v1/SessionService", json={"SessionTimeout": 60}).status_code == 200
        logins = [client.post(SESSIONS, json={"UserName": OURS[0], "Password": OURS[1]}) for _ in range(2)]
        used, idle = ({"X-Auth-Token": login.headers["X-Auth-Token"]} for login in logins)
        bench.tick(40)
        assert client.get(SYSTEM, headers=used).status_code == 200
        bench.tick(40)
        assert (client.get(SYSTEM, headers=used).status_code, client.get(SYSTEM, headers=idle).status_code) == (200, 401)


def test_the_session_pool_has_an_end_and_logging_out_makes_room(bmc: BenchBmc) -> None:
    with bmc.client(None) as client:
        body = {"UserName": OURS[0], "Password": OURS[1]}
        logins = [client.post(SESSIONS, json=body) for _ in range(17)]
        assert [login.status_code for login in logins] == [201] * 16 + [503]
        assert message_id(logins[-1]) == "SessionLimitExceeded"
        client.delete(logins[0].headers["Location"], headers={"X-Auth-Token": logins[0].headers["X-Auth-Token"]})
        assert client.post(SESSIONS, json=body).status_code == 201


def test_power_goes_on_and_off_and_an_illegal_reset_is_a_conflict_with_a_reason(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        assert client.post(RESET, json={"ResetType": "On"}).status_code == 204
        assert client.get(SYSTEM).json()["PowerState"] == "PoweringOn"
        bench.tick(11)
        assert bmc.board.deeds == ["start from Hdd"]
        system = client.get(SYSTEM).json()
        assert (system["PowerState"], system["BootProgress"]["LastState"]) == ("On", "OSBootStarted")
        again = client.post(RESET, json={"ResetType": "On"})
        assert (again.status_code, resolution(again)[:41]) == (409, "On is refused while the machine is On; no")
        assert client.post(RESET, json={"ResetType": "Nmi"}).status_code == 400
        assert client.post(RESET, json={"ResetType": "ForceOff"}).status_code == 204
    assert bmc.board.deeds == ["start from Hdd", "cut"]


def test_a_one_time_network_boot_is_set_under_its_etag_and_consumed(bench: Bench, bmc: BenchBmc) -> None:
    boot = {"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}}
    with bmc.client() as client:
        tag = client.get(SYSTEM).headers["ETag"]
        assert client.get(SYSTEM, headers={"If-None-Match": tag}).status_code == 304
        assert client.patch(SYSTEM, json=boot, headers={"If-Match": tag}).status_code == 200
        stale = client.patch(SYSTEM, json={"AssetTag": "late"}, headers={"If-Match": tag})
        assert (stale.status_code, message_id(stale)) == (412, "PreconditionFailed")
        client.post(RESET, json={"ResetType": "On"})
        bench.tick(11)
        shown = client.get(SYSTEM).json()["Boot"]
    assert bmc.board.deeds == ["start from Pxe"]
    assert (shown["BootSourceOverrideEnabled"], shown["BootSourceOverrideTarget"]) == ("Disabled", "None")


@pytest.mark.parametrize("order", [1, -1])
def test_a_continuous_override_does_not_depend_on_the_order_of_properties(bmc: BenchBmc, order: int) -> None:
    wanted = {"BootSourceOverrideTarget": "UefiHttp", "BootSourceOverrideEnabled": "Continuous"}
    with bmc.client() as client:
        shown = client.patch(SYSTEM, json={"Boot": dict(list(wanted.items())[::order])}).json()["Boot"]
    assert wanted.items() <= shown.items()


def test_a_patch_writes_what_is_good_and_names_what_is_not(bmc: BenchBmc) -> None:
    with bmc.client() as client:
        body = {"AssetTag": "A-17", "SerialNumber": "forged", "Boot": {"BootSourceOverrideTarget": "Floppy"}, "Colour": "red"}
        answer = client.patch(SYSTEM, json=body)
        assert answer.status_code == 200 and answer.json()["AssetTag"] == "A-17"
        told = {
            one["MessageId"].rpartition(".")[2]: one["RelatedProperties"][0] for one in answer.json()["@Message.ExtendedInfo"]
        }
        assert told == {
            "PropertyNotWritable": "#/SerialNumber",
            "PropertyValueNotInList": "#/Boot/BootSourceOverrideTarget",
            "PropertyUnknown": "#/Colour",
        }
        assert client.patch(SYSTEM, json={"SerialNumber": "forged"}).status_code == 400
        assert client.get(SYSTEM).json()["SerialNumber"] == "LAB-0001"


def test_an_update_runs_as_a_task_and_the_version_is_read_back(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        body = {"ImageURI": NIC_IMAGE, "Targets": [f"{FIRMWARE}/NIC1"], "TransferProtocol": "HTTPS"}
        accepted = client.post(SIMPLE_UPDATE, json=body)
        task, monitor = accepted.json()["@odata.id"], accepted.headers["Location"]
        assert (accepted.status_code, accepted.json()["TaskState"]) == (202, "New")
        assert client.post(SIMPLE_UPDATE, json=body).status_code == 409
        bench.tick(10)
        assert (client.get(task).json()["TaskState"], client.get(task).json()["PercentComplete"]) == ("Running", 50)
        assert client.get(monitor).status_code == 202
        assert client.get(f"{FIRMWARE}/NIC1").json()["Version"] == "28.36"
        bench.tick(10)
        assert (client.get(task).json()["TaskState"], client.get(monitor).status_code) == ("Completed", 200)
        assert client.get(f"{FIRMWARE}/NIC1").json()["Version"] == "28.39"
        assert "TaskMonitor" not in client.get(task).json()


def test_an_unknown_image_is_an_exception_that_the_monitor_tells_as_an_error(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        accepted = client.post(SIMPLE_UPDATE, json={"ImageURI": "https://127.3.0.1:8480/firmware/none.bin"})
        bench.tick(5)
        task = client.get(accepted.json()["@odata.id"]).json()
        assert (task["TaskState"], task["TaskStatus"]) == ("Exception", "Critical")
        assert "unknown or damaged" in task["Messages"][0]["Resolution"]
        told = client.get(accepted.headers["Location"])
        assert (told.status_code, message_id(told)) == (400, "ApplyFailed")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ImageURI": 7},
        {"ImageURI": NIC_IMAGE, "TransferProtocol": "TFTP"},
        {"ImageURI": NIC_IMAGE, "Targets": ["/redfish/v1/Systems/1"]},
        {"ImageURI": NIC_IMAGE, "Targets": [f"{FIRMWARE}/NIC9"]},
        {"ImageURI": "https://127.3.0.1:8480/firmware/cpld.bin"},
        {"ImageURI": NIC_IMAGE, "Speed": "fast"},
    ],
)
def test_an_update_that_cannot_be_meant_is_refused_and_starts_no_task(bmc: BenchBmc, body: dict[str, object]) -> None:
    with bmc.client() as client:
        assert client.post(SIMPLE_UPDATE, json=body).status_code == 400
        assert client.get("/redfish/v1/TaskService/Tasks").json()["Members"] == []


def test_roles_decide_who_may_write_and_everyone_may_change_their_own_password(bmc: BenchBmc) -> None:
    with bmc.client() as admin:
        for name in ("Operator", "ReadOnly"):
            made = admin.post(ACCOUNTS, json={"UserName": name.lower(), "Password": "long enough", "RoleId": name})
            assert made.status_code == 201
    with bmc.client(("readonly", "long enough")) as reader, bmc.client(("operator", "long enough")) as operator:
        assert reader.get(SYSTEM).status_code == 200
        for refused in (
            reader.post(RESET, json={"ResetType": "On"}),
            reader.patch(SYSTEM, json={"AssetTag": "mine"}),
            reader.get(f"{ACCOUNTS}/1"),
            reader.patch(f"{ACCOUNTS}/3", json={"RoleId": "Administrator"}),
            operator.post(ACCOUNTS, json={"UserName": "new", "Password": "long enough", "RoleId": "ReadOnly"}),
            operator.delete(f"{ACCOUNTS}/1"),
        ):
            assert (refused.status_code, message_id(refused)) == (403, "InsufficientPrivilege")
        assert operator.post(RESET, json={"ResetType": "On"}).status_code == 204
        assert reader.patch(f"{ACCOUNTS}/3", json={"Password": "another secret"}).status_code == 200


def test_a_deleted_account_loses_its_sessions(bmc: BenchBmc) -> None:
    with bmc.client() as admin:
        made = admin.post(ACCOUNTS, json={"UserName": "guest", "Password": "long enough", "RoleId": "Operator"})
        login = admin.post(SESSIONS, json={"UserName": "guest", "Password": "long enough"})
        assert admin.delete(made.headers["Location"]).status_code == 204
    with bmc.client(None) as client:
        assert client.get(SYSTEM, headers={"X-Auth-Token": login.headers["X-Auth-Token"]}).status_code == 401


def test_a_restart_of_the_bmc_ends_sessions_and_leaves_the_host_alone(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        login = client.post(SESSIONS, json={"UserName": OURS[0], "Password": OURS[1]})
        client.post(RESET, json={"ResetType": "On"})
        bench.tick(11)
        reset = client.post("/redfish/v1/Managers/1/Actions/Manager.Reset", json={"ResetType": "ForceRestart"})
        assert reset.status_code == 204
        bench.tick()
        with pytest.raises(httpx.TransportError):
            client.get("/redfish/v1/")
        bench.tick(3)
        assert client.get(SYSTEM).json()["PowerState"] == "On"
        client.auth = None
        assert client.get(SYSTEM, headers={"X-Auth-Token": login.headers["X-Auth-Token"]}).status_code == 401
    assert bmc.board.deeds == ["start from Hdd"]


def test_the_access_log_names_every_request_and_holds_no_secret(bmc: BenchBmc) -> None:
    with bmc.client(None) as client:
        login = client.post(SESSIONS, json={"UserName": OURS[0], "Password": OURS[1]})
        token = login.headers["X-Auth-Token"]
        client.get(f"{SYSTEM}?password=in-the-query", headers={"X-Auth-Token": token})
        client.get(SYSTEM, auth=(OURS[0], "a-wrong-password"))
        client.delete(login.headers["Location"], headers={"X-Auth-Token": token})
    seen = [(line["method"], line["path"], line["status"], line["user"]) for line in bmc.access_log()]
    assert seen == [
        ("POST", SESSIONS, 201, OURS[0]),
        ("GET", SYSTEM, 200, OURS[0]),
        ("GET", SYSTEM, 401, None),
        ("DELETE", login.headers["Location"], 204, OURS[0]),
    ]
    text = bmc.access_log_path.read_text()
    assert not [secret for secret in (token, OURS[1], "a-wrong-password", "in-the-query") if secret in text]


def test_every_resource_that_is_linked_is_there(bmc: BenchBmc) -> None:
    seen: set[str] = set()
    todo = ["/redfish/v1/"]
    with bmc.client() as client:
        bmc.on_machine(lambda machine, now_s: machine.start_update(NIC_IMAGE, now_s))
        while todo:
            path = todo.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = client.get(path.partition("#")[0])
            assert answer.status_code in (200, 202), path
            todo += links_in(answer.json())
    assert {f"{SYSTEM}/Processors/GPU2", "/redfish/v1/Chassis/1/Sensors/Inlet", "/redfish/v1/TaskService/Tasks/1"} <= seen


def links_in(value: object) -> list[str]:
    """Every `@odata.id` in a JSON value."""
    match value:
        case dict():
            here = [str(one) for key, one in value.items() if key == "@odata.id"]
            return here + [link for one in value.values() for link in links_in(one)]
        case list():
            return [link for one in value for link in links_in(one)]
        case _:
            return []


def test_the_event_log_is_read_and_cleared(bench: Bench, bmc: BenchBmc) -> None:
    entries = f"{SYSTEM}/LogServices/SEL/Entries"
    with bmc.client() as client:
        client.post(RESET, json={"ResetType": "On"})
        bench.tick(11)
        assert [one["Message"] for one in client.get(entries).json()["Members"]] == [
            "System: host power is on",
            "System: boot from Hdd",
        ]
        assert client.post(f"{SYSTEM}/LogServices/SEL/Actions/LogService.ClearLog", json={}).status_code == 204
        assert client.get(entries).json()["Members@odata.count"] == 0


def test_a_bmc_can_be_removed_and_its_address_used_again(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        client.get("/redfish/v1/")
        bench.wait(bench.farm.remove("n1"))
        with pytest.raises(httpx.TransportError):
            client.get("/redfish/v1/")
    with bench.add(1).client() as client:
        assert client.get(SYSTEM).status_code == 200


def test_a_taken_address_is_named(bench: Bench, bmc: BenchBmc) -> None:
    with pytest.raises(ValueError, match="n1 is served already"):
        bench.add(1)
    bench.wait(bench.farm.remove("n1"))
    other = Bench(bmc.access_log_path.parent / "other")
    other.add(1)
    try:
        with pytest.raises(OSError, match=r"127\.2\.200\.1:8443.*end what listens there"):
            bench.add(1)
    finally:
        other.close()


def test_a_farm_that_cannot_serve_every_endpoint_serves_none(bench: Bench, bmc: BenchBmc, tmp_path: Path) -> None:
    def endpoint(number: int) -> BmcEndpoint:
        files = make_certificate(tmp_path, f"x{number}", f"127.2.200.{number}")
        machine = Machine(replace(SPEC, name=f"x{number}"))
        return BmcEndpoint(machine, f"127.2.200.{number}", PORT, files.certificate_path, files.key_path)

    with pytest.raises(OSError, match="cannot listen"):
        bench.wait(BmcFarm().start([endpoint(2), endpoint(1)]))
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as client:
        client.get(f"https://127.2.200.2:{PORT}/redfish/v1/")


def test_a_mistake_in_the_simulator_is_told_and_logged_and_the_bmc_goes_on(
    bench: Bench, bmc: BenchBmc, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(boot: BootSource) -> None:
        raise RuntimeError("no such namespace")

    bmc.board.power_on = broken  # type: ignore[method-assign]
    with bmc.client() as client:
        client.post(RESET, json={"ResetType": "On"})
        bench.clock.now_s += 11
        answers = {client.get(SYSTEM).status_code for _ in range(3)}
        assert 200 in answers and answers <= {200, 500}
    assert "no such namespace" in caplog.text


def test_a_head_has_the_headers_of_its_get_and_no_body(bmc: BenchBmc) -> None:
    with bmc.client() as client:
        got, head = client.get(SYSTEM), client.head(SYSTEM)
    assert (head.status_code, head.content, head.headers["ETag"]) == (200, b"", got.headers["ETag"])


def test_many_bmcs_in_one_loop_answer_many_clients(bench: Bench) -> None:
    bmcs = [bench.add(number) for number in range(100, 130)]
    started_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        serials = list(pool.map(lambda bmc: bmc.client().get(SYSTEM).json()["SerialNumber"], bmcs))
    assert serials == [f"LAB-{number:04}" for number in range(100, 130)]
    assert time.monotonic() - started_s < 10


def test_a_moment_is_shown_alike_however_the_two_clocks_jitter() -> None:
    readings = iter(1_700_000_000.0 + step * 0.3 for step in range(100))
    bmc = Bmc(Machine(SPEC), clock=lambda: 50.0, wall=lambda: next(readings))
    assert len({bmc.timestamp(42.0) for _ in range(20)}) == 1
