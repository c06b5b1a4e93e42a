"""Real sshd behind a small acceptor on 127.1.201.0/24, and peers that misbehave before any SSH is spoken."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"
CONFIG = """AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
PrintLastLog no
LogLevel ERROR
Subsystem sftp internal-sftp
"""


def make_key(path: Path, kind: str = "ed25519") -> str:
    """A new key; its public line."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True, stdin=subprocess.DEVNULL)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


class Peer:
    """Accepts on one address and port, and hands each connection to `answer` in a thread."""

    def __init__(self, address: str, answer: Callable[[socket.socket], None], port: int = 0) -> None:
        self.socket = socket.create_server((address, port))
        self.address, self.port = self.socket.getsockname()
        self.connections = 0
        self._answer = answer
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()


class SshdPeer(Peer):
    """Real sshd in inetd mode, one process per connection, as the user who runs the tests."""

    def __init__(self, folder: Path, address: str, more_config: str = "") -> None:
        if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
            pytest.skip(f"{SSHD} and ssh-keygen are needed (apt install openssh-server)")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.folder = folder
        self.host_key = make_key(folder / "host_key")
        self.client_key = folder / "client_key"
        (folder / "authorized_keys").write_text(make_key(self.client_key) + "\n")
        (folder / "sshd_config").write_text(more_config + CONFIG.format(folder=folder))
        self.processes: list[subprocess.Popen[bytes]] = []
        super().__init__(address, self._serve)

    def change_host_key(self) -> None:
        """What a new image does."""
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        make_key(self.folder / "host_key")

    def cut(self) -> None:
        """End every connection at once, as a power cut does."""
        for process in self.processes:
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            # sshd first: one that sees its command die still tells the client how.
            process.kill()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)

    def stop(self) -> None:
        super().stop()
        self.cut()
        for process in self.processes:
            process.wait(timeout=5)

    def _serve(self, connection: socket.socket) -> None:
        command = [SSHD, "-i", "-f", str(self.folder / "sshd_config"), "-h", str(self.folder / "host_key")]
        with connection, (self.folder / "sshd.log").open("ab") as log:
            environment = {"PATH": os.environ["PATH"]}
            self.processes.append(subprocess.Popen(command, stdin=connection, stdout=connection, stderr=log, env=environment))


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def speak_http(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n<html>\r\n" * 20)
    connection.close()


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(4096):
        continue
