"""One truth across layouts for the encoder-decoder: losses, gradient norms and held-out losses of one rank in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel_world import tiny_translation, write_parallel_text
from training_launch import Launch, Launcher

from model.contract import ExitCode, RunSpec
from model.corpora import prepare

STEPS = 10
TOLERANCE = 1e-5
"""Relative; sums in another order differ by some 1e-7 in fp32."""

SINGLE = {"zero": 1}
LAYOUTS: list[dict[str, int]] = [
    {"zero": 0},
    {"data": 2, "zero": 1},
    {"data": 2, "zero": 2},
    {"data": 2, "zero": 3},
    {"tensor": 2, "zero": 1},
    {"pipeline": 2, "zero": 1},
    {"pipeline": 4, "zero": 1},
    {"pipeline": 2, "data": 2, "zero": 1},
    {"pipeline": 2, "tensor": 2, "zero": 1},
]


def name_of(layout: dict[str, int]) -> str:
    return "-".join(f"{degree}{number}" for degree, number in layout.items())


def a_spec(runs: Path, text: Path, layout: dict[str, int]) -> RunSpec:
    """As published but small: post-LN, sinusoids, dropout, label smoothing, Adam and the paper's schedule; clipping active."""
    return tiny_translation(
        runs / f"pairs-{name_of(layout)}",
        text,
        model={"family": "vaswani", "layers": 2, "encoder_layers": 2, "dropout": 0.1, "label_smoothing": 0.1},
        optimizer={"kind": "adam", "schedule": "noam", "lr": 0.5, "warmup_steps": 4, "betas": [0.9, 0.98], "eps": 1e-9},
        layout=layout,
        steps=STEPS,
        # What is worked out again must be the same too; half of the layouts do so.
        activation_checkpointing="full" if layout.get("data") else "none",
    )


def finish(launch: Launch) -> Launch:
    assert launch.wait() == [ExitCode.DONE] * launch.spec.layout.ranks, launch.say()
    return launch


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parallel_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def single(start: Launcher, runs: Path, text: Path) -> Launch:
    spec = a_spec(runs, text, SINGLE)
    prepare(spec)
    return finish(start(spec))


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_has_the_losses_and_gradient_norms_of_one_rank(
    layout: dict[str, int], single: Launch, start: Launcher, runs: Path, text: Path
) -> None:
    launch = finish(start(a_spec(runs, text, layout)))
    assert launch.curve().keys() == single.curve().keys() == set(range(1, STEPS + 1))
    for step, numbers in single.curve().items():
        assert launch.curve()[step] == pytest.approx(numbers, rel=TOLERANCE), f"step {step}"
    assert launch.steps()[-1].heldout_loss == pytest.approx(single.steps()[-1].heldout_loss, rel=TOLERANCE)


def test_the_paper_s_rate_and_a_falling_loss_are_told(single: Launch) -> None:
    steps = single.steps()
    assert steps[1].lr == pytest.approx(0.5 * 32**-0.5 * 2 * 4**-1.5)
    assert steps[8].lr == pytest.approx(0.5 * 32**-0.5 * 9**-0.5)
    assert steps[-1].loss < steps[0].loss - 0.5
    assert max(step.grad_norm for step in steps) > 0.3  # clipping is active
    (started,) = single.events("started")
    assert started.detail["parameters"] == single.spec.model.shape().parameters().total
