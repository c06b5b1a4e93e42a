"""Rack elevations as a picture to hang on the wall: what stands where, each rack coloured by what it draws of its limit."""

from dataclasses import dataclass
from itertools import groupby

from orchestrator.cli.power_view import kilowatts_1, of_limit
from orchestrator.cli.svg import INK, LINE, PALE, colour_of, document, fitted, ink_on, legend, rect, text
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.words import counted
from orchestrator.planning.power_checks import draw_by_rack_w
from orchestrator.planning.power_loss import PowerReport
from orchestrator.planning.rack_checks import Machine, machines

WIDTH, LEAST_WIDTH, MARGIN = 1600.0, 1080.0, 30.0
RACK_W, GAP_W, UNIT_H = 104.0, 14.0, 9.0
"""Of the smallest elevation that can be read; where fewer racks stand in a row they are drawn larger."""
LARGEST = 2.2
MOST_ELEVATIONS = 150
"""Above this many racks each rack is a tile: an elevation could not be read any more."""
TILE_W, TILE_H = 22.0, 30.0
KIND_COLOURS = {
    "leaf-switch": "#e4ddf1",
    "spine-switch": "#cdbfe5",
    "management-switch": "#ebebee",
    "switch-tray": "#d3ecdd",
    "power-shelf": "#fbe6c2",
    "cooling": "#d2eef2",
}


def racks_svg(spec: ClusterSpec, report: PowerReport | None = None) -> str:
    """The racks by row, as SVG; with a report of the power tree, each says how full its PDUs are after the worst loss."""
    draw_w = draw_by_rack_w(spec)
    parts = [
        text(MARGIN, 38, f"Racks of cluster {spec.cluster}", 22, INK, bold=True),
        text(MARGIN, 58, _totals(spec, draw_w), 12, PALE),
        *legend(MARGIN, 68, "colour: draw of rack limit"),
    ]
    are_elevations = len(spec.racks) <= MOST_ELEVATIONS
    kinds = sorted({spec.sku_of(item).kind for item in spec.equipment}) if are_elevations else []
    for index, kind in enumerate(kinds):
        at = MARGIN + 700 + index * 140
        parts += [rect(at, 68, 14, 14, KIND_COLOURS.get(kind, "#ffffff"), PALE), text(at + 19, 79, kind, 11, PALE)]
    if are_elevations:
        drawn, bottom, width = _Elevations(spec, report, draw_w).all()
    else:
        drawn, bottom = _tiles(spec, draw_w)
        width = WIDTH
    return document(width, bottom + MARGIN, [*parts, *drawn], f"Racks of cluster {spec.cluster}")


def _totals(spec: ClusterSpec, draw_w: dict[str, float]) -> str:
    """How much stands there, and what it draws of what the racks may."""
    gpus = sum(spec.sku_of(node).gpus.count for node in spec.nodes)
    equipment = f", {counted(len(spec.equipment), 'piece')} of equipment" if spec.equipment else ""
    full = max((draw_w[name] / rack.limit_w for name, rack in spec.racks.items()), default=0.0)
    limit_w = sum(rack.limit_w for rack in spec.racks.values())
    return (
        f"{counted(len(spec.racks), 'rack')}, {counted(len(spec.nodes), 'node')}, {gpus:,} GPUs{equipment}; with every machine at"
        f" its largest draw {of_limit(sum(draw_w.values()), limit_w)} of the racks' limits, the fullest at {full:.0%}"
    )


def _rows(spec: ClusterSpec) -> list[tuple[str, list[str]]]:
    by_row = sorted(spec.racks, key=lambda name: spec.racks[name].row)
    return [(row, list(names)) for row, names in groupby(by_row, key=lambda name: spec.racks[name].row)]


@dataclass(frozen=True)
class _Elevations:
    """Every rack, drawn to scale."""

    spec: ClusterSpec
    report: PowerReport | None
    draw_w: dict[str, float]

    def all(self) -> tuple[list[str], float, float]:
        """The rows from top to bottom, where they end, and how wide the page is."""
        inside: dict[str, list[Machine]] = {}
        for _, machine in machines(self.spec):
            inside.setdefault(machine.rack, []).append(machine)
        rows = _rows(self.spec)
        longest = max(len(names) for _, names in rows)
        scale = min(LARGEST, max(1.0, (WIDTH - 2 * MARGIN) / (longest * (RACK_W + GAP_W) + 1)))
        per_line = max(1, int((WIDTH - 2 * MARGIN) // ((RACK_W + GAP_W) * scale)))
        parts: list[str] = []
        y = 104.0
        for row, names in rows:
            row_w = sum(self.draw_w[name] for name in names)
            limit_w = sum(self.spec.racks[name].limit_w for name in names)
            parts.append(text(MARGIN, y + 14, f"row {row}" if row else "racks", 14, INK, bold=True))
            parts.append(text(MARGIN + 130, y + 14, f"{counted(len(names), 'rack')}, {of_limit(row_w, limit_w)}", 11, PALE))
            y += 26
            for start in range(0, len(names), per_line):
                line_of = names[start : start + per_line]
                height = max(self.spec.racks[name].units for name in line_of) * UNIT_H * scale
                below = 0
                for place, name in enumerate(line_of):
                    x = MARGIN + place * (RACK_W + GAP_W) * scale
                    drawn, lines = self._one(name, inside.get(name, []), x, y + 34 + height, scale)
                    parts += drawn
                    below = max(below, lines)
                y += height + 50 + below * 12
        wide = 2 * MARGIN + min(longest, per_line) * (RACK_W + GAP_W) * scale
        return parts, y, max(LEAST_WIDTH, wide)

    def _one(self, name: str, inside: list[Machine], x: float, floor: float, scale: float) -> tuple[list[str], int]:
        """One rack whose floor is at `floor`, and how many lines stand below it."""
        rack, watts, wide, unit_h = self.spec.racks[name], self.draw_w[name], RACK_W * scale, UNIT_H * scale
        ratio, top = watts / rack.limit_w, floor - rack.units * unit_h
        load = of_limit(watts, rack.limit_w)
        parts = [
            text(x + wide / 2, top - 18, fitted(name, wide, 11), 11, INK, "middle", bold=True),
            text(x + wide / 2, top - 5, load, 9, PALE, "middle"),
            rect(x, top, wide, rack.units * unit_h, "#f3f5f7", INK, f"rack {name}: {load}"),
        ]
        for machine in inside:
            parts += self._machine(machine, x, floor, wide, unit_h, ratio)
        for unit in range(6, rack.units + 1, 6):
            parts.append(text(x + 9, floor - (unit - 0.5) * unit_h + 2, str(unit), 6, PALE, "end"))
        lines = self._below(name, inside)
        for index, said in enumerate(lines):
            parts.append(text(x + wide / 2, floor + 12 + 11 * index, fitted(said, wide + 10, 8), 8, PALE, "middle"))
        return parts, len(lines)

    def _machine(self, machine: Machine, x: float, floor: float, wide: float, unit_h: float, ratio: float) -> list[str]:
        sku = self.spec.skus[machine.sku]
        tall, is_compute = sku.units * unit_h, sku.kind == "compute"
        at = floor - (machine.unit - 1) * unit_h - tall
        units = f"units {machine.unit}-{machine.unit + sku.units - 1}" if sku.units > 1 else f"unit {machine.unit}"
        hint = f"{machine.name}: {machine.sku}, {units}, up to {kilowatts_1(sku.max_w)} kW"
        fill = colour_of(ratio) if is_compute else KIND_COLOURS.get(sku.kind, "#ffffff")
        size = 9 if tall >= 12 else 7
        said = f"{machine.name}  {kilowatts_1(sku.max_w)} kW" if wide > 1.4 * RACK_W else machine.name
        middle, ink = x + 11 + (wide - 14) / 2, ink_on(ratio) if is_compute else INK
        parts = [rect(x + 11, at + 0.5, wide - 14, tall - 1, fill, PALE, hint)]
        if tall >= 40 and said == machine.name:
            below = f"{kilowatts_1(sku.max_w)} kW"
            return [
                *parts,
                text(middle, at + tall / 2, fitted(said, wide - 16, size), size, ink, "middle"),
                text(middle, at + tall / 2 + 11, below, 8, ink, "middle"),
            ]
        return [*parts, text(middle, at + tall / 2 + size * 0.36, fitted(said, wide - 16, size), size, ink, "middle")]

    def _below(self, name: str, inside: list[Machine]) -> list[str]:
        """What else limits the rack: its PDUs after the worst loss, heat, weight."""
        rack, skus = self.spec.racks[name], [self.spec.skus[machine.sku] for machine in inside]
        lines: list[str] = []
        if self.report is not None and rack.pdus:
            after = []
            for pdu in rack.pdus:
                part, worst = self.report.tree.parts[pdu], self.report.worst.get(pdu)
                after.append((part.ratio(worst.load if worst else self.report.normal[pdu]), worst.lost if worst else ""))
            ratio, lost = max(after)
            lines.append(f"N-1: PDU at {ratio:.0%}" + (f" without {lost}" if lost else ""))
        liquid_w = sum(sku.liquid_w for sku in skus)
        if rack.air_limit_w:
            lines.append(f"air {of_limit(sum(sku.max_w for sku in skus) - liquid_w, rack.air_limit_w)}")
        if rack.liquid_limit_w:
            lines.append(f"liquid {of_limit(liquid_w, rack.liquid_limit_w)}")
        if rack.weight_limit_kg:
            lines.append(f"{sum(sku.weight_kg or 0.0 for sku in skus):,.0f} of {rack.weight_limit_kg:,.0f} kg")
        return lines


def _tiles(spec: ClusterSpec, draw_w: dict[str, float]) -> tuple[list[str], float]:
    held: dict[str, int] = {}
    for _, machine in machines(spec):
        held[machine.rack] = held.get(machine.rack, 0) + 1
    rows = _rows(spec)
    columns = 2 if max(len(names) for _, names in rows) * TILE_W < (WIDTH - 2 * MARGIN) / 2 - 190 and len(rows) > 12 else 1
    column_w, label_w, sum_w = (WIDTH - 2 * MARGIN) / columns, 100.0, 90.0
    per_line = max(1, int((column_w - label_w - sum_w) // TILE_W))
    parts = [text(MARGIN, 100, "numbers: kW of one rack; at the right those of its row", 10, PALE)]
    y, bottom = [110.0] * columns, 110.0
    for index, (row, names) in enumerate(rows):
        column = index * columns // len(rows)
        left = MARGIN + column * column_w
        parts.append(text(left, y[column] + 18, fitted(row or "racks", label_w, 11), 11, INK))
        row_w, limit_w = sum(draw_w[name] for name in names), sum(spec.racks[name].limit_w for name in names)
        at_sum = left + label_w + min(per_line, len(names)) * TILE_W + 6
        parts.append(text(at_sum, y[column] + 17, of_limit(row_w, limit_w), 9, PALE))
        for start in range(0, len(names), per_line):
            for place, name in enumerate(names[start : start + per_line]):
                ratio = draw_w[name] / spec.racks[name].limit_w
                hint = f"rack {name}: {counted(held.get(name, 0), 'machine')}, {of_limit(draw_w[name], spec.racks[name].limit_w)}"
                x = left + label_w + place * TILE_W
                parts.append(rect(x, y[column], TILE_W - 3, TILE_H - 5, colour_of(ratio), LINE, hint))
                parts.append(text(x + (TILE_W - 3) / 2, y[column] + 16, f"{draw_w[name] / 1000:.0f}", 8, ink_on(ratio), "middle"))
            y[column] += TILE_H
        bottom = max(bottom, y[column])
    return parts, bottom + 16
