"""A checkpoint of any layout continued in any other: the steps after equal those of a run that never stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from training_launch import Launch, Launcher, tiny_spec

from model.contract import LayoutSpec, RunSpec
from model.corpus import prepare_corpus

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Relative, of loss and gradient norm in each of the steps after; some 2e-7 is usual in fp32."""
BEFORE, AFTER = 5, 5

LAYOUTS = {
    "one": LayoutSpec(),
    "zero0 x2": LayoutSpec(data=2, zero=0),
    "zero1 x2": LayoutSpec(data=2),
    "zero1 x4": LayoutSpec(data=4),
    "zero2 x2": LayoutSpec(data=2, zero=2),
    "zero3 x2": LayoutSpec(data=2, zero=3),
    "zero3 x4": LayoutSpec(data=4, zero=3),
    "stages2": LayoutSpec(pipeline=2),
    "stages2 x2": LayoutSpec(pipeline=2, data=2),
}
CHANGES = [
    ("zero1 x4", "zero1 x2"),
    ("zero3 x4", "zero3 x2"),
    ("stages2 x2", "stages2"),
    ("zero3 x4", "stages2 x2"),
    ("stages2 x2", "one"),
    ("one", "stages2 x2"),
    ("stages2 x2", "zero3 x2"),
    ("zero1 x4", "zero0 x2"),
    ("zero0 x2", "zero2 x2"),
]


def a_spec(folder: Path, layout: LayoutSpec, steps: int) -> RunSpec:
    """Clipping in every step, so that a wrong norm shows; a tied head."""
    spec = tiny_spec(folder, steps=steps, optimizer={"schedule": "constant"}, checkpoint={"every_steps": BEFORE})
    return replace(spec, layout=layout)


@pytest.fixture(scope="module")
def unchanged(start: Launcher, runs: Path) -> Launch:
    prepare_corpus(a_spec(runs / "unchanged", LAYOUTS["one"], BEFORE + AFTER))
    return start(a_spec(runs / "unchanged", LAYOUTS["one"], BEFORE + AFTER))


@pytest.fixture(scope="module")
def sources(unchanged: Launch, start: Launcher, runs: Path) -> dict[str, Launch]:
    """A run of five steps in each layout that is changed from, all at once."""
    names = dict.fromkeys(source for source, _ in CHANGES)
    return {name: start(a_spec(runs / f"source {name}", LAYOUTS[name], BEFORE)) for name in names}


@pytest.fixture(scope="module")
def targets(sources: dict[str, Launch], start: Launcher, runs: Path) -> dict[tuple[str, str], Launch]:
    launches = {}
    for source, target in CHANGES:
        assert set(sources[source].wait()) == {0}, sources[source].say()
        folder = runs / f"{source} to {target}"
        shutil.copytree(sources[source].spec.checkpoint.directory, folder / "checkpoints")
        spec = replace(a_spec(folder, LAYOUTS[target], BEFORE + AFTER), resume=True)
        launches[source, target] = start(spec)
    return launches


@pytest.mark.parametrize(("source", "target"), CHANGES, ids=[f"{source} to {target}" for source, target in CHANGES])
def test_the_steps_after_a_change_of_layout_are_those_without_it(
    source: str, target: str, unchanged: Launch, targets: dict[tuple[str, str], Launch]
) -> None:
    launch = targets[source, target]
    assert set(unchanged.wait()) == {0}, unchanged.say()
    assert set(launch.wait()) == {0}, launch.say()
    (changed,) = launch.events("layout_changed")
    assert (changed.detail["then"]["zero"], changed.detail["now"]["zero"]) == (LAYOUTS[source].zero, LAYOUTS[target].zero)
    assert [step.step for step in launch.steps()] == list(range(BEFORE + 1, BEFORE + AFTER + 1))
    for step, pair in launch.curve().items():
        assert pair == pytest.approx(unchanged.curve()[step], rel=TOLERANCE), f"step {step}"
    assert launch.steps()[-1].heldout_loss == pytest.approx(unchanged.steps()[-1].heldout_loss, rel=TOLERANCE)
