"""This host has reached a limit of its own (descriptors, ports, memory, threads): nobody was asked, and no node is blamed."""

import contextlib
import dataclasses
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import OwnLimitReached
from orchestrator.domain.operation import Action, Operation, Outcome, Status
from orchestrator.drivers.exchange import Exchange
from orchestrator.drivers.image_service import ImageServiceClient
from orchestrator.drivers.local_hands import LocalHands
from orchestrator.drivers.own_limits import own_limit
from orchestrator.drivers.playbooks import AnsiblePlaybooks
from orchestrator.drivers.ray_head import _accepts, head_info
from orchestrator.drivers.redfish import RedfishDoor
from orchestrator.drivers.secrets import SecretStore
from orchestrator.drivers.ssh import SshDoor
from tests.drivers.hands_contract import an_operation
from tests.drivers.sshd_peers import make_key
from tests.drivers.test_local_hands import wait_for
from tests.drivers.test_playbooks import event, outcomes_of, stats

NOBODY = "127.1.209.77"
"""Nothing listens there: whoever gets as far as asking is refused, and then it is the node's trouble."""
SSH_ACTIONS = (Action.SSH_IDENTIFY, Action.CELL_JOIN)
BMC_ACTIONS = (Action.BMC_IDENTIFY, Action.BMC_POWER)


@contextlib.contextmanager
def without_descriptors() -> Iterator[None]:
    """Every file descriptor of this process is taken, as far as the kernel gives any."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


@contextlib.contextmanager
def every_connect(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    def fail(self: socket.socket, address: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", fail)
        yield


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    tmp_path.chmod(0o700)
    (tmp_path / "secrets" / "bmc").mkdir(mode=0o700, parents=True)
    (tmp_path / "secrets").chmod(0o700)
    make_key(tmp_path / "secrets" / "ssh_key")
    for name, text in {"bmc/n1": "Ours-1", "ray-cell.token": "token", "image_token": "token"}.items():
        (tmp_path / "secrets" / name).write_text(text + "\n")
        (tmp_path / "secrets" / name).chmod(0o600)
    store = SecretStore(tmp_path, environment={})
    made = Exchange(
        bmcs=RedfishDoor(store),
        shells=SshDoor(store),
        images=ImageServiceClient(store),
        secrets=store,
        join=lambda shell, operation, secrets: {},
        leave=lambda shell, operation, secrets: {},
        redact=store.redact,
    )
    yield made
    made.close()


def an_ask(action: Action, host_key: str = "") -> Operation:
    args: dict[str, Any] = {"reset": "On"} if action is Action.BMC_POWER else {"address": "a:1", "labels": {}}
    operation = an_operation("n1", action, **args)
    target = dataclasses.replace(
        operation.target,
        bmc_host=NOBODY,
        bmc_port=8443,
        bmc_certificate_sha256="ab" * 32,
        ssh_host=NOBODY,
        ssh_port=2222,
        ssh_user="gpu",
        ssh_host_key=host_key,
    )
    return dataclasses.replace(operation, target=target)


@pytest.fixture
def host_key(tmp_path: Path) -> str:
    return make_key(tmp_path / "host_key")


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOMEM, errno.ENOBUFS], ids=errno.errorcode.get
)
@pytest.mark.parametrize("action", [*BMC_ACTIONS, *SSH_ACTIONS])
def test_a_connect_that_fails_for_want_of_our_own_is_no_silence_of_the_node(
    action: Action, number: int, exchange: Exchange, host_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = an_ask(action, host_key)
    assert exchange.perform(operation, lambda epoch: True).status is Status.UNREACHABLE, "nobody listens there"
    with every_connect(monkeypatch, number):
        outcome = exchange.perform(operation, lambda epoch: True)
    assert (outcome.status, outcome.retryable) == (Status.HELD, True), outcome
    assert errno.errorcode[number] in outcome.reason and "no fault of" in outcome.reason and "max_in_flight" in outcome.reason


@pytest.mark.parametrize("action", [*BMC_ACTIONS, *SSH_ACTIONS])
def test_a_process_without_descriptors_holds_and_says_which_limit_to_raise(
    action: Action, exchange: Exchange, host_key: str
) -> None:
    operation = an_ask(action, host_key)
    with without_descriptors():
        outcome = exchange.perform(operation, lambda epoch: True)
    assert outcome.status is Status.HELD, outcome
    assert "EMFILE" in outcome.reason and "ulimit -n" in outcome.reason and "LimitNOFILE" in outcome.reason


def test_a_playbook_that_cannot_be_started_here_holds_its_nodes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("key\n")

    class Keys:
        def ssh_key_path(self) -> str:
            return str(key)

    (tmp_path / "play.yml").write_text("[]\n")
    playbooks = AnsiblePlaybooks(tmp_path, Keys(), tmp_path)  # type: ignore[arg-type]
    operation = dataclasses.replace(an_ask(Action.PLAYBOOK, "ssh-ed25519 AAAA"), args={"playbook": "play.yml"})
    with without_descriptors():
        (outcome,) = playbooks.run("play.yml", [operation])
    assert outcome.status is Status.HELD and "ulimit -n" in outcome.reason, outcome


def test_ssh_under_ansible_at_our_limit_is_told_apart_from_a_silent_node() -> None:
    said = f"Failed to connect to the host via ssh: ssh: connect to host {NOBODY} port 22: "
    found = [
        outcomes_of(event("unreachable", "n1", res={"msg": words}), stats())["n1"]
        for words in (
            said + "Cannot assign requested address",
            "Failed to connect to the host via ssh: socket: Too many open files",
            said + "Connection refused",
            "Failed to create temporary directory: No space left on device",
        )
    ]
    assert [outcome.status for outcome in found] == [Status.HELD, Status.HELD, Status.UNREACHABLE, Status.UNREACHABLE]


def test_hands_that_may_start_no_thread_give_everything_back_and_go_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = LocalHands(lambda op: Outcome(op.id, op.node, op.action, Status.DONE), threads=4)
    operations = [an_operation(f"n{number}") for number in range(10)]

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        hands.submit(operations)
        held = hands.poll()
    assert {outcome.operation for outcome in held} == {operation.id for operation in operations}
    assert {outcome.status for outcome in held} == {Status.HELD} and "ulimit -u" in held[0].reason
    hands.submit(operations)
    assert {outcome.status for outcome in wait_for(hands, 10)} == {Status.DONE}
    hands.close()


def test_a_live_ray_head_that_we_cannot_look_at_is_not_ended(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "cell.json").write_text("{}")
    with without_descriptors(), pytest.raises(OwnLimitReached):
        head_info("cell", tmp_path)
    with without_descriptors(), pytest.raises(OwnLimitReached):
        _accepts(NOBODY, 6379)
    assert not _accepts(NOBODY, 6379)


def test_what_only_looks_like_a_limit_of_ours_is_none() -> None:
    for error in (OSError(errno.ECONNREFUSED, "refused"), RuntimeError("dictionary changed size"), TimeoutError(), None):
        assert own_limit(error, "asking") is None
    chained = ValueError("foreign")
    chained.__cause__ = OSError(errno.EMFILE, "Too many open files")
    told = own_limit(chained, "asking n1")
    assert told is not None and str(told).startswith("asking n1: this process has no file descriptor left of its ")
