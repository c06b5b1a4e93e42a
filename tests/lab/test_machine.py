"""The simulated machine in virtual time: power, boot, accounts, sensors."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.lab.machine import (
    BootOverride,
    BootSource,
    FirmwarePart,
    IllegalNow,
    Machine,
    MachineError,
    MachineSpec,
    OverrideEnabled,
    PowerState,
    ResetKind,
)
from orchestrator.lab.machine_accounts import LOCKOUT_DURATION_S, LOCKOUT_THRESHOLD
from orchestrator.lab.machine_nouns import AccountRefused, BootStage

SPEC = MachineSpec(
    name="r01-n1",
    serial="LAB-0001",
    manufacturer="Rackray",
    model="LAB-8G",
    uuid="00000000-0000-4000-8000-000000000001",
    factory_username="factory",
    factory_password="printed-on-the-label",
    boot_s=10.0,
    shutdown_s=4.0,
    update_s=20.0,
    firmware=(FirmwarePart("NIC1", "NIC 1", "28.36"), FirmwarePart("BMC", "BMC", "7.10")),
)
CATALOG = {"/firmware/nic": ("NIC1", "28.39"), "/firmware/bmc": ("BMC", "7.20")}


class RecordingBoard:
    """Remembers what the power switch and the boot firmware did."""

    def __init__(self) -> None:
        self.deeds: list[str] = []

    def power_on(self, boot: BootSource) -> None:
        self.deeds.append(f"start from {boot}")

    def power_off(self) -> None:
        self.deeds.append("cut")


def a_machine() -> tuple[Machine, RecordingBoard]:
    board = RecordingBoard()
    return Machine(SPEC, board, CATALOG), board


def test_power_on_goes_through_rails_and_self_test_before_the_board_starts() -> None:
    machine, board = a_machine()
    machine.reset("On", 0.0)
    assert machine.power_state(1.9) is PowerState.POWERING_ON
    assert (machine.power_state(2.0), machine.boot_stage(2.0)) == (PowerState.ON, BootStage.POST)
    machine.tick(9.99)
    assert board.deeds == []
    machine.tick(10.0)
    assert (board.deeds, machine.boot_stage(10.0)) == (["start from Hdd"], BootStage.OS)


def test_a_graceful_shutdown_takes_its_time_and_a_forced_one_does_not() -> None:
    machine, board = a_machine()
    machine.reset("On", 0.0)
    machine.reset("GracefulShutdown", 20.0)
    assert machine.power_state(23.9) is PowerState.POWERING_OFF
    assert machine.power_state(24.0) is PowerState.OFF
    machine.reset("On", 30.0)
    machine.reset("ForceOff", 45.0)
    assert machine.power_state(45.0) is PowerState.OFF
    assert board.deeds == ["start from Hdd", "cut", "start from Hdd", "cut"]


def test_power_lost_during_the_self_test_starts_nothing() -> None:
    machine, board = a_machine()
    machine.reset("On", 0.0)
    machine.lose_power(5.0)
    machine.tick(100.0)
    assert (board.deeds, machine.boots) == (["cut"], 0)


@pytest.mark.parametrize("kind", ["ForceRestart", "PowerCycle", "GracefulRestart"])
def test_every_restart_ends_all_processes_and_boots_once(kind: str) -> None:
    machine, board = a_machine()
    machine.reset("On", 0.0)
    machine.reset(kind, 20.0)
    machine.tick(100.0)
    assert board.deeds == ["start from Hdd", "cut", "start from Hdd"]


@pytest.mark.parametrize(
    ("before", "kind"),
    [([], "ForceOff"), ([], "GracefulShutdown"), ([], "PowerCycle"), (["On"], "On"), (["On", "GracefulShutdown"], "On")],
)
def test_a_reset_that_the_state_forbids_is_refused_and_changes_nothing(before: list[str], kind: str) -> None:
    machine, board = a_machine()
    for step, earlier in enumerate(before):
        machine.reset(earlier, 20.0 * step)
    now_s = 20.0 * len(before) + (0.0 if before[-1:] == ["On"] else -19.0)
    state, deeds = machine.power_state(now_s), list(board.deeds)
    with pytest.raises(IllegalNow, match=f"{kind} is refused while the machine is {state}"):
        machine.reset(kind, now_s)
    assert (machine.power_state(now_s), board.deeds) == (state, deeds)


def test_an_override_for_one_boot_is_consumed_when_the_boot_firmware_hands_over() -> None:
    machine, board = a_machine()
    machine.set_boot(0.0, "Pxe")
    machine.reset("On", 0.0)
    machine.tick(9.0)
    assert machine.boot_override == BootOverride(BootSource.PXE, OverrideEnabled.ONCE)
    machine.reset("ForceRestart", 20.0)
    machine.tick(30.0)
    assert board.deeds == ["start from Pxe", "cut", "start from Hdd"]
    assert machine.boot_override == BootOverride()


def test_a_continuous_override_holds_until_it_is_disabled() -> None:
    machine, board = a_machine()
    machine.set_boot(0.0, BootSource.UEFI_HTTP, OverrideEnabled.CONTINUOUS)
    machine.reset("On", 0.0)
    machine.reset("ForceRestart", 20.0)
    machine.set_boot(35.0, enabled="Disabled")
    machine.reset("ForceRestart", 40.0)
    machine.tick(60.0)
    assert [deed for deed in board.deeds if deed != "cut"] == ["start from UefiHttp", "start from UefiHttp", "start from Hdd"]


VERBS = st.one_of(
    st.sampled_from([("reset", kind) for kind in ResetKind]),
    st.sampled_from([("boot", source) for source in BootSource]),
    st.sampled_from([("update", "nic"), ("update", "bmc"), ("update", "nothing"), ("power lost", "")]),
)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 12.0), VERBS), max_size=12))
def test_asking_often_and_asking_late_tell_the_same_story(script: list[tuple[float, tuple[str, str]]]) -> None:
    stories = [play(script, look_every_s) for look_every_s in (None, 0.37)]
    assert stories[0] == stories[1]


def play(script: list[tuple[float, tuple[str, str]]], look_every_s: float | None) -> list[object]:
    """Run a script of verbs, looking at the machine between them or not, and tell what happened in the end."""
    machine, board = a_machine()
    now_s = 0.0
    for wait_s, (verb, argument) in [*script, (500.0, ("nothing", ""))]:
        if look_every_s:
            for look in range(1, int(wait_s / look_every_s)):
                machine.sensors(now_s + look * look_every_s)
        now_s += wait_s
        perform(machine, verb, argument, now_s)
    starts = [deed for deed in board.deeds if deed != "cut"]
    in_a_row = [pair for pair in itertools.pairwise(board.deeds) if "cut" not in pair]
    assert in_a_row == [], "the board was told to start a machine that was running"
    assert len(starts) == machine.boots
    log = [(entry.number, round(entry.at_s, 6), entry.message) for entry in machine.log(now_s)]
    return [
        machine.power_state(now_s),
        machine.boot_override,
        machine.firmware(now_s),
        machine.tasks(now_s),
        board.deeds,
        log,
        machine.asset_tag,
    ]


def perform(machine: Machine, verb: str, argument: str, now_s: float) -> None:
    """One verb; what the machine refuses is part of the story too."""
    try:
        match verb:
            case "reset":
                machine.reset(argument, now_s)
            case "boot":
                machine.set_boot(now_s, argument)
            case "update":
                machine.start_update(f"https://site/firmware/{argument}", now_s)
            case "power lost":
                machine.lose_power(now_s)
            case _:
                machine.tick(now_s)
    except MachineError as refusal:
        # Noted where the comparison looks: both runs must refuse the same things.
        machine.asset_tag += f"{now_s}: {refusal}\n"


def test_the_factory_password_must_change_and_not_to_itself() -> None:
    accounts = a_machine()[0].accounts
    factory = accounts.authenticate("factory", "printed-on-the-label", 0.0)
    assert factory is not None and factory.must_change
    with pytest.raises(AccountRefused, match="must be changed"):
        accounts.set_password(factory.id, "printed-on-the-label")
    accounts.set_password(factory.id, "our own secret")
    assert accounts.authenticate("factory", "printed-on-the-label", 0.0) is None
    changed = accounts.authenticate("factory", "our own secret", 0.0)
    assert changed is not None and not changed.must_change
    assert "our own secret" not in repr(changed) and "printed-on-the-label" not in repr(SPEC)


def test_wrong_passwords_lock_an_account_for_a_while() -> None:
    accounts = a_machine()[0].accounts
    for _ in range(LOCKOUT_THRESHOLD):
        assert accounts.authenticate("factory", "guess", 100.0) is None
    assert accounts.authenticate("factory", "printed-on-the-label", 100.0 + LOCKOUT_DURATION_S - 0.1) is None
    assert accounts.authenticate("factory", "printed-on-the-label", 100.0 + LOCKOUT_DURATION_S) is not None


def test_the_last_administrator_cannot_lock_everybody_out() -> None:
    accounts = a_machine()[0].accounts
    ours = accounts.create("rackray", "long enough", "Administrator")
    accounts.delete("1")
    for forbidden in (
        lambda: accounts.delete(ours.id),
        lambda: accounts.set_enabled(ours.id, False),
        lambda: accounts.set_role(ours.id, "ReadOnly"),
    ):
        with pytest.raises(AccountRefused, match="last administrator"):
            forbidden()


@pytest.mark.parametrize(
    ("username", "password", "role", "property_name"),
    [
        ("factory", "long enough", "Operator", "UserName"),
        ("with blank", "long enough", "Operator", "UserName"),
        ("new", "short", "Operator", "Password"),
        ("new", "long enough", "King", "RoleId"),
    ],
)
def test_an_account_that_breaks_a_rule_is_refused_with_the_property(
    username: str, password: str, role: str, property_name: str
) -> None:
    with pytest.raises(AccountRefused) as refusal:
        a_machine()[0].accounts.create(username, password, role)
    assert refusal.value.property_name == property_name


def test_sensors_follow_the_power_state_and_the_load() -> None:
    machine, _ = a_machine()
    off_w = machine.sensors(0.0).draw_w
    machine.reset("On", 0.0)
    machine.tick(20.0)
    idle_w = machine.sensors(20.0).draw_w
    machine.load = 1.0
    busy = machine.sensors(20.0)
    assert off_w < idle_w == SPEC.draw_idle_w < busy.draw_w == SPEC.draw_max_w
    assert sum(psu.draw_w for psu in busy.psus) == pytest.approx(busy.draw_w)
    assert machine.sensors(21.0) == busy


def test_a_spec_with_two_parts_of_one_id_is_refused() -> None:
    with pytest.raises(ValueError, match="two firmware parts"):
        MachineSpec("n", "s", "m", "m", "u", "f", "p", firmware=(FirmwarePart("A", "a", "1"), FirmwarePart("A", "b", "2")))
