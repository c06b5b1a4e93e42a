"""The benchmark's picture: loss against CPU seconds, BLEU with intervals, and the rows of table 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("Agg")


def draw(report: dict[str, Any], path: Path) -> None:
    panels = [_draw_curves, _draw_three] + ([_draw_table] if "test" in report.get("table", {}) else [])
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels)), strict=True):
        panel(axes, report)
    figure.savefig(path, dpi=110)


def _draw_curves(axes: Any, report: dict[str, Any]) -> None:
    for each in report.get("three", {}).get("systems", []):
        axes.plot([point[1] for point in each["curve"]], [point[3] for point in each["curve"]], label=each["name"])
    axes.axhline(report["unigram dev loss"], color="grey", linestyle=":", label="word frequencies alone")
    axes.set(xlabel="CPU seconds of training, one thread", ylabel="loss on dev, nat/token", title="Learning English to German")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)


def _draw_three(axes: Any, report: dict[str, Any]) -> None:
    _draw_scores(axes, report.get("three", {}), "BLEU on the test sentences")


def _draw_table(axes: Any, report: dict[str, Any]) -> None:
    _draw_scores(axes, report["table"], "rows of table 3, small: BLEU")


def _draw_scores(axes: Any, part: dict[str, Any], title: str) -> None:
    rows = [row for row in part.get("test", {}).get("rows", []) if row["metric"] == "BLEU"]
    places = list(range(len(rows)))[::-1]
    axes.barh(
        places, [row["value"] for row in rows], xerr=[row["interval"] for row in rows], color="tab:blue", alpha=0.7, capsize=3
    )
    axes.set_yticks(places, [row["system"].replace(".nn", ".nn\n").replace(" with", "\nwith") for row in rows])
    axes.set(title=title, xlabel="BLEU, 95 % interval")
    axes.grid(alpha=0.3, axis="x")
