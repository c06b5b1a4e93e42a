"""The journal: an append-only table of events that is on disk before anything is acknowledged, and the lease that fences it.

SQLite in WAL mode with synchronous=FULL by default; any SQLAlchemy URL works, because only Core is used. Four tables:
`events` (the truth), `observations` (the latest look at each thing and its age; no history), `lease` (who decides), and
`snapshots` (node records as a fold had them, so that a restart need not fold everything; throwing it away loses nothing).
"""

import contextlib
import functools
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from orchestrator.domain.errors import JournalBroken, LeaseHeld
from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeRecord
from orchestrator.domain.operation import TIMEOUT_S
from orchestrator.domain.record_json import RECORD_SHAPE, record_from_json, record_to_json
from orchestrator.domain.state import ClusterState
from orchestrator.execution.journal_transactions import (
    BUSY_TIMEOUT_S,
    Reading,
    Writing,
    say_why_it_stays_shut,
    sqlite_begin_immediate,
    sqlite_opened,
)
from orchestrator.planning.settle import SETTLE

WHEN_IT_CANNOT_BE_OPENED = (
    "is its disk full (`df`) or broken (`dmesg`)? If neither, restore it from a backup, or name another RACKRAY_HOME"
)
_META = sa.MetaData()
_EVENTS = sa.Table(
    "events",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(128), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
_NOT_OF_NODES = ~_EVENTS.c.kind.like("node.%")
sa.Index("events_not_of_nodes", _EVENTS.c.seq, sqlite_where=_NOT_OF_NODES, postgresql_where=_NOT_OF_NODES)
_OBSERVATIONS = sa.Table(
    "observations",
    _META,
    sa.Column("subject", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)
_LEASE = sa.Table(
    "lease",
    _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(256), nullable=False),
    sa.Column("until_s", sa.Float, nullable=False),
)
_SNAPSHOTS = sa.Table(
    "snapshots",
    _META,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)
_CLOCKS = sa.Table(
    "clocks",
    _META,
    sa.Column("boot", sa.String(128), primary_key=True),
    sa.Column("offset_s", sa.Float, nullable=False),
)
_HEAD = ""
"""The row of `snapshots` that belongs to no node: the seq up to which all rows hold, and the shape of a record in `data`."""
_EVENT_COLUMNS = (_EVENTS.c.seq, _EVENTS.c.at_s, _EVENTS.c.epoch, _EVENTS.c.kind, _EVENTS.c.subject, _EVENTS.c.data)
_AFTER = sa.select(*_EVENT_COLUMNS).where(_EVENTS.c.seq > sa.bindparam("seq")).order_by(_EVENTS.c.seq)
_OTHERS = sa.select(*_EVENT_COLUMNS).where((_EVENTS.c.seq <= sa.bindparam("seq")) & _NOT_OF_NODES).order_by(_EVENTS.c.seq)
_FIRST_ANSWERS = sa.select(sa.func.min(_EVENTS.c.seq)).where(_EVENTS.c.kind == "node.ended").group_by(_EVENTS.c.subject)
_OF_STAGES = (
    sa.select(*_EVENT_COLUMNS)
    .where(
        (_EVENTS.c.seq <= sa.bindparam("seq"))
        & (
            (_EVENTS.c.kind == "node.moved")
            | (_EVENTS.c.kind == "spec.applied")
            | (_EVENTS.c.kind == "controller.slept")
            | _EVENTS.c.kind.like("rollout.%")
            | _EVENTS.c.seq.in_(_FIRST_ANSWERS)
        )
    )
    .order_by(_EVENTS.c.seq)
)
_LAST = sa.select(sa.func.max(_EVENTS.c.seq))
_LEASE_ROW = sa.select(_LEASE.c.epoch, _LEASE.c.holder, _LEASE.c.until_s).where(_LEASE.c.id == 1)
_WHO_DECIDES = sa.select(_LEASE.c.epoch, _LEASE.c.holder).where(_LEASE.c.id == 1)
_RENEW = sa.update(_LEASE).where(_LEASE.c.id == 1).values(until_s=sa.bindparam("until"))
# Statements of every tick are made once: making and comparing them anew costs more than SQLite's work.
_COLUMN_NAMES = ", ".join(column.name for column in _EVENT_COLUMNS)
_encode = json.JSONEncoder(sort_keys=True).encode
_PUT_LOOK = sa.text(
    "INSERT INTO observations (subject, key, at_s, data) VALUES (:subject, :key, :at_s, :data) "
    "ON CONFLICT (subject, key) DO UPDATE SET at_s = excluded.at_s, data = excluded.data"
)
_PUT_RECORD = sa.text(
    "INSERT INTO snapshots (name, seq, data) VALUES (:name, :seq, :data) "
    "ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, data = excluded.data"
)

_PUT_CLOCK = sa.text(
    "INSERT INTO clocks (boot, offset_s) VALUES (:boot, :offset_s) ON CONFLICT (boot) DO UPDATE SET offset_s = excluded.offset_s"
)
_OFFSET = sa.select(_CLOCKS.c.offset_s).where(_CLOCKS.c.boot == sa.bindparam("boot"))

PARSED_AT_ONCE = 1000
"""Rows of events whose JSON is parsed in one go."""
LEASE_S = 15.0
"""How long a lease lasts without being renewed, in seconds."""
TAKEOVER_GRACE_S = max(TIMEOUT_S[action] for action, rule in SETTLE.items() if rule.within_s)
"""Extra wait before the lease of a holder that may still live is taken: its longest exchange that must not be made twice."""


class LeaseLost(LeaseHeld):
    """This controller's epoch has passed; nothing more may be decided or sent."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who decides, and until when (seconds since the epoch)."""

    epoch: int
    holder: str
    until_s: float


@dataclass(frozen=True, slots=True)
class Observation:
    """The latest look at one thing."""

    subject: str
    key: str
    at_s: float
    data: Any


class Journal:
    """One connection pool to the journal. Every method that writes has made it durable when it returns."""

    def __init__(
        self,
        url: str,
        has_ended: Callable[[str], bool] = lambda holder: False,
        before_write: Callable[[], None] | None = None,
        after_write: Callable[[], None] | None = None,
        durable: bool = True,
        steady_s: Callable[[], float] | None = None,
    ) -> None:
        """Open (and create) the journal at `url`. One of a rehearsal need not be `durable`: nothing in it was really done.

        `has_ended` says whether a lease holder's process has certainly ended, so that its lease need not run out first. The two
        hooks are called around every write; tests kill the process there. `steady_s` is a timer that nobody sets: with it the
        lease of another host is judged by how long it was seen unchanged, not by two clocks alone. Raises JournalBroken when the
        file cannot be opened, or is no journal of ours.
        """
        self._has_ended, self.before_write, self.after_write = has_ended, before_write, after_write
        self._steady_s, self._watched, self._watched_since_s = steady_s, Lease(0, "", 0.0), 0.0
        self.broken = ""
        """Why nothing more is written: a commit failed. What the disk then holds is known only after opening it anew."""
        self.file = sa.make_url(url).database or ""
        """The file it lies in, where it is one."""
        self._engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S} if url.startswith("sqlite") else {})
        if url.startswith("sqlite"):
            sa.event.listen(self._engine, "connect", functools.partial(sqlite_opened, "FULL" if durable else "OFF"))
            sa.event.listen(self._engine, "begin", sqlite_begin_immediate)
        try:
            # Looked at first: making tables needs the write lock, and whoever only reads must not wait for it.
            with self._engine.connect().execution_options(rackray_read=True) as connection:
                is_made = set(sa.inspect(connection).get_table_names()) >= set(_META.tables)
            if not is_made:
                _META.create_all(self._engine)
        except sa.exc.DatabaseError as error:
            say_why_it_stays_shut(error, self.file)
            where = self._engine.url.render_as_string(hide_password=True)
            raise JournalBroken(f"cannot open the journal {where}: {error.orig}", WHEN_IT_CANNOT_BE_OPENED) from error

    def close(self) -> None:
        """Close every connection. A process that forks must do so first: SQLite's locks do not survive a fork."""
        self._engine.dispose()

    # ------------------------------------------------------------------ reading
    def events(self, after_seq: int = 0) -> list[Event]:
        """Events with a seq above `after_seq`, oldest first."""
        with self._reading() as connection:
            return list(_events(connection, _AFTER, after_seq))

    def events_of_stages(self, upto_seq: int) -> Iterator[Event]:
        """Of the events up to `upto_seq` those that tell how long stages took, oldest first: what `StageTimes` learns from.

        Exchanges are nine tenths of a journal, and only the first answer of each node begins a stage; the rest stays unread.
        """
        with self._reading() as connection, _no_collection():
            yield from _events(connection.execution_options(yield_per=5000), _OF_STAGES, upto_seq)

    def load(self) -> ClusterState:
        """The present state: the fold over all events; nodes begin at the latest snapshot, where there is one."""
        state = ClusterState()
        with self._reading() as connection, _no_collection():
            connection = connection.execution_options(yield_per=5000)
            head = connection.execute(sa.select(_SNAPSHOTS.c.seq, _SNAPSHOTS.c.data).where(_SNAPSHOTS.c.name == _HEAD)).first()
            upto = head.seq if head is not None and head.data == RECORD_SHAPE else 0
            if upto:
                rows = connection.execute(sa.select(_SNAPSHOTS.c.name, _SNAPSHOTS.c.data).where(_SNAPSHOTS.c.name != _HEAD))
                state.nodes.update((row.name, record_from_json(json.loads(row.data))) for row in rows)
                state.identities.follow_all(state.nodes.values())
                for event in _events(connection, _OTHERS, upto):
                    state.apply(event)
                state.seq = upto
            for event in _events(connection, _AFTER, upto):
                state.apply(event)
        return state

    def newest_s(self) -> float:
        """The latest time a controller gave a decision, from which the clock may have been set back since; 0.0 if none has."""
        decided = (_EVENTS.c.epoch > 0) & (_EVENTS.c.kind != "controller.took")
        newest = sa.select(_EVENTS.c.at_s).where(decided).order_by(_EVENTS.c.seq.desc()).limit(1)
        with self._reading() as connection:
            return float(connection.execute(newest).scalar() or 0.0)

    def digest(self) -> str:
        """SHA-256 over every event as it is stored, in hex: the same history has the same digest."""
        digest = hashlib.sha256()
        with self._reading() as connection:
            query = sa.select(*_EVENT_COLUMNS).order_by(_EVENTS.c.seq)
            for row in connection.execution_options(yield_per=5000).execute(query):
                digest.update(repr(tuple(row)).encode())
        return digest.hexdigest()

    def observations(self, subject: str = "") -> list[Observation]:
        """Latest observations, of one subject or of all."""
        query = sa.select(_OBSERVATIONS)
        with self._reading() as connection:
            rows = connection.execute(query.where(_OBSERVATIONS.c.subject == subject) if subject else query).all()
        return [Observation(row.subject, row.key, row.at_s, json.loads(row.data)) for row in rows]

    def lease(self) -> Lease | None:
        """The lease as it stands, or None if nobody ever took it."""
        with self._reading() as connection:
            row = _quick(connection, _LEASE_ROW).first()
        return Lease(row.epoch, row.holder, row.until_s) if row else None

    # ------------------------------------------------------------------ writing
    def request(self, event: Event) -> Event:
        """Append what somebody asks of the controller. Anyone may; it is on disk when this returns."""
        with self._writing() as connection:
            return self._append(connection, [event], 0, event.at_s)[0]

    def commit(
        self, events: Sequence[Event], epoch: int, now_s: float, renew: bool = True, looks: Sequence[Observation] = ()
    ) -> list[Event]:
        """Append decisions and replace the latest observations, all or none; returns the events as the journal holds them.

        Raises LeaseLost when `epoch` no longer decides; then nothing is written.
        """
        with self._writing() as connection:
            self._check(connection, epoch)
            if renew:
                _quick(connection, _RENEW, until=now_s + LEASE_S)
            _put_looks(connection, looks)
            return self._append(connection, events, epoch, now_s)

    def observe(self, observations: Iterable[Observation], epoch: int) -> None:
        """Replace the latest observations. Raises LeaseLost like `commit`."""
        rows = list(observations)
        if not rows:
            return
        with self._writing() as connection:
            self._check(connection, epoch)
            _put_looks(connection, rows)

    def keep_snapshot(self, records: Iterable[NodeRecord], seq: int, epoch: int) -> None:
        """Keep `records`, which are as the events up to `seq` left them; records not named are as the last snapshot has them.

        A snapshot of another shape of record (written by another rackray) is dropped: then name them all. See `snapshot_seq`.
        """
        rows = [{"name": record.name, "seq": seq, "data": json.dumps(record_to_json(record))} for record in records]
        with self._writing() as connection:
            self._check(connection, epoch)
            connection.execute(_PUT_RECORD, [*rows, {"name": _HEAD, "seq": seq, "data": RECORD_SHAPE}])

    def snapshot_seq(self) -> int:
        """The seq up to which the present snapshot holds; 0 if there is none, or none that this rackray reads."""
        with self._reading() as connection:
            head = connection.execute(sa.select(_SNAPSHOTS.c.seq, _SNAPSHOTS.c.data).where(_SNAPSHOTS.c.name == _HEAD)).first()
        return head.seq if head is not None and head.data == RECORD_SHAPE else 0

    # ------------------------------------------------------------------ time and the lease
    def clock_offset_s(self, boot: str) -> float | None:
        """What to add to the timer of this boot to have the journal's time; None where nobody has settled it."""
        with self._reading() as connection:
            found = _quick(connection, _OFFSET, boot=boot).scalar()
        return None if found is None else float(found)

    def keep_clock(self, boot: str, offset_s: float, epoch: int) -> None:
        """Settle that number. Raises LeaseLost like `commit`."""
        with self._writing() as connection:
            self._check(connection, epoch)
            connection.execute(_PUT_CLOCK, {"boot": boot, "offset_s": offset_s})

    def clock_ahead_s(self) -> float:
        """How far the clock was last seen ahead of the journal's time, in seconds."""
        told = _NOT_OF_NODES & (_EVENTS.c.kind == "controller.clock")
        with self._reading() as connection:
            data = connection.execute(sa.select(_EVENTS.c.data).where(told).order_by(_EVENTS.c.seq.desc()).limit(1)).scalar()
        return float(json.loads(data)["ahead_s"]) if data else 0.0

    def is_free(self, lease: Lease | None, now_s: float) -> bool:
        """Whether anyone may take it: given back, its holder has ended, or it ran out so long ago that every exchange is over."""
        if lease is None or not lease.holder or self._has_ended(lease.holder):
            return True
        has_run_out = now_s > lease.until_s + TAKEOVER_GRACE_S
        if self._steady_s is None:
            return has_run_out
        if lease != self._watched:
            self._watched, self._watched_since_s = lease, self._steady_s()
        unchanged_s = self._steady_s() - self._watched_since_s
        # Its holder may be on a host with another clock: one that lives renews in time, and one that does not never will.
        return unchanged_s > LEASE_S + TAKEOVER_GRACE_S or (has_run_out and unchanged_s > LEASE_S)

    def take_lease(self, holder: str, now_s: float) -> int:
        """Become the one who decides; returns the new epoch. Raises LeaseHeld while somebody else does."""
        with self._writing() as connection:
            row = _quick(connection, _LEASE_ROW).first()
            if row is not None and not self.is_free(Lease(row.epoch, row.holder, row.until_s), now_s):
                raise LeaseHeld(
                    f"{describe_holder(row.holder)} decides at the moment (epoch {row.epoch})",
                    "your request is journaled and will be carried out there; `rackray status` shows the progress",
                )
            epoch = (row.epoch if row else 0) + 1
            values = {"id": 1, "epoch": epoch, "holder": holder, "until_s": now_s + LEASE_S}
            connection.execute(sa.delete(_LEASE))
            connection.execute(sa.insert(_LEASE).values(values))
            self._append(connection, [Event("controller.took", "cluster", {"holder": describe_holder(holder)})], epoch, now_s)
            return epoch

    def renew(self, epoch: int, now_s: float) -> None:
        """Keep the lease. Raises LeaseLost when `epoch` no longer decides."""
        with self._writing() as connection:
            self._check(connection, epoch)
            _quick(connection, _RENEW, until=now_s + LEASE_S)

    def release(self, epoch: int) -> None:
        """Give the lease back, so that the next controller need not wait; no effect if it has passed already."""
        with self._writing() as connection:
            mine = (_LEASE.c.id == 1) & (_LEASE.c.epoch == epoch)
            connection.execute(sa.update(_LEASE).where(mine).values(holder="", until_s=0.0))

    def holds(self, epoch: int, now_s: float) -> bool:
        """Whether `epoch` is the one that decides and its lease has not run out: asked before each exchange."""
        lease = self.lease()
        return lease is not None and lease.epoch == epoch and bool(lease.holder) and lease.until_s > now_s

    # ------------------------------------------------------------------ helpers
    def _check(self, connection: sa.Connection, epoch: int) -> None:
        row = _quick(connection, _WHO_DECIDES).first()
        if row is None or row.epoch != epoch or not row.holder:
            raise LeaseLost(f"epoch {epoch} has passed; epoch {row.epoch if row else 0} decides now")

    def _append(self, connection: sa.Connection, events: Sequence[Event], epoch: int, now_s: float) -> list[Event]:
        """Append them under the next numbers. The write lock is held, so that nobody else can give the same ones."""
        if not events:
            return []
        texts = [_encode(dict(event.data)) for event in events]
        if connection.dialect.name != "sqlite":
            connection.exec_driver_sql("LOCK TABLE events IN EXCLUSIVE MODE")
        last = _quick(connection, _LAST).scalar() or 0
        # Parsed back from what is written: a fold in memory must not differ from one over the file.
        written = [
            Event(event.kind, event.subject, json.loads(text), event.at_s or now_s, epoch, seq)
            for seq, (event, text) in enumerate(zip(events, texts, strict=True), last + 1)
        ]
        rows = [(each.seq, each.at_s, epoch, each.kind, each.subject, text) for each, text in zip(written, texts, strict=True)]
        if connection.dialect.paramstyle == "qmark":
            # Straight to the driver: half of the time of a group commit would go into naming the columns of every row.
            connection.exec_driver_sql(f"INSERT INTO events ({_COLUMN_NAMES}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608 - our names
        else:
            connection.execute(sa.insert(_EVENTS), [dict(zip(_COLUMN_NAMES.split(", "), row, strict=True)) for row in rows])
        return written

    def _reading(self) -> Reading:
        return Reading(self._engine)

    def _writing(self) -> Writing:
        return Writing(self, self._engine)


def _events(connection: sa.Connection, query: sa.Select[Any], bound: int) -> Iterator[Event]:
    for rows in _quick(connection, query, seq=bound).partitions(PARSED_AT_ONCE):
        seqs, times, epochs, kinds, subjects, texts = zip(*rows, strict=True)
        # One long array costs the parser far less than a thousand short texts.
        parsed = json.loads(f"[{','.join(texts)}]")
        if len(parsed) != len(rows):
            raise ValueError(f"events {seqs[0]} to {seqs[-1]}: the data of one of them is not one JSON value")
        yield from map(Event, kinds, subjects, parsed, times, epochs, seqs)


def _quick(connection: sa.Connection, statement: Any, **values: Any) -> Any:
    """`connection.execute` for the statements of every tick: what SQLAlchemy does for each costs more than SQLite's own work."""
    key = (statement, connection.dialect.name)
    if key not in _COMPILED:
        compiled = statement.compile(dialect=connection.dialect)
        _COMPILED[key] = str(compiled), compiled.positiontup or (), dict(compiled.params)
    text, names, given = _COMPILED[key]
    filled = {**given, **values}
    return connection.exec_driver_sql(text, tuple(filled[name] for name in names) if names else filled or None)


_COMPILED: dict[tuple[sa.Executable, str], tuple[str, Sequence[str], dict[str, Any]]] = {}
"""Per statement and dialect: its text, the order of its parameters where they have no names, the values it was made with."""


def _put_looks(connection: sa.Connection, looks: Sequence[Observation]) -> None:
    if looks:
        rows = [{"subject": x.subject, "key": x.key, "at_s": x.at_s, "data": _encode(x.data)} for x in looks]
        connection.execute(_PUT_LOOK, rows)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A fold makes millions of values and no circles among them: looking for circles meanwhile would double its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def describe_holder(holder: str) -> str:
    """The holder for people. Holders are written HOST:PID:START:NONCE."""
    host, pid, *_ = [*holder.split(":"), "?"]
    return f"process {pid} on {host}"
