"""One simulated node as an operator meets it: power, disk, image, SSH, GPUs."""

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from wire_lab import Operator, skip_unless_possible, spec_of, wait_until

from orchestrator.lab import runtime
from orchestrator.lab.control import lab_down, lab_fault, lab_heal, lab_status, lab_up
from orchestrator.lab.errors import LabError
from orchestrator.lab.machine_nouns import FirmwarePart
from orchestrator.lab.namespaces import processes_of, processes_using, start_time
from orchestrator.lab.plan import FirmwareImage, PlantedFault

pytestmark = pytest.mark.lab

NODE = "n1"


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    skip_unless_possible()
    home = tmp_path_factory.mktemp("home")
    spec = spec_of(NODE, "bare")
    stale = replace(
        spec.nodes[1],
        firmware=(FirmwarePart("NIC1", "NIC in slot 1", "28.39"),),
        planted=(PlantedFault("stale_firmware", (("part", "NIC1"), ("version", "28.36"))),),
    )
    spec = replace(spec, nodes=(spec.nodes[0], stale), firmware_images=(FirmwareImage("nic1.json", "NIC1", "28.39"),))
    lab_up(spec, home)
    try:
        operator = Operator(home, spec)
        operator.install(NODE)
        yield operator
    finally:
        lab_down(home)


def connect(operator: Operator, name: str) -> socket.socket:
    plan = operator.plan(name)
    return socket.create_connection((plan.ssh_address, plan.ssh_port), timeout=5)


def test_a_machine_without_an_image_can_be_on_with_nothing_listening(operator: Operator) -> None:
    assert operator.status("bare").power == "Off"
    with pytest.raises(ConnectionRefusedError):
        connect(operator, "bare")
    operator.reset("bare", "On")
    wait_until(lambda: operator.status("bare").boots == 1, "the self test has passed")
    status = operator.status("bare")
    assert (status.power, status.has_image, status.pid, status.failure) == ("On", False, None, "")
    with pytest.raises(ConnectionRefusedError):
        connect(operator, "bare")


def test_planted_firmware_is_updated_from_the_image_service(operator: Operator) -> None:
    uri = f"{operator.spec.image_service_url}/firmware/nic1.json"
    with operator.images() as images:
        assert images.get(uri, headers={"Authorization": ""}).json() == {"part": "NIC1", "version": "28.39"}
        assert images.get("/firmware/other.json").status_code == 404
    with operator.bmc("bare") as bmc:

        def version() -> str:
            return str(bmc.get("/redfish/v1/UpdateService/FirmwareInventory/NIC1").json()["Version"])

        assert version() == "28.36"
        update = "/redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate"
        assert bmc.post(update, json={"ImageURI": uri}).status_code == 202
        wait_until(lambda: version() == "28.39", "the update has come to its end")


def test_the_image_on_the_node_is_the_one_the_service_publishes(operator: Operator) -> None:
    with operator.images() as images:
        published = images.get(f"/v1/images/{operator.spec.image_name}").json()
        report = images.get(f"/v1/nodes/{operator.plan(NODE).serial}").json()
        assert images.get(f"/v1/nodes/{operator.plan('bare').serial}").status_code == 404
        assert images.get("/v1/images/other").status_code == 404
        assert images.get(f"/v1/images/{operator.spec.image_name}", headers={"Authorization": "Bearer x"}).status_code == 401
    stamp = json.loads(operator.say(NODE, "cat /etc/rackray-image.json"))
    assert stamp["digest"] == report["digest"] == published["digest"]
    assert stamp["installed_at"] == report["installed_at"]
    assert stamp["serial"] == report["serial"] == operator.plan(NODE).serial


def test_the_login_user_is_no_root_and_becomes_root_by_sudo(operator: Operator) -> None:
    assert operator.say(NODE, "id -u; sudo -n id -u; hostname; echo $RACKRAY_LAB").split() == ["20001", "0", NODE, "1"]
    awkward = operator.say(NODE, """sudo -H -S -n -u root WORD="it's" /bin/sh -c 'echo "$WORD|$0|$1|$HOME"' zero 'a "b" $c'""")
    assert awkward == """it's|zero|a "b" $c|/root"""


def test_a_play_that_forgot_to_become_root_fails(operator: Operator) -> None:
    done = operator.ssh(NODE, "echo hello > /etc/motd.rackray")
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
    operator.say(NODE, "sudo sh -c 'echo hello > /etc/motd.rackray' && cat /etc/motd.rackray")


def test_the_serial_is_the_machines_and_only_root_may_read_it(operator: Operator) -> None:
    assert "Permission denied" in operator.ssh(NODE, "cat /sys/class/dmi/id/product_serial").stderr
    assert operator.say(NODE, "sudo cat /sys/class/dmi/id/product_serial") == operator.plan(NODE).serial
    assert operator.say(NODE, "cat /sys/class/dmi/id/product_name") == operator.plan(NODE).model


def test_a_node_cannot_change_the_machine_that_plays_it(operator: Operator) -> None:
    for attempt in ("echo 1 > /proc/sys/vm/swappiness", "touch /usr/bin/x", "touch /opt/rackray/venv/x", "mkdir /sys/class/x"):
        done = operator.ssh(NODE, f"sudo sh -c '{attempt}'")
        assert done.returncode != 0 and "Read-only file system" in done.stderr, attempt


def test_the_training_runtime_lies_where_the_cluster_spec_names_it(operator: Operator) -> None:
    program = (
        "import sys, pynvml, orchestrator, model; from importlib.util import find_spec;"
        "print(sys.prefix, [bool(find_spec(name)) for name in ('ray', 'torch', 'deepspeed')])"
    )
    said = operator.say(NODE, f'/opt/rackray/venv/bin/python -c "{program}"')
    assert said == "/opt/rackray/venv [True, True, True]"
    ours = hashlib.sha256(Path(runtime.__file__).read_bytes()).hexdigest()
    program = "import hashlib, orchestrator.lab.runtime as r; print(hashlib.sha256(open(r.__file__, 'rb').read()).hexdigest())"
    assert operator.say(NODE, f'cd / && /opt/rackray/venv/bin/python -c "{program}"') == ours, "another checkout's code"


def test_shared_storage_is_one_place_for_all_nodes_and_the_user_may_write_it(operator: Operator) -> None:
    operator.say(NODE, "echo step-7 > /srv/shared/checkpoint")
    assert (operator.paths.shared / "checkpoint").read_text() == "step-7\n"


def test_power_off_ends_every_process_also_detached_ones(operator: Operator) -> None:
    operator.say(NODE, "setsid sleep 1000 > /dev/null 2>&1 < /dev/null & setsid sleep 1001 > /dev/null 2>&1 < /dev/null &")
    session = subprocess.Popen(operator.ssh_command(NODE, "sleep 1002"), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = operator.status(NODE).pid
    assert pid is not None
    wait_until(lambda: operator.say(NODE, "ps -C sleep -o args= | wc -l") == "3", "three sleepers")
    before = set(processes_of(pid))
    assert len(before) >= 4
    operator.switch_off(NODE)
    assert session.wait(10) == 255
    assert not list(processes_of(pid))
    with pytest.raises(ConnectionRefusedError):
        connect(operator, NODE)
    operator.switch_on(NODE)
    assert operator.say(NODE, "ps -C sleep -o args= | wc -l") == "0"


def test_a_power_cycle_keeps_the_disk_and_forgets_the_rest(operator: Operator) -> None:
    key = operator.host_key(NODE)
    operator.say(NODE, "sudo touch /opt/kept /usr/local/bin/kept /var/log/kept && touch ~/kept /tmp/lost /dev/shm/lost")
    boot_id = operator.say(NODE, "cat /proc/sys/kernel/random/boot_id")
    operator.switch_off(NODE)
    operator.switch_on(NODE)
    assert operator.say(NODE, "ls /opt/kept /usr/local/bin/kept /var/log/kept ~/kept | wc -l") == "4"
    assert operator.say(NODE, "ls /tmp /dev/shm | grep -c lost || true") == "0"
    assert operator.say(NODE, "cat /proc/sys/kernel/random/boot_id") != boot_id
    assert operator.host_key(NODE) == key


def test_restarts_in_quick_succession_leave_one_node_running(operator: Operator) -> None:
    for pause_s in (0.0, 0.05, 0.11, 0.15, 0.2, 0.12, 0.13, 0.0):
        operator.reset(NODE, "ForceRestart")
        time.sleep(pause_s)  # as the boot takes 0.1 s, the next restart hits before, in and after the start of pid 1
    wait_until(lambda: operator.status(NODE).ssh_listening, f"{NODE} listens for SSH")
    directory = operator.paths.node(NODE).directory
    alive = {pid: command for pid, command in processes_using(directory).items() if start_time(pid) is not None}
    assert sum(command.startswith("unshare ") for command in alive.values()) == 1
    inside = {os.readlink(f"/proc/{pid}/ns/pid") for pid in alive} - {os.readlink("/proc/self/ns/pid")}
    assert inside == {os.readlink(f"/proc/{operator.status(NODE).pid}/ns/pid")}
    assert operator.say(NODE, "hostname") == NODE


def test_a_new_image_deletes_the_disk_its_host_key_included(operator: Operator) -> None:
    old_key = operator.host_key(NODE)
    operator.say(NODE, "sudo touch /opt/lost && touch ~/lost")
    operator.install(NODE)
    assert operator.host_key(NODE) != old_key
    done = operator.ssh(NODE, "true", host_key=old_key)
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert operator.say(NODE, "ls /opt/lost ~/lost 2>/dev/null | wc -l") == "0"
    with operator.images() as images:
        assert images.get(f"/v1/nodes/{operator.plan(NODE).serial}").json()["boots"] == 2


def test_a_gpu_fault_reaches_a_process_that_already_runs_and_outlives_the_image(operator: Operator) -> None:
    program = (
        "import sys, pynvml as n; n.nvmlInit()\n"
        "for _ in sys.stdin:\n"
        "    try: print(n.nvmlDeviceGetRemappedRows(n.nvmlDeviceGetHandleByIndex(1))[2], flush=True)\n"
        "    except n.NVMLError as e: print(type(e).__name__, flush=True)\n"
    )
    words = operator.ssh_command(NODE, f"/opt/rackray/venv/bin/python -c '{program}'")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdin is not None and probe.stdout is not None

        def seen() -> str:
            print(file=probe.stdin, flush=True)
            return probe.stdout.readline().strip()

        assert seen() == "0"
        lab_fault(operator.home, NODE, "gpu_row_remap_pending", gpu=1)
        assert seen() == "1"
        lab_fault(operator.home, NODE, "gpu_lost", gpu="1")
        assert seen() == "NVMLError_GpuIsLost"
        lab_heal(operator.home, NODE, "gpu_lost")
        assert seen() == "1"
        probe.stdin.close()
    operator.install(NODE)
    assert operator.status(NODE).faults == ("gpu_row_remap_pending(gpu=1)",)
    lab_heal(operator.home, NODE, "gpu_row_remap_pending", gpu=1)
    assert operator.status(NODE).faults == ()


def test_ssh_can_refuse_hang_or_talk_rubbish(operator: Operator) -> None:
    lab_fault(operator.home, NODE, "ssh_refused")
    with pytest.raises(ConnectionRefusedError):
        connect(operator, NODE)
    lab_fault(operator.home, NODE, "ssh_garbage")
    with connect(operator, NODE) as channel:
        assert channel.recv(100).startswith(b"HTTP/1.1 400")
    lab_fault(operator.home, NODE, "ssh_hang")
    with connect(operator, NODE) as channel:
        channel.settimeout(0.5)
        with pytest.raises(TimeoutError):
            channel.recv(1)
    lab_heal(operator.home, NODE, "ssh_hang")
    with connect(operator, NODE) as channel:
        assert channel.recv(100).startswith(b"SSH-2.0-")


def test_another_host_key_than_the_reported_one_is_refused_by_openssh(operator: Operator) -> None:
    lab_fault(operator.home, NODE, "ssh_new_host_key")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in operator.ssh(NODE, "true").stderr
    lab_heal(operator.home, NODE, "ssh_new_host_key")
    assert operator.say(NODE, "hostname") == NODE


def test_a_silent_node_answers_nothing_while_its_bmc_says_on(operator: Operator) -> None:
    words = operator.ssh_command(NODE, "while read line; do echo $line; done")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as echo:
        assert echo.stdin is not None and echo.stdout is not None
        print("before", file=echo.stdin, flush=True)
        assert echo.stdout.readline() == "before\n"
        lab_fault(operator.home, NODE, "silent")
        print("meanwhile", file=echo.stdin, flush=True)
        with connect(operator, NODE) as channel:
            channel.settimeout(0.5)
            with pytest.raises(TimeoutError):
                channel.recv(1)
        with operator.bmc(NODE) as bmc:
            assert bmc.get("/redfish/v1/Systems/1").json()["PowerState"] == "On"
        lab_heal(operator.home, NODE, "silent")
        assert echo.stdout.readline() == "meanwhile\n"
        echo.stdin.close()


def test_a_power_cut_is_seen_by_the_bmc_too(operator: Operator) -> None:
    lab_fault(operator.home, NODE, "power_cut")
    with operator.bmc(NODE) as bmc:
        assert bmc.get("/redfish/v1/Systems/1").json()["PowerState"] == "Off"
    with pytest.raises(ConnectionRefusedError):
        connect(operator, NODE)
    operator.switch_on(NODE)
    assert operator.say(NODE, "hostname") == NODE


def test_the_daemon_listens_on_loopback_only(operator: Operator) -> None:
    spec, node = operator.spec, operator.plan(NODE)
    bmcs = {(plan.bmc_address, plan.bmc_port) for plan in spec.nodes}
    others = {(node.ssh_address, node.ssh_port), (spec.image_service_address, spec.image_service_port)}
    assert listening_addresses(lab_status(operator.home).daemon_pid) == bmcs | others


def listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Every TCP address a process listens on (proc(5): /proc/net/tcp, state 0A, addresses in host byte order)."""
    links = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert not any(f"socket:[{line.split()[9]}]" in links for line in Path("/proc/net/tcp6").read_text().splitlines()[1:])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
            address, port = fields[1].split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def test_secrets_are_the_operators_alone(operator: Operator) -> None:
    secrets = operator.paths.secrets
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in secrets.iterdir()} == {"factory.csv", "ssh_key", "ssh_key.pub", "image_token", "image_ca.pem"}
    assert {path.stat().st_mode & 0o777 for path in secrets.iterdir()} == {0o600}
    assert operator.paths.lab.stat().st_mode & 0o777 == 0o700


def test_an_unknown_node_or_fault_says_what_there_is(operator: Operator) -> None:
    with pytest.raises(LabError, match="the lab has no node z"):
        lab_fault(operator.home, "z", "silent")
    with pytest.raises(LabError, match="no fault is called 'gremlins'") as caught:
        lab_fault(operator.home, NODE, "gremlins")
    assert "gpu_lost" in caught.value.hint and "bmc_silent" in caught.value.hint and "ssh_hang" in caught.value.hint
    with pytest.raises(LabError, match="takes no argument"):
        lab_fault(operator.home, NODE, "silent", volume=11)
