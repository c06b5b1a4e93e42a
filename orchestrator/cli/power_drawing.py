"""The power tree as a picture to hang on the wall: every part, coloured by its load after the worst single loss."""

from orchestrator.cli.power_view import alike, beside_limit, kilowatts_1, of_limit
from orchestrator.cli.svg import INK, LINE, PALE, colour_of, document, fitted, ink_on, legend, line, rect, text
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.power_loss import PowerReport

WIDTH, MARGIN, ROW_H, GAP_H = 1600.0, 30.0, 46.0, 26.0
LEAST_W = 160.0
"""Narrower boxes cannot be read: parts that carry the same become one box then."""
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
    drawn_w = sum(sum(report.normal[feed]) for feed in spec.feeds)
    fullest, ratio, lost = _tightest(report)
    of_feeds = of_limit(drawn_w, sum(feed.limit_w for feed in spec.feeds.values()))
    totals = (
        f"{len(spec.nodes):,} nodes, {len(spec.equipment):,} pieces of equipment: at most {of_feeds} of the feeds' limits. "
        f"N-1: the fullest part is {fullest}, with {1 - ratio:.0%} left" + (f" without {lost}." if lost else ".")
    )
    if caps:
        span = kilowatts_1(caps[0]) + (f" to {kilowatts_1(caps[-1])}" if len(caps) > 1 else "")
        words = f"{len(report.caps_w):,} machines must be capped after the worst single loss, at {span} kW"
    head = [
        text(MARGIN, 38, f"Power of cluster {spec.cluster}", 22, INK, bold=True),
        text(
            MARGIN,
            58,
            "Load of limit with every machine at its largest draw; below it the load after the worst loss of any one part, and"
            " what is then left of the limit. Stacked boxes stand for parts that carry the same.",
            12,
            PALE,
        ),
        *legend(MARGIN, 68, "colour: worst load of limit"),
    ]
    return document(
        WIDTH,
        below + 44,
        [*head, *drawing.parts, text(MARGIN, below, totals, 13), text(MARGIN, below + 20, words, 13)],
        f"Power of cluster {spec.cluster}",
    )


def _tightest(report: PowerReport) -> tuple[str, float, str]:
    """The part that one loss leaves the smallest margin: its kind and name, its load of its limit, and the loss."""
    found = ("", 0.0, "")
    for name, part in report.tree.parts.items():
        worst = report.worst.get(name)
        ratio = max(part.ratio(report.normal[name]), part.ratio(worst.load) if worst else 0.0)
        if ratio > found[1]:
            found = (f"{part.kind} {name}", ratio, worst.lost if worst else "")
    return found


class _Drawing:
    def __init__(self, report: PowerReport) -> None:
        self._report = report
        self.parts: list[str] = []
        self.bottom = 0.0

    def branch(self, name: str, x: float, y: float, width: float, times: int = 1) -> None:
        """The part called `name` and what hangs below it; `times` as many parts look like it."""
        self._box(name, x, y, width, times)
        below = self._report.tree.below[name]
        if not below:
            return
        # Where boxes would be too narrow to read, parts that carry the same become one box.
        groups = [[each] for each in below] if width / len(below) >= LEAST_W else alike(self._report, below)
        shown, more = groups[:MOST_PARTS], sum(map(len, groups[MOST_PARTS:]))
        weights = [1.0 + min(MOST_PARTS, len(self._report.tree.below[group[0]])) ** 0.5 for group in shown] + [1.0] * bool(more)
        at, top = x, y + ROW_H + GAP_H
        for index, weight in enumerate(weights):
            share = width * weight / sum(weights)
            inner = max(3.0, share - min(6.0, share * 0.2))
            self.parts.append(line(x + width / 2, y + ROW_H, at + inner / 2, top))
            if index < len(shown):
                self.branch(shown[index][0], at, top, inner, len(shown[index]))
            else:
                self.parts.append(rect(at, top, inner, ROW_H, "#f3f5f7", LINE, f"{more:,} more"))
                self.parts.append(text(at + inner / 2, top + 27, fitted(f"+{more:,}", inner, 9), 9, PALE, "middle"))
            at += share

    def _box(self, name: str, x: float, y: float, width: float, times: int) -> None:
        part, normal, worst = self._report.tree.parts[name], self._report.normal[name], self._report.worst.get(name)
        heaviest = normal if worst is None else worst.load
        ratio = max(part.ratio(normal), part.ratio(heaviest))
        fill, ink, middle = colour_of(ratio), ink_on(ratio), x + width / 2
        now = of_limit(sum(normal), part.limit_w)
        left = f", {1 - part.ratio(heaviest):.0%} left" if part.limit_w else ""
        then = (
            f"{beside_limit(sum(heaviest), part.limit_w)} without {worst.lost}{left}" if worst is not None else left.lstrip(", ")
        )
        many = f"{times:,} × " if times > 1 else ""
        for behind in (6, 3) if times > 1 else ():
            self.parts.append(rect(x + behind, y + behind, width - 6, ROW_H, fill))
        hint = f"{many}{part.kind} {name}: {now}" + (f"; {then}" if then else "")
        self.parts.append(rect(x, y, width - (6 if times > 1 else 0), ROW_H, fill, LINE, hint))
        self.bottom = max(self.bottom, y + ROW_H + 6)
        wide = width >= 128
        words = (
            (14, many + (f"{part.kind} {name}" if width >= 130 else name), 10),
            (28, now if wide else kilowatts_1(sum(normal)), 9),
            (40, then if wide else f"→ {kilowatts_1(sum(heaviest))}, {part.ratio(heaviest):.0%}", 9),
        )
        for down, said, size in words if width >= 30 else ():
            self.parts.append(text(middle, y + down, fitted(said, width, size), size, ink, "middle", bold=size == 10))
