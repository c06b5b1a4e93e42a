"""The command against a journal in memory: what is asked of the controller, what is shown, how it exits."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator import wiring
from orchestrator.cli.train import train
from orchestrator.cli.train_view import line_for, progress_words, summary
from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.domain.event import Event
from orchestrator.domain.run import RankRecord, RunRecord, RunState
from orchestrator.domain.run_progress import RunProgress, progress_from_look
from orchestrator.drivers.curve import draw_loss_curve, read_losses
from orchestrator.drivers.job_reader import read_job
from orchestrator.planning.job_check import job_problems
from tests.planning.run_world import a_job

JOBS = Path(__file__).parents[2] / "cluster_specs" / "jobs"
LINES: list[dict[str, Any]] = [
    {"event": "started", "step": 0, "at": 1.0, "unigram_entropy_nats": 5.5},
    {"step": 1, "loss": 6.5, "tokens_per_s": 100.0, "time_left_s": 9.0, "at": 2.0},
    {"step": 2, "loss": 4.5, "tokens_per_s": 200.0, "time_left_s": 0.0, "at": 3.0, "heldout_loss": 4.25},
]


def a_run(**changes: Any) -> RunRecord:
    ranks = tuple(RankRecord(rank, node) for rank, node in enumerate(("n1", "n2", "n3", "n4")))
    run = RunRecord("lm-1", "lm", a_job().model_dump(mode="json"), steps=10, ranks=ranks, spares=("n5",), attempt=1)
    return replace(run, directory="/srv/shared/rackray/runs/lm-1", **changes)


@dataclass
class FakeViews:
    home: Path
    state: Any = field(default_factory=lambda: SimpleNamespace(seq=0, runs={}, answers={}, nodes={}))
    progress: dict[str, RunProgress] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def run_records(self) -> list[RunRecord]:
        return list(self.state.runs.values())

    def run_progress(self, run_id: str) -> RunProgress | None:
        return self.progress.get(run_id)

    def progress_lines(self, run_id: str) -> Path:
        return self.home / "runs" / run_id / "progress.jsonl"

    @property
    def latest(self) -> list[Event]:
        return self.events

    def events_since(self, seq: int) -> list[Event]:
        return [event for event in self.events if event.seq > seq]


class FakeWiring:
    """A controller that does at once what it is asked, and remembers it."""

    def __init__(self, home: Path, ends: RunState) -> None:
        self.views, self.ends = FakeViews(home), ends
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def request(self, folder: Path, kind: str, data: dict[str, Any]) -> Event:
        self.asked.append((kind, data))
        if kind == "request.submit":
            self.views.state.runs["lm-1"] = a_run(job=data["job"], job_sha256=data["job_sha256"])
        self.views.state.answers[7] = "lm-1"
        return Event(kind, "cluster", data, seq=7)

    def follow_or_control(self, folder: Path, until: Callable[[Any], bool], on_tick: Callable[[Any], None]) -> None:
        runs = self.views.state.runs
        on_tick(self.views)
        if "lm-1" in runs and not until(self.views):
            path = self.views.progress_lines("lm-1")
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
            self.views.progress["lm-1"] = progress_from_look(RunProgress("lm-1"), {"progress": LINES})
            moved = {"from": "running", "to": str(self.ends), "because": "all 10 steps are done"}
            self.views.events.append(Event("run.moved", "lm-1", moved, seq=8))
            runs["lm-1"] = replace(runs["lm-1"], state=self.ends, because="all 10 steps are done")
            on_tick(self.views)
        assert until(self.views)


@pytest.fixture
def rackray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[FakeWiring, Result]]:
    def call(*words: str, ends: RunState = RunState.FINISHED, runs: tuple[RunRecord, ...] = ()) -> tuple[FakeWiring, Result]:
        fake = FakeWiring(tmp_path, ends)
        fake.views.state.runs |= {run.id: run for run in runs}
        for name, value in {
            "home": lambda: tmp_path,
            "who": lambda: "ops",
            "open_views": lambda folder: fake.views,
            "request": fake.request,
            "follow_or_control": fake.follow_or_control,
            "load_job": lambda path: read_job(path, job_problems),
            "draw_loss_curve": draw_loss_curve,
            "rank_log": lambda folder, run, rank, lines: f"log of {run.id} rank {rank}, {lines} lines\n",
        }.items():
            monkeypatch.setattr(wiring, name, value, raising=False)
        return fake, CliRunner().invoke(train, words, standalone_mode=False)

    return call


def test_submit_asks_for_the_run_follows_it_and_sums_it_up(rackray: Any, tmp_path: Path) -> None:
    fake, result = rackray("submit", str(JOBS / "lm-pipeline.yaml"))
    assert (result.exception, result.return_value) == (None, 0)
    [(kind, data)] = fake.asked
    assert kind == "request.submit" and data["job"]["name"] == "lm-pipeline" and data["resume_of"] is None
    for words in ("running → finished", "6.500 → 4.500", "1.25 below the unigram entropy 5.500", "n[1-4]", "n5"):
        assert words in result.output
    picture = tmp_path / "runs" / "lm-1" / "loss.png"
    assert str(picture) in result.output and picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_fails_is_told_by_the_exit_code(rackray: Any) -> None:
    _, result = rackray("submit", str(JOBS / "lm-pipeline.yaml"), ends=RunState.FAILED)
    assert result.return_value == 1


def test_submitting_a_job_that_runs_already_follows_that_run(rackray: Any) -> None:
    running = a_run(state=RunState.RUNNING, job_name="lm-pipeline")
    fake, result = rackray("submit", str(JOBS / "lm-pipeline.yaml"), runs=(running,))
    assert fake.asked == [] and result.return_value == 0
    assert "running already" in result.output


def test_a_wrong_job_touches_nothing(rackray: Any, tmp_path: Path) -> None:
    bad = tmp_path / "job.yaml"
    bad.write_text((JOBS / "lm-pipeline.yaml").read_text().replace("nodes: 4", "nodes: 5"))
    fake, result = rackray("submit", str(bad))
    assert isinstance(result.exception, BadInput) and fake.asked == []


def test_list_says_in_json_what_tools_read(rackray: Any) -> None:
    _, result = rackray("list", "--json", runs=(a_run(state=RunState.RUNNING),))
    [row] = json.loads(result.stdout)
    assert {"id", "job", "state", "step", "loss_first", "loss_last", "tokens_per_s", "nodes"} <= row.keys()
    assert (row["id"], row["job"], row["state"], row["nodes"]) == ("lm-1", "lm", "running", ["n1", "n2", "n3", "n4"])
    assert (row["spares"], row["loss_first"]) == (["n5"], None)


def test_cancel_journals_who_and_why(rackray: Any) -> None:
    fake, result = rackray(
        "cancel", "lm-1", "--reason", "power work", ends=RunState.STOPPED, runs=(a_run(state=RunState.RUNNING),)
    )
    assert fake.asked == [("request.cancel", {"run": "lm-1", "by": "ops", "reason": "power work"})]
    assert result.return_value == 0


def test_logs_are_those_of_a_rank_that_exists(rackray: Any) -> None:
    assert "log of lm-1 rank 2" in rackray("logs", "lm-1", "--rank", "2", runs=(a_run(),))[1].output
    assert isinstance(rackray("logs", "lm-1", "--rank", "9", runs=(a_run(),))[1].exception, BadInput)
    assert isinstance(rackray("logs")[1].exception, NotAsRequired)


def test_a_progress_line_has_loss_yardsticks_speed_and_time_left() -> None:
    progress = progress_from_look(RunProgress("lm-1"), {"progress": LINES})
    said = progress_words(a_run(), progress)
    assert said == "lm-1 step 2/10, loss 4.500, held out 4.250, unigram 5.500, 120 tokens/s, 0:00 left"
    assert RunProgress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_a_run_that_learned_nothing_is_not_praised() -> None:
    progress = replace(progress_from_look(RunProgress("lm-1"), {"progress": LINES}), heldout=5.75)
    assert "0.25 ABOVE the unigram entropy" in summary(a_run(), progress, Path("p.jsonl"), None)


def test_steps_repeated_after_a_restart_count_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"step": 2, "loss": 9.0}\n{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n{"step": 3, "lo')
    assert read_losses(path) == ({1: 5.0, 2: 4.0}, {}, None)
    with pytest.raises(NotAsRequired):
        draw_loss_curve(tmp_path / "none.jsonl", tmp_path / "x.png", "none")


def test_milestones_are_told_in_words() -> None:
    data = {"milestone": "started", "step": 240, "resumed_from": "step-000240", "steps_lost": 3}
    assert line_for(Event("run.milestone", "lm-2", data)) == "lm-2 continues step-000240: first step 241, 3 steps are done again"
