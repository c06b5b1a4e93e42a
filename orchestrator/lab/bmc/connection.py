"""One client's connection to a BMC: HTTP/1.1 in and out, and the faults that happen on the wire.

The parser is h11: pure Python, and strict enough to hand every method on, so that an unknown one gets
Redfish's 501 and not a parser's 400.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from orchestrator.lab.bmc.access_log import AccessLog
from orchestrator.lab.bmc.exchange import Answer, Request, json_bytes
from orchestrator.lab.bmc.messages import refused
from orchestrator.lab.bmc.protocol import RedfishService
from orchestrator.lab.machine_faults import Fault

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
IDLE_S = 75.0
READ_BYTES = 1 << 16
ERROR_MESSAGES: Mapping[int, tuple[str, ...]] = {
    401: ("NoValidSession",),
    403: ("InsufficientPrivilege",),
    404: ("ResourceMissingAtURI", "/redfish"),
    409: ("ResourceInUse",),
    412: ("PreconditionFailed",),
    429: ("ServiceTemporarilyUnavailable",),
    500: ("InternalError",),
    503: ("ServiceTemporarilyUnavailable",),
}
"""Status of the fault `http_error` → the message it comes with, and its arguments."""
LOOK_AGAIN_S = 0.05
"""How often a silent connection looks whether the fault was healed."""


class _Hang(Exception):
    """The connection ends without an answer; `is_reset` tells the client at once."""

    def __init__(self, is_reset: bool) -> None:
        super().__init__()
        self.is_reset = is_reset


class Connection:
    """Serves requests on one connection until either side has enough."""

    def __init__(
        self,
        service: RedfishService,
        access_log: AccessLog,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: str,
    ) -> None:
        self._service = service
        self._machine = service.bmc.machine
        self._access_log = access_log
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Until the connection ends. Errors of the client's side end it quietly; ours do not."""
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except _Hang as hang:
            if hang.is_reset:
                reset_when_closed(self._writer)
        except (ConnectionError, TimeoutError):
            # The client went away or fell asleep: nobody is there to be told.
            return
        finally:
            self._writer.close()

    async def _serve_one(self) -> bool:
        """One request; whether another may follow on this connection."""
        try:
            request = await self._receive()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                bad = refused(400, "UnrecognizedRequestBody", resolution=str(error))
                headers = {"Content-Type": "application/json", "Connection": "close"}
                await self._send(Answer(error.error_status_hint, headers, json_bytes(bad.body())), "GET")
            return False
        if request is None:
            return False
        await self._hang_if_silent(request)
        answer = self._answer(request)
        lost = self._machine.faults.take("lost_answer", request.method, request.path)
        status = None if lost else answer.status
        wall_s = self._service.bmc.wall()
        self._access_log.write(wall_s, request.method, request.path, status, answer.user, request.peer)
        if lost:
            raise _Hang(is_reset=True)
        if slow := self._machine.faults.concerns("bmc_slow", request.method, request.path):
            await asyncio.sleep(slow.number("seconds"))
        if self._machine.faults.take("reset_mid_body", request.method, request.path):
            await self._send_half(answer)
            raise _Hang(is_reset=True)
        if self._machine.faults.take("truncated_json", request.method, request.path):
            answer = replace(answer, body=answer.body[: len(answer.body) // 2])
        await self._send(answer, request.method)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _receive(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    self._writer.write(self._http.send(go_on))
                data = await asyncio.wait_for(self._reader.read(READ_BYTES), IDLE_S)
                self._http.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request_of(head, bytes(body), self._peer)
            else:
                return None

    async def _hang_if_silent(self, request: Request) -> None:
        bmc = self._service.bmc
        if not self._machine.faults.lasting("bmc_silent", bmc.now_s):
            return
        self._access_log.write(bmc.wall(), request.method, request.path, None, None, request.peer)
        await swallow_while(
            lambda: self._machine.faults.lasting("bmc_silent", bmc.now_s) is not None,
            lambda: self._reader.read(READ_BYTES),
        )
        raise _Hang(is_reset=False)

    def _answer(self, request: Request) -> Answer:
        fault = self._machine.faults.take("http_error", request.method, request.path)
        if fault:
            return _error_answer(fault)
        try:
            return self._service.handle(request)
        except Exception:
            # A mistake of the simulator, not of the client: told to both sides, and the other BMCs go on.
            log.exception("the BMC of %s failed at %s %s", self._machine.spec.name, request.method, request.path)
            headers = {"OData-Version": "4.0", "Content-Type": "application/json"}
            return Answer(500, headers, json_bytes(refused(500, "InternalError").body()))

    async def _send(self, answer: Answer, method: str) -> None:
        head, body = _head_and_body(answer)
        out = self._http.send(head) or b""
        if method != "HEAD" and body:
            out += self._http.send(h11.Data(data=body)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        self._writer.write(out)
        await self._writer.drain()

    async def _send_half(self, answer: Answer) -> None:
        head, body = _head_and_body(answer)
        self._writer.write(self._http.send(head) or b"")
        if body:
            self._writer.write(self._http.send(h11.Data(data=body[: len(body) // 2])) or b"")
        await self._writer.drain()


async def swallow_while(is_silent: Callable[[], bool], read: Callable[[], Awaitable[bytes]]) -> None:
    """Take what the client sends and say nothing, until the silence or the client's patience ends."""
    while is_silent():
        with suppress(TimeoutError):
            if not await asyncio.wait_for(read(), LOOK_AGAIN_S):
                return


def reset_when_closed(writer: asyncio.StreamWriter) -> None:
    """Make the coming close a TCP reset, as a host that lost its memory of the connection does."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _request_of(head: h11.Request, body: bytes, peer: str) -> Request:
    target = urlsplit(head.target.decode("ascii"))
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    return Request(
        method=head.method.decode("ascii"),
        path=unquote(target.path),
        query=dict(parse_qsl(target.query, keep_blank_values=True)),
        headers=headers,
        body=body,
        peer=peer,
    )


def _head_and_body(answer: Answer) -> tuple[h11.Response, bytes]:
    body = b"" if answer.status in (204, 304) else answer.body
    headers = list(answer.headers.items())
    if answer.status not in (204, 304):
        headers.append(("Content-Length", str(len(body))))
    return h11.Response(status_code=answer.status, headers=headers, reason=answer.reason), body


def _error_answer(fault: Fault) -> Answer:
    status, retry_s = int(fault.number("status")), int(fault.number("retry_after_s"))
    key, *arguments = ERROR_MESSAGES.get(status, ("GeneralError",))
    error = refused(status, key, *(arguments or ([str(retry_s)] if key == "ServiceTemporarilyUnavailable" else [])))
    headers = {"OData-Version": "4.0", "Content-Type": "application/json"}
    if retry_s:
        headers["Retry-After"] = str(retry_s)
    return Answer(status, headers, json_bytes(error.body()))
