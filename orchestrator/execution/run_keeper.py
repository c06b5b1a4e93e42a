"""Training runs, kept by the controller beside the nodes: the same tick, the same journal, the same hands.

Decisions are `planning/run_steps.py`'s and the meaning of answers is `planning/run_observe.py`'s; here they are carried out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.event import Event
from orchestrator.domain.operation import Operation, Outcome
from orchestrator.domain.plan import Step
from orchestrator.domain.run import RunRecord
from orchestrator.domain.run_progress import RunProgress, RunSeen
from orchestrator.domain.state import ClusterState
from orchestrator.drivers.interfaces import Clock, Hands
from orchestrator.execution.journal import Journal, Observation
from orchestrator.execution.run_lines import keep_lines, lines_path
from orchestrator.execution.views import PROGRESS_KEY
from orchestrator.planning.placement import placeable
from orchestrator.planning.run_observe import handed_over, observe_outcome, seen_for
from orchestrator.planning.run_steps import (
    RunWorld,
    SubmitSteps,
    WaitUntil,
    allocation_events,
    events_of,
    held_by_others,
    next_run_step,
    queue_order,
)
from orchestrator.planning.site import Site

MOST_DECISIONS = 20
"""Decisions about one run in one tick; more would be a circle in its lifecycle."""


@dataclass(frozen=True, slots=True)
class Flying:
    """One exchange for a run that has not been answered yet."""

    run: str
    step: Step


class RunKeeper:
    """Carries out what planning decides about runs. What it keeps in memory is only what was seen, and can be seen again."""

    def __init__(
        self,
        journal: Journal,
        hands: Hands,
        clock: Clock,
        epoch: int,
        home: Path,
        commit: Callable[[list[Event], float], None],
        new_id: Callable[[str], str],
    ) -> None:
        self._journal, self._hands, self._clock, self._epoch, self._home = journal, hands, clock, epoch, home
        self._commit, self._new_id = commit, new_id
        self._flying: dict[str, Flying] = {}
        self._seen: dict[str, RunSeen] = {}
        self._progress: dict[str, RunProgress] = {}
        self._due_s: dict[str, float] = {}
        for found in journal.observations():
            if found.key == PROGRESS_KEY:
                self._progress[found.subject] = RunProgress.from_json(found.data)

    @property
    def due_s(self) -> float:
        """When the next decision about a run comes due; infinity if no run waits for the clock."""
        return min(self._due_s.values(), default=float("inf"))

    def take_in(self, state: ClusterState, outcomes: Sequence[Outcome]) -> bool:
        """Understand the answers that belong to runs; returns whether there were any."""
        mine = [(self._flying.pop(each.operation), each) for each in outcomes if each.operation in self._flying]
        now_s = self._clock.now_s()
        looks: dict[str, RunProgress] = {}
        for flying, outcome in mine:
            run = state.runs[flying.run]
            before = self._progress.get(run.id) or RunProgress(run.id, steps=run.steps)
            found = observe_outcome(run, seen_for(run, self._seen.get(run.id)), before, flying.step, outcome, now_s)
            self._seen[run.id] = found.seen
            if found.lines:
                keep_lines(lines_path(self._home, run.id), found.lines)
            if found.progress != before:
                self._progress[run.id] = looks[run.id] = found.progress
            self._commit(list(found.events), now_s)
            self._due_s[run.id] = now_s
        self._journal.observe([Observation(run, PROGRESS_KEY, now_s, seen.to_json()) for run, seen in looks.items()], self._epoch)
        return bool(mine)

    def advance(self, state: ClusterState, site: Site | None) -> bool:
        """Decide about every unfinished run; returns whether anything was journaled or submitted."""
        if site is None or not state.runs:
            return False
        moved = False
        for run in queue_order(state.runs):
            moved |= self._advance_one(run.id, state, site)
        events = allocation_events(state.runs, state.nodes)
        self._commit(events, self._clock.now_s())
        return moved or bool(events)

    def _advance_one(self, run_id: str, state: ClusterState, site: Site) -> bool:
        moved = False
        for _ in range(MOST_DECISIONS):
            run = state.runs[run_id]
            if run.is_ended:
                self._due_s.pop(run_id, None)
                return moved
            world = self._world(run, state, site)
            decision = next_run_step(run, world)
            if isinstance(decision, WaitUntil):
                self._due_s[run_id] = decision.until_s
                return moved
            moved = True
            if isinstance(decision, SubmitSteps):
                self._submit(run, decision.steps, state, site)
            else:
                self._commit(list(events_of(run, decision)), self._clock.now_s())
        raise AssertionError(f"{run_id}: {MOST_DECISIONS} decisions in one tick; its lifecycle runs in a circle at {run.state}")

    def _world(self, run: RunRecord, state: ClusterState, site: Site) -> RunWorld:
        return RunWorld(
            now_s=self._clock.now_s(),
            runtime=site.spec.runtime,
            nodes={name: placeable(site, state.nodes[name]) for name in site.computes},
            held=held_by_others(state.runs, run.id),
            seen=seen_for(run, self._seen.get(run.id)),
            progress=self._progress.get(run.id),
            joins={name: site.joins_with(name) for name in run.nodes if name in site.nodes},
        )

    def _submit(self, run: RunRecord, steps: Iterable[Step], state: ClusterState, site: Site) -> None:
        operations = []
        for step in steps:
            target = site.target(state.nodes[step.node])
            operation = Operation(self._new_id(step.node), step.node, step.action, self._epoch, target, step.args)
            self._flying[operation.id] = Flying(run.id, step)
            operations.append(operation)
        self._seen[run.id] = handed_over(seen_for(run, self._seen.get(run.id)), steps, self._clock.now_s())
        self._hands.submit(operations)
