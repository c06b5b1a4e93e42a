"""SSH against the real sshd: pinned keys, deadlines, both streams, lost connections."""

import dataclasses
import getpass
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.deadline import within
from orchestrator.domain.errors import AnswerLost, IdentityMismatch, PeerRefused, PeerUnreachable, SecretMissing
from orchestrator.domain.operation import Target
from orchestrator.drivers.secrets import SecretStore
from orchestrator.drivers.ssh import ENDED_BY_SIGNAL, SshDoor, SshShell, scan_host_key
from tests.drivers.sshd_peers import Peer, SshdPeer, make_key, reset, say_nothing, speak_http

ADDRESS = "127.1.201.1"


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshdPeer]:
    peer = SshdPeer(tmp_path, ADDRESS)
    try:
        yield peer
    finally:
        peer.stop()


@pytest.fixture
def shell(sshd: SshdPeer) -> Iterator[SshShell]:
    shell = opened(sshd)
    yield shell
    shell.close()


def target_of(peer: Peer, host_key: str) -> Target:
    return Target(ssh_host=peer.address, ssh_port=peer.port, ssh_user=getpass.getuser(), ssh_host_key=host_key)


def door(key: Path) -> SshDoor:
    return SshDoor(SecretStore(key.parent, environment={"RACKRAY_SSH_KEY": str(key)}))


def opened(sshd: SshdPeer) -> SshShell:
    return door(sshd.client_key).open("n1", target_of(sshd, sshd.host_key), 10.0)


def test_words_arrive_as_they_are_and_the_exit_status_comes_back(shell: SshShell) -> None:
    result = shell.run(["printf", "%s|", "a b", "$HOME", "it's; rm -rf /", "*"], timeout_s=10)
    assert (result.exit_status, result.stdout) == (0, "a b|$HOME|it's; rm -rf /|*|")
    assert shell.run(["sh", "-c", "echo no >&2; exit 7"], timeout_s=10).exit_status == 7


def test_input_and_eight_megabytes_on_both_outputs_do_not_block_each_other(shell: SshShell) -> None:
    script = "head -c 8000000 /dev/zero | tr '\\0' e >&2; cat; echo; echo end"
    result = shell.run(["sh", "-c", script], stdin=b"i" * 3_000_000, timeout_s=60)
    assert result.exit_status == 0
    assert result.stdout.endswith("i\nend\n") and len(result.stdout) == 3_000_005
    # Bounded: only the end of a stream is kept.
    assert len(result.stderr) == 4 * 1024 * 1024


def test_a_signal_is_a_failure_and_bytes_that_are_no_text_are_replaced(shell: SshShell) -> None:
    assert shell.run(["sh", "-c", "kill -9 $$"], timeout_s=10).exit_status == ENDED_BY_SIGNAL
    assert shell.run(["printf", "a\\377b"], timeout_s=10).stdout == "a\ufffdb"


def test_something_left_in_the_background_does_not_hold_the_answer(shell: SshShell) -> None:
    started_s = time.monotonic()
    result = shell.run(["sh", "-c", "sleep 30 & echo $!; exit 0"], timeout_s=20)
    assert result.exit_status == 0
    assert time.monotonic() - started_s < 10
    os.kill(int(result.stdout), signal.SIGKILL)


@pytest.mark.parametrize("command", ["sleep 20", "while :; do echo x; sleep 0.05; done"])
def test_the_deadline_holds_for_silent_and_for_dripping_commands(shell: SshShell, command: str) -> None:
    started_s = time.monotonic()
    with within(0.8), pytest.raises(AnswerLost, match="did not end in time"):
        shell.run(["timeout", "20", "sh", "-c", command], timeout_s=60)
    assert time.monotonic() - started_s < 3
    assert not shell.is_alive


def test_a_connection_cut_while_a_command_runs_is_an_answer_lost(sshd: SshdPeer, shell: SshShell) -> None:
    threading.Timer(0.3, sshd.cut).start()
    with pytest.raises(AnswerLost, match="broke"):
        shell.run(["timeout", "20", "sleep", "20"], timeout_s=30)
    with pytest.raises(PeerUnreachable):
        shell.run(["true"], timeout_s=5)


def test_a_node_that_went_silent_costs_one_wait_and_not_every_one(sshd: SshdPeer, shell: SshShell) -> None:
    shell.run(["true"], timeout_s=10)
    for process in sshd.processes:
        process.send_signal(signal.SIGSTOP)
    with within(0.5), pytest.raises((PeerUnreachable, AnswerLost)):
        shell.run(["true"], timeout_s=10)
    assert not shell.is_alive
    started_s = time.monotonic()
    with pytest.raises(PeerUnreachable):
        shell.run(["true"], timeout_s=10)
    assert time.monotonic() - started_s < 1


def test_several_commands_share_one_connection(sshd: SshdPeer, shell: SshShell) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(shell.run(["echo", str(i)], timeout_s=20).stdout)) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["0\n", "1\n", "2\n", "3\n"]
    assert sshd.connections == 1


def test_a_changed_host_key_stops_the_node_and_an_unpinned_one_is_never_spoken_to(sshd: SshdPeer) -> None:
    with pytest.raises(IdentityMismatch, match="no SSH host key is pinned"):
        door(sshd.client_key).open("n1", target_of(sshd, ""), 5.0)
    assert sshd.connections == 0
    sshd.change_host_key()
    with pytest.raises(IdentityMismatch, match="is pinned"):
        opened(sshd)


def test_a_pin_of_another_kind_than_the_key_shown_is_a_mismatch(sshd: SshdPeer, tmp_path: Path) -> None:
    with pytest.raises(IdentityMismatch, match="is pinned"):
        door(sshd.client_key).open("n1", target_of(sshd, make_key(tmp_path / "other", "ecdsa")), 5.0)


@pytest.mark.parametrize("pin", ["ssh-ed25519", "ssh-ed25519 AAAA", "nonsense", "ssh-ed25519 !!!!"])
def test_a_pin_that_is_no_key_is_a_mismatch(sshd: SshdPeer, pin: str) -> None:
    with pytest.raises(IdentityMismatch, match="is no key"):
        door(sshd.client_key).open("n1", target_of(sshd, pin), 5.0)
    assert sshd.connections == 0


def test_a_refused_key_is_a_refusal_that_does_not_go_away(sshd: SshdPeer, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    with pytest.raises(PeerRefused) as refused:
        door(tmp_path / "stranger").open("n1", target_of(sshd, sshd.host_key), 5.0)
    assert not refused.value.retryable


def test_a_node_too_slow_to_judge_our_key_has_not_refused_it(tmp_path: Path) -> None:
    sleepy = f"AuthorizedKeysCommand {shutil.which('sleep')} 3\nAuthorizedKeysCommandUser nobody\nAuthorizedKeysFile none\n"
    peer = SshdPeer(tmp_path, "127.1.201.4", sleepy)
    with within(1.0), pytest.raises(PeerUnreachable, match="during the login"):
        opened(peer)
    peer.stop()


def test_a_key_that_others_can_read_is_not_used(sshd: SshdPeer) -> None:
    sshd.client_key.chmod(0o644)
    with pytest.raises(SecretMissing) as missing:
        opened(sshd)
    assert missing.value.hint == f"chmod 600 {sshd.client_key}"
    assert sshd.connections == 0


@pytest.mark.parametrize("behaviour", [reset, speak_http, say_nothing])
def test_peers_that_speak_no_ssh_are_unreachable(behaviour: Callable[[socket.socket], None], tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    peer = Peer("127.1.201.2", behaviour)
    pin = make_key(tmp_path / "host")
    started_s = time.monotonic()
    with within(1.5), pytest.raises(PeerUnreachable):
        door(tmp_path / "key").open("n1", target_of(peer, pin), 20.0)
    assert time.monotonic() - started_s < 6
    peer.stop()


def test_a_closed_port_is_unreachable(sshd: SshdPeer) -> None:
    target = dataclasses.replace(target_of(sshd, sshd.host_key), ssh_host="127.1.201.99")
    with pytest.raises(PeerUnreachable, match="refused"):
        door(sshd.client_key).open("n1", target, 5.0)


def test_enrolment_shows_the_key_that_ssh_keygen_shows(sshd: SshdPeer) -> None:
    found = scan_host_key(sshd.address, sshd.port)
    assert found.line == sshd.host_key
    assert found.fingerprint.startswith("SHA256:")
