"""A rehearsal as a picture: nodes by state over time, and what every feed carries against its limit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

COLOURS = {
    "enrolled": "#d0d0d0",
    "identified": "#c6dbef",
    "credentialed": "#9ecae1",
    "powered": "#6baed6",
    "imaged": "#4292c6",
    "reachable": "#2171b5",
    "configured": "#08519c",
    "firmware_ok": "#54278f",
    "accepted": "#a1d99b",
    "ready": "#31a354",
    "suspect": "#fdae6b",
    "quarantined": "#de2d26",
}
"""From grey over blue to green, in the order of the lifecycle; red for what needs a person."""


class Sample(Protocol):
    """The fleet at one moment."""

    @property
    def at_s(self) -> float: ...
    @property
    def states(self) -> Mapping[str, int]: ...
    @property
    def feed_w(self) -> Mapping[str, float]: ...


def draw_rehearsal(samples: Sequence[Sample], limits_w: Mapping[str, float], title: str, picture: Path) -> Path:
    """Draw nodes per state (stacked) over time, and watts reserved per feed against its limit.

    The format follows from the picture's ending (.svg, .png, .pdf); the file appears whole. Returns where it is.
    """
    # matplotlib takes a second to import, which other commands should not pay; a figure without pyplot needs no display.
    import matplotlib
    from matplotlib.figure import Figure

    hours = [sample.at_s / 3600 for sample in samples]
    states = [sample.states for sample in samples]
    order = [state for state in COLOURS if any(sample.get(state) for sample in states)]
    order += sorted({state for sample in states for state in sample} - set(COLOURS))
    figure = Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    counts = [[sample.get(state, 0) for sample in states] for state in order]
    above.stackplot(hours, counts, labels=order, colors=[COLOURS.get(state, "#969696") for state in order])
    above.set(ylabel="nodes", title=title)
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    above.margins(x=0, y=0)
    for number, (feed, limit_w) in enumerate(sorted(limits_w.items())):
        colour = f"C{number % 10}"
        below.plot(hours, [sample.feed_w.get(feed, 0.0) / 1000 for sample in samples], color=colour, label=f"feed {feed}")
        equal = [other for other, w in sorted(limits_w.items()) if w == limit_w]
        if feed == equal[0]:
            line = {"color": colour if len(equal) == 1 else "black", "linestyle": "--", "linewidth": 1}
            below.axhline(limit_w / 1000, label=f"limit of {', '.join(equal)}" + (" each" if len(equal) > 1 else ""), **line)
    below.margins(x=0)
    below.set(xlabel="hours", ylabel="reserved draw (kW)")
    below.set_ylim(bottom=0)
    below.grid(alpha=0.3)
    if len(limits_w) <= 8:
        below.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture.parent.mkdir(parents=True, exist_ok=True)
    draft = picture.with_name(f"{picture.stem}.draft{picture.suffix}")
    # Without a fixed salt and date the same rehearsal would not give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "rackray"}):
        figure.savefig(draft, metadata={"Date": None} if picture.suffix == ".svg" else None)
    draft.replace(picture)
    return picture
