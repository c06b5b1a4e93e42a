"""The exchange against a whole lab node: from the factory password to a compute check, over the lab's own wire."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.operation import Action, Operation, Outcome, Status, Target
from orchestrator.domain.spec import GpuSku, HealthPolicy, Sku
from orchestrator.drivers.exchange import Exchange
from orchestrator.lab.control import check_machine, lab_down, lab_fault, lab_heal, lab_up
from orchestrator.lab.errors import LabError
from orchestrator.lab.plan import LabSpec, NodePlan
from orchestrator.planning.health import judge_probe
from orchestrator.wiring import build_exchange

pytestmark = pytest.mark.lab

PLAN = NodePlan(
    name="n1",
    serial="SER-n1",
    manufacturer="Rackray",
    model="LAB-2G",
    bmc_address="127.2.201.200",
    ssh_address="127.1.201.200",
    gpu_count=2,
    boot_s=0.1,
    image_s=0.0,
    update_s=0.1,
)
SPEC = LabSpec(nodes=(PLAN,), image_service_address="127.3.201.200")
SKU = Sku(
    manufacturer="Rackray",
    model="LAB-2G",
    units=4,
    idle_w=900,
    max_w=2600,
    gpus=GpuSku(model="NVIDIA H100 80GB HBM3", count=2),
)
NUMBERS = itertools.count()


class Road:
    """One node's way, with the pins the controller would journal."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.exchange: Exchange = build_exchange(home, "")
        self.certificate = ""
        self.host_key = ""

    def do(self, action: Action, **args: Any) -> Outcome:
        target = Target(
            bmc_host=PLAN.bmc_address,
            bmc_port=PLAN.bmc_port,
            bmc_certificate_sha256=self.certificate,
            ssh_host=PLAN.ssh_address,
            ssh_port=PLAN.ssh_port,
            ssh_user="gpu",
            ssh_host_key=self.host_key,
            serial=PLAN.serial,
            python="/opt/rackray/venv/bin/python",
            image_url=SPEC.image_service_url,
        )
        return self.exchange.perform(Operation(f"op-{next(NUMBERS)}", PLAN.name, action, 1, target, args), lambda epoch: True)

    def until(self, action: Action, key: str, value: object, **args: Any) -> Outcome:
        end_s = time.monotonic() + 20
        while (outcome := self.do(action, **args)).facts.get(key) != value:
            assert time.monotonic() < end_s, outcome
            time.sleep(0.1)
        return outcome


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    if os.geteuid() != 0:
        pytest.skip("acceptance tests of the lab need root")
    try:
        check_machine()
    except LabError as error:
        pytest.skip(f"no lab on this machine: {error}")
    home: Path = tmp_path_factory.mktemp("home")
    lab_up(SPEC, home)
    road = Road(home)
    try:
        bring_up(road)
        yield road
    finally:
        road.exchange.close()
        lab_down(home)


def bring_up(road: Road) -> None:
    """The exchanges of a bring-up, in their order."""
    road.certificate = road.do(Action.BMC_IDENTIFY).facts["certificate_sha256"]
    assert road.do(Action.BMC_CREDENTIAL).facts == {"account": "ours", "changed": True}
    assert road.do(Action.BMC_IDENTIFY).facts["serial"] == PLAN.serial
    fresh = road.do(Action.IMAGE_REPORT, serial=PLAN.serial, image=SPEC.image_name)
    assert fresh.status is Status.DONE and fresh.facts["installed"] is False, fresh.reason
    assert road.do(Action.SSH_IDENTIFY).status is Status.MISMATCH
    assert road.do(Action.BMC_BOOT_ONCE, target="Pxe").status is Status.DONE
    assert road.do(Action.BMC_POWER, reset="On").status is Status.DONE
    report = road.until(Action.IMAGE_REPORT, "installed", True, serial=PLAN.serial, image=SPEC.image_name).facts
    assert report["digest"] == report["wanted_digest"]
    road.host_key = report["ssh_host_key"]
    road.until(Action.SSH_IDENTIFY, "serial", PLAN.serial)


def test_the_machine_behind_ssh_is_the_one_behind_the_bmc_with_the_published_image(road: Road) -> None:
    facts = road.do(Action.SSH_IDENTIFY).facts
    report = road.do(Action.IMAGE_REPORT, serial=PLAN.serial, image=SPEC.image_name).facts
    assert (facts["serial"], facts["hostname"], facts["image_digest"]) == (PLAN.serial, "n1", report["digest"])
    assert facts["boot_id"] and facts["uptime_s"] > 0


def test_a_planted_gpu_fault_is_found_through_ssh_and_gone_when_healed(road: Road) -> None:
    assert judge_probe(road.do(Action.NODE_PROBE).facts, SKU, HealthPolicy()) == ()
    lab_fault(road.home, "n1", "gpu_row_remap_pending", gpu=1)
    (finding,) = judge_probe(road.do(Action.NODE_PROBE).facts, SKU, HealthPolicy())
    assert (finding.check, finding.gpu) == ("remap-pending", 1)
    lab_heal(road.home, "n1", "gpu_row_remap_pending")
    assert judge_probe(road.do(Action.NODE_PROBE).facts, SKU, HealthPolicy()) == ()


@pytest.mark.slow
def test_the_node_computes_with_the_runtime_and_says_that_it_has_no_gpu_that_can(road: Road) -> None:
    facts = road.do(Action.NODE_COMPUTE, seconds=0.2).facts
    assert facts["device"] == "cpu" and facts["repeatable"] is True and facts["gflops"] > 0


def test_a_command_runs_as_the_login_user_and_a_new_host_key_stops_the_node(road: Road) -> None:
    assert road.do(Action.SSH_EXEC, argv=["id", "-un"]).facts["stdout"] == "gpu\n"
    kept, road.host_key = road.host_key, "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAIJ" + "A" * 42
    outcome = road.do(Action.SSH_EXEC, argv=["true"])
    road.host_key = kept
    assert outcome.status is Status.MISMATCH


def test_a_disk_that_turns_read_only_fails_commands_and_nothing_else(road: Road) -> None:
    write = ["sh", "-c", "echo x > /home/gpu/written"]
    lab_fault(road.home, "n1", "disk_read_only")
    failed = road.do(Action.SSH_EXEC, argv=write)
    assert failed.status is Status.DONE and failed.facts["exit_status"] != 0
    assert "Read-only file system" in failed.facts["stderr"]
    assert road.do(Action.SSH_IDENTIFY).facts["serial"] == PLAN.serial, "it can still be asked who it is"
    lab_heal(road.home, "n1", "disk_read_only")
    assert road.do(Action.SSH_EXEC, argv=write).facts["exit_status"] == 0


@pytest.mark.parametrize("fault", ["ssh_refused", "ssh_reset", "ssh_garbage", "ssh_full"])
def test_a_broken_ssh_port_is_unreachable_and_works_when_healed(road: Road, fault: str) -> None:
    road.exchange.close()
    road.exchange = build_exchange(road.home, "")
    lab_fault(road.home, "n1", fault)
    assert road.do(Action.SSH_IDENTIFY).status is Status.UNREACHABLE
    lab_heal(road.home, "n1", fault)
    assert road.do(Action.SSH_IDENTIFY).facts["serial"] == PLAN.serial


def test_a_node_that_loses_its_power_in_the_middle_of_a_command_is_another_boot_afterwards(road: Road) -> None:
    before = road.do(Action.SSH_IDENTIFY).facts
    cut = threading.Timer(0.7, lambda: lab_fault(road.home, "n1", "power_cut"))
    cut.start()
    lost = road.do(Action.SSH_EXEC, argv=["sleep", "30"])
    cut.join()
    assert lost.status is Status.UNKNOWN and "the connection broke while sleep ran" in lost.reason
    assert road.do(Action.SSH_IDENTIFY).status is Status.UNREACHABLE
    assert road.do(Action.BMC_OBSERVE).facts["power"] == "Off"
    assert road.do(Action.BMC_POWER, reset="On").status is Status.DONE
    after = road.until(Action.SSH_IDENTIFY, "serial", PLAN.serial).facts
    assert after["boot_id"] != before["boot_id"] and after["image_digest"] == before["image_digest"]
    assert abs(after["clock_skew_s"]) < 5
