"""The disk fails, the process is killed, files are cut: what was acknowledged is there afterwards, or nobody says it is.

Each process appends requests and says each number once it was acknowledged. `strace` makes its system calls fail where asked.
"""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.domain.errors import JournalBroken
from orchestrator.domain.event import Event
from orchestrator.execution.journal import Journal
from tests.execution.site import Rehearsal, apply_request

PROGRAM = """
import sys
from orchestrator.domain.errors import JournalBroken
from orchestrator.domain.event import Event
from orchestrator.execution.journal import Journal
journal = Journal(sys.argv[1])
print("open", flush=True)
for number in range(12):
    try:
        journal.request(Event("request.drain", "cluster", {"number": number}))
    except JournalBroken as error:
        print("broken", error, flush=True)
        continue
    print(number, flush=True)
"""
SYNCS = "fsync,fdatasync"
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: `apt install strace`")


def run_under(tmp_path: Path, *inject: str) -> tuple[list[int], list[str]]:
    """The numbers a process acknowledged under faults, and what it complained of. The journal was made before."""
    Journal(url(tmp_path)).close()
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *inject]
    ran = subprocess.run([*strace, sys.executable, "-c", PROGRAM, url(tmp_path)], capture_output=True, text=True, timeout=120)
    lines = ran.stdout.splitlines()
    assert lines[:1] == ["open"], ran.stderr
    return [int(line) for line in lines if line.isdigit()], [line for line in lines if line.startswith("broken")]


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db"


def kept(tmp_path: Path) -> list[int]:
    """The numbers a fresh process finds."""
    return [event.data["number"] for event in Journal(url(tmp_path)).events()]


@needs_strace
@pytest.mark.parametrize("at", [4, 9])
def test_killed_in_the_middle_of_an_fsync_it_has_lost_nothing_it_acknowledged(tmp_path: Path, at: int) -> None:
    acknowledged, _ = run_under(tmp_path, "-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:signal=KILL:when={at}")
    assert 0 < len(acknowledged) < 12
    assert set(acknowledged) <= set(kept(tmp_path))


@needs_strace
def test_a_failed_fsync_is_the_end_of_writing(tmp_path: Path) -> None:
    acknowledged, complaints = run_under(tmp_path, "-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:error=EIO:when=5")
    assert set(acknowledged) <= set(kept(tmp_path))
    assert acknowledged == list(range(len(acknowledged))) and len(acknowledged) + len(complaints) == 12
    assert "disk I/O error" in complaints[0] and "nothing more is written" in complaints[-1]


@needs_strace
def test_a_full_disk_is_said_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    Journal(url(tmp_path)).close()
    on_wal = ("-P", f"{tmp_path}/state.db-wal", "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC:when=16+")
    acknowledged, complaints = run_under(tmp_path, *on_wal)
    assert acknowledged and complaints and "full" in complaints[0]
    assert set(acknowledged) <= set(kept(tmp_path))


def test_a_torn_tail_costs_only_what_was_never_acknowledged(tmp_path: Path) -> None:
    journal = Journal(url(tmp_path))
    for number in range(5):
        journal.request(Event("request.drain", "cluster", {"number": number}))
    whole, wal = tmp_path / "state.db", tmp_path / "state.db-wal"
    size = wal.stat().st_size
    journal.request(Event("request.drain", "cluster", {"number": 5}))
    copy = tmp_path / "copy"
    for cut in (size + 1, size + 24, (size + wal.stat().st_size) // 2):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copy(whole, copy / "state.db")
        (copy / "state.db-wal").write_bytes(wal.read_bytes()[:cut] + b"\xff" * 100)
        assert kept(copy) == [0, 1, 2, 3, 4], f"cut at byte {cut} of {wal.stat().st_size}"


def test_a_truncated_file_is_refused_not_read_as_less(tmp_path: Path) -> None:
    journal = Journal(url(tmp_path))
    for number in range(400):
        journal.request(Event("request.drain", "cluster", {"number": number, "text": "x" * 500}))
    journal.close()
    file = tmp_path / "state.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(JournalBroken):
        Journal(url(tmp_path)).load()


def test_a_clock_set_back_by_an_hour_neither_loses_nor_reorders_anything(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    rehearsal.run(lambda state: sum(1 for record in state.nodes.values() if record.facts) > 1)
    rehearsal.site.now_s -= 3600
    state = rehearsal.run(lambda state: state.rollout.finished and not state.requests)
    assert sorted(str(record.state) for record in state.nodes.values()) == ["quarantined", "ready", "ready", "ready"]
    decided = [event.at_s for event in rehearsal.journal.events() if event.epoch and event.kind.startswith("node.")]
    assert decided == sorted(decided)
