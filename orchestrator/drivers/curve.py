"""The loss curve of a run as a picture, from its progress lines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import NotAsRequired


def draw_loss_curve(lines_path: Path, png_path: Path, title: str) -> Path:
    """Draws training and held-out loss (nat per token) over steps, with the unigram entropy as a line to beat.

    Reads the JSON lines of `lines_path` (a line that is not whole is left out) and writes `png_path` whole.
    Raises NotAsRequired where no step was recorded.
    """
    # A figure without pyplot needs no display; matplotlib takes a second to import, which other commands should not pay.
    from matplotlib.figure import Figure

    losses, heldout, unigram = read_losses(lines_path)
    if not losses:
        raise NotAsRequired(f"{lines_path} holds no step yet, so there is no curve to draw")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(losses), list(losses.values()), label="training", linewidth=1.2)
    if heldout:
        axes.plot(list(heldout), list(heldout.values()), "o-", label="held out", markersize=4)
    if unigram is not None:
        axes.axhline(unigram, linestyle="--", color="grey", label=f"unigram entropy {unigram:.2f}")
    axes.set(xlabel="step", ylabel="loss (nat per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    png_path.parent.mkdir(parents=True, exist_ok=True)
    draft = png_path.with_suffix(".draft.png")
    figure.savefig(draft)
    draft.replace(png_path)
    return png_path


def read_losses(lines_path: Path) -> tuple[dict[int, float], dict[int, float], float | None]:
    """Training loss by step, held-out loss by step, and the unigram entropy. The last line of a repeated step counts."""
    losses: dict[int, float] = {}
    heldout: dict[int, float] = {}
    unigram: float | None = None
    for line in _lines(lines_path):
        step = line.get("step")
        if isinstance(step, int) and "event" not in line and isinstance(line.get("loss"), (int, float)):
            losses[step] = float(line["loss"])
        if isinstance(step, int) and isinstance(line.get("heldout_loss"), (int, float)):
            heldout[step] = float(line["heldout_loss"])
        if isinstance(line.get("unigram_entropy_nats"), (int, float)):
            unigram = float(line["unigram_entropy_nats"])
    return dict(sorted(losses.items())), dict(sorted(heldout.items())), unigram


def _lines(path: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            value = json.loads(text)
        except ValueError:
            continue  # the writer died in the middle of this line
        if isinstance(value, dict):
            found.append(value)
    return found
