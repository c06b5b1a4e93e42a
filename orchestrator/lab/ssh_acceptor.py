"""The network cards of the lab's nodes: one listening socket per node, a real sshd inside the node for every connection.

A socket listens only while its node is up, so a node that is off refuses connections (ECONNREFUSED) as a machine does whose
operating system is up but whose sshd is not. `sshd -i` (sshd(8)) takes the connection as standard input and output.
"""

import contextlib
import logging
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from orchestrator.lab.namespaces import NODE_ENVIRONMENT

log = logging.getLogger(__name__)

SSHD = "/usr/sbin/sshd"
TICK_S = 0.5
"""How often ended sshd processes are reaped."""
DRIP_S = 1.0
"""Between two bytes of a dripping port."""


class SshFault(StrEnum):
    """How a node's SSH port can misbehave."""

    REFUSED = "ssh_refused"
    """Nobody listens."""
    HANG = "ssh_hang"
    """Connections are accepted and nothing is ever said."""
    GARBAGE = "ssh_garbage"
    """Something that is no SSH answers."""
    RESET = "ssh_reset"
    """Connections are accepted and reset at once."""
    DRIP = "ssh_drip"
    """Connections are accepted, and one byte a second comes, never a whole line."""
    FULL = "ssh_full"
    """sshd has too many logins under way and drops every new one (sshd_config(5), MaxStartups)."""


FIRST_WORDS: Mapping[SshFault, bytes] = {
    SshFault.GARBAGE: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    SshFault.RESET: b"",
    SshFault.FULL: b"Exceeded MaxStartups\r\n",
}
"""What a client is told before its connection is closed."""


@dataclass(frozen=True, slots=True)
class SshDoor:
    """Where a node answers, and the words that start its sshd."""

    name: str
    address: str
    port: int
    sshd_command: tuple[str, ...]
    log: Path


@dataclass(slots=True)
class _Open:
    door: SshDoor
    listener: socket.socket | None
    fault: SshFault | None = None
    held: list[socket.socket] = field(default_factory=list)


class SshAcceptor:
    """One thread that accepts for every node. Every verb is safe from any thread and returns at once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._doors: dict[str, _Open] = {}
        self._names: dict[int, str] = {}
        self._faults: dict[str, SshFault] = {}
        self._sessions: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._dripped_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept_forever, name="ssh acceptor", daemon=True)
        self._thread.start()

    def open(self, door: SshDoor) -> None:
        """The node is up: listen. Raises: OSError when the address is taken."""
        with self._lock:
            self._close(door.name)
            fault = self._faults.get(door.name)
            self._doors[door.name] = _Open(door, None, fault)
            if fault is not SshFault.REFUSED:
                self._listen(door.name)

    def close(self, name: str) -> None:
        """The node is off: refuse connections from now on, drop those that hang."""
        with self._lock:
            self._close(name)

    def set_fault(self, name: str, fault: SshFault | None) -> None:
        """Breaks or repairs a node's SSH port, also while the node is off."""
        with self._lock:
            self._faults.pop(name, None)
            if fault is not None:
                self._faults[name] = fault
            opened = self._doors.get(name)
            if opened is None:
                return
            opened.fault = fault
            self._release(opened)
            if fault is SshFault.REFUSED:
                self._stop_listening(opened)
            elif opened.listener is None:
                self._listen(name)

    def fault_of(self, name: str) -> SshFault | None:
        """The fault a node's SSH port has, if any."""
        return self._faults.get(name)

    def is_listening(self, name: str) -> bool:
        """Whether a node's SSH port is open."""
        with self._lock:
            opened = self._doors.get(name)
            return opened is not None and opened.listener is not None

    def stop(self) -> None:
        """Closes everything and ends the thread; sessions end with their nodes."""
        self._stopping.set()
        self._thread.join()
        with self._lock:
            for name in list(self._doors):
                self._close(name)
        for _, session in self._sessions:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a node that lives on keeps its sessions
                session.wait(1.0)
        self._epoll.close()

    def _listen(self, name: str) -> None:
        door = self._doors[name].door
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind((door.address, door.port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        self._doors[name].listener = listener
        self._names[listener.fileno()] = name
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def _stop_listening(self, opened: _Open) -> None:
        if opened.listener is not None:
            self._epoll.unregister(opened.listener.fileno())
            del self._names[opened.listener.fileno()]
            opened.listener.close()
            opened.listener = None

    def _close(self, name: str) -> None:
        opened = self._doors.pop(name, None)
        if opened is not None:
            self._stop_listening(opened)
            self._release(opened)
        # The half of nsenter that waits outside stops when the half inside is stopped, and a namespace ends only when the
        # last of it is reaped. Not killed: on a machine whose pid 1 does not reap, nobody else would.
        for owner, session in self._sessions:
            if owner == name:
                session.send_signal(signal.SIGCONT)

    @staticmethod
    def _release(opened: _Open) -> None:
        for connection in opened.held:
            connection.close()
        opened.held.clear()

    def _accept_forever(self) -> None:
        while not self._stopping.is_set():
            for descriptor, _ in self._epoll.poll(TICK_S):
                with self._lock:
                    try:
                        self._accept(descriptor)
                    except OSError:  # out of descriptors or processes: this connection is lost, the next may not be
                        log.exception("a connection could not be given to its node")
            with self._lock:
                self._sessions = [(name, session) for name, session in self._sessions if session.poll() is None]
                self._drip(time.monotonic())

    def _accept(self, descriptor: int) -> None:
        opened = self._doors.get(self._names.get(descriptor, ""))
        if opened is None or opened.listener is None:
            return  # closed between the poll and now
        try:
            connection, _ = opened.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the client gave up
        connection.setblocking(True)
        if opened.fault in (SshFault.HANG, SshFault.DRIP):
            opened.held.append(connection)
        elif opened.fault is not None and opened.fault in FIRST_WORDS:
            with connection, contextlib.suppress(OSError):  # the client may be gone already
                connection.sendall(FIRST_WORDS[opened.fault])
                if opened.fault is SshFault.RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self._serve(opened.door, connection)

    def _drip(self, now_s: float) -> None:
        """One more byte on every connection of a dripping port. The lock is held."""
        if now_s < self._dripped_s + DRIP_S:
            return
        self._dripped_s = now_s
        for opened in self._doors.values():
            for connection in opened.held if opened.fault is SshFault.DRIP else ():
                with contextlib.suppress(OSError):  # the client is gone, or reads nothing
                    connection.send(b"S", socket.MSG_DONTWAIT)

    def _serve(self, door: SshDoor, connection: socket.socket) -> None:
        with connection, door.log.open("ab") as log_file:
            session = subprocess.Popen(  # noqa: S603 - sshd with our own words
                door.sshd_command,
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=log_file,
                cwd="/",
                env=NODE_ENVIRONMENT,
                start_new_session=True,
            )
        self._sessions.append((door.name, session))
