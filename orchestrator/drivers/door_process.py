"""Hands behind a process of their own: operations go in as JSON lines, outcomes come out; its death is an outcome too.

The controller never imports Ray: a Ray that dies (or a driver that Ray aborts) takes this process along, and nothing else.
The process is started in the background and started again, with growing pauses, as often as it ends.
"""

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.domain.errors import RackrayError
from orchestrator.domain.operation import Operation, Outcome
from orchestrator.drivers.outcomes import held, lost

log = logging.getLogger(__name__)

GRACE_S = 15.0
"""The door answers for every operation at its timeout; this much later the door itself is taken to be stuck."""
QUEUE_LIMIT_S = 150.0
"""How long an operation may wait for a door that does not open."""
READY_LIMIT_S = 120.0
"""How long the process may take until it says that it is ready."""
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses before the door is started again; from the first one on after it has been ready."""
WATCH_S = 0.5
CLOSE_LIMIT_S = 3.0
LOG_LIMIT_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the door's process, and how to see that what it depends on still lives."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    """Where its standard error goes."""
    hello: Mapping[str, object]
    """Its first line of input: what it must know and no process list may show, such as a database URL."""
    is_alive: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: Operation
    since_s: float


class DoorProcess:
    """Implements `interfaces.Hands` over a process that answers every JSON line {"operation": ...} by {"outcome": ...}.

    prepare() is called in the background before every start and may take long (it starts a Ray head); it raises
    RackrayError or OSError when it cannot. The process first says {"ready": ...}; only then anything is handed over.
    """

    def __init__(self, name: str, prepare: Callable[[], Launch], *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._prepare, self._now_s = prepare, monotonic_s
        self._change = threading.Condition()
        self._queued: deque[_Waiting] = deque()
        self._in_flight: dict[str, _Waiting] = {}
        self._outcomes: list[Outcome] = []
        self._closing = False
        self._ready = False
        self._ended = False
        self._problem = "it has not started yet"
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep_open, daemon=True, name=f"rackray-door-{name}")
        self._keeper.start()

    def submit(self, operations: Sequence[Operation]) -> None:
        """Takes the operations and returns at once; they wait while the door is not open."""
        with self._change:
            now_s = self._now_s()
            for operation in operations:
                if self._closing:
                    self._outcomes.append(held(operation, f"the {self.name} door is closed"))
                else:
                    self._queued.append(_Waiting(operation, now_s))
            self._change.notify_all()

    def poll(self) -> list[Outcome]:
        """The outcomes that have come since the last call, without waiting."""
        with self._change:
            self._expire()
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Ends the process; operations under way end with it and are looked at again by whoever decides next."""
        with self._change:
            self._closing = True
            self._queued.clear()
            self._in_flight.clear()
            self._outcomes.clear()
            self._change.notify_all()
            process = self._process
        if process is not None:
            self._end(process)
        # A head that is just being started is not waited for: it would only be adopted next time.
        self._keeper.join(timeout=1.0)

    def _expire(self) -> None:
        """Gives an outcome to what has waited too long. The lock is held."""
        now_s = self._now_s()
        while self._queued and now_s - self._queued[0].since_s > QUEUE_LIMIT_S:
            waited = self._queued.popleft().operation
            reason = f"the {self.name} door did not open within {QUEUE_LIMIT_S:.0f} s: {self._problem}"
            self._outcomes.append(held(waited, reason))
        for waiting in list(self._in_flight.values()):
            limit_s = waiting.operation.timeout_s + GRACE_S
            if now_s - waiting.since_s > limit_s:
                del self._in_flight[waiting.operation.id]
                self._outcomes.append(lost(waiting.operation, f"the {self.name} door gave no answer within {limit_s:.0f} s"))

    def _keep_open(self) -> None:
        failures = 0
        while not self._closing:
            try:
                launch = self._prepare()
                was_ready = self._run_once(launch)
            except (RackrayError, OSError, subprocess.SubprocessError) as error:
                way_out = f"; {error.hint}" if isinstance(error, RackrayError) and error.hint else ""
                was_ready, self._problem = False, f"{error}{way_out}"
            except Exception as error:
                # A fault of our own must not leave operations waiting at a door that nobody keeps.
                log.exception("keeping the %s door", self.name)
                was_ready, self._problem = False, repr(error)
            if self._closing:
                return
            failures = 1 if was_ready else failures + 1
            pause_s = PAUSES_S[min(failures, len(PAUSES_S)) - 1]
            log.warning("the %s Ray is out of reach: %s; next try in %.1f s", self.name, self._problem, pause_s)
            with self._change:
                self._change.wait_for(lambda: self._closing, timeout=pause_s)

    def _run_once(self, launch: Launch) -> bool:
        """One life of the process; True if it became ready."""
        began = _room_for_log(launch.log)
        with launch.log.open("ab") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                launch.argv,
                env=dict(launch.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C in a terminal is for the controller, which closes this door in order
            )
        try:
            return self._live(process, launch, began)
        finally:
            self._end(process)

    def _live(self, process: subprocess.Popen[bytes], launch: Launch, began: int) -> bool:
        to_door, from_door = process.stdin, process.stdout
        if to_door is None or from_door is None:
            raise OSError(f"the {self.name} door has no pipes")
        with self._change:
            self._process, self._ready, self._ended = process, False, False
        reader = threading.Thread(target=self._read, args=(from_door,), daemon=True, name=f"rackray-door-{self.name}-answers")
        reader.start()
        why = self._write_until_end(to_door, launch)
        self._end(process)
        reader.join()
        from_door.close()
        with self._change:
            was_ready, self._ready, self._process = self._ready, False, None
            said = _last_words(launch.log, began) if process.returncode else ""
            self._problem = f"{why} (exit status {process.returncode}){': ' + said if said else ''}"
            for waiting in self._in_flight.values():
                self._outcomes.append(lost(waiting.operation, f"the {self.name} door fell shut: {self._problem}"))
            self._in_flight.clear()
        return was_ready

    def _write_until_end(self, pipe: IO[bytes], launch: Launch) -> str:
        """Hands operations over until the process, what it depends on or these Hands end; says which."""
        born_s = self._now_s()
        try:
            pipe.write(json.dumps({"hello": dict(launch.hello)}).encode() + b"\n")
            pipe.flush()
        except (OSError, ValueError):  # ValueError: `close` has shut the pipe meanwhile
            return "its process ended"
        while True:
            with self._change:
                self._change.wait_for(
                    lambda: self._closing or self._ended or (self._ready and bool(self._queued)), timeout=WATCH_S
                )
                if self._closing:
                    return "it was closed"
                if self._ended:
                    return "its process ended"
                batch = self._take_queued() if self._ready else []
                ready = self._ready
            if not launch.is_alive():
                return "its Ray head ended"
            if not ready and self._now_s() - born_s > READY_LIMIT_S:
                return f"it was not ready within {READY_LIMIT_S:.0f} s"
            try:
                for operation in batch:
                    pipe.write(json.dumps({"operation": operation.to_json()}).encode() + b"\n")
                pipe.flush()
            except (OSError, ValueError):
                return "its process ended"

    def _take_queued(self) -> list[Operation]:
        """From here on they count as handed over. The lock is held."""
        now_s = self._now_s()
        batch = [waiting.operation for waiting in self._queued]
        self._queued.clear()
        self._in_flight.update({operation.id: _Waiting(operation, now_s) for operation in batch})
        return batch

    def _read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            try:
                said = json.loads(line)
                outcome = Outcome.from_json(said["outcome"]) if "outcome" in said else None
            except (ValueError, KeyError, TypeError) as error:
                log.error("the %s door said what nobody understands (%s): %.200r", self.name, error, line)
                continue
            with self._change:
                if "ready" in said:
                    self._ready = True
                elif outcome is not None and self._in_flight.pop(outcome.operation, None) is not None:
                    self._outcomes.append(outcome)
                elif outcome is not None:
                    log.warning("%s: outcome %s came too late or twice", outcome.operation, outcome.status)
                self._change.notify_all()
        with self._change:
            self._ended = True
            self._change.notify_all()

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """The end of its input asks it to go; then signals do."""
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # a pipe without a reader: it is gone already
                process.stdin.close()
        for insist in (lambda: None, process.terminate, process.kill):
            insist()
            try:
                process.wait(timeout=CLOSE_LIMIT_S)
                return
            except subprocess.TimeoutExpired:
                continue
        process.wait()


def _room_for_log(path: Path) -> int:
    """Makes the folder, keeps the log from growing for ever, and returns where the next life begins in it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(path.suffix + ".1"))
    return path.stat().st_size if path.exists() else 0


def _last_words(path: Path, began: int) -> str:
    with path.open("rb") as file:
        file.seek(max(began, file.seek(0, 2) - 4000))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
