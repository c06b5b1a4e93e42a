"""A small HTTPS server that answers as captured BMCs do at their worst; every answer is written by the test."""

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.domain.operation import Target
from orchestrator.drivers.redfish import RedfishBmc, RedfishDoor
from orchestrator.drivers.secrets import SecretStore
from orchestrator.lab.bmc.certificates import make_certificate
from tests.drivers.sshd_peers import Peer

ROOT = "/redfish/v1/"
SYSTEM = "/redfish/v1/Systems/1"
SESSIONS = "/redfish/v1/SessionService/Sessions"
RESET = SYSTEM + "/Actions/ComputerSystem.Reset"


@dataclass(frozen=True)
class Reply:
    """One answer; `raw` is sent as it is, `reset` ends the connection instead."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    reset: bool = False
    drip_s: float = 0.0
    """Pause between the bytes of the answer."""

    def encoded(self) -> bytes:
        if self.raw is not None:
            return self.raw
        content = b"" if self.body is None else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} X", *(f"{key}: {value}" for key, value in headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def sound_tree() -> dict[tuple[str, str], Reply]:
    """The smallest BMC that works."""
    log_in = Reply(201, {"@odata.id": SESSIONS + "/1"}, {"X-Auth-Token": "token-1", "Location": SESSIONS + "/1"})
    root = {"Systems": link("/redfish/v1/Systems"), "UpdateService": link("/redfish/v1/UpdateService")}
    system = {
        "SerialNumber": "SER-odd",
        "PowerState": "On",
        "Actions": {"#ComputerSystem.Reset": {"target": RESET}},
        "Boot": {"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None"},
    }
    return {
        ("POST", SESSIONS): log_in,
        ("DELETE", SESSIONS + "/1"): Reply(204),
        ("GET", ROOT): Reply(200, root),
        ("GET", "/redfish/v1/Systems"): Reply(200, {"Members": [link(SYSTEM)]}),
        ("GET", SYSTEM): Reply(200, system),
        ("POST", RESET): Reply(204),
    }


def link(uri: str) -> dict[str, str]:
    return {"@odata.id": uri}


class OddBmc(Peer):
    """Answers from `tree`; a value may be a list, then each request takes the next and the last stays."""

    def __init__(self, folder: Path, address: str) -> None:
        self.tree: dict[tuple[str, str], Reply | list[Reply] | Callable[[Seen], Reply]] = dict(sound_tree())
        self.seen: list[Seen] = []
        self.folder = folder
        files = make_certificate(folder, "odd", address)
        self.pin = files.sha256
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.certificate_path, files.key_path)
        self._never = threading.Event()
        super().__init__(address, self._serve)
        secrets = folder / "secrets"
        secrets.mkdir(mode=0o700)
        self.store = SecretStore(folder, environment={})
        self.store.bmc_password("odd", create=True)

    def open(self, serial: str = "SER-odd") -> RedfishBmc:
        target = Target(bmc_host=self.address, bmc_port=self.port, bmc_certificate_sha256=self.pin, serial=serial)
        return RedfishDoor(self.store).open("odd", target, 2.0)

    def show_another_certificate(self) -> None:
        """From the next connection on."""
        files = make_certificate(self.folder, "another", self.address)
        self._context.load_cert_chain(files.certificate_path, files.key_path)

    def show_expired_certificate(self) -> str:
        """The same, of another host and out of date; its pin."""
        files = make_certificate(self.folder, "expired", "192.0.2.1", valid_days=-30)
        self._context.load_cert_chain(files.certificate_path, files.key_path)
        return files.sha256

    def requests(self, method: str) -> list[str]:
        return [seen.path for seen in self.seen if seen.method == method]

    def stop(self) -> None:
        self._never.set()
        super().stop()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._context.wrap_socket(connection, server_side=True) as tls:
                while (seen := _read_request(tls)) is not None:
                    self.seen.append(seen)
                    reply = self._reply_to(seen)
                    if reply.reset:
                        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
                    if reply.drip_s:
                        for byte in reply.encoded():
                            tls.sendall(bytes([byte]))
                            if self._never.wait(reply.drip_s):
                                return
                    else:
                        tls.sendall(reply.encoded())
        except OSError:
            return  # the client has hung up, which is its business

    def _reply_to(self, seen: Seen) -> Reply:
        found = self.tree.get((seen.method, seen.path), Reply(404, {}))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found if isinstance(found, Reply) else found(seen)


def _read_request(tls: ssl.SSLSocket) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = tls.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += tls.recv(65536)
    method, path, _ = first.split(" ", 2)
    return Seen(method, path, headers, json.loads(body) if body else {})
