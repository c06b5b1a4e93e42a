"""kill -9 in a run and at every point of a save: the resumed curve is the undisturbed one.

A save that did not reach its end leaves the checkpoint before in force.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from breaking_points import MID_RUN, POINTS
from training_launch import Launch, Launcher, tiny_spec

from model.contract import ExitCode, RunSpec, newest_complete
from model.corpus import prepare_corpus

pytestmark = pytest.mark.slow

STEPS, EVERY = 9, 3
PUBLISHED = {"once it is published", "while the old one is deleted"}


def a_spec(runs: Path, name: str, **layout: int) -> RunSpec:
    """Dropout, so that randomness counts; one checkpoint kept, so that old ones are deleted."""
    return tiny_spec(
        runs / f"killed-{name}".replace(" ", "-").replace(",", ""),
        layout=layout,
        model={"dropout": 0.1},
        steps=STEPS,
        evaluate_every_steps=2,
        checkpoint={"every_steps": EVERY, "keep": 1},
    )


@pytest.fixture(scope="module")
def undisturbed(start: Launcher, runs: Path) -> Launch:
    prepare_corpus(a_spec(runs, "not"))
    launch = start(a_spec(runs, "not"))
    assert launch.wait() == [0], launch.say()
    return launch


@pytest.fixture(scope="module")
def killed(undisturbed: Launch, start: Launcher, runs: Path) -> dict[str, Launch]:
    """One run for each point, all at once."""
    return {point: start(a_spec(runs, point), point) for point in (*POINTS, *MID_RUN)}


@pytest.fixture(scope="module")
def left(killed: dict[str, Launch]) -> dict[str, int]:
    """Steps of the newest checkpoint that each of them left, once all have died; 0 for none."""
    steps = {}
    for point, launch in killed.items():
        assert launch.wait() == [-signal.SIGKILL], f"{point}: {launch.say()}"
        choice = newest_complete(Path(launch.spec.checkpoint.directory))
        steps[point] = choice.manifest.step if choice else 0
    return steps


@pytest.fixture(scope="module")
def resumed(killed: dict[str, Launch], left: dict[str, int], start: Launcher) -> dict[str, Launch]:
    return {point: start(replace(killed[point].spec, resume=True)) for point in left}


@pytest.mark.parametrize("point", POINTS)
def test_a_save_that_did_not_reach_its_end_does_not_count(point: str, left: dict[str, int]) -> None:
    assert left[point] == (6 if point in PUBLISHED else 3)


@pytest.mark.parametrize("point", (*POINTS, *MID_RUN))
def test_a_killed_run_resumes_as_if_nothing_had_happened(
    point: str, undisturbed: Launch, left: dict[str, int], resumed: dict[str, Launch]
) -> None:
    launch, from_step = resumed[point], left[point]
    assert launch.wait() == [0], launch.say()
    started = launch.events("started")[-1]
    before = [step.step for step in launch.steps()[: -(STEPS - from_step)]]
    assert (started.detail["from_step"], started.detail["steps_lost"]) == (from_step, max(before, default=0) - from_step)
    assert started.detail["skipped_checkpoints"] == []
    assert launch.curve() == undisturbed.curve()
    assert launch.steps()[-1].heldout_loss == undisturbed.steps()[-1].heldout_loss
    # Nothing is left of the dead save.
    assert [path.name for path in Path(launch.spec.checkpoint.directory).iterdir()] == [f"step-{STEPS:06d}"]


@pytest.mark.parametrize(
    ("point", "codes"),
    [
        ("in the middle of a file@1", [ExitCode.PEER_LOST, -signal.SIGKILL]),
        ("before the manifest@0", [-signal.SIGKILL, ExitCode.PEER_LOST]),
    ],
)
def test_one_rank_of_several_that_dies_in_a_save_leaves_the_checkpoint_before_in_force(
    point: str, codes: list[int], start: Launcher, runs: Path, undisturbed: Launch
) -> None:
    spec = a_spec(runs, f"pair {codes[0]}", data=2, zero=3)
    dead = start(spec, point)
    assert dead.wait() == codes, dead.say()
    choice = newest_complete(Path(spec.checkpoint.directory))
    assert choice is not None
    assert choice.manifest.step == 3
    assert choice.skipped == ()


def test_ranks_verify_together_and_a_byte_altered_in_any_ones_file_is_found(start: Launcher, runs: Path) -> None:
    spec = replace(a_spec(runs, "altered", data=2), steps=4)
    first = start(replace(spec, checkpoint=replace(spec.checkpoint, every_steps=2, keep=2)))
    assert first.wait() == [0, 0], first.say()
    path = Path(spec.checkpoint.directory) / "step-000004" / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = start(replace(first.spec, resume=True))
    assert again.wait() == [0, 0], again.say()
    started = again.events("started")[-1]
    assert (started.detail["from_step"], started.detail["steps_lost"]) == (2, 2)
    (skipped,) = started.detail["skipped_checkpoints"]
    assert skipped["step"] == 4
    assert "rank-00001.safetensors was altered" in skipped["reason"]
