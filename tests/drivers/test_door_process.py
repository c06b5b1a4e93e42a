"""A door's process that dies, hangs, babbles or does not start: no operation is lost, none has two outcomes."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import PeerUnreachable
from orchestrator.domain.operation import Action, Outcome, Status
from orchestrator.drivers.door_process import GRACE_S, QUEUE_LIMIT_S, DoorProcess, Launch
from tests.drivers.hands_contract import an_operation

DOOR = """
import json, os, sys
hello = json.loads(input())["hello"]
print(json.dumps({"ready": {}}), flush=True)
for line in sys.stdin:
    operation = json.loads(line)["operation"]
    if operation["node"] == "dies":
        sys.exit("the door's last words")
    if operation["node"] == "silent":
        continue
    if operation["node"] == "babbles":
        print("a warning of somebody's library", flush=True)
    for _ in range(2 if operation["node"] == "twice" else 1):
        answer = {"operation": operation["id"], "node": operation["node"], "action": operation["action"], "status": "done"}
        print(json.dumps({"outcome": {**answer, "facts": {"url": hello["db_url"], "pid": os.getpid()}}}), flush=True)
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., DoorProcess]]:
    doors: list[DoorProcess] = []

    def open_door(failures: int = 0, is_alive: Callable[[], bool] = lambda: True, **options: Callable[[], float]) -> DoorProcess:
        left = [failures]

        def prepare() -> Launch:
            if left[0]:
                left[0] -= 1
                raise PeerUnreachable("no head yet")
            return Launch(
                [sys.executable, "-c", DOOR], {"PATH": "/usr/bin:/bin"}, tmp_path / "door.log", {"db_url": "u"}, is_alive
            )

        doors.append(DoorProcess("test", prepare, **options))
        return doors[-1]

    yield open_door
    for door in doors:
        door.close()


def collect(door: DoorProcess, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    end = time.monotonic() + 15
    while len(outcomes) < count:
        assert time.monotonic() < end, f"{len(outcomes)} of {count} outcomes came"
        outcomes += door.poll()
        time.sleep(0.01)
    return outcomes


def test_what_was_handed_over_when_the_process_died_is_unknown_and_the_next_life_works(
    opened: Callable[..., DoorProcess],
) -> None:
    door = opened()
    door.submit([an_operation("silent", Action.BMC_POWER), an_operation("dies")])
    outcomes = collect(door, 2)
    assert {outcome.status for outcome in outcomes} == {Status.UNKNOWN}
    assert "the door's last words" in outcomes[0].reason
    door.submit([an_operation("n1")])
    assert collect(door, 1)[0].status is Status.DONE


def test_operations_wait_while_the_door_cannot_be_opened(opened: Callable[..., DoorProcess]) -> None:
    door = opened(failures=1)
    door.submit([an_operation("n1")])
    assert collect(door, 1)[0].facts["url"] == "u"


def test_what_waited_too_long_was_never_sent_and_the_reason_names_the_cause(opened: Callable[..., DoorProcess]) -> None:
    now_s = [0.0]
    door = opened(failures=1000, monotonic_s=lambda: now_s[0])
    door.submit([an_operation("n1", Action.BMC_POWER)])
    time.sleep(0.2)
    assert door.poll() == []
    now_s[0] = QUEUE_LIMIT_S + 1
    (outcome,) = door.poll()
    assert outcome.status is Status.HELD and "no head yet" in outcome.reason


def test_a_door_that_is_stuck_leaves_the_operation_unknown_at_its_deadline(opened: Callable[..., DoorProcess]) -> None:
    now_s = [0.0]
    door = opened(monotonic_s=lambda: now_s[0])
    silent = an_operation("silent")
    door.submit([silent, an_operation("n1")])
    collect(door, 1)
    now_s[0] = silent.timeout_s + GRACE_S + 1
    assert [(outcome.operation, outcome.status) for outcome in door.poll()] == [(silent.id, Status.UNKNOWN)]


def test_babble_and_second_answers_make_no_outcome(opened: Callable[..., DoorProcess]) -> None:
    door = opened()
    door.submit([an_operation("babbles"), an_operation("twice"), an_operation("n1")])
    assert [outcome.node for outcome in collect(door, 3)] == ["babbles", "twice", "n1"]
    assert door.poll() == []


def test_a_door_whose_head_has_ended_is_shut_though_its_process_lives(opened: Callable[..., DoorProcess]) -> None:
    alive = [True]
    door = opened(is_alive=lambda: alive[0])
    door.submit([an_operation("n1")])
    first = collect(door, 1)[0].facts["pid"]
    door.submit([an_operation("silent", Action.BMC_POWER)])
    time.sleep(0.1)
    alive[0] = False
    (outcome,) = collect(door, 1)
    assert outcome.status is Status.UNKNOWN and "Ray head ended" in outcome.reason
    alive[0] = True
    door.submit([an_operation("n1")])
    assert collect(door, 1)[0].facts["pid"] != first


def test_closing_ends_the_process_and_refuses_what_comes_later(opened: Callable[..., DoorProcess]) -> None:
    door = opened()
    door.submit([an_operation("n1")])
    pid = collect(door, 1)[0].facts["pid"]
    door.close()
    assert not Path(f"/proc/{pid}").exists()
    door.submit([an_operation("n1")])
    assert [outcome.status for outcome in door.poll()] == [Status.HELD]
