"""Live progress of a rollout: a table that redraws itself on a terminal, one line per change where there is none."""

import time
from typing import TYPE_CHECKING

from orchestrator.cli.live import LiveLines
from orchestrator.cli.output import time_range
from orchestrator.domain.event import Event
from orchestrator.domain.node import BRING_UP, SETTLED, NodeRecord, NodeState
from orchestrator.execution.views import Views
from orchestrator.planning.estimate import StageTimes, late_nodes, time_left
from orchestrator.planning.site import Site

if TYPE_CHECKING:
    from rich.table import Table

STAGES = (*BRING_UP, NodeState.READY)
MOST_ROWS = 24


class RolloutView(LiveLines):
    """Shows what changes from the request `asked` on."""

    def __init__(self, asked: int) -> None:
        super().__init__(asked)
        self._times = StageTimes()
        self._learned_seq = 0
        self._silent: set[str] = set()

    def show(self, views: Views) -> None:
        """Called after every look at the journal."""
        for event in self.news(views):
            line = self._first_silence(event) or line_for(event)
            if line:
                self.say(line)
        self.draw(lambda: _table(views, time.monotonic() - self.began_s, self._outlook(views)))

    def _first_silence(self, event: Event) -> str:
        """A node that does not answer is tried again and again; that is said once, until it gets on."""
        if event.kind == "node.moved":
            self._silent.discard(event.subject)
        elif event.kind == "node.ended" and event.data["status"] in ("unreachable", "held") and event.subject not in self._silent:
            self._silent.add(event.subject)
            return (
                f"{event.subject:<12}   {event.data['action']} {event.data['status']}: {event.data['reason']}; it is tried again"
            )
        return ""

    def _outlook(self, views: Views) -> str:
        """The time left and who is stuck, from the stage times the journal holds so far."""
        state = views.state
        self._times.learn(views.events_since(self._learned_seq) if self._learned_seq else views.events_of_stages())
        self._learned_seq = state.seq
        if state.spec is None or state.rollout.finished:
            return ""
        site, now_s = Site.of(state.spec), views.now_s()
        left = time_left(site, state.rollout, state.nodes, self._times, now_s)
        late = late_nodes(site, state.rollout, state.nodes, self._times, now_s)
        stuck = f"; stuck: {', '.join(each.node for each in late[:3])}" if late else ""
        return f"time left {time_range(left)}{stuck}"


def line_for(event: Event) -> str:
    """One event for people; empty for those that only matter to machines."""
    data = event.data
    if event.kind == "node.moved":
        return f"{event.subject:<12} {data['from']} → {data['to']}: {data['because']}"
    if event.kind == "node.intended":
        return f"{event.subject:<12}   {data['action']}: {data['because']}"
    if event.kind == "node.ended" and data["status"] not in ("done", "unreachable", "held"):
        return f"{event.subject:<12}   {data['action']} {data['status']}: {data['reason']}"
    if event.kind == "node.settled":
        return f"{event.subject:<12}   {data['because']}"
    if event.kind == "rollout.started":
        waves = ", ".join(str(len(wave)) for wave in data["waves"])
        return f"rollout: {data['because']}; waves of {waves}"
    if event.kind.startswith("rollout."):
        left = f", {data['left']} left as they are" if data.get("left") else ""
        said = data.get("because") or f"{data['ready']} ready, {data['quarantined']} quarantined{left}"
        return f"{event.kind.replace('.', ' ')}: {said}"
    if event.kind == "controller.took":
        return f"{data['holder']} decides now (epoch {event.epoch})"
    return ""


def _table(views: Views, seconds: float, outlook: str) -> "Table":
    # rich costs 0.1 s to import, and only a terminal needs it.
    from rich.table import Table

    records = sorted(views.state.nodes.values(), key=_interest)
    table = Table(title=f"{_counts(records)}   {seconds:.0f} s   {outlook}", title_justify="left", box=None, pad_edge=False)
    for column in ("node", "state", "", "because"):
        table.add_column(column, no_wrap=column != "because")
    for record in records[:MOST_ROWS]:
        reached = STAGES.index(record.state) if record.state in STAGES else 0
        bar = "█" * reached + "·" * (len(STAGES) - 1 - reached)
        style = "green" if record.state is NodeState.READY else "red" if record.state is NodeState.QUARANTINED else ""
        doing = f"{record.open.action}" if record.open else record.last_problem or record.because
        table.add_row(record.name, str(record.state), bar, doing, style=style)
    if len(records) > MOST_ROWS:
        table.add_row(f"and {len(records) - MOST_ROWS} more", "", "", "")
    return table


def _interest(record: NodeRecord) -> tuple[int, str]:
    moving = record.state not in SETTLED and record.state is not NodeState.ENROLLED
    return (0 if moving else 1 if record.state is NodeState.QUARANTINED else 2, record.name)


def _counts(records: list[NodeRecord]) -> str:
    states: dict[str, int] = {}
    for record in records:
        states[str(record.state)] = states.get(str(record.state), 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
