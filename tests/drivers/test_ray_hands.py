"""The contract over a real Ray of its own, and the death of each of its parts. Ends every process it starts."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.operation import Action, Outcome, Status
from orchestrator.drivers import processes
from orchestrator.drivers.interfaces import Hands
from orchestrator.drivers.ray_hands import RayHands
from orchestrator.drivers.ray_head import HeadConfig, ensure_head, head_info, stop_head, temp_directory
from tests.drivers.hands_contract import HandsContract, an_operation

pytestmark = pytest.mark.slow
NEIGHBOURS = "tests.drivers.scripted_neighbours"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadConfig]:
    config = HeadConfig(name="management", address="127.1.220.1", port=6400, home=tmp_path_factory.mktemp("home"))
    yield config
    stop_head(config.name, config.home)
    assert processes.marked(f"RACKRAY_RAY_HEAD={marker_of(config)}") == []
    shutil.rmtree(temp_directory(config.name, config.home), ignore_errors=True)


def marker_of(config: HeadConfig) -> str:
    from orchestrator.drivers.ray_head import _marker  # what the head's family is recognised by

    return _marker(config.name, config.home).partition("=")[2]


@pytest.fixture(scope="module")
def open_hands(head: HeadConfig) -> Iterator[RayHands]:
    """Hands that are open already, for tests that leave them open."""
    hands = RayHands(head, "", shards=2, threads=16, wiring=NEIGHBOURS)
    hands.submit([an_operation("n1")])
    until(hands.poll, 90)
    yield hands
    hands.close()


def until(condition: Callable[[], object], limit_s: float) -> object:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"it did not happen within {limit_s} s"
        time.sleep(0.05)
    return value


def collect(hands: RayHands, count: int, limit_s: float = 60) -> list[Outcome]:
    outcomes: list[Outcome] = []
    until(lambda: outcomes.extend(hands.poll()) or len(outcomes) >= count, limit_s)
    return outcomes


class TestRayHands(HandsContract):
    patience_s = 60.0
    closing_s = 10.0

    @pytest.fixture
    def hands(self, request: pytest.FixtureRequest, head: HeadConfig) -> Iterator[Hands]:
        if "closed" not in request.node.name:
            yield request.getfixturevalue("open_hands")
            return
        hands = RayHands(head, "", shards=1, threads=4, wiring=NEIGHBOURS)
        yield hands
        hands.close()


def test_a_shard_that_dies_in_an_exchange_leaves_it_unknown_and_comes_back(open_hands: RayHands) -> None:
    open_hands.submit([an_operation("exits", Action.BMC_POWER, reset="On")])
    (outcome,) = collect(open_hands, 1)
    assert outcome.status is Status.UNKNOWN
    nodes = [f"n{number}" for number in range(8)]  # both shards are asked

    def all_done() -> bool:
        open_hands.submit([an_operation(node) for node in nodes])
        return {outcome.status for outcome in collect(open_hands, len(nodes))} == {Status.DONE}

    until(all_done, 30)


def test_a_dead_head_costs_what_is_in_flight_and_work_goes_on_with_a_new_one(open_hands: RayHands, head: HeadConfig) -> None:
    before = head_info(head.name, head.home)
    assert before is not None
    power = an_operation("slow", Action.BMC_POWER, reset="On")
    open_hands.submit([power])
    time.sleep(0.3)
    os.kill(before.pid, signal.SIGKILL)
    (outcome,) = collect(open_hands, 1)
    assert (outcome.operation, outcome.status) == (power.id, Status.UNKNOWN)
    open_hands.submit([an_operation("n1")])
    assert [outcome.status for outcome in collect(open_hands, 1, 90)] == [Status.DONE]
    after = head_info(head.name, head.home)
    assert after is not None and after.pid != before.pid


def test_a_running_head_is_adopted_and_its_secrets_are_private(open_hands: RayHands, head: HeadConfig) -> None:
    running = head_info(head.name, head.home)
    adopted = ensure_head(head)
    assert running is not None and adopted.adopted and adopted.pid == running.pid
    assert Path(adopted.token_path).stat().st_mode & 0o777 == 0o600
    assert Path(adopted.temp_dir).parent.stat().st_mode & 0o777 == 0o700
    token = Path(adopted.token_path).read_text()
    for process in processes.marked(f"RACKRAY_RAY_HEAD={marker_of(head)}"):
        for place in ("cmdline", "environ"):
            assert token not in (Path("/proc") / str(process.pid) / place).read_text(errors="replace")
