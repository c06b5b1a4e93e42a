"""How a training run looks: a bar and numbers on a terminal, a line now and then where there is none, a summary at the end."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.live import LiveLines
from orchestrator.cli.nodes import folded
from orchestrator.domain.event import Event
from orchestrator.domain.run import RunRecord
from orchestrator.domain.run_progress import RunProgress
from orchestrator.domain.words import counted
from orchestrator.execution.views import Views
from orchestrator.planning.run_launch import rank_log_path

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 2.0
"""Pause between two plain progress lines, in seconds."""


class RunView(LiveLines):
    """Follows one run."""

    def __init__(self, run_id: str, from_seq: int) -> None:
        super().__init__(from_seq)
        self._run_id = run_id
        self._line_s = float("-inf")
        self._line_step = -1

    def show(self, views: Views) -> None:
        """Called after every look at the journal."""
        for event in self.news(views):
            line = line_for(event) if event.subject == self._run_id else ""
            if line:
                self.say(line)
        run, progress = views.state.runs.get(self._run_id), views.run_progress(self._run_id)
        if run is None:
            return
        self.draw(lambda: _panel(run, progress))
        if not self.is_terminal and progress is not None and progress.lines and self._is_due(progress.step):
            self._line_s, self._line_step = time.monotonic(), progress.step
            self.say(progress_words(run, progress))

    def _is_due(self, step: int) -> bool:
        return step != self._line_step and time.monotonic() >= self._line_s + LINE_EVERY_S


def line_for(event: Event) -> str:
    """One event of a run for people; empty for those that only matter to machines."""
    data = event.data
    if event.kind == "run.moved":
        way = data["to"] if data["from"] == data["to"] else f"{data['from']} → {data['to']}"
        return f"{event.subject} {way}: {data['because']}"
    if event.kind == "run.placed":
        ranks = ", ".join(f"{rank} on {node}" for rank, node in data["ranks"][:8])
        more = f" and {len(data['ranks']) - 8} more" if len(data["ranks"]) > 8 else ""
        spares = f"; spares {', '.join(data['spares'])}" if data["spares"] else "; no spares"
        return f"{event.subject} attempt {data['attempt']}: rank {ranks}{more}{spares}"
    if event.kind == "run.rank_ended" and data["exit_status"] != 0:
        return f"{event.subject} rank {data['rank']} ended with status {data['exit_status']}"
    if event.kind == "run.milestone":
        return f"{event.subject} {_milestone_words(data)}"
    if event.kind == "run.excluded":
        return f"{event.subject} goes on without {data['node']}: {data['because']}"
    if event.kind == "run.stop_requested":
        return f"{event.subject} is asked to stop by {data['by']}: {data['reason']}"
    return ""


def _milestone_words(data: Mapping[str, Any]) -> str:
    milestone, step = data["milestone"], data["step"]
    if milestone == "started":
        source = f"continues {data['resumed_from']}" if data.get("resumed_from") else "starts from the beginning"
        lost = f", {counted(data['steps_lost'], 'step', 'is', 'are')} done again" if data.get("steps_lost") else ""
        return f"{source}: first step {step + 1}{lost}"
    if milestone == "checkpoint":
        return f"checkpoint at step {step} ({data.get('size_bytes', 0) / 1e6:.1f} MB)"
    if milestone == "heldout":
        yardstick = _nats(data.get("unigram_entropy_nats"))
        return f"held-out loss at step {step}: {_nats(data.get('heldout_loss'))}, unigram entropy {yardstick}"
    return f"{milestone} at step {step}" + (f": {data['because']}" if data.get("because") else "")


def progress_words(run: RunRecord, progress: RunProgress) -> str:
    """One line: where the run is."""
    words = [f"step {progress.step}/{run.steps}", f"loss {_nats(progress.loss_last)}"]
    if progress.heldout is not None:
        words.append(f"held out {_nats(progress.heldout)}")
    if progress.unigram is not None:
        words.append(f"unigram {_nats(progress.unigram)}")
    if progress.tokens_per_s is not None:
        words.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.time_left_s is not None:
        words.append(f"{_duration(progress.time_left_s)} left")
    return f"{run.id} " + ", ".join(words)


def summary(run: RunRecord, progress: RunProgress | None, lines_path: Path, curve: Path | None) -> str:
    """The end of a run, for people: result, numbers, nodes, and where everything is."""
    rows = [("result", f"{run.state}: {run.because}")]
    if progress is not None and progress.loss_last is not None:
        rows.append(("steps", f"{progress.first_step} to {progress.step} of {run.steps}"))
        rows.append(("loss", f"{_nats(progress.loss_first)} → {_nats(progress.loss_last)} nat/token"))
        if progress.heldout is not None:
            rows.append(("held out", _against_unigram(progress)))
        if progress.tokens_per_s is not None:
            rows.append(("speed", f"{progress.tokens_per_s:,.0f} tokens/s over {counted(len(run.ranks), 'rank')}"))
    if run.restarts:
        rows.append(("restarts", str(run.restarts)))
    rows.append(("nodes", folded(run.nodes) or "none"))
    rows.append(("spares", folded(run.spares) or "none"))
    rows += [("excluded", f"{node}: {why}") for node, why in sorted(run.excluded.items())]
    if run.directory:
        rows.append(("rank logs", f"{rank_log_path(run, 0)} on {run.nodes[0]}" if run.ranks else run.directory))
    rows.append(("progress", str(lines_path)))
    if curve is not None:
        rows.append(("loss curve", str(curve)))
    return "\n".join([run.id, *(f"  {name:<11} {value}" for name, value in rows)])


def _against_unigram(progress: RunProgress) -> str:
    said = f"{_nats(progress.heldout)} nat/token at step {progress.heldout_step}"
    if progress.unigram is None or progress.heldout is None:
        return said
    gain = progress.unigram - progress.heldout
    return f"{said}, {abs(gain):.2f} {'below' if gain >= 0 else 'ABOVE'} the unigram entropy {_nats(progress.unigram)}"


def list_row(run: RunRecord, progress: RunProgress | None) -> dict[str, Any]:
    """One run as `train list --json` tells it. Numbers that are not known yet are null."""
    return {
        "id": run.id,
        "job": run.job_name,
        "state": str(run.state),
        "step": progress.step if progress and progress.lines else run.resume_from_step,
        "steps": run.steps,
        "first_step": progress.first_step if progress else None,
        "loss_first": progress.loss_first if progress else None,
        "loss_last": progress.loss_last if progress else None,
        "heldout_loss": progress.heldout if progress else None,
        "unigram_entropy_nats": progress.unigram if progress else None,
        "tokens_per_s": progress.tokens_per_s if progress else None,
        "nodes": list(run.nodes),
        "spares": list(run.spares),
        "attempt": run.attempt,
        "resume_of": run.resume_of or None,
        "because": run.because,
    }


def _panel(run: RunRecord, progress: RunProgress | None) -> "RenderableType":
    # rich costs 0.1 s to import, and only a terminal needs it.
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    head = Text(f"{run.id}  {run.state}: {run.because}", style="bold", no_wrap=True)
    if progress is None:
        return head
    if not progress.lines:
        return head
    bar = ProgressBar(total=max(run.steps, 1), completed=progress.step, width=60)
    return Group(head, bar, Text(progress_words(run, progress)))


def _nats(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else str(value or "unknown")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
