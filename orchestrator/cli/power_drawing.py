"""The power tree as a picture to hang on the wall: every part, coloured by its load after the worst single loss."""

from orchestrator.cli.power_view import kilowatts_1
from orchestrator.cli.svg import INK, LINE, PALE, colour_of, document, fitted, ink_on, legend, line, rect, text
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.power_loss import PowerReport

WIDTH, MARGIN, ROW_H, GAP_H = 1600.0, 30.0, 46.0, 26.0
MOST_PARTS = 30
"""Of the parts below one part, this many are drawn; the others are counted."""


def power_svg(spec: ClusterSpec, report: PowerReport) -> str:
    """The tree from the feeds down, as SVG."""
    drawing = _Drawing(report)
    feeds = list(spec.feeds)
    width = (WIDTH - 2 * MARGIN) / max(1, len(feeds))
    for index, feed in enumerate(feeds):
        drawing.branch(feed, MARGIN + index * width, 96.0, width - (24 if len(feeds) > 1 else 0))
    caps = sorted(set(round(cap) for cap in report.caps_w.values()))
    below = drawing.bottom + 30
    words = "no machine needs a power cap after any single loss"
    if caps:
        span = kilowatts_1(caps[0]) + (f" to {kilowatts_1(caps[-1])}" if len(caps) > 1 else "")
        words = f"{len(report.caps_w):,} machines must be capped after the worst single loss, at {span} kW"
    head = [
        text(MARGIN, 38, f"Power of cluster {spec.cluster}", 22, INK, bold=True),
        text(
            MARGIN,
            58,
            "Load of limit with every machine at its largest draw; below it the load after the worst loss of any one part.",
            12,
            PALE,
        ),
        *legend(MARGIN, 68, "colour: worst load of limit"),
    ]
    return document(
        WIDTH, below + 24, [*head, *drawing.parts, text(MARGIN, below, words, 13)], f"Power of cluster {spec.cluster}"
    )


class _Drawing:
    def __init__(self, report: PowerReport) -> None:
        self._report = report
        self.parts: list[str] = []
        self.bottom = 0.0

    def branch(self, name: str, x: float, y: float, width: float) -> None:
        """The part called `name` and what hangs below it."""
        self._box(name, x, y, width)
        below = self._report.tree.below[name]
        shown = below if len(below) <= MOST_PARTS else below[: MOST_PARTS - 1]
        if not shown:
            return
        slots = len(shown) + (1 if len(shown) < len(below) else 0)
        # Parts with many parts below them need the room; a leaf needs little.
        weights = [1.0 + min(MOST_PARTS, len(self._report.tree.below[each])) for each in shown] + [1.0] * (slots - len(shown))
        at, top = x, y + ROW_H + GAP_H
        for index, weight in enumerate(weights):
            share = width * weight / sum(weights)
            inner = max(3.0, share - min(4.0, share * 0.2))
            self.parts.append(line(x + width / 2, y + ROW_H, at + inner / 2, top))
            if index < len(shown):
                self.branch(shown[index], at, top, inner)
            else:
                more = f"{len(below) - len(shown):,} more"
                self.parts.append(rect(at, top, inner, ROW_H, "#f3f5f7", LINE, more))
                if inner >= 18:
                    self.parts.append(text(at + inner / 2, top + 27, fitted(f"+{more}", inner, 9), 9, PALE, "middle"))
            at += share

    def _box(self, name: str, x: float, y: float, width: float) -> None:
        part, normal, worst = self._report.tree.parts[name], self._report.normal[name], self._report.worst.get(name)
        heaviest = normal if worst is None else worst.load
        ratio = max(part.ratio(normal), part.ratio(heaviest))
        limit = kilowatts_1(part.limit_w)
        now = f"{kilowatts_1(sum(normal))} of {limit} kW"
        then = f"{kilowatts_1(sum(heaviest))} kW without {worst.lost}" if worst is not None else ""
        hint = f"{part.kind} {name}: {now}" + (f"; {then}" if then else "")
        self.parts.append(rect(x, y, width, ROW_H, colour_of(ratio), LINE, hint))
        self.bottom = max(self.bottom, y + ROW_H)
        colour, middle = ink_on(ratio), x + width / 2
        if width >= 58:
            title = f"{part.kind} {name}" if width >= 120 else name
            self.parts.append(text(middle, y + 14, fitted(title, width, 10), 10, colour, "middle", bold=True))
            self.parts.append(
                text(middle, y + 28, fitted(now if width >= 110 else kilowatts_1(sum(normal)), width, 9), 9, colour, "middle")
            )
            self.parts.append(
                text(
                    middle,
                    y + 40,
                    fitted(then if width >= 110 else f"→ {kilowatts_1(sum(heaviest))}", width, 9),
                    9,
                    colour,
                    "middle",
                )
            )
        elif width >= 26:
            self.parts.append(text(middle, y + 27, fitted(kilowatts_1(sum(heaviest)), width, 8), 8, colour, "middle"))
