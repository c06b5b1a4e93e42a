"""Firmware updates of the simulated machine, and everything that can be wrong with it, in virtual time."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.lab.machine import FirmwarePart, Machine, MachineSpec, PowerState, UnknownFault
from orchestrator.lab.machine_faults import FAULTS
from orchestrator.lab.machine_nouns import NoSuchThing, NotSupportedHere, PartBusy
from orchestrator.lab.machine_updates import TaskState

NIC_IMAGE, BMC_IMAGE = "https://site:8480/firmware/nic.bin", "https://site:8480/firmware/bmc.bin"


def a_machine() -> Machine:
    firmware = (
        FirmwarePart("NIC1", "NIC 1", "28.36"),
        FirmwarePart("BMC", "BMC", "7.10"),
        FirmwarePart("CPLD", "CPLD", "3", updateable=False),
    )
    catalog = {"/firmware/nic.bin": ("NIC1", "28.39"), "/firmware/bmc.bin": ("BMC", "7.20"), "/firmware/cpld.bin": ("CPLD", "4")}
    spec = MachineSpec(
        "n1", "LAB-0001", "Rackray", "LAB-8G", "u", "factory", "printed-on-it", boot_s=10.0, update_s=20.0, firmware=firmware
    )
    return Machine(spec, firmware_catalog=catalog)


def version(machine: Machine, part_id: str, now_s: float) -> str:
    return next(part.version for part in machine.firmware(now_s) if part.id == part_id)


def task_of(machine: Machine, now_s: float, task_id: str = "1") -> tuple[TaskState, int]:
    task = machine.task(task_id, now_s)
    assert task is not None
    return task.state, task.percent


def test_an_update_is_new_then_runs_then_completes_and_only_then_the_version_changes() -> None:
    machine = a_machine()
    task = machine.start_update(NIC_IMAGE, 100.0)
    assert (task.state, task.part_id, task.version) == (TaskState.NEW, "NIC1", "28.39")
    assert task_of(machine, 100.9) == (TaskState.NEW, 0)
    assert task_of(machine, 110.0) == (TaskState.RUNNING, 50)
    assert version(machine, "NIC1", 119.9) == "28.36"
    assert task_of(machine, 120.0) == (TaskState.COMPLETED, 100)
    assert version(machine, "NIC1", 120.0) == "28.39"


def test_due_s_names_the_moment_at_which_the_machine_changes_by_itself() -> None:
    machine = a_machine()
    assert machine.due_s == float("inf")
    machine.start_update(NIC_IMAGE, 5.0)
    assert machine.due_s == 25.0
    machine.reset("On", 6.0)
    assert machine.due_s == 8.0
    machine.tick(25.0)
    assert machine.due_s == float("inf")


@pytest.mark.parametrize(
    ("image", "targets", "message"),
    [
        ("https://site:8480/firmware/unknown.bin", (), "unknown or damaged"),
        (NIC_IMAGE, ("BMC",), "image is for NIC1, not for BMC"),
    ],
)
def test_an_image_that_does_not_fit_ends_in_exception_and_writes_nothing(
    image: str, targets: tuple[str, ...], message: str
) -> None:
    machine = a_machine()
    before = machine.firmware(0.0)
    machine.start_update(image, 0.0, targets)
    task = machine.task("1", 30.0)
    assert task is not None and task.state is TaskState.EXCEPTION
    assert message in task.message
    assert machine.firmware(30.0) == before


def test_one_part_takes_one_update_at_a_time_and_two_parts_take_two() -> None:
    machine = a_machine()
    machine.start_update(NIC_IMAGE, 0.0)
    machine.start_update(BMC_IMAGE, 1.0)
    with pytest.raises(PartBusy, match="task 1 is updating NIC1"):
        machine.start_update(NIC_IMAGE, 2.0)
    assert len(machine.tasks(2.0)) == 2
    machine.start_update(NIC_IMAGE, 20.0)


def test_parts_that_cannot_be_updated_or_do_not_exist_are_refused_at_once() -> None:
    machine = a_machine()
    with pytest.raises(NotSupportedHere, match="CPLD cannot be updated"):
        machine.start_update("https://site:8480/firmware/cpld.bin", 0.0)
    with pytest.raises(NoSuchThing, match="NIC9"):
        machine.start_update(NIC_IMAGE, 0.0, ("NIC9",))
    assert machine.tasks(0.0) == ()


def test_a_power_cut_breaks_the_update_of_a_part_on_host_power_and_spares_the_bmc() -> None:
    machine = a_machine()
    machine.reset("On", 0.0)
    machine.start_update(NIC_IMAGE, 20.0)
    machine.start_update(BMC_IMAGE, 20.0)
    machine.reset("ForceOff", 30.0)
    task = machine.task("1", 30.0)
    assert task is not None and task.state is TaskState.EXCEPTION and "host power was lost at 50 %" in task.message.lower()
    assert [part.health for part in machine.firmware(50.0)] == ["Critical", "OK", "OK"]
    assert (version(machine, "NIC1", 50.0), version(machine, "BMC", 50.0)) == ("28.36", "7.20")
    assert machine.health(50.0) == "Critical"
    machine.start_update(NIC_IMAGE, 60.0)
    assert (version(machine, "NIC1", 80.0), machine.health(80.0)) == ("28.39", "OK")


def test_stale_firmware_is_updated_like_any_other_and_healing_undoes_only_the_plant() -> None:
    machine = a_machine()
    machine.fault("stale_firmware", 0.0, part="NIC1", version="20.0")
    machine.fault("stale_firmware", 0.0, part="BMC", version="1.0")
    machine.start_update(NIC_IMAGE, 0.0)
    assert (version(machine, "NIC1", 20.0), version(machine, "BMC", 20.0)) == ("28.39", "1.0")
    assert machine.heal("stale_firmware", 21.0)
    assert (version(machine, "NIC1", 21.0), version(machine, "BMC", 21.0)) == ("28.39", "7.10")


def test_a_failing_update_stops_on_its_way_and_healing_lets_the_next_one_pass() -> None:
    machine = a_machine()
    machine.fault("update_fails", 0.0, percent=40)
    machine.start_update(NIC_IMAGE, 0.0)
    assert task_of(machine, 7.9) == (TaskState.RUNNING, 39)
    assert task_of(machine, 8.0) == (TaskState.EXCEPTION, 40)
    machine.heal("update_fails", 9.0)
    machine.start_update(NIC_IMAGE, 10.0)
    assert (task_of(machine, 30.0, "2"), version(machine, "NIC1", 30.0)) == ((TaskState.COMPLETED, 100), "28.39")


def test_an_update_may_complete_and_change_nothing() -> None:
    machine = a_machine()
    machine.fault("update_completes_unchanged", 0.0, part="NIC1")
    machine.start_update(NIC_IMAGE, 0.0)
    machine.start_update(BMC_IMAGE, 0.0)
    assert task_of(machine, 20.0) == (TaskState.COMPLETED, 100)
    assert (version(machine, "NIC1", 20.0), version(machine, "BMC", 20.0)) == ("28.36", "7.20")


def test_a_staged_update_takes_effect_at_the_next_boot() -> None:
    machine = a_machine()
    machine.fault("update_needs_reset", 0.0)
    machine.start_update(NIC_IMAGE, 0.0)
    task = machine.task("1", 20.0)
    assert task is not None and task.state is TaskState.COMPLETED and task.needs_reset
    assert version(machine, "NIC1", 20.0) == "28.36"
    machine.reset("On", 20.0)
    assert (version(machine, "NIC1", 29.0), version(machine, "NIC1", 30.0)) == ("28.36", "28.39")


def test_a_scheduled_update_begins_at_the_next_boot_and_losing_power_before_does_not_break_it() -> None:
    machine = a_machine()
    machine.fault("update_scheduled", 0.0, part="NIC1")
    machine.reset("On", 0.0)
    machine.start_update(NIC_IMAGE, 20.0)
    assert (task_of(machine, 500.0), version(machine, "NIC1", 500.0)) == ((TaskState.PENDING, 0), "28.36")
    machine.reset("ForceOff", 510.0)
    machine.reset("On", 520.0)
    state, percent = task_of(machine, 535.0)
    assert state is TaskState.RUNNING and 0 < percent < 99
    assert (task_of(machine, 560.0), version(machine, "NIC1", 560.0)) == ((TaskState.COMPLETED, 100), "28.39")


def test_a_stuck_update_runs_for_ever() -> None:
    machine = a_machine()
    machine.fault("update_stuck", 0.0)
    machine.start_update(NIC_IMAGE, 0.0)
    assert task_of(machine, 1e6) == (TaskState.RUNNING, 99)
    assert machine.due_s == float("inf")


def test_tasks_vanish_once_they_are_finished() -> None:
    machine = a_machine()
    machine.fault("task_vanishes", 0.0)
    machine.start_update(NIC_IMAGE, 0.0)
    assert task_of(machine, 10.0) == (TaskState.RUNNING, 50)
    assert machine.task("1", 20.0) is None and version(machine, "NIC1", 20.0) == "28.39"


def test_an_ignored_reset_is_accepted_and_does_nothing() -> None:
    machine = a_machine()
    machine.fault("reset_ignored", 0.0)
    machine.reset("On", 0.0)
    assert machine.power_state(100.0) is PowerState.OFF
    machine.heal("reset_ignored", 100.0)
    machine.reset("On", 100.0)
    assert machine.power_state(105.0) is PowerState.ON


def test_a_stale_power_state_shows_the_past_while_the_machine_goes_on() -> None:
    machine = a_machine()
    machine.fault("power_state_stale", 0.0, seconds=5)
    machine.reset("On", 10.0)
    shown = [machine.power_state(now_s) for now_s in (14.9, 15.0, 16.9, 17.0)]
    assert shown == [PowerState.OFF, PowerState.POWERING_ON, PowerState.POWERING_ON, PowerState.ON]


def test_a_flapping_bmc_is_gone_for_a_share_of_every_period_until_its_time_is_over() -> None:
    machine = a_machine()
    machine.fault("bmc_flaps", 100.0, period_s=10, down_share=0.3, seconds=25)
    answered = [machine.bmc_answers(now_s) for now_s in (100.0, 102.9, 103.0, 109.9, 110.0, 113.0, 122.9, 125.0)]
    assert answered == [False, False, True, True, False, True, False, True]
    assert machine.faults.names() == (), "it is over, and forgotten"


def test_a_bmc_flaps_after_an_update_if_it_is_told_so() -> None:
    machine = a_machine()
    machine.fault("bmc_flaps_after_update", 0.0, period_s=4, seconds=8)
    machine.start_update(NIC_IMAGE, 0.0)
    assert [machine.bmc_answers(now_s) for now_s in (19.0, 20.5, 23.0, 24.5, 28.0)] == [True, False, True, False, True]


def test_a_silent_bmc_answers_again_when_its_time_is_over() -> None:
    machine = a_machine()
    machine.fault("bmc_silent", 0.0, seconds=5)
    assert [machine.bmc_answers(now_s) for now_s in (0.0, 4.9, 5.0)] == [False, False, True]


def power_supply_is_dead(machine: Machine) -> bool:
    sensors = machine.sensors(0.0)
    return [psu.health for psu in sensors.psus] == ["OK", "Critical"] and not sensors.is_redundant


REPORTED: dict[str, tuple[dict[str, object], Callable[[Machine], bool]]] = {
    "wrong_serial": ({"serial": "LAB-9999"}, lambda machine: machine.serial == "LAB-9999"),
    "psu_failed": ({"psu": 2}, power_supply_is_dead),
    "inlet_hot": ({"celsius": 51}, lambda machine: machine.sensors(0.0).inlet_health == "Critical"),
}


@pytest.mark.parametrize("name", REPORTED)
def test_a_hardware_fault_is_reported_and_gone_after_healing(name: str) -> None:
    machine, (arguments, is_visible) = a_machine(), REPORTED[name]
    assert not is_visible(machine)
    machine.fault(name, 0.0, **arguments)
    assert is_visible(machine)
    assert machine.heal(name, 0.0) and not is_visible(machine)


def test_the_event_log_tells_power_boot_and_updates_in_order() -> None:
    machine = a_machine()
    machine.reset("On", 0.0)
    machine.start_update(NIC_IMAGE, 30.0)
    machine.reset("ForceOff", 60.0)
    told = [entry.message for entry in machine.log(60.0)]
    assert told == [
        "host power is on",
        "boot from Hdd",
        f"update task 1 accepted: {NIC_IMAGE}",
        "NIC1 went from 28.36 to 28.39",
        "update task 1 completed",
        "host power is off",
    ]
    machine.clear_log(61.0)
    machine.reset("On", 62.0)
    assert [entry.number for entry in machine.log(62.0)] == [7]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flood", {}, "no fault is called 'flood'"),
        ("stale_firmware", {"part": "NIC1"}, "needs version="),
        ("psu_failed", {"psu": "left"}, "psu='left' is no whole number"),
        ("psu_failed", {"psu": 7}, "power supplies 1 to 2, not 7"),
        ("reset_ignored", {"seconds": 3}, "takes no argument seconds"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_and_not_planted(name: str, arguments: dict[str, object], message: str) -> None:
    machine = a_machine()
    with pytest.raises(UnknownFault, match=message):
        machine.fault(name, 0.0, **arguments)
    assert machine.faults.names() == ()


def test_every_fault_can_be_planted_and_healed() -> None:
    machine = a_machine()
    required: dict[str, dict[str, object]] = {"stale_firmware": {"part": "NIC1", "version": "1"}}
    for name in FAULTS:
        machine.fault(name, 0.0, **required.get(name, {}))
    assert set(machine.faults.names()) == set(FAULTS)
    assert all(machine.heal(name, 0.0) for name in FAULTS)
    assert machine.faults.names() == () and machine.firmware(0.0) == a_machine().firmware(0.0)


def test_the_readme_names_every_fault_with_its_meaning_and_arguments() -> None:
    readme = (Path(__file__).parents[2] / "orchestrator" / "lab" / "bmc" / "README.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in readme.splitlines() if line.startswith("| `")}
    for name, kind in FAULTS.items():
        assert kind.meaning in rows[name]
        assert [argument for argument in kind.arguments if f"`{argument}`" not in rows[name]] == []


def test_the_readme_tells_every_fault_with_its_arguments_and_meaning() -> None:
    readme = (Path(__file__).parents[2] / "orchestrator" / "lab" / "README.md").read_text()
    rows = {cells[0].strip(" `"): cells for line in readme.splitlines() if len(cells := line.strip("|").split("|")) == 3}
    for name, kind in FAULTS.items():
        _, arguments, meaning = rows[name]
        assert re.findall(r"`(\w+)`", arguments) == list(kind.arguments), name
        assert meaning.strip() == kind.meaning
