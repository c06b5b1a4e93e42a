"""The lab as a whole: it grows, it ends without a trace, and nothing of it outlives its daemon."""

import csv
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from wire_lab import Operator, skip_unless_possible, spec_of, wait_until

from orchestrator.lab.control import lab_down, lab_fault, lab_status, lab_up
from orchestrator.lab.delivery import FactoryRow, deliver
from orchestrator.lab.errors import LabError
from orchestrator.lab.namespaces import mounts_below, processes_using, start_time
from orchestrator.lab.plan import PlantedFault

pytestmark = pytest.mark.lab


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    skip_unless_possible()
    home = tmp_path / "home"
    yield home
    lab_down(home)


def test_a_lab_grows_by_what_is_new_and_possible_and_touches_no_other_node(home: Path) -> None:
    first = spec_of("a", first=31)
    assert lab_up(first, home).added == ("a",)
    operator = Operator(home, first)
    operator.install("a")
    pid, key, papers = operator.status("a").pid, operator.host_key("a"), operator.papers()["a"]

    planted = replace(spec_of("b", first=32).nodes[0], planted=(PlantedFault("gpu_lost", (("gpu", 1),)),))
    larger = replace(first, nodes=(*first.nodes, planted))
    report = lab_up(larger, home)
    assert (report.added, report.already_there) == (("b",), ("a",))
    assert (operator.status("a").pid, operator.host_key("a")) == (pid, key)
    assert operator.status("b").faults == ("gpu_lost(gpu=1)",)
    rows = Operator(home, larger).papers()
    assert rows["a"] == papers
    assert rows["a"]["password"] != rows["b"]["password"]
    assert lab_up(larger, home).added == ()

    bad = replace(spec_of("c", first=33).nodes[0], planted=(PlantedFault("gpu_on_fire"),))
    with pytest.raises(LabError, match="no fault is called 'gpu_on_fire'"):
        lab_up(replace(larger, nodes=(*larger.nodes, bad)), home)
    assert [node.name for node in lab_status(home).nodes] == ["a", "b"]
    moved = replace(larger, nodes=(replace(larger.nodes[0], ssh_port=2223), planted))
    with pytest.raises(LabError, match="node a runs with other settings"):
        lab_up(moved, home)


def test_a_lab_that_cannot_start_leaves_no_daemon(home: Path) -> None:
    spec = spec_of("a", first=31)
    with (
        socket.create_server((spec.image_service_address, spec.image_service_port)),
        pytest.raises(LabError, match=r"the image service cannot listen on https://127.3.210.31:8443: .*in use"),
    ):
        lab_up(spec, home)
    assert not (home / "lab").exists()
    with (
        socket.create_server((spec.nodes[0].bmc_address, spec.nodes[0].bmc_port)),
        pytest.raises(LabError, match=r"the BMC of a cannot listen on 127.2.210.31:8443"),
    ):
        lab_up(spec, home)
    assert not (home / "lab").exists()


def test_a_lab_that_is_taken_down_leaves_no_process_no_mount_and_no_secret(home: Path) -> None:
    spec = spec_of("a", "b", first=31)
    lab_up(spec, home)
    operator = Operator(home, spec)
    operator.install("a")
    operator.say("a", "setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")
    lab_fault(home, "a", "silent")
    deliver(operator.paths.factory_csv, [FactoryRow("other", "SER-other", "root", "word", "0" * 64)])
    daemon = lab_status(home).daemon_pid
    assert processes_using(operator.paths.lab)

    down = lab_down(home)

    assert (down.was_running, down.nodes, down.killed) == (True, ("a", "b"), ())
    assert start_time(daemon) is None
    assert not operator.paths.lab.exists()
    assert mounts_below(operator.paths.lab) == []
    assert sorted(path.name for path in operator.paths.secrets.iterdir()) == ["factory.csv"]
    with operator.paths.factory_csv.open(newline="") as file:
        assert [row["node"] for row in csv.DictReader(file)] == ["other"]
    assert lab_down(home).was_running is False


def test_the_secrets_of_a_real_site_are_not_overwritten(home: Path) -> None:
    (home / "secrets").mkdir(mode=0o700, parents=True)
    (home / "secrets/ssh_key").write_text("of a real site")
    with pytest.raises(LabError, match="secrets/ssh_key exists and is not the lab's"):
        lab_up(spec_of("a", first=31), home)
    assert (home / "secrets/ssh_key").read_text() == "of a real site"
    assert not (home / "lab").exists()


def test_no_node_outlives_a_daemon_that_was_killed(home: Path) -> None:
    spec = spec_of("a", first=31)
    lab_up(spec, home)
    operator = Operator(home, spec)
    operator.install("a")
    operator.say("a", "setsid sleep 1000 > /dev/null 2>&1 < /dev/null & sudo setsid sleep 1001 > /dev/null 2>&1 < /dev/null &")
    lab = operator.paths.lab
    assert len(processes_using(lab)) >= 3
    os.kill(lab_status(home).daemon_pid, signal.SIGKILL)
    wait_until(lambda: not processes_using(lab), "every process of the node has ended", limit_s=5)
    with pytest.raises(LabError, match="no lab daemon answers"):
        lab_status(home)

    report = lab_up(spec, home)  # the machines' memory went with the daemon: these are new ones

    assert report.cleared == (str(lab),)
    assert operator.status("a").has_image is False


def test_an_image_that_the_power_left_half_way_is_none(home: Path) -> None:
    spec = spec_of("a", first=31)
    slow = replace(spec, nodes=(replace(spec.nodes[0], image_s=60.0),))
    lab_up(slow, home)
    operator = Operator(home, slow)
    with operator.bmc("a") as bmc:
        boot = {"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}}
        bmc.patch("/redfish/v1/Systems/1", json=boot).raise_for_status()
    operator.reset("a", "On")
    wait_until(lambda: operator.status("a").boots == 1, "the network boot has begun")
    operator.reset("a", "ForceRestart")
    wait_until(lambda: operator.status("a").boots == 2, "it starts from the disk")
    status = operator.status("a")
    assert (status.power, status.has_image, status.pid, status.failure) == ("On", False, None, "")
