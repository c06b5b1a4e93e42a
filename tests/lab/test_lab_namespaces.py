"""The namespaces of one node, without a lab around them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wire_lab import skip_unless_possible, wait_until

from orchestrator.lab.errors import LabError
from orchestrator.lab.namespaces import BootOrder, NodeProcess, Share, processes_of, processes_using, start_time

pytestmark = pytest.mark.lab


@pytest.fixture
def order(tmp_path: Path) -> BootOrder:
    """A node whose disk is nearly empty, and which sees a project that holds the lab's own folder with a secret in it."""
    skip_unless_possible()
    for part in ("etc", "opt", "home", "root", "var", "local"):
        (tmp_path / "project/.home/disk" / part).mkdir(parents=True)
    (tmp_path / "project/.home/secret").write_text("word")
    (tmp_path / "project/code.py").write_text("print()")
    return BootOrder(
        hostname="alone",
        root=str(tmp_path / "project/.home/root"),
        disk=str(tmp_path / "project/.home/disk"),
        identity={"product_serial": "SER-1"},
        binds=(Share(str(tmp_path / "project"), "/srv/project"),),
        hidden=("/srv/project/.home",),
    )


@pytest.fixture
def node(order: BootOrder, tmp_path: Path) -> Iterator[NodeProcess]:
    node = NodeProcess.start(order, tmp_path / "boot.json", tmp_path / "console")
    yield node
    node.cut()
    node.wait_gone()


def inside(node: NodeProcess, command: str) -> str:
    words = [*node.enter_command(), "/bin/sh", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, timeout=10, cwd="/").stdout.strip()


def test_a_node_sees_the_project_and_not_the_secrets_inside_it(node: NodeProcess) -> None:
    assert inside(node, "cat /srv/project/code.py; ls -A /srv/project/.home | wc -l") == "print()0"


def test_the_root_of_the_machine_that_plays_the_node_is_out_of_reach(node: NodeProcess) -> None:
    assert (
        inside(node, "ls -d /old /work /tmp/* 2>/dev/null; cut -d' ' -f5 /proc/1/mountinfo | grep -c project/.home/root") == "0"
    )


def states_of(node: NodeProcess) -> list[str]:
    """The state letter of every process of a node (proc(5))."""
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in processes_of(node.pid)]


def test_a_frozen_node_ends_like_any_other(node: NodeProcess) -> None:
    session = subprocess.Popen([*node.enter_command(), "/bin/sh", "-c", "sleep 1000 & sleep 1001 & wait"], cwd="/")
    wait_until(lambda: len(list(processes_of(node.pid))) == 4, "pid 1, a shell and two sleepers")
    node.freeze()
    wait_until(lambda: sorted(states_of(node)) == ["S", "S", "T", "T"], "the sleepers stop; pid 1 and the first process go on")
    node.cut()
    node.wait_gone(5.0)
    assert not node.alive
    session.wait(5)


def test_a_node_that_cannot_be_built_says_why_and_leaves_nothing(order: BootOrder, tmp_path: Path) -> None:
    (Path(order.disk) / "var").rmdir()
    with pytest.raises(LabError, match=r"node alone does not boot: .*No such file or directory"):
        NodeProcess.start(order, tmp_path / "boot.json", tmp_path / "console")
    assert processes_using(tmp_path) == {}


def test_processes_are_told_apart_from_later_ones_with_the_same_pid() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    began = start_time(child.pid)
    assert began is not None and began >= (start_time(os.getpid()) or 0)
    child.kill()
    wait_until(lambda: start_time(child.pid) is None, "a zombie counts as none")
    child.wait()
    assert start_time(child.pid) is None
