"""Reading the journal: the same views for the command line, a browser and a scraper. Nothing here decides or writes."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.event import Event
from orchestrator.domain.operation import Action
from orchestrator.domain.run import RunRecord
from orchestrator.domain.run_progress import RunProgress
from orchestrator.domain.state import ClusterState
from orchestrator.drivers.interfaces import Clock
from orchestrator.execution.journal import Journal, Lease
from orchestrator.execution.journal_clock import JournalClock
from orchestrator.execution.run_lines import lines_path
from orchestrator.planning.takeover import JUMP_S

PROGRESS_KEY = "progress"
"""Key under which a run's latest progress stands in the observations table."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What views and a controller of the same process have in common."""

    state: ClusterState
    tell: Callable[[Event], None]


class Views:
    """The state as the journal tells it, brought up to date by `refresh`."""

    def __init__(self, journal: Journal, home: Path, clock: Clock | None = None) -> None:
        self._journal, self._home = journal, home
        self._time = JournalClock(journal, clock) if clock else None
        self.state: ClusterState = journal.load()
        self.latest: list[Event] = []
        """Events that the last `refresh` brought; none before the first."""
        self._told: list[Event] = []
        self._is_shared = False

    def refresh(self) -> None:
        """Fold what has been journaled since the last time; a controller that shares the state has done so already."""
        self.latest, self._told = self._told, []
        if not self._is_shared:
            new = self._journal.events(self.state.seq)
            for event in new:
                self.state.apply(event)
            self.latest += new

    @contextlib.contextmanager
    def shared(self) -> Iterator[Sharing]:
        """For a controller of this process: the state to go on with, and whom to tell of every event; nothing is folded twice."""
        self._is_shared = True
        try:
            yield Sharing(self.state, self._told_of)
        finally:
            self._is_shared = False

    def _told_of(self, event: Event) -> None:
        self._told.append(event)

    def now_s(self) -> float:
        """The journal's time, by which the age of what it holds is reckoned; without a clock, that of its last decision."""
        if self._time is None:
            return self._journal.newest_s()
        self._time.look()
        return self._time.now_s()

    def on_the_wall_s(self, at_s: float) -> float:
        """What the clock says, or would have said if nobody had set it since, at the journal's time `at_s`."""
        ahead_s = self._time.ahead_s() if self._time else 0.0
        # Told alike each time it is asked: drift is none of it, nor the moment between two readings.
        return at_s + round(ahead_s) if abs(ahead_s) > JUMP_S else at_s

    def lease(self) -> Lease | None:
        """Who decides at the moment."""
        return self._journal.lease()

    def run_records(self) -> list[RunRecord]:
        """All runs, oldest first."""
        return sorted(self.state.runs.values(), key=lambda run: (run.submitted_at_s, run.id))

    def run_progress(self, run_id: str) -> RunProgress | None:
        """The latest progress of a run, or None if it has not trained yet."""
        for seen in self._journal.observations(run_id):
            if seen.key == PROGRESS_KEY:
                return RunProgress.from_json(seen.data)
        return None

    def node_look(self, node: str, action: Action) -> tuple[float, dict[str, object]] | None:
        """The latest successful look at a node: when (seconds since the epoch) and what it showed."""
        record = self.state.nodes.get(node)
        found = [(seen.at_s, dict(seen.data)) for seen in self._journal.observations(node) if seen.key == action]
        if record is not None and action in record.facts:
            found.append((record.fact_at_s(action), dict(record.facts[action].values)))
        return max(found, key=lambda look: look[0], default=None)

    def progress_lines(self, run_id: str) -> Path:
        """The file of rank 0's progress lines, as far as the controller has fetched them."""
        return lines_path(self._home, run_id)

    def events_of_stages(self) -> Iterator[Event]:
        """Of the events up to the present `state` those that tell how long stages took; the rest is not read."""
        return self._journal.events_of_stages(self.state.seq)

    def events_since(self, seq: int) -> list[Event]:
        """Events above `seq`, oldest first."""
        return self._journal.events(seq)
