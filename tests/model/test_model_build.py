"""What a rank holds while its model is built: its own share and one parameter, never the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_launch import Launcher, tiny_spec

from model.contract import RunSpec
from model.corpus import prepare_corpus

MODEL = {"layers": 6, "d_model": 64, "heads": 4, "d_ff": 256, "vocabulary": 512, "positions": 32}
LARGEST = 512 * 64
"""Numbers of the embedding."""
LAYOUTS: dict[str, tuple[dict[str, int], str, float]] = {
    "zero3 x4": ({"data": 4, "zero": 3}, "fp32", 1 / 4),
    "zero3 x2 in bf16": ({"data": 2, "zero": 3}, "bf16", 1 / 4),
    "tensor2 zero3 x2": ({"tensor": 2, "data": 2, "zero": 3}, "fp32", 1 / 4),
    "zero2 x2 in bf16": ({"data": 2, "zero": 2}, "bf16", 1 / 2),
    # Its first and last stage have the embedding, which is tied, both.
    "stages2": ({"pipeline": 2}, "fp32", 1 / 2 + 0.1),
}
"""Layout, precision, and a rank's share of the whole model in fp32."""


def a_spec(runs: Path, name: str) -> RunSpec:
    layout, precision, _ = LAYOUTS[name]
    return tiny_spec(runs / f"build {name}".replace(" ", "-"), model=MODEL, layout=layout, precision=precision, steps=2)


@pytest.fixture(scope="module")
def built(start: Launcher, runs: Path) -> dict[str, list[dict[str, Any]]]:
    """By layout, what each rank held."""
    prepare_corpus(a_spec(runs, "stages2"))
    launches = {name: start(a_spec(runs, name), "memory while building") for name in LAYOUTS}
    for launch in launches.values():
        assert set(launch.wait()) == {0}, launch.say()
    return {
        name: [json.loads((log.parent / f"disk-{rank}" / "building.json").read_text()) for rank, log in enumerate(launch.logs)]
        for name, launch in launches.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rank_holds_its_share_and_one_parameter_while_the_model_is_built(
    name: str, built: dict[str, list[dict[str, Any]]], runs: Path
) -> None:
    whole = 4 * a_spec(runs, name).model.shape().parameters().total
    share = LAYOUTS[name][2] * whole
    for rank, held in enumerate(built[name]):
        print(
            f"{name} rank {rank}: {held['at_most'] / whole:.2f} of the whole model at most, {held['at_last'] / whole:.2f} after"
        )
        # Norms and biases are whole everywhere, hundredths of the model.
        assert held["at_last"] <= share + 0.04 * whole
        # A tensor rank has the parameter and its own part of it for a moment.
        assert held["at_most"] <= share + 0.04 * whole + 1.5 * 4 * LARGEST
        assert held["at_most"] > 0.2 * whole
