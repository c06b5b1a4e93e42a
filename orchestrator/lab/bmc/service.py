"""A farm of BMCs: many Redfish services over TLS in one event loop, each on its own address and port."""

import asyncio
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab.bmc.access_log import AccessLog
from orchestrator.lab.bmc.certificates import server_context
from orchestrator.lab.bmc.connection import READ_BYTES, Connection, reset_when_closed, swallow_while
from orchestrator.lab.bmc.protocol import RedfishService
from orchestrator.lab.bmc.state import Bmc
from orchestrator.lab.machine import Machine

log = logging.getLogger(__name__)

TICK_S = 0.05
BACKLOG = 128
HANDSHAKE_S = 20.0


@dataclass(frozen=True, slots=True)
class BmcEndpoint:
    """Where one machine's BMC is reached."""

    machine: Machine
    address: str
    port: int
    certificate_path: Path
    key_path: Path
    access_log_path: Path | None = None

    @property
    def name(self) -> str:
        """The machine's name, which is the endpoint's too."""
        return self.machine.spec.name


class BmcFarm:
    """Serves BMCs until `stop`. All verbs belong on the loop that called `start`; machines are touched only
    there.

    clock must be the one that other callers hand to the machines' verbs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._served: dict[str, _Served] = {}
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, bmcs: Iterable[BmcEndpoint] = ()) -> None:
        """Listen on every endpoint; OSError with the address if one is taken, and then none is served."""
        self._ticker = asyncio.get_running_loop().create_task(self._tick_for_ever())
        try:
            for endpoint in bmcs:
                await self.add(endpoint)
        except BaseException:
            await self.stop()
            raise

    async def add(self, endpoint: BmcEndpoint) -> None:
        """Serve one more BMC; ValueError if one of that name is served."""
        if endpoint.name in self._served:
            raise ValueError(f"a BMC of {endpoint.name} is served already")
        served = _Served(endpoint, self._clock, self._wall)
        served.reconcile()
        self._served[endpoint.name] = served

    async def remove(self, name: str) -> None:
        """End one BMC: its socket, its connections, its log. KeyError if there is none of that name."""
        await self._served.pop(name).close()

    async def stop(self) -> None:
        """End all."""
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None
        for name in tuple(self._served):
            await self.remove(name)

    def tick(self) -> None:
        """Bring every machine and every socket to now. Happens by itself every TICK_S; tests need not wait for it."""
        for served in tuple(self._served.values()):
            try:
                served.tick()
            except Exception:
                # One machine whose board or address fails must not stop the time of the others.
                log.exception("the machine of BMC %s failed at its tick", served.name)

    async def _tick_for_ever(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)


class _Served:
    """One endpoint: its listening socket, its open connections, its service."""

    def __init__(self, endpoint: BmcEndpoint, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._machine = endpoint.machine
        self._clock = clock
        self._tls: ssl.SSLContext = server_context(endpoint.certificate_path, endpoint.key_path)
        self._service = RedfishService(Bmc(endpoint.machine, clock, wall))
        self._access_log = AccessLog(endpoint.access_log_path)
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter | None] = {}

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._endpoint.name

    def tick(self) -> None:
        """Bring the machine to now, and the socket to what the machine's faults ask for."""
        self._machine.tick(self._clock())
        self.reconcile()

    def reconcile(self) -> None:
        """Listen unless the BMC is gone; a BMC that goes resets its connections and forgets its sessions."""
        is_gone = self._machine.faults.is_bmc_gone(self._clock())
        if is_gone and self._listener is not None:
            self._stop_listening()
            self._service.bmc.sessions.end_all()
            for task, writer in tuple(self._connections.items()):
                if writer is not None:
                    reset_when_closed(writer)
                task.cancel()
        elif not is_gone and self._listener is None:
            self._listen()

    async def close(self) -> None:
        """End everything of this endpoint."""
        self._stop_listening()
        tasks = tuple(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._access_log.close()

    def _listen(self) -> None:
        address, port = self._endpoint.address, self._endpoint.port
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # The protocol is named because asyncio turns Nagle's delay off only for sockets that name it.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise OSError(
                error.errno,
                f"the BMC of {self._endpoint.name} cannot listen on {address}:{port}: {error.strerror};"
                " end what listens there, or give the BMC another port",
            ) from error
        self._listener = listener
        self._acceptor = asyncio.get_running_loop().create_task(self._accept_for_ever(listener))

    def _stop_listening(self) -> None:
        if self._acceptor is not None:
            self._acceptor.cancel()
            self._acceptor = None
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _is_silent(self) -> bool:
        return self._machine.faults.lasting("bmc_silent", self._clock()) is not None

    async def _accept_for_ever(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, peer = await loop.sock_accept(listener)
            task = loop.create_task(self._serve(accepted, str(peer[0])))
            self._connections[task] = None
            task.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve(self, accepted: socket.socket, peer: str) -> None:
        loop = asyncio.get_running_loop()
        limit = self._machine.faults.get("connections_limited")
        if limit and len(self._connections) > limit.number("most"):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            return
        # A silent BMC accepts and says nothing, not even TLS's hello.
        if self._is_silent():
            try:
                await swallow_while(self._is_silent, lambda: loop.sock_recv(accepted, READ_BYTES))
            except OSError as error:
                log.debug("%s: a client of a silent BMC went away: %s", self._endpoint.name, error)
            finally:
                accepted.close()
            return
        reader = asyncio.StreamReader(limit=1 << 16, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, TimeoutError):
            # ssl.SSLError is an OSError: a client that does not speak TLS, or does not trust us, hangs up.
            accepted.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        task = asyncio.current_task()
        if task is not None:
            self._connections[task] = writer
        await Connection(self._service, self._access_log, reader, writer, peer).serve()
