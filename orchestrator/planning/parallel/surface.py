"""What the terms leave over, as a smooth surface over shapes: measured efficiency around the shapes that were measured.

Libraries choose kernels and protocols by shape in steps that no closed form follows. For each GPU family and framework family
the errors of the fit are averaged per shape and smoothed by a Gaussian process (Rasmussen and Williams 2006, section 2.2):
near measured shapes the prediction moves towards them, far from all of them it stays what the terms say. Shapes are
coordinates, never rows or sources.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats
from orchestrator.planning.parallel.constants import Constants

Points: TypeAlias = tuple[tuple[tuple[float, ...], float], ...]
"""Measured shapes: coordinates, and the weight of the bump that stands on each."""
Surface: TypeAlias = Mapping[str, Points]
"""Key "family|software" → its shapes."""

FEWEST_ROWS = 30
REACH = 0.8
"""Length scale, in doublings: so far away a measured shape still counts 0.6. Chosen among 0.35, 0.5 and 0.8 on rows held back."""
SPREAD = 0.12
"""Standard deviation of the surface before any row is seen."""
ROW_NOISE, SHAPE_NOISE = 0.06, 0.04
"""Standard deviation of one row's error around its shape's, and of a shape's around the surface."""


def coordinates(cases: Cases) -> Floats:
    """(cases, 8): doublings of tokens per micro-batch, width, tensor and pipeline degree, head size; then three codes."""
    columns = (
        np.log2(cases.micro * cases.seq / cases.cp),
        np.log2(cases.hidden),
        np.log2(cases.tp),
        0.5 * np.log2(cases.pp),
        np.log2(cases.hidden / cases.heads),
        3.0 * cases.low,
        0.5 * cases.zero,
        0.5 * cases.recompute,
    )
    return np.stack([np.broadcast_to(column, (len(cases),)) for column in columns], axis=1)


def fit_surface(cases: Cases, log_errors: Floats) -> dict[str, Points]:
    """The surface of ln(measured / predicted), from `log_errors` = ln(predicted / measured) of a fit."""
    where, keys = coordinates(cases), np.array(_keys(cases))
    found = {}
    for key in sorted(set(keys.tolist())):
        part = (keys == key) & np.isfinite(log_errors)
        if part.sum() < FEWEST_ROWS:
            continue
        shapes, inverse, counts = np.unique(np.round(where[part], 3), axis=0, return_inverse=True, return_counts=True)
        means = np.bincount(inverse.ravel(), weights=np.clip(-log_errors[part], -0.3, 0.3)) / counts
        noise = np.diag(SHAPE_NOISE**2 + ROW_NOISE**2 / counts)
        weights = np.linalg.solve(SPREAD**2 * _near(shapes, shapes) + noise, means) * SPREAD**2
        found[key] = tuple((tuple(shape), float(weight)) for shape, weight in zip(shapes.tolist(), weights, strict=True))
    return found


def on_surface(constants: Constants, cases: Cases, surface: Surface) -> Constants:
    """The constants with their pace moved by the surface."""
    return replace(constants, pace=constants.pace * np.exp(height(cases, surface))) if surface else constants


def height(cases: Cases, surface: Surface) -> Floats:
    """ln(measured / predicted) that the surface expects of each case; 0 where nothing like it was measured."""
    keys = _keys(cases)
    wanted = sorted(set(keys) & set(surface))
    found = np.zeros(len(cases))
    if not wanted:
        return found
    where, names = coordinates(cases), np.array(keys)
    for key in wanted:
        part = names == key if len(keys) > 1 else np.ones(len(cases), dtype=bool)
        shapes = np.array([shape for shape, _ in surface[key]])
        found[part] = _near(where[part], shapes) @ np.array([weight for _, weight in surface[key]])
    return found


def as_text(surface: Surface) -> str:
    """One line per measured shape: key, coordinates, weight."""
    lines = [
        f"{key} {' '.join(f'{value:.4g}' for value in shape)} {weight:.4g}"
        for key, points in sorted(surface.items())
        for shape, weight in points
    ]
    return "\n".join(lines)


def from_text(text: str) -> dict[str, Points]:
    """The surface that `as_text` wrote."""
    found: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    for line in text.split("\n"):
        key, *numbers = line.split()
        values = [float(number) for number in numbers]
        found.setdefault(key, []).append((tuple(values[:-1]), values[-1]))
    return {key: tuple(points) for key, points in found.items()}


def _near(a: Floats, b: Floats) -> Floats:
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None, :] - 2.0 * a @ b.T
    return np.exp(-0.5 * np.maximum(squares, 0.0) / REACH**2)


def _keys(cases: Cases) -> list[str]:
    size = max(len(cases.families), len(cases.softwares))
    families = cases.families * (size if len(cases.families) == 1 else 1)
    softwares = cases.softwares * (size if len(cases.softwares) == 1 else 1)
    return [f"{family}|{software}" for family, software in zip(families, softwares, strict=True)]
