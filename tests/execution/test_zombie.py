"""A controller that is frozen past its lease and wakes up again: what it had in flight may arrive, and nothing after that.

Two real processes decide over one simulated site that a third serves on a socket; the lease runs in real time, shortened.
"""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action, Operation, Outcome
from orchestrator.drivers.local_hands import LocalHands
from orchestrator.drivers.wall_clock import WallClock
from orchestrator.execution import controller as controller_module
from orchestrator.execution import journal as journal_module
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.journal import Journal, LeaseLost
from orchestrator.lab.simulation import SimulatedSite
from tests.execution.site import a_controller, apply_request
from tests.planning.fleet import a_fleet

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

LEASE_S, GRACE_S, RENEW_S = 1.5, 0.5, 0.3
EXCHANGE_S = 0.2
"""How long the peer takes, so that some exchanges are under way at any moment."""
SPEED = 20.0
"""Seconds of the site's time in one real second."""
FENCED, THREADS = 3, 4
ONCE_ONLY = (Action.BMC_POWER, Action.BMC_BOOT_ONCE, Action.BMC_CREDENTIAL, Action.CELL_JOIN)
fork = get_context("fork")


@dataclass(frozen=True)
class Arrival:
    """One exchange that reached a peer."""

    at_s: float
    epoch: int


class Peers:
    """Every BMC and node of the site, on one socket; notes what arrives."""

    def __init__(self, address: str) -> None:
        self.spec = a_fleet(racks=2, per_rack=6, canary=12, poll_s=0.1)
        self.site = SimulatedSite(self.spec, seed=5)
        self.arrivals: list[Arrival] = []
        self._lock, self._began_s = threading.Lock(), time.time()
        self._start_s = self.site.now_s
        self.listener = Listener(address, "AF_UNIX", backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with connection:
            operation = Operation.from_json(connection.recv())
            with self._lock:
                self.arrivals.append(Arrival(time.time(), operation.epoch))
                until_s = self._start_s + (time.time() - self._began_s) * SPEED
                while self.site.now_s < until_s:
                    self.site.advance(until_s)
                found: list[Outcome] = []
                self.site.submit(operation, found.append)
                while not found:
                    self.site.advance(self.site.now_s + 1.0)
            time.sleep(EXCHANGE_S)
            try:
                connection.send(found[0].to_json())
            except OSError:
                return  # whoever asked is gone; the exchange has happened all the same


class SlowToNotice(WallClock):
    """Real time; whoever was frozen is slow to notice, so that its threads have only the fence before them."""

    def wait_s(self, seconds: float) -> None:
        began_s = time.time()
        time.sleep(min(seconds, 0.02))
        if time.time() - began_s > LEASE_S:
            time.sleep(1.0)


class OverTheSocket:
    """Playbooks that reach the peers as every other exchange does."""

    def __init__(self, perform: Callable[[Operation], Outcome]) -> None:
        self._perform = perform

    def run(self, playbook: str, operations: Sequence[Operation]) -> Iterable[Outcome]:
        return [self._perform(operation) for operation in operations]


def decide(home: Path, address: str, holder: str, writing: "Synchronized[int]", fenced: "Synchronized[int]") -> None:
    """One controller process: ends with 0 when everything is at rest, with FENCED when somebody else decides."""
    journal_module.LEASE_S, journal_module.TAKEOVER_GRACE_S = LEASE_S, GRACE_S
    controller_module.RENEW_EVERY_S = RENEW_S
    url = f"sqlite:///{home}/state.db"
    before, after = (lambda: setattr(writing, "value", 1)), (lambda: setattr(writing, "value", 0))
    journal, watch = Journal(url, before_write=before, after_write=after), Journal(url)

    def may_act(epoch: int) -> bool:
        return watch.holds(epoch, time.time())

    def perform(operation: Operation) -> Outcome:
        if not may_act(operation.epoch):
            fenced.value += 1
            raise LeaseLost(f"epoch {operation.epoch} has passed")
        with Client(address, "AF_UNIX") as connection:
            connection.send(operation.to_json())
            return Outcome.from_json(connection.recv())

    hands = LocalHands(perform, OverTheSocket(perform), THREADS, may_act=may_act, gather_s=0.0)
    controller = a_controller(journal, hands, SlowToNotice(), home, holder)
    try:
        controller.run(everything_settled)
    except LeaseLost:
        # Wherever it was frozen, its threads go on for a moment, with what it had submitted and the fence alone before them.
        time.sleep(1.0)
        os._exit(FENCED)
    os._exit(0)


@pytest.fixture
def peers() -> Iterator[Peers]:
    # A socket's path is at most 107 bytes long; pytest's own folders can be longer.
    with tempfile.TemporaryDirectory(prefix="rr") as folder:
        found = Peers(f"{folder}/peers")
        yield found
        found.listener.close()


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 40.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come within {limit_s} s"
        time.sleep(0.01)


def start(home: Path, peers: Peers, holder: str, writing: "Synchronized[int]", fenced: "Synchronized[int]") -> BaseProcess:
    process = fork.Process(target=decide, args=(home, peers.listener.address, holder, writing, fenced))
    process.start()
    return process


def freeze(pid: int, writing: "Synchronized[int]") -> None:
    """SIGSTOP, but not in a transaction: SQLite's write lock would be frozen with it, and then nobody decides at all."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02)
        if not writing.value:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.003)


@pytest.mark.slow
def test_a_frozen_controller_that_wakes_past_its_lease_reaches_no_peer(tmp_path: Path, peers: Peers) -> None:
    journal = Journal(f"sqlite:///{tmp_path}/state.db")
    journal.request(apply_request(peers.spec))
    journal.close()
    # Without locks: one that is held by a frozen process would never be free again.
    writing: Synchronized[int] = fork.Value("i", 0, lock=False)
    fenced: Synchronized[int] = fork.Value("i", 0, lock=False)
    zombie = heir = start(tmp_path, peers, "host:1:1:zombie", writing, fenced)
    assert zombie.pid is not None
    try:
        wait_for(lambda: len(peers.arrivals) >= 6, "six exchanges of the first controller")
        freeze(zombie.pid, writing)
        time.sleep(LEASE_S + GRACE_S + 0.3)
        heir = start(tmp_path, peers, "host:2:2:heir", fork.Value("i", 0, lock=False), fork.Value("i", 0, lock=False))
        wait_for(lambda: any(each.epoch == 2 for each in peers.arrivals), "the second controller's first exchange")
        os.kill(zombie.pid, signal.SIGCONT)
        woken_s = time.time()
        zombie.join(20)
        heir.join(60)
    finally:
        for process in (zombie, heir):
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
                process.join(5)
    assert zombie.exitcode == FENCED, "it noticed that somebody else decides"
    assert heir.exitcode == 0
    late = [each for each in peers.arrivals if each.epoch == 1 and each.at_s >= woken_s]
    assert len(late) <= THREADS, "at most what its threads had in hand when they were frozen"
    assert all(each.at_s < woken_s + 1.0 for each in late), "and that at once, not later"
    assert fenced.value > 0, "something it had submitted still waited for a thread, and the fence alone stood before it"
    journal = Journal(f"sqlite:///{tmp_path}/state.db")
    assert {record.state for record in journal.load().nodes.values()} == {NodeState.READY}
    after = [event.epoch for event in journal.events() if event.kind.startswith(("node.", "rollout."))]
    assert after == sorted(after), "nothing of the first epoch was written after the second began"
    journal.close()
    done = Counter((deed.node, deed.action, str(deed.args)) for deed in peers.site.deeds if deed.action in ONCE_ONLY)
    assert max(done.values()) == 1, [key for key, count in done.items() if count > 1]
