"""Transactions of the journal: what is opened, what is made durable, and how the database's own errors become ours."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from orchestrator.domain.errors import JournalBroken, JournalBusy
from orchestrator.execution.journal_lock import write_lock_holder

BUSY_TIMEOUT_S = 20.0


class Written(Protocol):
    """What a write transaction asks of the journal it is of."""

    broken: str
    file: str
    before_write: Callable[[], None] | None
    after_write: Callable[[], None] | None


class Reading:
    """A read transaction; foreign errors become ours."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = engine.connect().execution_options(rackray_read=True)

    def __enter__(self) -> sa.Connection:
        return self._connection.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._connection.__exit__(kind, error, trace)
        translate(error)


class Writing:
    """A write transaction: all or nothing, durable when it ends without an error."""

    def __init__(self, journal: Written, engine: sa.Engine) -> None:
        self._journal = journal
        self._context = engine.begin()

    def __enter__(self) -> sa.Connection:
        if self._journal.broken:
            raise JournalBroken(f"nothing more is written: {self._journal.broken}", "look after the disk, then start again")
        if self._journal.before_write:
            self._journal.before_write()
        try:
            return self._context.__enter__()
        except sa.exc.DatabaseError as error:
            say_who_keeps_it(error, self._journal.file)
            translate(error)
            raise

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except sa.exc.DatabaseError as broken:
            # After a failed fsync the next one may succeed although the pages are lost: never go on in this process.
            self._journal.broken = str(broken.orig)
            translate(broken)
        translate(error)
        if error is None and self._journal.after_write:
            self._journal.after_write()


def say_why_it_stays_shut(error: sa.exc.DatabaseError, file: str) -> None:
    """What is known of a journal that could not be opened, if anything is."""
    say_who_keeps_it(error, file)
    say_whose_it_is(error, file)


def say_who_keeps_it(error: sa.exc.DatabaseError, file: str) -> None:
    """Nobody could write for so long because one process did not end its transaction: name it."""
    if getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        holder = write_lock_holder(file)
        who = f"{holder} keeps it locked" if holder else "some process keeps it locked"
        hint = holder.way_out if holder else "find the process that has it open (`fuser`), and wait for it or end it"
        raise JournalBusy(f"the journal {file} could not be written for {BUSY_TIMEOUT_S:.0f} s: {who}", hint) from error


def say_whose_it_is(error: sa.exc.DatabaseError, file: str) -> None:
    """A journal that lies there and that this user may not write to, not even for the marks a reader leaves: name its owner."""
    refused = getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
    if refused and file and os.path.exists(file) and not (os.access(file, os.W_OK) and os.access(Path(file).parent, os.W_OK)):
        try:
            owner = Path(file).owner()
        except KeyError:
            owner = f"user id {os.stat(file).st_uid}"
        raise JournalBroken(
            f"the journal {file} belongs to {owner}, and this user may not use it",
            f"run rackray as {owner}, or set RACKRAY_HOME to a folder of your own",
        ) from error


def translate(error: BaseException | None) -> None:
    if isinstance(error, sa.exc.DatabaseError):
        raise JournalBroken(
            f"the journal refused a transaction: {error.orig}", "check the disk under RACKRAY_HOME, then start again"
        ) from error


def sqlite_opened(synchronous: str, connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "wal_autocheckpoint=2000"):
        connection.execute(f"PRAGMA {pragma}")


def sqlite_begin_immediate(connection: sa.Connection) -> None:
    # A plain BEGIN would let two writers read the same lease before either writes it.
    reading = connection.get_execution_options().get("rackray_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
