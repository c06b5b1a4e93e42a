"""A process that is frozen inside a transaction keeps everybody from writing: it is named, and ending it loses nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import JournalBusy
from orchestrator.domain.event import Event
from orchestrator.execution import journal as journal_module
from orchestrator.execution.journal import Journal
from orchestrator.execution.journal_lock import write_lock_holder

FREEZES = """
import os, signal, sys
from orchestrator.domain.event import Event
from orchestrator.execution.journal import Journal
journal = Journal(sys.argv[1])
epoch = journal.take_lease("host:1:1:frozen", 1000.0)
print("acknowledged", journal.request(Event("request.drain", "cluster", {"number": 1})).seq, flush=True)
with journal._writing() as connection:
    journal._append(connection, [Event("request.drain", "cluster", {"number": 2})], epoch, 1001.0)
    print("frozen", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
print("awake", flush=True)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def frozen(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """A controller that holds the lease and is stopped in the middle of writing."""
    monkeypatch.setattr(journal_module, "BUSY_TIMEOUT_S", 0.2)
    process = subprocess.Popen([sys.executable, "-c", FREEZES, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().split()[0] for _ in range(2)] == ["acknowledged", "frozen"]
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    yield process
    process.kill()
    process.wait()


def test_whoever_cannot_write_is_told_which_process_keeps_the_lock(url: str, frozen: "subprocess.Popen[str]") -> None:
    journal = Journal(url)
    for write in (lambda: journal.request(Event("request.drain", "cluster")), lambda: journal.take_lease("h:2:2:b", 9e9)):
        with pytest.raises(JournalBusy, match=rf"process {frozen.pid} .*, which is stopped keeps it locked") as said:
            write()
        assert f"kill -CONT {frozen.pid}" in said.value.hint
    assert [event.kind for event in journal.events()] == ["controller.took", "request.drain"], "reading goes on"


def test_ending_the_frozen_process_frees_the_journal_and_loses_nothing_acknowledged(
    url: str, frozen: "subprocess.Popen[str]"
) -> None:
    frozen.kill()
    frozen.wait()
    journal = Journal(url, has_ended=lambda holder: True)
    assert journal.take_lease("host:2:2:next", 1002.0) == 2
    assert [event.data["number"] for event in journal.events() if event.kind == "request.drain"] == [1]
    assert write_lock_holder(journal.file) is None


def test_a_woken_process_ends_its_transaction_and_the_next_one_takes_over(url: str, frozen: "subprocess.Popen[str]") -> None:
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(timeout=60) == 0
    journal = Journal(url, has_ended=lambda holder: True)
    assert journal.take_lease("host:2:2:next", 1002.0) == 2
    assert [event.data["number"] for event in journal.events() if event.kind == "request.drain"] == [1, 2]
