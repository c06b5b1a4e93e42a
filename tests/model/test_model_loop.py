"""The loop itself, with an engine that does as it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_launch import tiny_spec

from model.checkpoint import Saved
from model.contract import CheckpointChoice, EventLine, ExitCode, Heartbeat, ProgressLine, read_progress
from model.corpus import Corpus, CorpusFacts
from model.data import Batch
from model.guard import Guard, Verdict
from model.peak import peak_tflops
from model.progress import Reporter
from model.resumption import CheckpointError, Resumption, manifest_for
from model.tokens import Tokens
from model.train import StopRequest, train


@dataclass
class FakeStep:
    loss: float
    grad_norm: float
    verdict: Verdict
    forward_backward_s: float = 0.75
    update_s: float = 0.25


class FakeEngine:
    """Answers with the losses it was given, 1.0 beyond them; notes what it was asked."""

    replica = 0

    def __init__(self, losses: dict[int, float] | None = None, heldout: float = 2.0) -> None:
        self.losses, self.heldout = losses or {}, heldout
        self.done: list[str] = []
        self.notes: dict[str, Any] = {}
        self.stop: StopRequest | None = None
        self.stop_at_step = 0

    def train_step(self, step: int, batches: list[Batch], guard: Guard) -> FakeStep:
        assert len(batches) == 4
        self.done.append(f"step {step}")
        if self.stop and step == self.stop_at_step:
            self.stop.raise_flag(15, None)
        loss = self.losses.get(step, 1.0)
        return FakeStep(loss, 0.5, guard.judge(loss, 0.5))

    def evaluate(self, batches: list[Batch]) -> float:
        self.done.append("evaluate")
        return self.heldout

    def any_rank(self, flag: bool) -> bool:
        return flag

    def memory_bytes(self) -> int:
        return 10**8

    def restore(self, folder: Path) -> dict[str, Any]:
        self.done.append(f"load {folder.name}")
        return self.notes


class FakeCheckpoints:
    """A disk that takes two steps to write a checkpoint."""

    def __init__(self) -> None:
        self.under_way: list[int] = []
        self.notes: list[dict[str, Any]] = []
        self.polled = 0

    def begin(self, engine: FakeEngine, step: int, notes: dict[str, Any]) -> Saved | None:
        before = self.finish()
        engine.done.append(f"save {step}")
        self.under_way, self.polled = [step], 0
        self.notes.append(notes)
        return before

    def poll(self, engine: FakeEngine) -> Saved | None:
        self.polled += 1
        return self.finish() if self.polled == 2 else None

    def finish(self) -> Saved | None:
        return Saved(self.under_way.pop(), 9, 0.5, 0.1) if self.under_way else None


def run(
    folder: Path,
    engine: FakeEngine,
    *,
    stop: StopRequest | None = None,
    resumption: Resumption | None = None,
    peak_tflops: float | None = None,
    **changes: Any,
) -> tuple[ExitCode, list[ProgressLine | EventLine]]:
    spec = tiny_spec(folder / "run", **changes)
    facts = CorpusFacts(
        format=1,
        vocabulary=512,
        train_files=1,
        train_bytes=1,
        train_tokens=1000,
        heldout_files=("x",),
        heldout_bytes=1,
        heldout_tokens=1000,
        unigram_entropy_nats=5.0,
        unigram_heldout_nats=5.1,
        digest="",
    )
    tokens = Tokens.of([np.arange(1000, dtype=np.uint16) % 512])
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text("words")
    corpus = Corpus(facts, tokens, tokens, folder)
    report = Reporter(spec, 0)
    report.peak_tflops = peak_tflops
    checkpoints: Any = FakeCheckpoints()
    fake: Any = engine
    code = train(spec, fake, corpus, checkpoints, resumption or Resumption(None, ()), report, stop or StopRequest())
    report.close()
    return code, read_progress(spec.progress_path(0).read_text())


def test_a_line_tells_where_the_time_went_and_what_share_of_the_peak_that_is(tmp_path: Path) -> None:
    _, lines = run(tmp_path, FakeEngine(), evaluate_every_steps=2, checkpoint={"every_steps": 2}, peak_tflops=0.001)
    steps = [line for line in lines if isinstance(line, ProgressLine)]
    usual = {"data", "forward_backward", "update", "checkpoint"}
    # A save is told in the line after it.
    assert [step.phases_s.keys() - usual for step in steps] == [set(), {"evaluate"}, set(), {"evaluate"}, {"evaluate"}]
    assert steps[0].phases_s["forward_backward"] == 0.75
    assert steps[0].step_s == 1.0
    assert steps[0].mfu == pytest.approx(steps[0].tflops_per_s / 0.001)
    _, lines = run(tmp_path / "no-peak", FakeEngine())
    assert isinstance(lines[1], ProgressLine)
    assert lines[1].mfu is None


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [("NVIDIA H200", "bf16", 989.4), ("NVIDIA H100 PCIe", "bf16", 756.5), ("NVIDIA H200", "fp32", None), ("GTX", "bf16", None)],
)
def test_a_peak_is_told_only_where_it_is_known(name: str, precision: str, peak: float | None) -> None:
    assert peak_tflops(name, precision) == peak


def test_a_resumed_run_judges_by_the_losses_before_it(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path / "run")
    guard = Guard(spec.guard)
    for _ in range(40):
        guard.judge(1.0, 0.5)
    engine = FakeEngine({4: 3.0})
    engine.notes = {"guard": guard.to_json()}
    folder = tmp_path / "step-000003"
    choice = CheckpointChoice(folder, manifest_for(spec, step=3, files=()), ())
    code, lines = run(tmp_path, engine, resumption=Resumption(choice, ()), guard={"on_spike": "stop"})
    assert code is ExitCode.LOSS_SPIKE
    assert engine.done == ["load step-000003", "step 4"]
    (spike,) = [line for line in lines if isinstance(line, EventLine) and line.event == "spike"]
    assert (spike.step, spike.detail["action"]) == (4, "stop")


def test_a_checkpoint_of_another_vocabulary_is_not_continued(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.notes = {"text": {"vocabulary_sha256": "another"}}
    choice = CheckpointChoice(tmp_path / "step-000003", manifest_for(tiny_spec(tmp_path / "run"), step=3, files=()), ())
    with pytest.raises(CheckpointError, match="tokens of another vocabulary"):
        run(tmp_path, engine, resumption=Resumption(choice, ()))
    assert engine.done == ["load step-000003"]


def test_evaluations_and_checkpoints_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    engine = FakeEngine()
    code, lines = run(tmp_path, engine, evaluate_every_steps=2, checkpoint={"every_steps": 3})
    assert code is ExitCode.DONE
    assert [line.step for line in lines if isinstance(line, EventLine) and line.event == "checkpoint"] == [3, 5]
    wanted = "step 1,step 2,evaluate,step 3,save 3,step 4,evaluate,step 5,evaluate,save 5"
    assert ",".join(engine.done) == wanted
    assert [line.event for line in lines if isinstance(line, EventLine)][-1] == "finished"
    heartbeat = Heartbeat.from_json((tmp_path / "run" / "out" / "heartbeat-0").read_text())
    assert (heartbeat.step, heartbeat.phase) == (5, "ended")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_without_a_checkpoint_of_it(
    tmp_path: Path, loss: float, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine({3: loss})
    code, lines = run(tmp_path, engine, checkpoint={"every_steps": 1})
    assert code is ExitCode.NOT_A_NUMBER
    assert f"rank 0: step 3: loss {loss}, gradient norm 0.5; not applied. Lower optimizer.lr" in capsys.readouterr().err
    assert engine.done == ["step 1", "save 1", "step 2", "save 2", "step 3"]
    (nan,) = [line for line in lines if isinstance(line, EventLine) and line.event == "nan"]
    assert (nan.step, nan.detail["loss"], nan.detail["action"]) == (3, str(loss), "stop")
    # The save that was under way is brought to its end.
    assert isinstance(lines[-1], EventLine)
    assert (lines[-1].event, lines[-1].step) == ("checkpoint", 2)
    assert [line.step for line in lines if isinstance(line, ProgressLine)] == [1, 2]


def test_a_heldout_loss_that_is_no_number_ends_the_run_too(tmp_path: Path) -> None:
    code, lines = run(tmp_path, FakeEngine(heldout=math.nan), evaluate_every_steps=1)
    assert code is ExitCode.NOT_A_NUMBER
    assert "NaN" not in (tmp_path / "run" / "out" / "progress-0.jsonl").read_text()
    assert [line for line in lines if isinstance(line, ProgressLine)] == []


def test_a_stop_ends_after_the_step_it_came_in_and_saves_it(tmp_path: Path) -> None:
    engine, stop = FakeEngine(), StopRequest()
    engine.stop, engine.stop_at_step = stop, 2
    code, lines = run(tmp_path, engine, stop=stop)
    assert code is ExitCode.DONE
    assert engine.done == ["step 1", "step 2", "save 2"]
    last = lines[-1]
    assert isinstance(last, EventLine)
    assert (last.event, last.detail["steps_left"]) == ("stopped", 3)


def test_a_stop_in_the_last_step_is_a_finish(tmp_path: Path) -> None:
    engine, stop = FakeEngine(), StopRequest()
    engine.stop, engine.stop_at_step = stop, 5
    _, lines = run(tmp_path, engine, stop=stop)
    assert [line.event for line in lines if isinstance(line, EventLine)][-1] == "finished"


def test_steps_done_again_after_a_crash_are_told_even_without_any_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, FakeEngine({4: math.nan}), resume=True)
    with (tmp_path / "run" / "out" / "progress-0.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the writer died here
    _, lines = run(tmp_path, FakeEngine(), resume=True)
    started = [line for line in lines if isinstance(line, EventLine) and line.event == "started"]
    assert [event.detail["steps_lost"] for event in started] == [0, 3]
    assert [line.step for line in lines if isinstance(line, ProgressLine)] == [1, 2, 3, 1, 2, 3, 4, 5]
