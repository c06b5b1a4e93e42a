"""Files of the planner: the site's calibration, and pictures of predictions."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import BadInput


def read_calibration(path: Path) -> tuple[dict[str, dict[str, float]], dict[str, tuple[float, float]]]:
    """Factors and intervals of a calibration file; both empty where there is none. Raises BadInput for a file that is none."""
    if not path.exists():
        return {}, {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        values = {str(name): {str(key): float(value) for key, value in row.items()} for name, row in data["factors"].items()}
        intervals = {str(key): (float(low), float(high)) for key, (low, high) in data["intervals"].items()}
        for key, factor in ((key, factor) for row in values.values() for key, factor in row.items()):
            if not 0.0 < factor < math.inf:
                raise ValueError(f"the factor {factor:g} of {key} is not above 0")
        for key, (low, high) in intervals.items():
            if not -math.inf < low <= 0.0 <= high < math.inf:
                raise ValueError(f"the interval from {low:g} to {high:g} of {key} does not hold 0")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} is no calibration: {error}", "delete it, or calibrate again: `rackray train calibrate RUNS`"
        ) from error
    return values, intervals


def write_json(path: Path, data: Any) -> Path:
    """JSON in one stable form, whole or not at all."""
    return write_whole(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> Path:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def measured_steps(progress: Path, skip: float) -> tuple[float | None, int]:
    """Median step time of a run's progress lines after the first `skip` share of them, and how many lines counted."""
    times: list[float] = []
    for text in progress.read_text(encoding="utf-8").splitlines() if progress.exists() else ():
        try:
            line: Any = json.loads(text)
        except ValueError:
            continue  # the writer died in the middle of this line
        if isinstance(line, dict) and "event" not in line and isinstance(line.get("step_s"), (int, float)):
            times.append(float(line["step_s"]))
    kept = sorted(times[int(len(times) * skip) :])
    return (kept[len(kept) // 2] if kept else None), len(kept)


def draw_scatter(path: Path, title: str, points: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str) -> Path:
    """Predicted over measured, one colour per source, with the diagonal and 10 % on either side."""
    # A figure without pyplot needs no display; matplotlib takes a second to import, which other commands should not pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    every = [value for measured, predicted in points.values() for value in (*measured, *predicted)]
    ends = [min(every) * 0.8, max(every) * 1.25]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    for factor in (0.9, 1.1):
        axes.plot(ends, [end * factor for end in ends], color="grey", linewidth=0.6, linestyle="--")
    for index, (name, (measured, predicted)) in enumerate(points.items()):
        color, marker, label = f"C{index % 10}", "os^"[index // 10 % 3], f"{name} ({len(measured)})"
        axes.plot(measured, predicted, marker, color=color, markersize=3, alpha=0.6, label=label)
    axes.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"measured ({unit})", ylabel=f"predicted ({unit})", title=title
    )
    axes.legend(fontsize=7)
    return _save(figure, path)


def draw_terms(path: Path, title: str, layouts: Sequence[str], terms: Mapping[str, Sequence[float]]) -> Path:
    """Step times of several layouts as bars, cut into their terms (seconds)."""
    # As above.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 + 0.45 * len(layouts)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(layouts)
    for index, (name, seconds) in enumerate(terms.items()):
        hatch = "//" if index >= 10 else None
        axes.barh(range(len(layouts)), seconds, left=left, label=name.replace("_", " "), color=f"C{index % 10}", hatch=hatch)
        left = [at + width for at, width in zip(left, seconds, strict=True)]
    axes.set_yticks(range(len(layouts)), layouts, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="seconds per step", title=title)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, ncols=6, loc="outside lower center")
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    draft = path.with_name(f".draft-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(draft, format="png")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written: {error.strerror}", "name a file in a folder that can be written to") from error
    return path
