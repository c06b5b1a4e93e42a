"""Which processes of this home listen where on this host: Linux's /proc, read without any tool.

Ray's daemons bind every interface whatever they are told, so an operator must be able to see what there is to firewall.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTEN = "0A"
"""Socket state LISTEN in /proc/net/tcp (Linux, include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One listening TCP socket."""

    port: int
    address: str
    pid: int
    process: str
    """Name of the program."""
    what: str
    """What it is to rackray: a Ray daemon of which cluster, a lab service, a controller."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        parsed = ipaddress.ip_address(self.address)
        mapped = getattr(parsed, "ipv4_mapped", None)
        return (mapped or parsed).is_loopback


def listeners(home: Path) -> list[Listener]:
    """Every listening socket of a process whose environment or command line names `home`, or that descends from such a one."""
    sockets: dict[Path, dict[str, tuple[str, int]]] = {}
    found = set()
    for pid in sorted(_family(str(home))):
        try:
            namespace = PROC / str(pid) / "ns" / "net"
            table = sockets.setdefault(namespace.readlink(), {}) or sockets[namespace.readlink()]
            if not table:
                table.update(_listening(PROC / str(pid) / "net"))
            for inode in _socket_inodes(pid):
                if inode in table:
                    address, port = table[inode]
                    found.add(Listener(port, address, pid, _name(pid), _what(pid)))
        except OSError:
            continue  # it ended while we looked
    return sorted(found)


def _family(home: str) -> set[int]:
    parents: dict[int, int] = {}
    seeds: set[int] = set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue
        if home.encode() in text:
            seeds.add(int(entry.name))
    return {pid for pid in parents if pid in seeds or seeds & set(_ancestors(pid, parents))} - {os.getpid()}


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 1:
        yield pid


def _listening(net: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    for table in ("tcp", "tcp6"):
        lines: Iterable[str] = (net / table).read_text().splitlines()[1:] if (net / table).exists() else ()
        for line in lines:
            fields = line.split()
            if fields[3] == LISTEN:
                address, port = fields[1].split(":")
                yield fields[9], (_address(address), int(port, 16))


def _address(text: str) -> str:
    """/proc prints addresses as host-order 32-bit words in hex."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _socket_inodes(pid: int) -> Iterator[str]:
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
        except OSError:
            continue
        if match:
            yield match.group(1)


def _name(pid: int) -> str:
    return (PROC / str(pid) / "comm").read_text().strip()


def _what(pid: int) -> str:
    words = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    for mark, said in (
        ("gcs_server", "Ray: cluster head (GCS)"),
        ("raylet", "Ray: node daemon"),
        ("dashboard", "Ray: agent of a node"),
        ("runtime_env", "Ray: runtime environments"),
        ("ray::", "Ray: worker"),
        ("ray", "Ray"),
        ("orchestrator.lab", "lab: simulated BMCs, image service, SSH ports"),
        ("model.train", "training rank"),
    ):
        if mark in words:
            return said
    return words[:40]
