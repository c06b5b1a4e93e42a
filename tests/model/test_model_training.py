"""Real ranks, started as an orchestrator starts them; every run here is tiny."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from training_launch import Launch, Launcher, tiny_spec

from model.contract import ExitCode, Heartbeat, RunSpec, newest_complete, verify_manifest
from model.corpus import prepare_corpus

STEPS = 24


def finish(launch: Launch, *codes: int) -> Launch:
    """Waits for the run; the exit codes by rank must be `codes`, or all zero if none are given."""
    assert launch.wait() == (list(codes) or [ExitCode.DONE] * launch.spec.layout.ranks), launch.say()
    return launch


def parity_spec(runs: Path, layout: dict[str, int]) -> RunSpec:
    """The same run in a layout of its own."""
    return tiny_spec(
        runs / name_of(layout),
        layout=layout,
        steps=STEPS,
        evaluate_every_steps=10,
        checkpoint={"every_steps": 4, "keep": 2},
    )


def name_of(layout: dict[str, int]) -> str:
    return "-".join(f"{degree}{number}" for degree, number in layout.items())


SINGLE = {"pipeline": 1, "zero": 1}
ZERO_3 = {"data": 2, "zero": 3}
PIPELINE = {"pipeline": 2, "zero": 1}


@pytest.fixture(scope="module")
def together(start: Launcher, runs: Path) -> dict[str, Launch]:
    """Runs that nothing disturbs, started at once because starting is most of their time."""
    prepare_corpus(parity_spec(runs, SINGLE))
    specs = {name_of(layout): parity_spec(runs, layout) for layout in (SINGLE, PIPELINE)}
    # With dropout, so that the random state counts.
    specs["dropout"] = tiny_spec(runs / "dropout", model={"dropout": 0.1}, checkpoint={"every_steps": 2})
    return {name: start(spec) for name, spec in specs.items()}


@pytest.fixture(scope="module")
def single(together: dict[str, Launch]) -> Launch:
    return finish(together[name_of(SINGLE)])


def test_a_finished_run_tells_its_story(single: Launch) -> None:
    steps = single.steps()
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert steps[-1].loss < steps[0].loss - 0.5
    assert (steps[0].lr, steps[1].lr) == pytest.approx((0.005, 0.01))
    assert all(step.tokens_per_s > 0 and step.memory_bytes > 50e6 for step in steps)
    assert steps[0].time_left_s > steps[-1].time_left_s == 0
    (started,) = single.events("started")
    assert (started.detail["from_step"], started.detail["steps_lost"]) == (0, 0)
    assert started.detail["parameters"] == single.spec.model.shape().parameters().total
    assert [event.step for event in single.events("checkpoint")] == [4, 8, 12, 16, 20, 24]
    (finished,) = single.events("finished")
    assert finished.detail["heldout_loss"] == steps[-1].heldout_loss
    heartbeat = Heartbeat.from_json(single.spec.heartbeat_path(0).read_text())
    assert (heartbeat.step, heartbeat.phase) == (STEPS, "ended")


def test_the_newest_checkpoints_are_kept_complete_and_the_others_go(single: Launch) -> None:
    folder = Path(single.spec.checkpoint.directory)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000020", "step-000024"]
    manifest = verify_manifest(folder / "step-000024")
    assert (manifest.step, manifest.layout) == (24, asdict(single.spec.layout))
    assert [record.path for record in manifest.files] == ["state.json", "rank-00000.safetensors"]


def test_a_torn_checkpoint_is_passed_over_and_the_steps_lost_are_told(
    together: dict[str, Launch], start: Launcher, runs: Path
) -> None:
    undisturbed = finish(together["dropout"])
    copy = runs / "torn"
    shutil.copytree(runs / "dropout", copy)
    spec = tiny_spec(copy, model={"dropout": 0.1}, checkpoint={"every_steps": 2}, resume=True)
    weights = copy / "checkpoints" / "step-000005" / "rank-00000.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    again = finish(start(spec))
    started = again.events("started")[-1]
    assert (started.step, started.detail["from_step"], started.detail["steps_lost"]) == (4, 4, 1)
    (skipped,) = started.detail["skipped_checkpoints"]
    assert skipped["step"] == 5
    assert "rank-00000.safetensors has" in skipped["reason"]
    assert [step.step for step in again.steps()] == [1, 2, 3, 4, 5, 5]
    assert again.curve() == undisturbed.curve()
    verify_manifest(copy / "checkpoints" / "step-000005")


def kill_and_resume(start: Launcher, spec: RunSpec) -> Launch:
    """Kills one rank of the run in its middle, sees the others notice, and resumes it to its end."""
    killed = start(spec)
    killed.wait_for_checkpoint()
    killed.wait_for_step(5)
    killed.send(1, signal.SIGKILL)
    assert killed.wait() == [-signal.SIGKILL if rank == 1 else ExitCode.PEER_LOST for rank in range(spec.layout.ranks)], (
        killed.say()
    )
    assert "went away" in killed.say()
    assert killed.steps()[-1].step < spec.steps
    resumed = finish(start(replace(spec, resume=True)))
    started = resumed.events("started")[-1]
    assert 4 <= started.detail["from_step"] < spec.steps
    assert started.detail["resumed_from"] == f"step-{started.step:06d}"
    return resumed


def test_a_killed_run_resumes_as_if_nothing_had_happened(together: dict[str, Launch], start: Launcher, runs: Path) -> None:
    undisturbed = finish(together[name_of(PIPELINE)])
    folder = str(runs / "killed")
    resumed = kill_and_resume(
        start,
        replace(
            undisturbed.spec,
            output_directory=folder,
            checkpoint=replace(undisturbed.spec.checkpoint, directory=f"{folder}/checkpoints"),
        ),
    )
    assert resumed.curve() == undisturbed.curve()
    assert resumed.steps()[-1].heldout_loss == undisturbed.steps()[-1].heldout_loss


@pytest.mark.slow
@pytest.mark.parametrize("layout", [ZERO_3, PIPELINE, {"pipeline": 2, "data": 2, "zero": 1}], ids=name_of)
def test_a_killed_run_with_dropout_resumes_as_if_nothing_had_happened(
    layout: dict[str, int], start: Launcher, runs: Path
) -> None:
    def a_spec(name: str) -> RunSpec:
        folder = runs / f"{name}-{name_of(layout)}"
        return tiny_spec(folder, layout=layout, model={"dropout": 0.1}, steps=40, checkpoint={"every_steps": 4})

    undisturbed = start(a_spec("undisturbed"))
    resumed = kill_and_resume(start, a_spec("killed"))
    assert resumed.curve() == finish(undisturbed).curve()


@pytest.mark.slow
def test_sigterm_on_one_rank_stops_all_after_the_same_step_with_a_checkpoint(start: Launcher, runs: Path) -> None:
    spec = tiny_spec(runs / "stopped", layout={"data": 2, "zero": 1}, steps=100_000, optimizer={"schedule": "constant"})
    launch = start(spec)
    launch.wait_for_step(3)
    launch.send(1, signal.SIGTERM)
    finish(launch)
    (stopped,) = launch.events("stopped")
    choice = newest_complete(Path(spec.checkpoint.directory))
    assert choice is not None
    assert choice.manifest.step == stopped.step == launch.steps()[-1].step
    assert launch.events("finished") == []
    others = [json.loads(line) for line in spec.progress_path(1).read_text().splitlines()]
    assert [line["step"] for line in others] == [step.step for step in launch.steps()]
    assert all(line["step_s"] > 0 and line["cpu_s"] > 0 for line in others)


@pytest.mark.slow
def test_a_rate_that_is_too_high_ends_the_run_with_the_code_for_nan(start: Launcher, runs: Path) -> None:
    spec = tiny_spec(runs / "nan", layout={"data": 2}, optimizer={"lr": 1e30, "warmup_steps": 0})
    launch = finish(start(spec), ExitCode.NOT_A_NUMBER, ExitCode.NOT_A_NUMBER)
    (nan,) = launch.events("nan")
    assert nan.step == len(launch.steps()) + 1
    assert newest_complete(Path(spec.checkpoint.directory)) is None


@pytest.mark.slow
def test_ranks_may_keep_their_own_corpus_but_must_share_the_checkpoints(start: Launcher, runs: Path) -> None:
    spec = tiny_spec(
        runs / "apart",
        layout={"data": 2},
        data={"directory": "corpus"},
        checkpoint={"directory": "checkpoints", "every_steps": 3},
    )
    launch = finish(start(spec), ExitCode.BAD_CHECKPOINT, ExitCode.BAD_CHECKPOINT)
    # Steps after it may be done before its writing in the background is over, but no other save is begun.
    assert launch.steps()[-1].step >= 3
    assert launch.events("checkpoint") == []
    assert "rank 0 does not see the files of rank 1" in launch.say()
    assert newest_complete(launch.logs[0].parent / "disk-0" / "checkpoints") is None
