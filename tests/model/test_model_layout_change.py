"""A checkpoint of any layout continued in any other: the steps after equal those of a run that never stopped."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from training_launch import Launch, Launcher, tiny_spec

from model.contract import LayoutSpec, RunSpec
from model.corpus import prepare_corpus
from model.weights import load_model

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
    "tensor2": LayoutSpec(tensor=2),
    "stages2 tensor2": LayoutSpec(pipeline=2, tensor=2),
    "sequence2 zero3": LayoutSpec(sequence=2, zero=3),
    "sequence2 x2": LayoutSpec(sequence=2, data=2),
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "llama": {"family": "llama", "kv_heads": 2},
}
"""A tied head and one fused matrix; no tie, grouped keys and values, a gated feed-forward."""
CHANGES = [
    ("gpt", "zero1 x4", "zero1 x2"),
    ("gpt", "zero3 x4", "zero3 x2"),
    ("gpt", "stages2 x2", "stages2"),
    ("gpt", "zero3 x4", "stages2 x2"),
    ("gpt", "stages2 x2", "one"),
    ("gpt", "one", "stages2 x2"),
    ("gpt", "stages2 x2", "zero3 x2"),
    ("gpt", "zero1 x4", "zero0 x2"),
    ("gpt", "zero0 x2", "zero2 x2"),
    ("gpt", "stages2 tensor2", "one"),
    ("gpt", "one", "stages2 tensor2"),
    ("gpt", "sequence2 zero3", "stages2"),
    ("gpt", "zero3 x4", "sequence2 x2"),
    ("llama", "stages2 tensor2", "zero3 x2"),
    ("llama", "zero3 x4", "tensor2"),
]


def a_spec(folder: Path, model: str, layout: str, steps: int) -> RunSpec:
    """Dropout, whose masks are the same in every layout, and clipping in every step, so that a wrong norm shows."""
    spec = tiny_spec(
        folder,
        model={**MODELS[model], "dropout": 0.1},
        steps=steps,
        # A rate at which the gradient norm does not jump: a jump magnifies the last digit, in unchanged layouts too.
        optimizer={"schedule": "constant", "lr": 0.002, "clip": 0.1},
        checkpoint={"every_steps": BEFORE},
    )
    return replace(spec, layout=LAYOUTS[layout])


@pytest.fixture(scope="module")
def unchanged(start: Launcher, runs: Path) -> dict[str, Launch]:
    specs = {model: a_spec(runs / f"unchanged-{model}", model, "one", BEFORE + AFTER) for model in MODELS}
    prepare_corpus(specs["gpt"])
    return {model: start(spec) for model, spec in specs.items()}


@pytest.fixture(scope="module")
def sources(unchanged: dict[str, Launch], start: Launcher, runs: Path) -> dict[tuple[str, str], Launch]:
    """A run of five steps in each layout that is changed from, all at once."""
    pairs = dict.fromkeys((model, source) for model, source, _ in CHANGES)
    return {(model, name): start(a_spec(runs / f"source-{model}-{name}", model, name, BEFORE)) for model, name in pairs}


@pytest.fixture(scope="module")
def targets(sources: dict[tuple[str, str], Launch], start: Launcher, runs: Path) -> dict[tuple[str, str, str], Launch]:
    launches = {}
    for model, source, target in CHANGES:
        assert set(sources[model, source].wait()) == {0}, sources[model, source].say()
        folder = runs / f"{model} {source} to {target}"
        shutil.copytree(sources[model, source].spec.checkpoint.directory, folder / "checkpoints")
        spec = replace(a_spec(folder, model, target, BEFORE + AFTER), resume=True)
        launches[model, source, target] = start(spec)
    return launches


@pytest.mark.parametrize(
    ("model", "source", "target"), CHANGES, ids=[f"{model} {source} to {target}" for model, source, target in CHANGES]
)
def test_the_steps_after_a_change_of_layout_are_those_without_it(
    model: str, source: str, target: str, unchanged: dict[str, Launch], targets: dict[tuple[str, str, str], Launch]
) -> None:
    launch, one = targets[model, source, target], unchanged[model]
    assert set(one.wait()) == {0}, one.say()
    assert set(launch.wait()) == {0}, launch.say()
    (changed,) = launch.events("layout_changed")
    assert changed.detail["then"] == asdict(LAYOUTS[source])
    assert changed.detail["now"] == asdict(LAYOUTS[target])
    assert [step.step for step in launch.steps()] == list(range(BEFORE + 1, BEFORE + AFTER + 1))
    for step, pair in launch.curve().items():
        assert pair == pytest.approx(one.curve()[step], rel=TOLERANCE), f"step {step}"
    assert launch.steps()[-1].heldout_loss == pytest.approx(one.steps()[-1].heldout_loss, rel=TOLERANCE)


def test_the_weights_of_every_layout_are_one_plain_models(
    unchanged: dict[str, Launch], targets: dict[tuple[str, str, str], Launch]
) -> None:
    """After ten steps, five of them in another layout: tied, staged, partitioned or tensor-parallel."""
    for (model, source, target), launch in targets.items():
        assert set(launch.wait()) == {0}, launch.say()
        loaded, wanted = (load_model(Path(each.spec.checkpoint.directory)) for each in (launch, unchanged[model]))
        # Adam moves a weight by about lr however small its gradient is, so that single ones may differ by more.
        for (name, one), other in zip(loaded.named_parameters(), wanted.parameters(), strict=True):
            assert (one - other).abs().mean() < 1e-5, f"{model} {source} to {target}: {name}"


@pytest.mark.parametrize("layout", ["zero1 x2", "zero3 x2", "stages2"])
def test_a_bf16_run_resumes_bit_for_bit(layout: str, start: Launcher, runs: Path) -> None:
    """The weights that a step sees are the fp32 ones rounded, so these are all a checkpoint needs."""

    def a_run(folder: str, steps: int, **changes: Any) -> RunSpec:
        return replace(a_spec(runs / f"bf16-{layout}-{folder}", "gpt", layout, steps), precision="bf16", **changes)

    whole, half = start(a_run("whole", 6)), start(a_run("halves", 3))
    assert set(half.wait()) == {0}, half.say()
    again = start(a_run("halves", 6, resume=True))
    assert set(again.wait()) == {0}, again.say()
    assert set(whole.wait()) == {0}, whole.say()
    assert again.curve() == whole.curve()
