"""Ways to break a node's SSH port, and what is behind it."""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator

from orchestrator.domain.operation import Action
from orchestrator.lab.ssh_acceptor import SshFault
from tests.drivers.sshd_peers import make_key
from tests.wire.faults import Inject, Met
from tests.wire.neighbours import SSH_NETWORK, Wire

IDENTIFY, EXEC, JOIN = Action.SSH_IDENTIFY, Action.SSH_EXEC, Action.CELL_JOIN
SILENT_S = 0.7
"""Deadline of exchanges that nothing but their deadline ends."""
DIGEST = "sha256:image"
IMAGED = {
    "serial": "SER-1",
    "serial_source": "dmi",
    "boot_id": "b",
    "image": "lab-node",
    "image_digest": DIGEST,
    "hostname": "n",
    "kernel": "6.1",
    "python": "3.11",
    "uptime_s": 60.0,
}
"""What a sound node says of itself."""


def port(fault: SshFault) -> Inject:
    """The lab's fault of a node's SSH port."""

    def inject(wire: Wire) -> Iterator[Met]:
        node, target = wire.node_with(fault)
        yield Met(node, target)
        wire.acceptor.set_fault(node, None)

    return inject


def packets_dropped(wire: Wire) -> Iterator[Met]:
    """A listener whose queue is full: the kernel drops every further SYN, as a firewall does."""
    with socket.create_server((f"{SSH_NETWORK}.250", 0), backlog=0) as listener, contextlib.ExitStack() as held:
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield Met("dropped", wire.ssh_target(*listener.getsockname()))


def no_route(wire: Wire) -> Iterator[Met]:
    """TCP to a broadcast address: the kernel has no way there, and nothing leaves the machine."""
    yield Met("no-route", wire.ssh_target("127.255.255.255", 22))


def no_common_exchange(wire: Wire) -> Iterator[Met]:
    """An sshd that offers SHA-1 key exchange alone, which we never offer."""
    node, target, _ = wire.sshd_with("KexAlgorithms diffie-hellman-group14-sha1\n")
    yield Met(node, target)


def host_key_changed(wire: Wire) -> Iterator[Met]:
    node, target, peer = wire.sshd_with("")
    peer.change_host_key()
    yield Met(node, target)


def host_key_unknown(wire: Wire) -> Iterator[Met]:
    node, target = wire.node()
    yield Met(node, dataclasses.replace(target, ssh_host_key=""))


def key_refused(wire: Wire) -> Iterator[Met]:
    node, target, peer = wire.sshd_with("")
    trusted = peer.folder / "authorized_keys"
    ours = trusted.read_text()
    trusted.write_text(make_key(peer.folder / "stranger") + "\n")
    yield Met(node, target)
    trusted.write_text(ours)


def cut_while_running(wire: Wire) -> Iterator[Met]:
    """The connection is cut, with no goodbye, while the command runs."""
    node, target, peer = wire.sshd_with("")
    running = peer.folder / "running"

    def cut() -> None:
        end_s = time.monotonic() + 30
        while not running.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        peer.cut()

    threading.Thread(target=cut, daemon=True).start()
    argv = ["sh", "-c", f"touch {running}; sleep 30; exit 0"]
    yield Met(node, target, {"argv": argv, "address": "127.1.0.250:6380", "labels": {}})


def command(*argv: str) -> Inject:
    """A command that is the fault itself, on a connection that stands."""

    def inject(wire: Wire) -> Iterator[Met]:
        node, target = wire.node()
        assert wire.ask(node, target, Action.SSH_EXEC, argv=["true"]).facts["exit_status"] == 0
        yield Met(node, target, {"argv": list(argv)})

    return inject


def login_shell(script: str) -> Inject:
    """Everything asked of the node goes through `script`, as through a login shell that was sound when we logged in."""

    def inject(wire: Wire) -> Iterator[Met]:
        node, target, peer = wire.sshd_with("")
        shell = peer.folder / "login.sh"
        sound = '#!/bin/sh\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        shell.write_text(sound)
        shell.chmod(0o755)
        config = peer.folder / "sshd_config"
        config.write_text(f"ForceCommand {shell}\n{config.read_text()}")
        target = dataclasses.replace(target, serial="SER-1" if "rackray-identity" in script else "")
        assert wire.ask(node, target, Action.SSH_EXEC, argv=["true"]).facts["exit_status"] == 0
        shell.write_text(f"#!/bin/sh\n{script}\n")
        yield Met(node, target)
        shell.write_text(sound)

    return inject


def says(**changed: object) -> Inject:
    """A node that says this of itself, after what its login shell prints."""
    return login_shell(f"cat >/dev/null; echo welcome; echo 'rackray-identity:{json.dumps({**IMAGED, **changed})}'")
