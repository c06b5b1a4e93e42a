"""Real ranks, started as an orchestrator starts them; every run here is tiny."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training_launch import Launch, Launcher, tiny_spec

from model.contract import ExitCode, Heartbeat, RunSpec, newest_complete, verify_manifest

TOLERANCE = 1e-5
"""Relative; sums in another order differ by some 1e-7 in fp32."""


def finish(launch: Launch, *codes: int) -> Launch:
    """Waits for the run; the exit codes by rank must be `codes`, or all zero if none are given."""
    assert launch.wait() == (list(codes) or [ExitCode.DONE] * launch.spec.layout.ranks), launch.say()
    return launch


def close(one: Launch, other: Launch) -> None:
    """Both loss and gradient norm of every step: a wrong gradient scale hides behind AdamW in the loss alone."""
    assert other.curve().keys() == one.curve().keys()
    for step, pair in one.curve().items():
        assert other.curve()[step] == pytest.approx(pair, rel=TOLERANCE), f"step {step}"


@pytest.fixture(scope="module")
def single(start: Launcher, runs: Path) -> Launch:
    """One rank, five steps, evaluated twice, a checkpoint at step 2 and at the end."""
    spec = tiny_spec(runs / "single", evaluate_every_steps=3, checkpoint={"every_steps": 2, "keep": 2})
    return finish(start(spec))


LAYOUTS = [
    {"data": 2, "zero": 3},
    {"pipeline": 2, "zero": 1},
    *(
        pytest.param(layout, marks=pytest.mark.slow)
        for layout in (
            {"zero": 0},
            {"data": 2, "zero": 0},
            {"data": 2, "zero": 1},
            {"data": 2, "zero": 2},
            {"data": 4, "zero": 3},
            {"pipeline": 2, "data": 2, "zero": 1},
        )
    ),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(f"{k}{v}" for k, v in layout.items()))
def test_every_layout_has_the_same_losses_and_gradient_norms(
    layout: dict[str, int], single: Launch, start: Launcher, runs: Path
) -> None:
    name = "-".join(f"{k}{v}" for k, v in layout.items())
    spec = tiny_spec(runs / name, layout=layout, evaluate_every_steps=3)
    launch = finish(start(spec))
    close(single, launch)
    heldout = [step.heldout_loss for step in single.steps()]
    assert [value is None for value in heldout] == [True, True, False, True, False]
    assert [step.heldout_loss for step in launch.steps()] == [
        value if value is None else pytest.approx(value, rel=TOLERANCE) for value in heldout
    ]


@pytest.mark.slow
def test_an_untied_head_learns_the_same_in_a_pipeline(start: Launcher, runs: Path) -> None:
    flat, staged = (
        start(tiny_spec(runs / f"untied-{stages}", layout={"pipeline": stages}, model={"tied": False}, steps=3))
        for stages in (1, 2)
    )
    close(finish(flat), finish(staged))


def test_a_finished_run_tells_its_story(single: Launch) -> None:
    steps = single.steps()
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert steps[-1].loss < steps[0].loss
    assert (steps[0].lr, steps[1].lr) == pytest.approx((0.005, 0.01))
    assert all(step.tokens_per_s > 0 and step.memory_bytes > 50e6 for step in steps)
    assert steps[0].time_left_s > steps[-1].time_left_s == 0
    (started,) = single.events("started")
    assert (started.detail["from_step"], started.detail["steps_lost"]) == (0, 0)
    assert started.detail["parameters"] == single.spec.model.shape().parameters().total
    assert [event.step for event in single.events("checkpoint")] == [2, 4, 5]
    (finished,) = single.events("finished")
    assert finished.detail["heldout_loss"] == steps[-1].heldout_loss
    heartbeat = Heartbeat.from_json(single.spec.heartbeat_path(0).read_text())
    assert (heartbeat.step, heartbeat.phase) == (5, "ended")


def test_the_newest_checkpoints_are_kept_complete_and_the_others_go(single: Launch) -> None:
    folder = Path(single.spec.checkpoint.directory)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000005"]
    manifest = verify_manifest(folder / "step-000005")
    assert (manifest.step, manifest.layout) == (5, {"pipeline": 1, "tensor": 1, "data": 1, "zero": 1})
    assert any(record.path.startswith("deepspeed/") for record in manifest.files)


def test_a_torn_checkpoint_is_passed_over_and_the_steps_lost_are_told(single: Launch, start: Launcher, runs: Path) -> None:
    copy = runs / "torn"
    shutil.copytree(runs / "single", copy)
    spec = tiny_spec(copy, evaluate_every_steps=3, checkpoint={"every_steps": 2}, resume=True)
    weights = copy / "checkpoints" / "step-000005" / "deepspeed" / "mp_rank_00_model_states.pt"
    os.truncate(weights, weights.stat().st_size - 1)
    again = finish(start(spec))
    started = again.events("started")[-1]
    assert (started.step, started.detail["from_step"], started.detail["steps_lost"]) == (4, 4, 1)
    (skipped,) = started.detail["skipped_checkpoints"]
    assert skipped["step"] == 5
    assert "mp_rank_00_model_states.pt has" in skipped["reason"]
    assert [step.step for step in again.steps()] == [1, 2, 3, 4, 5, 5]
    assert again.curve() == single.curve()
    verify_manifest(copy / "checkpoints" / "step-000005")


STEPS = 40


def resumable(runs: Path, name: str, layout: dict[str, int], **changes: Any) -> RunSpec:
    # Dropout, so that the random state counts.
    return tiny_spec(
        runs / name,
        layout=layout,
        model={"dropout": 0.1},
        steps=STEPS,
        checkpoint={"every_steps": 4},
        **changes,
    )


@pytest.mark.parametrize(
    "layout",
    [
        {"pipeline": 2, "zero": 1},
        pytest.param({"data": 2, "zero": 3}, marks=pytest.mark.slow),
        pytest.param({"pipeline": 2, "data": 2, "zero": 1}, marks=pytest.mark.slow),
    ],
    ids=["pipeline2", "zero3", "pipeline2-data2"],
)
def test_a_run_killed_in_its_middle_resumes_as_if_nothing_had_happened(
    layout: dict[str, int], start: Launcher, runs: Path
) -> None:
    name = "-".join(f"{k}{v}" for k, v in layout.items())
    undisturbed = start(resumable(runs, f"undisturbed-{name}", layout))
    killed = start(resumable(runs, f"killed-{name}", layout))
    killed.wait_for_step(6)
    killed.send(1, signal.SIGKILL)
    codes = killed.wait()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == ExitCode.PEER_LOST, killed.say()
    assert "went away" in killed.say()

    resumed = finish(start(resumable(runs, f"killed-{name}", layout, resume=True)))
    finish(undisturbed)
    started = resumed.events("started")[-1]
    assert 4 <= started.detail["from_step"] < STEPS
    assert started.detail["resumed_from"] == f"step-{started.step:06d}"
    assert resumed.curve() == undisturbed.curve()
    assert resumed.steps()[-1].heldout_loss == undisturbed.steps()[-1].heldout_loss


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


def test_a_loss_that_is_no_number_ends_the_run_with_its_own_code_and_no_checkpoint(start: Launcher, runs: Path) -> None:
    spec = tiny_spec(runs / "nan", optimizer={"lr": 1e30, "warmup_steps": 0}, checkpoint={"every_steps": 1})
    launch = finish(start(spec), ExitCode.NOT_A_NUMBER)
    (nan,) = launch.events("nan")
    assert nan.step == len(launch.steps()) + 1
    choice = newest_complete(Path(spec.checkpoint.directory))
    assert choice is None or choice.manifest.step < nan.step
