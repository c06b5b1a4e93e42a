"""Nodes by SSH (paramiko): pinned host keys, one explicit key, and a total deadline for everything.

What paramiko does not do by itself is done here: reading both output streams while writing the input (either window can
deadlock the other), a deadline for the whole command, exit by signal told apart from a lost connection, foreign errors (bare
EOFError among them) translated.
"""

import contextlib
import logging
import os
import select
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import paramiko

from orchestrator.domain.deadline import remaining_s
from orchestrator.domain.errors import AnswerLost, IdentityMismatch, PeerRefused, PeerUnreachable, SecretMissing
from orchestrator.domain.operation import Target
from orchestrator.drivers.own_limits import own_limits_told

LOG = logging.getLogger(__name__)
logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs tracebacks of every refused connection; we report our own

CONNECT_S = 8.0
BANNER_S = 8.0
AUTH_S = 15.0
CHANNEL_S = 10.0
KEEPALIVE_S = 15
SILENCE_MS = 20_000
"""A peer that acknowledges nothing for this long is gone (TCP_USER_TIMEOUT); keepalives alone are never missed by paramiko."""
LARGEST_OUTPUT_BYTES = 4 * 1024 * 1024
"""Kept of each stream, its end; the rest is read and dropped, so that the command can go on."""
ENDED_BY_SIGNAL = -1
PIECE_BYTES = 32 * 1024
LINGER_S = 1.0
"""How long output is awaited after the exit status, where a process left in the background keeps the stream open."""

WEAK_ALGORITHMS = {
    "kex": ["diffie-hellman-group1-sha1", "diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1"],
    "ciphers": ["3des-cbc", "aes128-cbc", "aes192-cbc", "aes256-cbc", "blowfish-cbc"],
    "macs": ["hmac-md5", "hmac-md5-96", "hmac-sha1", "hmac-sha1-96"],
    "keys": ["ssh-rsa", "ssh-dss"],
    "pubkeys": ["ssh-rsa", "ssh-dss"],
}
"""Never offered, whatever paramiko's default lists hold (SHA-1, MD5, CBC)."""

AUTHENTICATION_CUT_SHORT = ("timeout", "transport shut down", "EOF")
"""What paramiko says where nobody refused our key: a slow or dying node is not one that rejects us."""


class SshSecrets(Protocol):
    """What this driver asks of the secrets folder."""

    def ssh_key_path(self) -> str: ...


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a remote command left behind; implements `interfaces.ShellResult`."""

    exit_status: int
    """ENDED_BY_SIGNAL (-1) if a signal ended it."""
    stdout: str
    """At most its last LARGEST_OUTPUT_BYTES; bytes that are no UTF-8 are replaced."""
    stderr: str


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host key as it was shown by whoever answered."""

    line: str
    """"ssh-ed25519 AAAA…", as pins are written."""
    fingerprint: str
    """"SHA256:…", as ssh-keygen shows it."""


class SshDoor:
    """Opens shells; implements `interfaces.ShellDoor`."""

    def __init__(self, secrets: SshSecrets) -> None:
        self._secrets = secrets

    def open(self, node: str, target: Target, timeout_s: float) -> "SshShell":
        """A connection to the node whose host key is `target.ssh_host_key`.

        Errors: IdentityMismatch (another host key, or none pinned), PeerUnreachable, PeerRefused (our key is refused, no common
        algorithm), SecretMissing, OwnLimitReached.
        """
        if not target.ssh_host_key:
            raise IdentityMismatch(
                f"no SSH host key is pinned for {node}", "it comes from the image step, or from `rackray node enroll`"
            )
        where = f"{node} at {target.ssh_host}:{target.ssh_port}"
        key = _private_key(self._secrets.ssh_key_path())
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        pinned = parse_host_key(target.ssh_host_key)
        client.get_host_keys().add(_known_name(target.ssh_host, target.ssh_port), pinned.get_name(), pinned)
        limit_s = remaining_s(timeout_s)
        began_s = time.monotonic()
        with _as_peer_errors(where):
            connection = _connect(target.ssh_host, target.ssh_port, min(CONNECT_S, limit_s))
            left_s = limit_s - (time.monotonic() - began_s)
            try:
                with _cut_after(connection, left_s):
                    client.connect(
                        target.ssh_host,
                        target.ssh_port,
                        username=target.ssh_user,
                        pkey=key,
                        sock=connection,
                        allow_agent=False,
                        look_for_keys=False,
                        timeout=min(CONNECT_S, left_s),
                        banner_timeout=min(BANNER_S, left_s),
                        auth_timeout=min(AUTH_S, left_s),
                        channel_timeout=min(CHANNEL_S, left_s),
                        disabled_algorithms=WEAK_ALGORITHMS,
                    )
            except BaseException:
                client.close()
                connection.close()
                raise
        transport = client.get_transport()
        if transport is None:
            raise PeerUnreachable(f"the SSH connection to {where} ended at once")
        transport.set_keepalive(KEEPALIVE_S)
        return SshShell(where, client, transport)


class SshShell:
    """One connection; implements `interfaces.NodeShell`. Threads may run commands on it at the same time."""

    def __init__(self, where: str, client: paramiko.SSHClient, transport: paramiko.Transport) -> None:
        self.where = where
        self._client = client
        self._transport = transport

    @property
    def is_alive(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        return self._transport.is_active()

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> CommandResult:
        """Run one command to its end. `argv` is quoted; nothing is expanded by the remote shell.

        Errors: PeerUnreachable (the command was not started), AnswerLost (it was, and its end was not seen: the connection
        broke, or `timeout_s` passed). After AnswerLost the connection is closed.
        """
        end_s = time.monotonic() + remaining_s(timeout_s)
        limit_s = min(CHANNEL_S, remaining_s(timeout_s))
        try:
            with _as_peer_errors(self.where):
                channel = self._transport.open_session(timeout=limit_s)
        except PeerUnreachable:
            # A node that lost its power says no goodbye: whoever comes next must not wait for this connection again.
            self.close()
            raise
        try:
            try:
                channel.settimeout(min(CHANNEL_S, max(0.0, end_s - time.monotonic())))
                channel.exec_command(shlex.join(argv))
            except (paramiko.SSHException, EOFError, OSError) as error:
                # The request may have arrived although its confirmation did not.
                raise AnswerLost(f"{self.where}: no answer to the start of {argv[0]}: {_cause(error)}") from error
            return _Conversation(self.where, channel, self._transport, stdin, argv[0]).until(end_s)
        except AnswerLost:
            self.close()
            raise
        finally:
            channel.close()

    def close(self) -> None:
        """End the connection, and with it whatever runs on it."""
        self._client.close()


class _Conversation:
    """Feeds the input and reads both outputs of one command until it ends."""

    def __init__(self, where: str, channel: paramiko.Channel, transport: paramiko.Transport, stdin: bytes, command: str) -> None:
        self._where = where
        self._channel = channel
        self._transport = transport
        self._command = command
        self._pending = memoryview(stdin)
        self._is_input_ended = False
        self._stdout = _Tail()
        self._stderr = _Tail()
        channel.setblocking(0)
        # Readable when either stream has data or the channel has ended.
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    def until(self, end_s: float) -> CommandResult:
        """Go on until the command has ended, or AnswerLost at `end_s` (monotonic seconds)."""
        give_up_s = end_s
        while True:
            moved = self._write() | self._read()
            now_s = time.monotonic()
            if self._channel.status_event.is_set() and not moved:
                if self._channel.closed or self._channel.eof_received or now_s >= give_up_s:
                    # Bytes may have come between the last read and the look at the end.
                    self._read()
                    return self._result()
                # The command has ended but something it left behind still holds its output: that is not waited for.
                give_up_s = min(give_up_s, now_s + LINGER_S)
            elif now_s >= end_s:
                said = self._stderr.text()[-300:] or "nothing"
                raise AnswerLost(
                    f"{self._where}: {self._command} did not end in time; it said: {said}", "it may still be running there"
                )
            if not moved:
                self._wait(max(0.0, give_up_s - now_s))

    def _write(self) -> bool:
        """Give the command more of its input; whether anything moved."""
        if self._is_input_ended:
            return False
        before = len(self._pending)
        try:
            while self._pending and self._channel.send_ready():
                self._pending = self._pending[self._channel.send(self._pending[:PIECE_BYTES].tobytes()) :]
            if not self._pending:
                self._channel.shutdown_write()
                self._is_input_ended = True
        except (OSError, EOFError):
            # The command has closed its input, which it may; its exit status tells the rest.
            self._is_input_ended = True
        return self._is_input_ended or len(self._pending) < before

    def _read(self) -> bool:
        moved = False
        while self._channel.recv_ready():
            self._stdout.add(self._channel.recv(PIECE_BYTES))
            moved = True
        while self._channel.recv_stderr_ready():
            self._stderr.add(self._channel.recv_stderr(PIECE_BYTES))
            moved = True
        return moved

    def _wait(self, left_s: float) -> None:
        if self._channel.eof_received or self._channel.closed:
            # From here on the descriptor is always readable; only the exit status is missing.
            self._channel.status_event.wait(min(left_s, 1.0))
            return
        # While input waits for the peer's window nothing readable announces it: look again soon.
        self._poll.poll(1000 * min(left_s, 1.0 if self._is_input_ended else 0.02))

    def _result(self) -> CommandResult:
        status = self._channel.exit_status
        # Where the connection breaks, paramiko ends the channel before it calls the transport dead; its exception stands first.
        if status < 0 and (self._transport.saved_exception is not None or not self._transport.is_active()):
            raise AnswerLost(f"{self._where}: the connection broke while {self._command} ran", "what it did is not known")
        return CommandResult(status if status >= 0 else ENDED_BY_SIGNAL, self._stdout.text(), self._stderr.text())


class _Tail:
    """The end of a stream, bounded."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, piece: bytes) -> None:
        self._data += piece
        if len(self._data) > 2 * LARGEST_OUTPUT_BYTES:
            del self._data[:-LARGEST_OUTPUT_BYTES]

    def text(self) -> str:
        return bytes(self._data[-LARGEST_OUTPUT_BYTES:]).decode("utf-8", errors="replace")


def scan_host_key(host: str, port: int, timeout_s: float = 10.0) -> HostKey:
    """The host key shown at that address, unverified: for `node enroll` alone, which shows it to a person.

    Raises PeerUnreachable, PeerRefused.
    """
    with _as_peer_errors(f"{host}:{port}"):
        transport = paramiko.Transport(_connect(host, port, timeout_s), disabled_algorithms=WEAK_ALGORITHMS)
        try:
            transport.banner_timeout = timeout_s
            transport.start_client(timeout=timeout_s)
            key = transport.get_remote_server_key()
        finally:
            transport.close()
    return HostKey(f"{key.get_name()} {key.get_base64()}", key.fingerprint)


def parse_host_key(line: str) -> paramiko.PKey:
    """The key of a pin "ssh-ed25519 AAAA… [comment]". Raises IdentityMismatch if it is none."""
    parts = line.split()
    try:
        entry = paramiko.hostkeys.HostKeyEntry.from_line(" ".join(["pinned", *parts[:2]]))
    except (paramiko.SSHException, ValueError):
        entry = None
    if entry is None or entry.key is None:
        raise IdentityMismatch(f"the pinned host key {line[:60]!r} is no key", "it must read like `ssh-ed25519 AAAA…`")
    return entry.key


_KEY_LOCK = threading.Lock()
_KEYS: dict[tuple[str, int], paramiko.PKey] = {}


def _private_key(path: str) -> paramiko.PKey:
    """The key in the file; read again when the file changes (thousands of logins would parse it thousands of times)."""
    try:
        stamp = (path, os.stat(path).st_mtime_ns)
        with _KEY_LOCK, own_limits_told(f"the SSH key {path} cannot be read"):
            if stamp not in _KEYS:
                _KEYS.clear()
                _KEYS[stamp] = paramiko.PKey.from_path(path)
            return _KEYS[stamp]
    except paramiko.PasswordRequiredException as error:
        raise SecretMissing(f"the SSH key {path} is locked with a passphrase", "give rackray a key of its own") from error
    except (paramiko.SSHException, OSError, ValueError, TypeError) as error:
        raise SecretMissing(f"the SSH key {path} cannot be read: {_cause(error)}", "ssh-keygen -t ed25519 makes one") from error


@contextmanager
def _cut_after(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Ends the connection if what is inside takes longer: each of paramiko's time limits is for one of its phases alone, and a
    peer that drips starts some of them anew with every byte."""

    def cut() -> None:
        with contextlib.suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, seconds), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _known_name(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    connection = socket.create_connection((host, port), timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
    return connection


@contextmanager
def _as_peer_errors(where: str) -> Iterator[None]:
    """Errors before a command was sent."""
    try:
        with own_limits_told(f"no SSH connection to {where}"):
            yield
    except paramiko.BadHostKeyException as error:
        raise IdentityMismatch(
            f"{where} shows the host key {error.key.fingerprint}, but {error.expected_key.fingerprint} is pinned",
            "it was imaged again, or another machine answers; if it is right, enroll the node again",
        ) from error
    except paramiko.AuthenticationException as error:
        if any(words in str(error) for words in AUTHENTICATION_CUT_SHORT):
            raise PeerUnreachable(f"{where} went away during the login: {_cause(error)}", "asking again may help") from error
        raise PeerRefused(
            f"{where} does not accept our SSH key: {_cause(error)}", "is it authorised there, for the user access.ssh_user?"
        ) from error
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise PeerRefused(f"{where} has no SSH algorithm in common with us: {_cause(error)}") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        # A connection closed during the handshake is a bare EOFError in paramiko.
        raise PeerUnreachable(
            f"no SSH connection to {where}: {_cause(error)}", "is it on, booted, and in the right subnet?"
        ) from error


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
