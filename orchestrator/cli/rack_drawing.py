"""Rack elevations as a picture to hang on the wall: what stands where, each rack coloured by what it draws of its limit."""

from itertools import groupby

from orchestrator.cli.power_view import kilowatts_1
from orchestrator.cli.svg import INK, LINE, PALE, colour_of, document, fitted, ink_on, legend, rect, text
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.power_checks import draw_by_rack_w
from orchestrator.planning.rack_checks import Machine, count, machines

WIDTH, MARGIN, RACK_W, GAP_W, UNIT_H = 1600.0, 30.0, 104.0, 14.0, 9.0
MOST_ELEVATIONS = 150
"""Above this many racks each rack is a tile: an elevation could not be read any more."""
TILE_W, TILE_H = 22.0, 30.0


def racks_svg(spec: ClusterSpec) -> str:
    """The racks by row, as SVG."""
    draw_w = draw_by_rack_w(spec)
    parts = [
        text(MARGIN, 38, f"Racks of cluster {spec.cluster}", 22, INK, bold=True),
        text(MARGIN, 58, f"{count(len(spec.racks), 'rack')}; each with every machine at its largest draw.", 12, PALE),
        *legend(MARGIN, 68, "colour: draw of rack limit"),
    ]
    drawn, bottom = _elevations(spec, draw_w) if len(spec.racks) <= MOST_ELEVATIONS else _tiles(spec, draw_w)
    return document(WIDTH, bottom + MARGIN, [*parts, *drawn], f"Racks of cluster {spec.cluster}")


def _rows(spec: ClusterSpec) -> list[tuple[str, list[str]]]:
    by_row = sorted(spec.racks, key=lambda name: spec.racks[name].row)
    return [(row, list(names)) for row, names in groupby(by_row, key=lambda name: spec.racks[name].row)]


def _elevations(spec: ClusterSpec, draw_w: dict[str, float]) -> tuple[list[str], float]:
    inside: dict[str, list[Machine]] = {}
    for _, machine in machines(spec):
        inside.setdefault(machine.rack, []).append(machine)
    parts: list[str] = []
    y, per_line = 104.0, int((WIDTH - 2 * MARGIN) // (RACK_W + GAP_W))
    for row, names in _rows(spec):
        parts.append(text(MARGIN, y + 14, f"row {row}" if row else "racks", 14, INK, bold=True))
        y += 26
        for start in range(0, len(names), per_line):
            line_of = names[start : start + per_line]
            height = max(spec.racks[name].units for name in line_of) * UNIT_H
            for place, name in enumerate(line_of):
                x = MARGIN + place * (RACK_W + GAP_W)
                parts += _elevation(spec, name, inside.get(name, []), draw_w[name], x, y, height)
            y += height + 62
    return parts, y


def _elevation(spec: ClusterSpec, name: str, inside: list[Machine], watts: float, x: float, y: float, height: float) -> list[str]:
    rack = spec.racks[name]
    ratio, floor = watts / rack.limit_w, y + 34 + height
    top = floor - rack.units * UNIT_H
    load = f"{kilowatts_1(watts)} of {kilowatts_1(rack.limit_w)} kW"
    parts = [
        text(x + RACK_W / 2, top - 18, fitted(name, RACK_W, 11), 11, INK, "middle", bold=True),
        text(x + RACK_W / 2, top - 5, load, 9, PALE, "middle"),
        rect(x, top, RACK_W, rack.units * UNIT_H, "#f3f5f7", INK, f"rack {name}: {load}"),
    ]
    for machine in inside:
        sku = spec.skus[machine.sku]
        tall = sku.units * UNIT_H
        at = floor - (machine.unit - 1) * UNIT_H - tall
        units = f"units {machine.unit}-{machine.unit + sku.units - 1}"
        hint = f"{machine.name}: {machine.sku}, {units}, up to {kilowatts_1(sku.max_w)} kW"
        fill = colour_of(ratio) if sku.kind == "compute" else "#ffffff"
        parts.append(rect(x + 11, at + 0.5, RACK_W - 14, tall - 1, fill, PALE, hint))
        size = 9 if tall >= 12 else 7
        ink = ink_on(ratio) if sku.kind == "compute" else INK
        parts.append(
            text(
                x + 11 + (RACK_W - 14) / 2,
                at + tall / 2 + size * 0.36,
                fitted(machine.name, RACK_W - 16, size),
                size,
                ink,
                "middle",
            )
        )
    for unit in range(6, rack.units + 1, 6):
        parts.append(text(x + 9, floor - (unit - 0.5) * UNIT_H + 2, str(unit), 6, PALE, "end"))
    return parts


def _tiles(spec: ClusterSpec, draw_w: dict[str, float]) -> tuple[list[str], float]:
    held: dict[str, int] = {}
    for _, machine in machines(spec):
        held[machine.rack] = held.get(machine.rack, 0) + 1
    parts: list[str] = []
    rows = _rows(spec)
    columns = 2 if max(len(names) for _, names in rows) * TILE_W < (WIDTH - 2 * MARGIN) / 2 - 130 and len(rows) > 12 else 1
    column_w, label_w = (WIDTH - 2 * MARGIN) / columns, 100.0
    per_line = max(1, int((column_w - label_w - 60) // TILE_W))
    y, bottom = [104.0] * columns, 104.0
    for index, (row, names) in enumerate(rows):
        column = index * columns // len(rows)
        left = MARGIN + column * column_w
        parts.append(text(left, y[column] + 18, fitted(row or "racks", label_w, 11), 11, INK))
        for start in range(0, len(names), per_line):
            for place, name in enumerate(names[start : start + per_line]):
                ratio = draw_w[name] / spec.racks[name].limit_w
                load = f"{kilowatts_1(draw_w[name])} of {kilowatts_1(spec.racks[name].limit_w)} kW"
                hint = f"rack {name}: {count(held.get(name, 0), 'machine')}, {load}"
                x = left + label_w + place * TILE_W
                parts.append(rect(x, y[column], TILE_W - 3, TILE_H - 5, colour_of(ratio), LINE, hint))
                parts.append(text(x + (TILE_W - 3) / 2, y[column] + 16, f"{draw_w[name] / 1000:.0f}", 8, ink_on(ratio), "middle"))
            y[column] += TILE_H
        bottom = max(bottom, y[column])
    return [*parts, text(MARGIN, bottom + 16, "numbers: kW", 10, PALE)], bottom + 16
