"""The journal and its lease: durable before acknowledged, fenced by epoch."""

import os
import signal
import sqlite3
from multiprocessing import get_context
from pathlib import Path

import pytest

from orchestrator.domain.errors import JournalBroken, LeaseHeld
from orchestrator.domain.event import Event
from orchestrator.execution.journal import LEASE_S, TAKEOVER_GRACE_S, Journal, LeaseLost, Observation

NOW_S = 1000.0


def a_journal(tmp_path: Path, **options: object) -> Journal:
    return Journal(f"sqlite:///{tmp_path}/state.db", **options)  # type: ignore[arg-type]


def test_events_come_back_in_order_and_whole(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    epoch = journal.take_lease("h:1:1:a", NOW_S)
    journal.commit([Event("node.moved", "n1", {"to": "ready", "ü": [1, None]}), Event("node.moved", "n2")], epoch, NOW_S)
    events = a_journal(tmp_path).events(after_seq=1)
    assert [(event.subject, dict(event.data)) for event in events] == [("n1", {"to": "ready", "ü": [1, None]}), ("n2", {})]
    assert [event.epoch for event in events] == [epoch, epoch]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    def work() -> None:
        journal = a_journal(tmp_path)
        for number in range(5):
            journal.request(Event("request.drain", "cluster", {"number": number}))
        os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert [event.data["number"] for event in a_journal(tmp_path).events()] == [0, 1, 2, 3, 4]


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    epoch = journal.take_lease("h:1:1:a", NOW_S)
    with pytest.raises(TypeError):
        journal.commit([Event("node.moved", "n1"), Event("node.moved", "n2", {"not json": object()})], epoch, NOW_S)
    assert [event.kind for event in journal.events()] == ["controller.took"]


def test_only_one_holds_the_lease_and_the_other_is_told_who(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.take_lease("rack7:42:1:a", NOW_S)
    with pytest.raises(LeaseHeld, match="process 42 on rack7"):
        journal.take_lease("h:2:2:b", NOW_S + 1)


def test_a_lease_that_ran_out_is_taken_only_after_the_last_exchange_is_over(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.take_lease("h:1:1:a", NOW_S)
    with pytest.raises(LeaseHeld):
        journal.take_lease("h:2:2:b", NOW_S + LEASE_S + TAKEOVER_GRACE_S - 1)
    assert journal.take_lease("h:2:2:b", NOW_S + LEASE_S + TAKEOVER_GRACE_S + 1) == 2


def test_the_lease_of_an_ended_process_is_free_at_once(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, has_ended=lambda holder: holder.startswith("h:1:"))
    journal.take_lease("h:1:1:a", NOW_S)
    assert journal.take_lease("h:2:2:b", NOW_S + 1) == 2


def test_a_passed_epoch_writes_nothing(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    old = journal.take_lease("h:1:1:a", NOW_S)
    journal.release(old)
    new = journal.take_lease("h:2:2:b", NOW_S + 1)
    for write in (
        lambda: journal.commit([Event("node.moved", "n1")], old, NOW_S),
        lambda: journal.renew(old, NOW_S),
        lambda: journal.observe([Observation("n1", "look", NOW_S, {})], old),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert not journal.holds(old, NOW_S + 1)
    assert journal.holds(new, NOW_S + 1)
    assert "node.moved" not in [event.kind for event in journal.events()]


def test_the_right_to_act_ends_with_the_lease(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    epoch = journal.take_lease("h:1:1:a", NOW_S)
    assert journal.holds(epoch, NOW_S + LEASE_S - 1)
    assert not journal.holds(epoch, NOW_S + LEASE_S + 1)


def test_an_observation_replaces_the_one_before(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    epoch = journal.take_lease("h:1:1:a", NOW_S)
    journal.observe([Observation("n1", "bmc.observe", 1.0, {"power": "Off"})], epoch)
    journal.observe([Observation("n1", "bmc.observe", 2.0, {"power": "On"}), Observation("n2", "bmc.observe", 2.0, {})], epoch)
    assert journal.observations("n1") == [Observation("n1", "bmc.observe", 2.0, {"power": "On"})]
    assert len(journal.observations()) == 2


def test_a_file_that_is_no_journal_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(JournalBroken, match=r"cannot open the journal"):
        a_journal(tmp_path)


def test_sqlite_is_told_to_be_durable(tmp_path: Path) -> None:
    a_journal(tmp_path).request(Event("request.x", "cluster"))
    connection = sqlite3.connect(tmp_path / "state.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    journal = a_journal(tmp_path)
    with journal._reading() as reading:
        assert reading.exec_driver_sql("PRAGMA synchronous").scalar() == 2
