"""A run driven by hand: a journal in a list, nodes in a dict, ranks that do what a test tells them. No clock, no I/O."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.event import Event
from orchestrator.domain.job import JobSpec
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action, Outcome, Status
from orchestrator.domain.plan import Step
from orchestrator.domain.run import RunRecord, RunState, fold_run
from orchestrator.domain.run_progress import RunProgress, RunSeen
from orchestrator.domain.spec import Runtime
from orchestrator.planning.placement import PlaceableNode
from orchestrator.planning.run_observe import handed_over, observe_outcome
from orchestrator.planning.run_steps import RunWorld, SubmitSteps, WaitUntil, events_of, next_run_step

RUNTIME = Runtime(shared_directory="/srv/shared", interface="lo")


def a_node(name: str, leaf: str = "leaf-1", feed: str = "A", **changes: Any) -> PlaceableNode:
    fields = {"rack": leaf.replace("leaf", "rack"), "state": NodeState.READY, "address": f"10.0.0.{len(name)}", **changes}
    return PlaceableNode(name=name, leaf=leaf, feed=feed, **fields)


def four_nodes(spares: int = 0) -> list[PlaceableNode]:
    names = [("r01-n1", 1), ("r01-n2", 1), ("r02-n1", 2), ("r02-n2", 2), ("r01-n3", 1), ("r02-n3", 2)][: 4 + spares]
    return [a_node(name, f"leaf-{leaf}", "AB"[leaf - 1], address=f"127.1.{leaf}.{name[-1]}") for name, leaf in names]


def a_job(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "rackray_job": 1,
        "name": "lm",
        "nodes": 4,
        "model": {"layers": 4, "d_model": 32, "heads": 4, "d_ff": 64, "vocabulary": 300, "positions": 32},
        "layout": {"pipeline": 2, "data": 2, "zero": 1},
        "batch": {"global_sequences": 8, "micro_sequences": 2, "sequence_tokens": 32},
        "optimizer": {"lr": 0.001},
        "steps": 10,
        **changes,
    }
    return JobSpec.model_validate(fields)


@dataclass
class FakeRank:
    """One process on a node, as its agent would describe it."""

    pid: int
    started_at_s: float
    exit_status: int | None = None
    alive: bool = True
    heartbeat_at_s: float | None = None
    step: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)


@dataclass
class Drive:
    """The controller's part for one run. `journal` survives `restart`; what was seen does not."""

    job: JobSpec
    nodes: dict[str, PlaceableNode]
    now_s: float = 1000.0
    journal: list[Event] = field(default_factory=list)
    record: RunRecord | None = None
    seen: RunSeen = field(default_factory=RunSeen)
    progress: RunProgress = field(default_factory=lambda: RunProgress("lm-1"))
    ranks: dict[tuple[int, int], FakeRank] = field(default_factory=dict)
    starts: int = 0
    dead_nodes: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    """Nodes that the cell does not list although they are well."""
    joins: dict[str, dict[str, Any]] = field(default_factory=dict)
    join_status: Status = Status.DONE
    listed_after_s: float = 0.0
    """How long after a node has joined the cell lists it."""
    joined_at_s: dict[str, float] = field(default_factory=dict)
    lost: list[Step] = field(default_factory=list)
    submitted: list[Step] = field(default_factory=list)
    obeys_term: bool = True

    @staticmethod
    def of(job: JobSpec, nodes: list[PlaceableNode], **submission: Any) -> "Drive":
        drive = Drive(job, {node.name: node for node in nodes})
        drive.note(Event("run.submitted", "lm-1", {"job": job.model_dump(mode="json"), "by": "ops", **submission}))
        return drive

    @property
    def run(self) -> RunRecord:
        assert self.record is not None
        return self.record

    def note(self, event: Event) -> None:
        stamped = event._replace(at_s=self.now_s, seq=len(self.journal) + 1)
        self.journal.append(stamped)
        self.record = fold_run(self.record, stamped)

    def restart(self) -> None:
        """SIGKILL of the controller: the record is folded anew, and nobody remembers what was in flight."""
        record: RunRecord | None = None
        for event in self.journal:
            record = fold_run(record, event)
        assert record == self.record
        self.record, self.seen = record, RunSeen()

    def tick(self, answer: bool = True) -> None:
        """One decision, carried out, and its answers taken in. Time passes only when there is nothing to do."""
        world = RunWorld(self.now_s, RUNTIME, self.nodes, seen=self.seen, progress=self.progress, joins=self.joins)
        decision = next_run_step(self.run, world)
        for event in events_of(self.run, decision):
            self.note(event)
        if isinstance(decision, WaitUntil):
            self.now_s = max(self.now_s, min(decision.until_s, self.now_s + 5.0))
        if isinstance(decision, SubmitSteps):
            self.submitted += decision.steps
            self.seen = handed_over(self.seen, decision.steps, self.now_s)
            for step in decision.steps:
                if answer:
                    self.answer(step)

    def until(self, state: RunState, ticks: int = 400) -> None:
        for _ in range(ticks):
            if self.run.state is state:
                return
            self.tick()
        raise AssertionError(f"still {self.run.state} after {ticks} ticks: {self.run.because}")

    def spin(self, seconds: float) -> None:
        """Ticks until `seconds` have passed."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.tick()

    def answer(self, step: Step) -> None:
        status, facts = (Status.UNREACHABLE, {}) if self._is_unreachable(step) else (Status.DONE, self._do(step))
        status = self.join_status if step.action is Action.CELL_JOIN else status
        outcome = Outcome("op", step.node, step.action, status, facts)
        observed = observe_outcome(self.run, self.seen, self.progress, step, outcome, self.now_s)
        self.seen, self.progress = observed.seen, observed.progress
        for event in observed.events:
            self.note(event)

    def _is_unreachable(self, step: Step) -> bool:
        return step.node in self.dead_nodes and step.action is not Action.CELL_OBSERVE

    def _do(self, step: Step) -> dict[str, Any]:
        if step.action is Action.CELL_OBSERVE:
            joined_s = self.joined_at_s.get(step.node, float("inf"))
            is_listed = step.node not in self.forgotten or self.now_s >= joined_s + self.listed_after_s
            return {"alive": step.node not in self.dead_nodes and is_listed}
        if step.action is Action.CELL_JOIN:
            if self.join_status is Status.DONE:
                self.joined_at_s[step.node] = self.now_s
            return {"started": True}
        key = (step.args["attempt"], step.args["rank"])
        if step.action is Action.RANK_START:
            adopted = key in self.ranks
            if not adopted:
                self.starts += 1
                self.ranks[key] = FakeRank(pid=1000 + self.starts, started_at_s=self.now_s)
            return {"pid": self.ranks[key].pid, "started_ticks": 7, "log": "/log", "adopted": adopted}
        rank = self.ranks.get(key)
        if step.action is Action.RANK_STOP:
            return {"was_alive": self._signal(rank, step.args["signal"])}
        assert rank is not None
        spoken_s = rank.heartbeat_at_s if rank.heartbeat_at_s is not None else rank.started_at_s
        heartbeat = {} if rank.heartbeat_at_s is None else {"heartbeat_step": rank.step, "heartbeat_phase": "step"}
        offset = step.args["progress_offset"]
        return {
            "alive": rank.alive,
            "exit_status": rank.exit_status,
            "heartbeat_age_s": self.now_s - spoken_s if rank.alive else None,
            **heartbeat,
            "progress": rank.lines[offset:],
            "progress_offset": len(rank.lines),
            "log_tail": "Traceback\nValueError: bad luck\n",
        }

    def _signal(self, rank: FakeRank | None, signal: str) -> bool:
        if rank is None or not rank.alive:
            return False
        rank.signals.append(signal)
        if signal == "KILL" or self.obeys_term:
            rank.alive, rank.exit_status = False, 137 if signal == "KILL" else 0
        return True

    # What tests let the ranks do.
    def now_ranks(self) -> list[FakeRank]:
        return [rank for (attempt, _), rank in sorted(self.ranks.items()) if attempt == self.run.attempt]

    def beat(self, step: int) -> None:
        for rank in self.now_ranks():
            if rank.alive:
                rank.heartbeat_at_s, rank.step = self.now_s, step

    def write(self, *lines: dict[str, Any]) -> None:
        rank = self.now_ranks()[0]
        if not rank.lines and self.run.attempt > 1:
            rank.lines = list(self.ranks[(self.run.attempt - 1, 0)].lines)
        rank.lines += lines

    def end(self, rank: int, status: int | None) -> None:
        self.now_ranks()[rank].alive, self.now_ranks()[rank].exit_status = False, status

    def train(self, first: int, last: int) -> None:
        """Steps `first`..`last`, each with its line, and a checkpoint after the last."""
        self.write({"event": "started", "step": first - 1, "at": 0.0, "unigram_entropy_nats": 5.5})
        for step in range(first, last + 1):
            self.write({"step": step, "loss": 6.0 - step / 10, "tokens_per_s": 100.0, "time_left_s": 1.0, "at": float(step)})
        self.write({"event": "checkpoint", "step": last, "at": 0.0, "size_bytes": 10})
        self.beat(last)
