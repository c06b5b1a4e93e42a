"""Connections are shared, bounded, replaced when the node's identity changes, and closed when idle."""

import threading
from collections.abc import Iterator

import pytest

from orchestrator.domain.deadline import within
from orchestrator.domain.errors import PeerUnreachable
from orchestrator.domain.operation import Target
from orchestrator.drivers.pools import Pool

HERE, THERE = Target(bmc_host="127.2.201.1"), Target(bmc_host="127.2.201.2")


class Connection:
    def __init__(self, target: Target) -> None:
        self.target = target
        self.is_closed = False
        self.is_alive = True

    def close(self) -> None:
        self.is_closed = True


class World:
    """What was opened, and what time it is."""

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.now_s = 0.0
        self.is_down = False
        self.pool = Pool(self._open, users_per_node=2, idle_s=30, is_alive=lambda c: c.is_alive, clock=lambda: self.now_s)

    def _open(self, node: str, target: Target, timeout_s: float) -> Connection:
        if self.is_down:
            raise PeerUnreachable("down")
        self.opened.append(Connection(target))
        return self.opened[-1]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.pool.close()


def test_one_connection_serves_one_exchange_after_another(world: World) -> None:
    for _ in range(3):
        with world.pool.lend("n1", HERE, 1.0) as connection:
            assert not connection.is_closed
    assert len(world.opened) == 1


def test_the_third_exchange_with_a_node_waits_and_other_nodes_do_not(world: World) -> None:
    with world.pool.lend("n1", HERE, 1.0), world.pool.lend("n1", HERE, 1.0):
        with within(0.05), pytest.raises(PeerUnreachable, match="2 other exchanges"), world.pool.lend("n1", HERE, 9.0):
            pytest.fail("a third place was given")
        with world.pool.lend("n2", HERE, 1.0) as other:
            assert other is world.opened[1]
    with world.pool.lend("n1", HERE, 1.0) as again:
        assert again is world.opened[0]


def test_a_changed_target_or_a_dead_connection_is_opened_anew(world: World) -> None:
    with world.pool.lend("n1", HERE, 1.0):
        pass
    with world.pool.lend("n1", THERE, 1.0) as moved:
        assert moved.target == THERE and world.opened[0].is_closed
    moved.is_alive = False
    with world.pool.lend("n1", THERE, 1.0) as fresh:
        assert fresh is world.opened[2]


def test_idle_connections_are_closed_and_busy_ones_are_not(world: World) -> None:
    with world.pool.lend("n1", HERE, 1.0) as busy:
        with world.pool.lend("n2", HERE, 1.0) as idle:
            pass
        world.now_s = 29.0
        assert world.pool.close_idle() == 0
        world.now_s = 31.0
        assert world.pool.close_idle() == 1
        assert idle.is_closed and not busy.is_closed


def test_a_place_is_free_again_after_a_failed_opening_and_a_failed_exchange(world: World) -> None:
    world.is_down = True
    for _ in range(5):
        with pytest.raises(PeerUnreachable, match="down"), world.pool.lend("n1", HERE, 0.1):
            pytest.fail("nothing was opened")
    world.is_down = False
    for _ in range(5):
        with pytest.raises(ValueError), world.pool.lend("n1", HERE, 0.1):
            raise ValueError("the exchange failed")
    assert len(world.opened) == 1


def test_closing_ends_everything_and_lends_nothing_more(world: World) -> None:
    with world.pool.lend("n1", HERE, 1.0) as connection:
        world.pool.close()
        assert connection.is_closed
    with pytest.raises(PeerUnreachable, match="stopping"), world.pool.lend("n1", HERE, 1.0):
        pytest.fail("lent after closing")


def test_a_slow_opening_holds_up_its_own_node_alone() -> None:
    started, go_on = threading.Event(), threading.Event()

    def open_slowly(node: str, target: Target, timeout_s: float) -> Connection:
        if node == "slow":
            started.set()
            assert go_on.wait(10)
        return Connection(target)

    pool: Pool[Connection] = Pool(open_slowly, users_per_node=2)

    def use_slow() -> None:
        with pool.lend("slow", HERE, 10.0):
            pass

    thread = threading.Thread(target=use_slow)
    thread.start()
    assert started.wait(10)
    with pool.lend("quick", HERE, 0.5):
        with within(0.05), pytest.raises(PeerUnreachable, match="still opening"), pool.lend("slow", HERE, 9.0):
            pytest.fail("lent before it was open")
        go_on.set()
    thread.join(10)
    pool.close()


def test_peers_that_do_not_let_themselves_be_closed_are_left_side_by_side(world: World) -> None:
    leave, closing = threading.Event(), threading.Semaphore(0)

    class Stuck(Connection):
        def close(self) -> None:
            closing.release()
            leave.wait(10)
            super().close()

    world.opened = []
    pool = Pool(lambda node, target, timeout_s: Stuck(target), users_per_node=2, idle_s=30)
    for number in range(8):
        with pool.lend(f"n{number}", HERE, 1.0):
            pass
    closer = threading.Thread(target=pool.close)
    closer.start()
    for _ in range(8):
        assert closing.acquire(timeout=5), "one that hangs kept the next from being closed"
    leave.set()
    closer.join(5)
    assert not closer.is_alive()


def test_a_connection_that_is_being_opened_does_not_hold_up_the_cleaning_of_others(world: World) -> None:
    opening, go_on = threading.Event(), threading.Event()

    def slow(node: str, target: Target, timeout_s: float) -> Connection:
        if node == "slow" and target is THERE:
            opening.set()
            go_on.wait(10)
        return Connection(target)

    pool = Pool(slow, users_per_node=2, idle_s=0.0)
    for node in ("slow", "n1"):
        with pool.lend(node, HERE, 1.0) as connection:
            first = connection

    def use() -> None:
        with pool.lend("slow", THERE, 5.0):
            pass

    user = threading.Thread(target=use)
    user.start()
    assert opening.wait(5)
    assert pool.close_idle() >= 1 and first.is_closed
    go_on.set()
    user.join(5)
    pool.close()
