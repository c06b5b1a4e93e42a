"""Joining a cell: first against a scripted shell, then with a real Ray head, a real node and a real agent on this machine."""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import cell_node
from orchestrator.domain.errors import AnswerLost, PeerRefused, SharedServiceDown
from orchestrator.domain.operation import Action, Operation, Outcome, Status, Target
from orchestrator.drivers import cell_join
from orchestrator.drivers.cell_hands import CellHands
from orchestrator.drivers.exchange import STATUS_OF
from orchestrator.drivers.ray_head import HeadConfig, ensure_head, ensure_token, head_info, stop_head, temp_directory
from tests.drivers.hands_contract import an_operation
from tests.drivers.scripted_neighbours import EPOCH
from tests.drivers.sshd_peers import Peer

NODE = "cell-test-n1"
PYTHON = sys.executable


@dataclass(frozen=True)
class Result:
    exit_status: int
    stdout: str
    stderr: str = ""


class ScriptedShell:
    """Answers with `result`; remembers what it was asked."""

    def __init__(self, result: Result) -> None:
        self.result = result

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Result:
        self.argv, self.stdin = list(argv), stdin
        return self.result

    def close(self) -> None:
        """Nothing is open."""


class LocalShell:
    """A node that is this machine: the same command, with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Result:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.home)}
        done = subprocess.run(argv, input=stdin, env=environment, capture_output=True, timeout=timeout_s, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def close(self) -> None:
        """Nothing is open."""


class TokenFile:
    """The one secret a join needs."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def read(self, name: str) -> Any:
        text = (self.home / "secrets" / name).read_text()
        return type("Revealed", (), {"reveal": lambda self: text})()


def a_join(temp_dir: str = "/tmp/ray", address: str = "127.1.220.2:6410") -> Operation:
    args = {"address": address, "labels": {"rack": "r01", "leaf": "leaf-1", "feed": "A"}, "resources": {}, "temp_dir": temp_dir}
    return replace(an_operation(NODE, Action.CELL_JOIN, **args), target=Target(ssh_host="127.1.220.3", python=PYTHON))


@pytest.fixture
def head() -> Iterator[Peer]:
    """Somebody who accepts connections where the cell's head should be."""
    peer = Peer("127.1.220.8", lambda connection: connection.close())
    yield peer
    with contextlib.suppress(OSError):
        peer.stop()


@pytest.fixture
def secrets(tmp_path: Path) -> Any:
    ensure_token(tmp_path, "cell")
    return TokenFile(tmp_path)


def test_the_token_goes_by_standard_input_and_through_no_argument(secrets: Any, head: Peer) -> None:
    shell = ScriptedShell(Result(0, 'motd\nRACKRAY-CELL {"started": true, "ray_version": "2"}\n'))
    assert cell_join.join(shell, a_join(address=f"{head.address}:{head.port}"), secrets)["started"] is True
    token = secrets.read("ray-cell.token").reveal()
    assert len(token) >= 32 and shell.stdin == token.encode()
    assert token not in " ".join(shell.argv)
    assert f"--labels=node={NODE},rack=r01,leaf=leaf-1,feed=A" in shell.argv


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (Result(0, 'RACKRAY-CELL {"refused": "it is Python 3.11.2"}'), PeerRefused, "3.11.2"),
        (Result(127, "", "sh: 1: /opt/python: not found"), PeerRefused, "not found"),
        (Result(1, "", "No module named orchestrator"), PeerRefused, "No module named"),
        (Result(-1, "motd", ""), AnswerLost, "no answer"),
        (Result(137, "", "Killed"), AnswerLost, "Killed"),
    ],
)
def test_no_answer_is_never_taken_for_a_join(
    secrets: Any, head: Peer, result: Result, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        cell_join.join(ScriptedShell(result), a_join(address=f"{head.address}:{head.port}"), secrets)


def test_another_python_or_ray_than_the_heads_is_refused_before_anything_is_touched() -> None:
    cell_node.check_versions(version("ray"), platform.python_version())
    with pytest.raises(cell_node.Refusal, match=r"3\.11\.0"):
        cell_node.check_versions(version("ray"), "3.11.0")
    with pytest.raises(cell_node.Refusal, match=r"ray 1\.2\.3"):
        cell_node.check_versions("1.2.3", platform.python_version())


def test_a_head_that_answers_nobody_holds_the_join_and_no_node_is_asked(secrets: Any) -> None:
    shell = ScriptedShell(Result(0, "nobody asks"))
    with pytest.raises(SharedServiceDown, match=r"the cell's Ray head 127\.1\.220\.9:6419 does not answer") as caught:
        cell_join.join(shell, a_join(address="127.1.220.9:6419"), secrets)
    assert "ray/cell.log" in caught.value.hint
    assert not hasattr(shell, "argv")
    assert next(status for kind, status in STATUS_OF if isinstance(caught.value, kind)) is Status.HELD


def test_a_head_that_dies_during_the_join_is_not_the_nodes_refusal(secrets: Any, head: Peer) -> None:
    class HeadDies(ScriptedShell):
        def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Result:
            head.stop()
            return self.result

    said = Result(0, 'RACKRAY-CELL {"refused": "`ray start` ended with 1: unable to connect to GCS"}')
    with pytest.raises(SharedServiceDown, match="does not answer"):
        cell_join.join(HeadDies(said), a_join(address=f"{head.address}:{head.port}"), secrets)


def test_a_head_that_answers_us_but_not_the_node_is_the_nodes_trouble(secrets: Any, head: Peer) -> None:
    said = Result(0, 'RACKRAY-CELL {"refused": "the cell\'s head does not answer from this node: timed out"}')
    with pytest.raises(PeerRefused, match="does not answer from this node") as caught:
        cell_join.join(ScriptedShell(said), a_join(address=f"{head.address}:{head.port}"), secrets)
    assert caught.value.retryable


def test_a_node_that_does_not_reach_the_head_says_so_and_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(cell_node.Refusal, match=r"127\.1\.220\.9:6419 does not answer from this node"):
        cell_node.check_way("127.1.220.9:6419")


def test_a_tokens_file_is_private_and_an_empty_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = cell_node.write_token("secret")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with pytest.raises(cell_node.Refusal):
        cell_node.write_token("")


def test_leaving_ends_what_carries_the_nodes_mark_and_nothing_else(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "RACKRAY_CELL_NODE": NODE}
    ours = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; sleep 300 & wait; wait"], env=environment, start_new_session=True)
    other = subprocess.Popen(["sleep", "300"], env={**environment, "RACKRAY_CELL_NODE": NODE + "0"})
    try:
        operation = replace(an_operation(NODE, Action.CELL_LEAVE), target=Target(python=PYTHON))
        assert cell_join.leave(LocalShell(tmp_path), operation, TokenFile(tmp_path)) == {"stopped": True}
        assert ours.wait(timeout=5) != 0
        assert other.poll() is None
        assert cell_join.leave(LocalShell(tmp_path), operation, TokenFile(tmp_path)) == {"stopped": False}
    finally:
        other.kill()
        other.wait()


def test_leaving_ends_an_agent_whose_title_overwrote_its_environment() -> None:
    # What setproctitle does to Ray's agents: the variable is gone, the title and the session are left.
    script = "(exec -c -a ray::RuntimeEnvAgent /bin/sleep 300) & echo $!; wait"
    environment = {"PATH": "/usr/bin:/bin", "RACKRAY_CELL_NODE": NODE}
    raylet = subprocess.Popen(
        ["/bin/bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert raylet.stdout is not None
    agent = int(raylet.stdout.readline())
    title, until_s = Path(f"/proc/{agent}/cmdline"), time.monotonic() + 5
    while not title.read_bytes().startswith(b"ray::") and time.monotonic() < until_s:
        time.sleep(0.01)
    assert set(cell_node.family(NODE, set())) == {raylet.pid, agent}
    assert cell_node.stop_node(NODE) == 2
    raylet.wait(timeout=5)
    assert not title.exists() or title.read_bytes() == b""


# ---------------------------------------------------------------------- the real thing
@dataclass
class Cell:
    config: HeadConfig
    hands: CellHands
    shell: LocalShell
    temp_dir: str
    run: Path

    def ask(self, action: Action, limit_s: float = 90, *, node: str = NODE, epoch: int = EPOCH, **args: Any) -> Outcome:
        """One operation, to its outcome."""
        self.hands.submit([an_operation(node, action, epoch=epoch, **args)])
        end = time.monotonic() + limit_s
        while not (outcomes := self.hands.poll()):
            assert time.monotonic() < end, f"{action}: no outcome within {limit_s} s"
            time.sleep(0.05)
        (outcome,) = outcomes
        return outcome

    def rank(self, action: Action, attempt: int = 1, **args: Any) -> Outcome:
        """A RANK_* operation on rank 0."""
        return self.ask(action, run="lm-1", attempt=attempt, rank=0, directory=str(self.run), **args)

    def join(self) -> None:
        cell_join.join(self.shell, a_join(self.temp_dir), TokenFile(self.config.home))
        until(lambda: self.ask(Action.CELL_OBSERVE).facts["alive"], 30)

    def leave(self) -> None:
        operation = replace(an_operation(NODE, Action.CELL_LEAVE), target=Target(python=PYTHON))
        cell_join.leave(self.shell, operation, TokenFile(self.config.home))


def until(condition: Callable[[], Any], limit_s: float) -> Any:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"it did not happen within {limit_s} s"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    home, node_home = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("node")
    config = HeadConfig(name="cell", address="127.1.220.2", port=6410, home=home)
    temp_dir = Path(f"/tmp/rackray-test-{os.getpid()}")
    made = Cell(
        config,
        CellHands(config, "", wiring="tests.drivers.scripted_neighbours"),
        LocalShell(node_home),
        str(temp_dir),
        tmp_path_factory.mktemp("run"),
    )
    ensure_head(config)
    yield made
    made.hands.close()
    made.leave()
    stop_head(config.name, home)
    shutil.rmtree(temp_dir, ignore_errors=True)
    shutil.rmtree(temp_directory(config.name, home), ignore_errors=True)


@pytest.mark.slow
def test_a_rank_lives_through_its_agents_death_and_a_node_through_its_heads(cell: Cell) -> None:
    assert cell.ask(Action.CELL_OBSERVE).facts["alive"] is False
    absent = cell.rank(Action.RANK_START, argv=["true"], environment={}, run_json="")
    assert (absent.status, "not alive in the cell" in absent.reason) == (Status.UNREACHABLE, True)

    cell.join()
    seen = cell.ask(Action.CELL_OBSERVE).facts
    assert {key: seen["labels"].get(key) for key in ("node", "rack", "leaf", "feed")} == {
        "node": NODE,
        "rack": "r01",
        "leaf": "leaf-1",
        "feed": "A",
    }

    start = {"argv": ["/bin/sh", "-c", "echo up; exec sleep 300"], "environment": {"RANK": 0}, "run_json": json.dumps({})}
    assert cell.rank(Action.RANK_START, **start, epoch=EPOCH - 1).status is Status.FENCED
    first = cell.rank(Action.RANK_START, **start)
    assert (first.status, first.facts["adopted"]) == (Status.DONE, False)
    try:
        assert until(lambda: cell.rank(Action.RANK_LOOK, progress_offset=0).facts["log_tail"] == "up\n", 10)
        agents = agent_pids()
        assert len(agents) == 1
        os.kill(agents[0], signal.SIGKILL)
        # The first look may find the agent dead; the next one makes another, which finds the rank.
        found = until(lambda: (look := cell.rank(Action.RANK_LOOK, progress_offset=0)).status is Status.DONE and look.facts, 60)
        assert found["alive"] is True and agent_pids() != agents
        assert cell.rank(Action.RANK_START, **start).facts == {**first.facts, "adopted": True}

        before = head_info("cell", cell.config.home)
        assert before is not None
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: (now := head_info("cell", cell.config.home)) is not None and now.pid != before.pid, 60)
        assert cell.ask(Action.CELL_OBSERVE, 120).facts["alive"] is False
        cell.join()
        assert cell.rank(Action.RANK_LOOK, progress_offset=0).facts["alive"] is True
    finally:
        os.kill(first.facts["pid"], 0)  # it must still be that process: nothing above may have ended it
        stopped = cell.rank(Action.RANK_STOP, signal="KILL")
    assert stopped.facts == {"was_alive": True}
    assert cell.rank(Action.RANK_LOOK, progress_offset=0).facts["exit_status"] == 137
    cell.leave()
    until(lambda: not cell.ask(Action.CELL_OBSERVE).facts["alive"], 30)


def agent_pids() -> list[int]:
    """The agent's processes, by the title Ray gives to an actor's process."""
    found = []
    for pid in cell_node.family(NODE, set()):
        try:
            if b"ray::NodeAgent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_other_actions_are_refused_by_a_cell(cell: Cell) -> None:
    outcome = cell.ask(Action.BMC_POWER, reset="On")
    assert (outcome.status, outcome.retryable) == (Status.REFUSED, False)
