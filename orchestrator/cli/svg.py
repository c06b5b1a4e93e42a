"""Small words for writing SVG: shapes and texts as strings, escaped."""

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
INK, PALE, LINE = "#1b2733", "#5b6b7a", "#b8c4ce"
SCALE = ("#dbeaf5", "#9fcae4", "#5aa5d0", "#f2c14e", "#ef8a35", "#c5283d")
"""Up to 25, 50, 75, 90 and 100 % of the limit, and above."""
STEPS = (0.25, 0.5, 0.75, 0.9, 1.0)


def colour_of(ratio: float) -> str:
    """The colour of a load that is `ratio` of its limit."""
    return next((colour for step, colour in zip(STEPS, SCALE, strict=False) if ratio <= step + 1e-9), SCALE[-1])


def ink_on(ratio: float) -> str:
    """The colour of text on `colour_of(ratio)`."""
    return "#ffffff" if ratio > 1.0 + 1e-9 else INK


def document(width: float, height: float, parts: Iterable[str], title: str) -> str:
    """A whole picture on white."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family={quoteattr(FONT)}>'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", rect(0, 0, width, height, "#ffffff", ""), *parts, "</svg>", ""])


def rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = LINE, hint: str = "") -> str:
    """A rectangle; `hint` is shown under the pointer."""
    edge = f' stroke="{stroke}"' if stroke else ""
    inside = f"><title>{escape(hint)}</title></rect>" if hint else "/>"
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{fill}"{edge}{inside}'


def text(x: float, y: float, words: str, size: float = 11, fill: str = INK, anchor: str = "start", bold: bool = False) -> str:
    """One line of text; `y` is its base line."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = LINE, dashed: bool = False) -> str:
    """A straight line."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"{dash}/>'


def legend(x: float, y: float, what: str) -> list[str]:
    """The scale of colours."""
    names = [f"to {step:.0%}" for step in STEPS] + ["over"]
    parts = [text(x, y + 11, what, 11, PALE)]
    for index, (colour, name) in enumerate(zip(SCALE, names, strict=True)):
        at = x + 150 + index * 82
        parts += [rect(at, y, 14, 14, colour), text(at + 19, y + 11, name, 11, PALE)]
    return parts


def fitted(words: str, width: float, size: float) -> str:
    """`words`, cut to what fits into `width` at this font size."""
    most = max(1, int(width / (size * 0.6)))
    return words if len(words) <= most else words[: max(1, most - 1)] + "…"
