"""Many broken neighbours at once, and how little of any one BMC is taken: connections, sessions, time."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.operation import Action, Status
from orchestrator.drivers.local_hands import PER_BMC
from tests.drivers.redfish_oddities import SESSIONS, SYSTEM, Seen, sound_tree
from tests.wire.faults import Fault, Met
from tests.wire.matrix import FAULTS
from tests.wire.neighbours import Wire


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    try:
        yield wire
    finally:
        wire.close()


def test_everything_that_can_hang_hangs_at_once_and_sound_neighbours_do_not_wait(wire: Wire) -> None:
    hanging = [fault for fault in FAULTS if fault.runs_out and fault.inject is not None]
    assert len(hanging) >= 6
    stories: list[tuple[Fault, Iterator[Met], Met]] = []
    for fault in hanging:
        assert fault.inject is not None
        story = fault.inject(wire)
        stories.append((fault, story, next(story)))
    broken = [wire.begin(met.node, met.target, fault.action, 8.0, **met.args) for fault, _, met in stories]
    sound = [wire.begin_sound(is_bmc=number % 2 == 0) for number in range(10)]
    assert {wire.wait(each).status for each in sound} == {Status.DONE}
    assert not set(broken) & set(wire.arrived), "something that hangs came back before those that answer"
    assert Status.DONE not in {wire.wait(each).status for each in broken}
    for _, story, _ in stories:
        assert next(story, None) is None


def test_a_bmc_asked_many_things_at_once_sees_two_connections_and_one_session(wire: Wire) -> None:
    bmc, node, target = wire.odd()
    inside, most, lock = 0, 0, threading.Lock()

    def slow_system(seen: Seen) -> object:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.03)
        with lock:
            inside -= 1
        return sound_tree()["GET", SYSTEM]

    bmc.tree["GET", SYSTEM] = slow_system  # type: ignore[assignment]
    asked = [wire.begin(node, target, Action.BMC_OBSERVE, 20.0) for _ in range(12)]
    assert {wire.wait(each).status for each in asked} == {Status.DONE}
    assert most == PER_BMC
    assert bmc.connections <= PER_BMC
    assert bmc.requests("POST") == [SESSIONS]
    assert bmc.requests("DELETE") == []
    wire.exchange.close()
    assert bmc.requests("DELETE") == [SESSIONS + "/1"], "it was not logged out of"


def test_leaving_many_silent_bmcs_takes_no_longer_than_leaving_one(wire: Wire) -> None:
    nodes = [wire.credentialed() for _ in range(6)]
    for node, _ in nodes:
        wire.break_bmc(node, "bmc_silent")
    answering, _ = wire.credentialed()
    began_s = time.monotonic()
    wire.exchange.close()
    took_s = time.monotonic() - began_s
    ended = [r for r in wire.bmcs.requests(answering) if r["method"] == "DELETE" and "/Sessions/" in r["path"]]
    assert ended and ended[-1]["status"] == 204, "the one that answers was not logged out of"
    assert took_s < 6 * 5.0, "they were waited for one after the other"


def test_a_rack_of_dead_bmcs_is_asked_again_without_holding_up_the_rest(wire: Wire) -> None:
    """The second round of a dead rack gets half of the threads; what it had said before is kept."""
    silent = [wire.credentialed() for _ in range(4)]
    for node, _ in silent:
        wire.break_bmc(node, "bmc_silent")
    first = [wire.begin(node, target, Action.BMC_OBSERVE, 3.2) for node, target in silent]
    assert {wire.wait(each).status for each in first} == {Status.UNREACHABLE}
    assert len(wire.hands._silent) == 4
    for node, _ in silent:
        wire.heal_bmc(node, "bmc_silent")
    again = [wire.begin(node, target, Action.BMC_OBSERVE, 5.0) for node, target in silent]
    assert {wire.wait(each).status for each in again} == {Status.DONE}
    assert wire.hands._silent == set()
