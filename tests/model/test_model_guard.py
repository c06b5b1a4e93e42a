from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from training_launch import Launch, Launcher, tiny_spec

from model.contract import ExitCode, GuardSpec
from model.corpus import prepare_corpus
from model.guard import Guard

STOP = GuardSpec(on_spike="stop")
SKIP = GuardSpec(on_nan="skip", on_spike="skip", most_skips_in_row=2)


def after_falling_losses(spec: GuardSpec, steps: int = 60) -> Guard:
    """A guard that has seen losses fall from 7 to about 4 with some noise; seed 1."""
    noise, guard = random.Random(1), Guard(spec)
    for step in range(steps):
        verdict = guard.judge(4 + 3 * math.exp(-step / 15) + noise.gauss(0, 0.05), 1.0)
        assert (verdict.trouble, verdict.is_applied) == ("", True), step
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.nan), (4.0, math.inf), (4.0, -1.0)])
def test_numbers_that_are_none_are_never_applied(loss: float, norm: float) -> None:
    stop, skip = Guard(STOP).judge(loss, norm), Guard(SKIP).judge(loss, norm)
    assert (stop.trouble, stop.is_applied, stop.is_end) == ("nan", False, True)
    assert (skip.trouble, skip.is_applied, skip.is_end) == ("nan", False, False)


def test_a_jump_is_told_with_its_limit_and_treated_by_policy() -> None:
    assert after_falling_losses(STOP).judge(4.3, 1.0).trouble == ""
    stop = after_falling_losses(STOP).judge(9.0, 1.0)
    assert (stop.trouble, stop.is_applied, stop.is_end) == ("spike", False, True)
    assert "loss 9 is above" in stop.because
    skip = after_falling_losses(SKIP).judge(9.0, 1.0)
    assert (skip.is_applied, skip.is_end) == (False, False)
    ignored = after_falling_losses(GuardSpec()).judge(9.0, 1.0)
    assert (ignored.trouble, ignored.is_applied) == ("spike", True)


def test_skipped_steps_do_not_raise_the_limit_and_too_many_in_a_row_end_the_run() -> None:
    guard = after_falling_losses(SKIP)
    assert [guard.judge(9.0, 1.0).is_end for _ in range(3)] == [False, False, True]
    again = after_falling_losses(SKIP)
    ends = [again.judge(loss, 1.0).is_end for loss in (9.0, 9.0, 4.0, 9.0, 9.0)]
    assert ends == [False] * 5


def test_nothing_is_a_jump_before_enough_was_seen_nor_where_the_loss_stands_still() -> None:
    guard = Guard(STOP)
    assert [guard.judge(loss, 1.0).trouble for loss in (7.0, 50.0, 3.0)] == ["", "", ""]
    still = Guard(STOP)
    assert {still.judge(4.0, 1.0).trouble for _ in range(30)} == {""}
    assert still.judge(4.1, 1.0).trouble == ""
    assert still.judge(4.2, 1.0).trouble == "spike"


def test_a_resumed_guard_judges_as_the_one_that_went_on() -> None:
    guard, resumed = after_falling_losses(SKIP), Guard(SKIP)
    resumed.restore(json.loads(json.dumps(guard.to_json())))
    for loss in (4.1, 9.0, 4.4, 9.0, 9.0, 9.0):
        assert resumed.judge(loss, 1.0) == guard.judge(loss, 1.0)


def test_a_rank_that_is_overruled_forgets_the_loss_it_let_pass() -> None:
    guard, other = after_falling_losses(SKIP), after_falling_losses(SKIP)
    assert guard.judge(4.2, 1.0).is_applied
    overruled = guard.overruled(4.2, 1.0)
    assert (overruled.is_applied, overruled.is_end) == (False, False)
    assert guard.to_json()["losses"] == other.to_json()["losses"]


# ---------------------------------------------------------------------- in real engines
LAYOUTS = [{"zero": 0}, {"data": 2, "zero": 1}, {"data": 2, "zero": 3}, {"pipeline": 2, "zero": 1}]


@pytest.fixture(scope="module")
def skipping(start: Launcher, runs: Path) -> list[Launch]:
    """Runs whose third step is skipped, because one rank alone (the last) finds its loss too high."""
    launches = []
    for number, layout in enumerate(LAYOUTS):
        spec = tiny_spec(runs / f"skip-{number}", layout=layout, evaluate_every_steps=1, guard={"on_spike": "skip"})
        prepare_corpus(spec)
        launches.append(start(spec, f"a jump in step 3@{spec.layout.ranks - 1}"))
    return launches


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=[str(layout) for layout in LAYOUTS])
def test_a_skipped_step_changes_nothing_in_any_engine(number: int, skipping: list[Launch]) -> None:
    launch, single = skipping[number], skipping[0]
    assert set(launch.wait()) == {ExitCode.DONE}, launch.say()
    assert set(single.wait()) == {ExitCode.DONE}, single.say()
    steps = launch.steps()
    assert [step.is_applied for step in steps] == [True, True, False, True, True]
    heldout = [step.heldout_loss for step in steps]
    assert heldout[2] == heldout[1] != heldout[3]
    (spike,) = launch.events("spike")
    assert (spike.step, spike.detail["action"]) == (3, "skip")
    state = json.loads((Path(launch.spec.checkpoint.directory) / "step-000005" / "state.json").read_text())
    assert state["adam_steps"] == 4
    for step, pair in launch.curve().items():
        assert pair == pytest.approx(single.curve()[step], rel=1e-5), f"step {step}"


@pytest.mark.slow
def test_losses_that_stay_no_numbers_end_the_run_after_so_many_skips(start: Launcher, runs: Path) -> None:
    spec = tiny_spec(runs / "nan-skip", optimizer={"lr": 1e30, "warmup_steps": 0}, steps=9)
    spec = replace(spec, guard=GuardSpec(on_nan="skip", most_skips_in_row=2))
    launch = start(spec)
    assert launch.wait() == [ExitCode.NOT_A_NUMBER], launch.say()
    assert [nan.detail["action"] for nan in launch.events("nan")] == ["skip", "skip", "stop"]
    assert "2 steps before it were skipped already" in launch.events("nan")[-1].detail["because"]
