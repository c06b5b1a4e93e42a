"""What a BMC does wrong on the wire, seen with a real client; and a second opinion by Ironic's own."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sushy
from bmc_bench import OURS, Bench, BenchBmc, a_bench

SYSTEM = "/redfish/v1/Systems/1"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
SESSIONS = "/redfish/v1/SessionService/Sessions"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with a_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def bmc(bench: Bench) -> BenchBmc:
    return bench.add(31)


def test_a_bmc_that_is_gone_refuses_resets_and_forgets_its_sessions(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client(None) as client:
        login = client.post(SESSIONS, json={"UserName": OURS[0], "Password": OURS[1]})
        bmc.fault("bmc_gone", seconds=30)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
            client.get(SYSTEM)
        with pytest.raises(httpx.ConnectError, match="refused"):
            client.get(SYSTEM)
        bench.tick(30)
        assert client.get(SYSTEM, headers={"X-Auth-Token": login.headers["X-Auth-Token"]}).status_code == 401


def test_a_silent_bmc_accepts_and_never_answers_new_or_old_connections(bmc: BenchBmc) -> None:
    with bmc.client(timeout_s=0.3) as client, bmc.client(timeout_s=0.3) as newcomer:
        assert client.get(SYSTEM).status_code == 200
        bmc.fault("bmc_silent")
        with pytest.raises(httpx.ReadTimeout):
            client.post(RESET, json={"ResetType": "On"})
        with pytest.raises(httpx.ConnectTimeout):
            newcomer.get(SYSTEM)
        bmc.heal("bmc_silent")
        assert newcomer.get(SYSTEM).json()["PowerState"] == "Off"
    assert ("POST", None) in [(line["method"], line["status"]) for line in bmc.access_log()]


def test_a_lost_answer_leaves_the_command_obeyed(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        bmc.fault("lost_answer", path_prefix=RESET)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            client.post(RESET, json={"ResetType": "On"})
        bench.tick(11)
        assert client.get(SYSTEM).json()["PowerState"] == "On"
        assert client.post(RESET, json={"ResetType": "ForceOff"}).status_code == 204
    assert bmc.board.deeds == ["start from Hdd", "cut"]


def test_a_slow_bmc_answers_late_and_other_bmcs_do_not_wait_for_it(bench: Bench, bmc: BenchBmc) -> None:
    quick = bench.add(32)
    bmc.fault("bmc_slow", seconds=0.6)
    with bmc.client(timeout_s=0.2) as impatient, quick.client() as other:
        with pytest.raises(httpx.ReadTimeout):
            impatient.get("/redfish/v1/")
        started_s = time.monotonic()
        assert other.get("/redfish/v1/").status_code == 200
        assert time.monotonic() - started_s < 0.5
    with bmc.client() as patient:
        assert patient.get("/redfish/v1/").status_code == 200


def test_an_error_is_answered_so_many_times_below_its_path(bmc: BenchBmc) -> None:
    bmc.fault("http_error", path_prefix=SYSTEM, status=503, remaining=2, retry_after_s=7)
    with bmc.client() as client:
        assert client.get("/redfish/v1/Managers/1").status_code == 200
        answers = [client.get(SYSTEM) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].headers["Retry-After"] == "7"


def test_answers_may_be_cut_in_their_json_or_on_the_wire(bmc: BenchBmc) -> None:
    with bmc.client() as client:
        bmc.fault("truncated_json", remaining=1)
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            client.get(SYSTEM).json()
        bmc.fault("reset_mid_body", remaining=1)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            client.get(SYSTEM)
        assert client.get(SYSTEM).json()["SerialNumber"] == "LAB-0031"


def test_a_full_session_pool_and_a_vanished_task_are_told_as_redfish_tells_them(bench: Bench, bmc: BenchBmc) -> None:
    with bmc.client() as client:
        bmc.fault("session_pool_full")
        assert client.post(SESSIONS, json={"UserName": OURS[0], "Password": OURS[1]}).status_code == 503
        bmc.fault("task_vanishes")
        task = bmc.on_machine(lambda machine, now_s: machine.start_update("https://x/firmware/nic.bin", now_s))
        path = f"/redfish/v1/TaskService/Tasks/{task.id}"
        assert client.get(path).status_code == 200
        bench.tick(20)
        assert (client.get(path).status_code, client.get(path.replace("Tasks/", "TaskMonitors/")).status_code) == (404, 404)


def test_the_bmc_restarts_after_an_update_if_it_is_told_so(bench: Bench, bmc: BenchBmc) -> None:
    bmc.fault("bmc_restarts_after_update", seconds=5)
    bmc.on_machine(lambda machine, now_s: machine.start_update("https://x/firmware/nic.bin", now_s))
    bench.tick(20)
    with bmc.client() as client:
        with pytest.raises(httpx.ConnectError):
            client.get("/redfish/v1/")
        bench.tick(5)
        assert client.get("/redfish/v1/UpdateService/FirmwareInventory/NIC1").json()["Version"] == "28.39"


def test_a_flapping_bmc_refuses_and_answers_in_turn(bench: Bench, bmc: BenchBmc) -> None:
    bmc.fault("bmc_flaps", period_s=10, down_share=0.5)
    for _ in range(2):
        with bmc.client() as client:
            with pytest.raises(httpx.ConnectError):
                client.get(SYSTEM)
            bench.tick(5)
            assert client.get(SYSTEM).status_code == 200
        bench.tick(5)


def test_the_third_connection_to_a_bmc_with_two_places_is_reset(bmc: BenchBmc) -> None:
    bmc.fault("connections_limited", most=2)
    with bmc.client() as first, bmc.client() as second, bmc.client() as third:
        assert (first.get(SYSTEM).status_code, second.get(SYSTEM).status_code) == (200, 200)
        with pytest.raises(httpx.ConnectError):
            third.get(SYSTEM)


def test_a_bmc_may_be_slow_at_one_thing_alone(bmc: BenchBmc) -> None:
    bmc.fault("bmc_slow", seconds=30, path_prefix=RESET, method="POST")
    with bmc.client(timeout_s=0.3) as client:
        assert client.get(SYSTEM).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            client.post(RESET, json={"ResetType": "On"})
        assert client.get(SYSTEM).json()["PowerState"] == "PoweringOn", "what was asked was done"


@pytest.mark.parametrize(
    ("status", "message"), [(403, "InsufficientPrivilege"), (412, "PreconditionFailed"), (418, "GeneralError")]
)
def test_a_planted_error_comes_with_the_message_of_its_status(bmc: BenchBmc, status: int, message: str) -> None:
    bmc.fault("http_error", path_prefix=SYSTEM, status=status)
    with bmc.client() as client:
        answer = client.get(SYSTEM)
    assert answer.status_code == status
    assert answer.json()["error"]["@Message.ExtendedInfo"][0]["MessageId"].endswith(message)


def test_garbage_on_the_wire_is_answered_or_dropped_and_harms_nobody(bmc: BenchBmc) -> None:
    context = ssl.create_default_context(cafile=str(bmc.certificate.certificate_path))
    host, port = bmc.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"200" not in plain.recv(100)
    for garbage in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET /redfish/v1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), 5) as raw, context.wrap_socket(raw, server_hostname=host) as tls:
            tls.sendall(garbage)
            assert tls.recv(100).startswith(b"HTTP/1.1 400")
    with bmc.client() as client:
        assert client.get(SYSTEM).status_code == 200


@contextmanager
def a_sushy(bmc: BenchBmc) -> Iterator[sushy.Sushy]:
    """Ironic's client with a session that ends here: left to the garbage collector, its logout meets a dead BMC."""
    auth = sushy.auth.SessionOrBasicAuth(*OURS)
    yield sushy.Sushy(bmc.url, verify=str(bmc.certificate.certificate_path), auth=auth, server_side_retries=0)
    auth.close()
    with bmc.client() as client:
        assert client.get(SESSIONS).json()["Members"] == []


def test_ironics_client_powers_the_machine_and_boots_it_once_from_the_network(bench: Bench, bmc: BenchBmc) -> None:
    with a_sushy(bmc) as root:
        check_power_and_boot(root, bench, bmc)


def check_power_and_boot(root: sushy.Sushy, bench: Bench, bmc: BenchBmc) -> None:
    system = root.get_system("/redfish/v1/Systems/1")
    assert (system.manufacturer, system.serial_number, system.power_state) == ("Rackray", "LAB-0031", sushy.PowerState.OFF)
    system.set_system_boot_options(sushy.BootSource.PXE, sushy.BootSourceOverrideEnabled.ONCE)
    system.reset_system(sushy.ResetType.ON)
    bench.tick(11)
    system.refresh(force=True)
    assert system.power_state == sushy.PowerState.ON
    assert system.boot["target"] == sushy.BootSource.NONE
    system.reset_system(sushy.ResetType.FORCE_OFF)
    assert bmc.board.deeds == ["start from Pxe", "cut"]
    assert [manager.firmware_version for manager in root.get_manager_collection().get_members()] == ["7.10"]


def test_ironics_client_updates_firmware_and_watches_its_task(bench: Bench, bmc: BenchBmc) -> None:
    with a_sushy(bmc) as root:
        check_update(root, bench)


def check_update(root: sushy.Sushy, bench: Bench) -> None:
    service = root.get_update_service()
    inventory = service.firmware_inventory
    seen = {part.identity: part.version for part in inventory.get_members()}
    assert seen == {"BIOS": "2.7.4", "BMC": "7.10", "NIC1": "28.36", "CPLD": "3"}
    started = service.simple_update("https://127.3.0.1:8480/firmware/nic.bin", transfer_protocol=sushy.UPDATE_PROTOCOL_HTTPS)
    monitor = root.get_task_monitor(started.task.json["TaskMonitor"])
    assert monitor.check_is_processing
    bench.tick(10)
    assert (monitor.get_task().task_state, monitor.get_task().percent_complete) == (sushy.TASK_STATE_RUNNING, 50)
    bench.tick(10)
    assert not monitor.check_is_processing
    assert started.get_task().task_state == sushy.TASK_STATE_COMPLETED
    assert inventory.get_member("/redfish/v1/UpdateService/FirmwareInventory/NIC1").version == "28.39"
