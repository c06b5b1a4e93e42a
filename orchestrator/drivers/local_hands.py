"""Hands made of threads in this process: for a few hundred nodes, for tests, and where no Ray is wanted."""

import logging
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.operation import Action, Operation, Outcome, Status
from orchestrator.drivers.interfaces import MayAct, Playbooks
from orchestrator.drivers.outcomes import fenced, held, lost
from orchestrator.drivers.own_limits import own_limit

log = logging.getLogger(__name__)

PER_BMC = 2
"""Exchanges at once with one BMC: most keep few sessions and refuse more connections than that for seconds."""
GRACE_S = 5.0
"""An exchange ends by itself at its timeout; this much later its thread is taken to hang."""
SILENT_S = 3.0
"""A neighbour whose last exchange took this long and ended without an answer is called silent."""
SILENT_SHARE = 0.5
"""The part of the threads that silent neighbours may hold: those that answer do not wait for a dead rack."""
HUNG_LIMIT = 256
"""Threads that may hang before nothing more is started: each holds memory and a socket."""
GATHER_S = 0.3
"""How long a playbook waits for more nodes: one run on many nodes costs little more than a run on one."""


@dataclass(slots=True)
class _Job:
    """What one thread does: one exchange, or one playbook on several nodes."""

    operations: dict[str, Operation] = field(default_factory=dict)
    """Those without an outcome yet, by id."""
    playbook: str = ""
    started_s: float | None = None
    hung: bool = False

    @property
    def bmc(self) -> str:
        """Address of the BMC it speaks to; empty if it speaks to none."""
        first = next(iter(self.operations.values()))
        return f"{first.target.bmc_host}:{first.target.bmc_port}" if first.action.startswith("bmc.") else ""

    @property
    def neighbour(self) -> str:
        """Whom it speaks to: a BMC, or a node; empty for a playbook, which speaks to many."""
        first = next(iter(self.operations.values()))
        return "" if self.playbook else self.bmc or f"{first.target.ssh_host}:{first.target.ssh_port}"


class LocalHands:
    """Implements `interfaces.Hands` with at most `threads` threads at work.

    perform(operation) makes one exchange, fencing included, and returns its outcome; what it raises becomes UNKNOWN.
    Playbooks run only if both `playbooks` and `may_act` are given; nodes that come within `gather_s` share a run.
    A thread that hangs beyond its operation's timeout is given up: its operation is UNKNOWN and its place is free again.
    """

    def __init__(
        self,
        perform: Callable[[Operation], Outcome],
        playbooks: Playbooks | None = None,
        threads: int = 32,
        *,
        may_act: MayAct | None = None,
        gather_s: float = GATHER_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if playbooks is not None and may_act is None:
            raise ValueError("playbooks need may_act: nobody else would check the epoch before they run")
        self._perform, self._playbooks, self._may_act = perform, playbooks, may_act
        self._threads, self._gather_s, self._now_s = threads, gather_s, monotonic_s
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._gathering: dict[str, _Job] = {}
        self._running: list[_Job] = []
        self._at_bmc: Counter[str] = Counter()
        self._silent: set[str] = set()
        self._with_silent: set[int] = set()
        self._hung = 0
        self._outcomes: list[Outcome] = []
        self._closed = False

    def submit(self, operations: Sequence[Operation]) -> None:
        """Takes the operations and returns at once."""
        with self._lock:
            for operation in operations:
                if self._closed:
                    self._outcomes.append(held(operation, "these hands are closed"))
                elif operation.action is Action.PLAYBOOK:
                    self._gather(operation)
                else:
                    self._waiting.append(_Job({operation.id: operation}))
            self._start_some()

    def poll(self) -> list[Outcome]:
        """The outcomes that have come since the last call, without waiting."""
        with self._lock:
            self._give_up_on_hung()
            self._start_some()
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Starts nothing more. Exchanges under way end by themselves; their threads do not keep the process alive."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._gathering.clear()

    def _gather(self, operation: Operation) -> None:
        name = str(operation.args.get("playbook"))
        job = self._gathering.get(name)
        if job is None:
            job = self._gathering[name] = _Job(playbook=name)
            self._waiting.append(job)
        job.operations[operation.id] = operation

    def _start_some(self) -> None:
        """Starts waiting jobs while there is a place, and a place at their BMC. The lock is held."""
        if self._hung >= HUNG_LIMIT:
            while self._waiting:
                self._end(
                    self._waiting.popleft(),
                    f"{self._hung} exchanges hang beyond their timeouts; restart the controller",
                    held,
                )
            self._gathering.clear()
            return
        passed_by: list[_Job] = []
        while self._waiting and len(self._running) < self._threads:
            job = self._waiting.popleft()
            if (job.bmc and self._at_bmc[job.bmc] >= PER_BMC) or not self._has_place_for(job):
                passed_by.append(job)
                continue
            self._at_bmc[job.bmc] += 1
            self._running.append(job)
            job.started_s = self._now_s()
            self._start(job)
        self._waiting.extendleft(reversed(passed_by))

    def _start(self, job: _Job) -> None:
        """Gives the job a thread, or its operations back where this process may have no more. The lock is held."""
        bmc = job.bmc
        try:
            threading.Thread(target=self._work, args=(job, bmc), daemon=True, name="rackray-exchange").start()
        except RuntimeError as error:
            limit = own_limit(error, "no exchange can be started")
            if limit is None:
                raise
            self._gathering = {name: each for name, each in self._gathering.items() if each is not job}
            self._end(job, f"{limit} ({limit.hint})", held)
            self._leave(job, bmc)

    def _has_place_for(self, job: _Job) -> bool:
        """Takes a place among the silent if the job's neighbour is one of them. The lock is held."""
        if job.neighbour not in self._silent:
            return True
        if len(self._with_silent) >= max(1, int(self._threads * SILENT_SHARE)):
            return False
        self._with_silent.add(id(job))
        return True

    def _note_silence(self, job: _Job, outcome: Outcome) -> None:
        """Remembers who did not answer, and forgets it once he does. The lock is held; the job still has its operation."""
        if not (neighbour := job.neighbour):
            return
        if outcome.status in (Status.UNREACHABLE, Status.UNKNOWN) and outcome.seconds >= SILENT_S:
            self._silent.add(neighbour)
        else:
            self._silent.discard(neighbour)

    def _give_up_on_hung(self) -> None:
        now_s = self._now_s()
        for job in [job for job in self._running if job.started_s is not None and not job.hung]:
            limit_s = max((operation.timeout_s for operation in job.operations.values()), default=0.0) + GRACE_S
            if job.operations and now_s - (job.started_s or 0.0) > limit_s:
                log.error("%s: no end after %.0f s; given up", ", ".join(job.operations), limit_s)
                bmc = job.bmc
                self._end(job, f"no answer within {limit_s:.0f} s, and the exchange does not end", lost)
                job.hung = True
                self._hung += 1
                self._leave(job, bmc)

    def _work(self, job: _Job, bmc: str) -> None:
        try:
            if job.playbook:
                self._run_playbook(job)
            else:
                (operation,) = job.operations.values()
                self._finish(job, self._perform(operation))
            reason = "its executor ended without an outcome"
        except Exception as error:
            # Whatever it is, the operation must not be lost; that the executor broke is said in the log and in the outcome.
            log.exception("executor broke at %s", ", ".join(job.operations))
            reason = f"the executor broke: {traceback.format_exception_only(error)[-1].strip()}"
        with self._lock:
            self._end(job, reason, lost)
            if job.hung:
                self._hung -= 1  # it did end, late
            else:
                self._leave(job, bmc)
            if not self._closed:
                self._start_some()

    def _run_playbook(self, job: _Job) -> None:
        if self._playbooks is None or self._may_act is None:
            raise RuntimeError("these hands were made without playbooks")
        time.sleep(self._gather_s)
        with self._lock:
            if self._gathering.get(job.playbook) is job:
                del self._gathering[job.playbook]
            operations = list(job.operations.values())
        allowed = []
        for operation in operations:
            if self._may_act(operation.epoch):
                allowed.append(operation)
            else:
                self._finish(job, fenced(operation))
        if allowed:
            for outcome in self._playbooks.run(job.playbook, allowed):
                self._finish(job, outcome)

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        with self._lock:
            if job.operations and not job.playbook:
                self._note_silence(job, outcome)
            if job.operations.pop(outcome.operation, None) is None:
                log.warning("%s: outcome %s came too late or twice", outcome.operation, outcome.status)
            elif not self._closed:
                self._outcomes.append(outcome)

    def _end(self, job: _Job, reason: str, kind: Callable[[Operation, str], Outcome]) -> None:
        """Every operation of the job that has no outcome gets one of this kind. The lock is held."""
        self._outcomes.extend(kind(operation, reason) for operation in job.operations.values())
        job.operations.clear()

    def _leave(self, job: _Job, bmc: str) -> None:
        self._running.remove(job)
        self._with_silent.discard(id(job))
        self._at_bmc[bmc] -= 1
