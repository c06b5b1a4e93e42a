"""Open connections kept for the next exchange: one per node, shared by a bounded number of exchanges, closed when idle.

BMCs keep few sessions and lock out who logs in too often; a fresh SSH login costs more than most commands. So a connection is
lent, given back and kept until it has been idle for a while, has died, or the node's address or identity has changed.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from orchestrator.domain.deadline import remaining_s
from orchestrator.domain.errors import PeerUnreachable, RackrayError
from orchestrator.domain.operation import Target

LOG = logging.getLogger(__name__)

CLOSERS = 32
"""Connections closed at once: logging out of a BMC that has gone silent takes seconds."""
CLOSE_S = 10.0
"""After this many seconds whoever has not let itself be closed is left alone; its session dies of age."""


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@dataclass
class _Slot(Generic[C]):
    """One node's connection and who uses it."""

    places: threading.BoundedSemaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    connection: C | None = None
    target: Target | None = None
    users: int = 0
    last_used_s: float = 0.0


class Pool(Generic[C]):
    """Lends connections. Thread-safe; no lock is held while a peer is waited for, except its own slot's."""

    def __init__(
        self,
        make: Callable[[str, Target, float], C],
        *,
        users_per_node: int,
        idle_s: float = 30.0,
        is_alive: Callable[[C], bool] = lambda connection: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make` opens a connection (node, target, timeout in seconds). `idle_s`: how long an unused one is kept."""
        self._make = make
        self._users_per_node = users_per_node
        self._idle_s = idle_s
        self._is_alive = is_alive
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot[C]] = {}
        self._is_closed = threading.Event()
        self._janitor: threading.Thread | None = None

    @contextmanager
    def lend(self, node: str, target: Target, timeout_s: float) -> Iterator[C]:
        """The node's connection, opened if need be. PeerUnreachable if every place stays taken until the deadline."""
        slot = self._slot(node)
        if not slot.places.acquire(timeout=remaining_s(timeout_s)):
            raise PeerUnreachable(
                f"{node}: {self._users_per_node} other exchanges with it are still under way", "nothing was sent"
            )
        try:
            connection = self._take(slot, node, target, timeout_s)
            try:
                yield connection
            finally:
                self._give_back(slot)
        finally:
            slot.places.release()

    def close_idle(self) -> int:
        """Close what has been idle for `idle_s`; how many that were. A thread of the pool calls it from time to time."""
        return self._close_where(lambda slot: slot.users == 0 and self._clock() - slot.last_used_s >= self._idle_s)

    def close(self) -> None:
        """Close everything, in use or not; nothing is lent any more. Peers that do not answer are given up after CLOSE_S."""
        self._is_closed.set()
        self._close_where(lambda slot: True)

    def _slot(self, node: str) -> "_Slot[C]":
        with self._lock:
            if self._is_closed.is_set():
                raise PeerUnreachable(f"{node}: rackray is stopping", "nothing was sent")
            if self._janitor is None:
                self._janitor = threading.Thread(target=self._keep_clean, name="pool-janitor", daemon=True)
                self._janitor.start()
            return self._slots.setdefault(node, _Slot(threading.BoundedSemaphore(self._users_per_node)))

    def _take(self, slot: "_Slot[C]", node: str, target: Target, timeout_s: float) -> C:
        if not slot.lock.acquire(timeout=remaining_s(timeout_s)):
            raise PeerUnreachable(f"{node}: another exchange is still opening its connection", "nothing was sent")
        try:
            stale = None
            if slot.connection is not None and (slot.target != target or not self._is_alive(slot.connection)):
                # Another exchange that still uses it sees it end: its address or identity is not the node's any more.
                stale, slot.connection = slot.connection, None
            if stale is not None:
                _close(stale, node)
            if slot.connection is None:
                slot.connection, slot.target = self._make(node, target, timeout_s), target
            slot.users += 1
            return slot.connection
        finally:
            slot.lock.release()

    def _give_back(self, slot: "_Slot[C]") -> None:
        with slot.lock:
            slot.users -= 1
            slot.last_used_s = self._clock()

    def _close_where(self, is_due: "Callable[[_Slot[C]], bool]") -> int:
        """Side by side, because a peer that does not answer takes seconds to be left. How many were closed."""
        with self._lock:
            waiting = deque((node, slot) for node, slot in self._slots.items() if slot.connection is not None and is_due(slot))
        closed: list[str] = []
        end_s = time.monotonic() + CLOSE_S

        def work() -> None:
            while waiting and time.monotonic() < end_s:
                try:
                    node, slot = waiting.popleft()
                except IndexError:
                    return  # another worker took the last one
                if self._close_one(node, slot, is_due):
                    closed.append(node)

        workers = [threading.Thread(target=work, name="pool-closer", daemon=True) for _ in range(min(CLOSERS, len(waiting)))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, end_s - time.monotonic()))
        return len(closed)

    def _close_one(self, node: str, slot: "_Slot[C]", is_due: "Callable[[_Slot[C]], bool]") -> bool:
        # A slot whose connection is being opened now is not idle.
        if not slot.lock.acquire(timeout=CLOSE_S / 2 if self._is_closed.is_set() else 0.0):
            return False
        try:
            connection = slot.connection if is_due(slot) else None
            if connection is not None:
                slot.connection = None
        finally:
            slot.lock.release()
        if connection is not None:
            _close(connection, node)
        return connection is not None

    def _keep_clean(self) -> None:
        while not self._is_closed.wait(max(0.5, self._idle_s / 3)):
            self.close_idle()


def _close(connection: Closable, node: str) -> None:
    try:
        connection.close()
    except RackrayError as error:
        LOG.info("%s: closing its connection: %s", node, error)
