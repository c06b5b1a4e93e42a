"""Words shared by the commands: JSON on stdout, ages, tables that stay readable where stdout is no terminal."""

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.planning.estimate import Range

FILE = click.Path(path_type=Path, readable=False)
"""A path among the arguments. Whoever reads it says what is wrong with it, and the way out; click would only say that it is."""
LEAST_ROOM = 24
"""Letters that a broken column needs; with less, the terminal breaks the line."""
STATE_COLOURS = {
    "ready": "green",
    "allocated": "cyan",
    "quarantined": "red",
    "suspect": "yellow",
    "maintenance": "magenta",
    "retired": "bright_black",
}


def may_draw() -> bool:
    """Whether escape sequences may go to stdout: to a terminal that knows them, of a person who has not asked for none.

    NO_COLOR as in https://no-color.org: set, and not empty. A display that redraws itself is made of them too.
    """
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(data: Any) -> None:
    """`data` on stdout, in one stable form."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def age(seconds: float) -> str:
    """How long ago, for people: 42 s, 3 min, 2.5 h, 4 d."""
    for limit_s, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit_s:
            value = max(seconds, 0.0) / divisor
            return f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def time_range(left: Range | None) -> str:
    """A time left for people: a range, or that it is not known."""
    if left is None:
        return "unknown: no node has passed every stage here yet"
    low, high = age(left.low_s), age(left.high_s)
    return f"{low if low == high else f'{low} to {high}'}, if nothing more fails"


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], colour_column: int | None = None) -> None:
    """A plain aligned table. On a terminal states are coloured, and the last column is broken into what is left of the line."""
    line_width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    header, *lines = table_lines(headers, [[str(cell) for cell in row] for row in rows], line_width)
    click.echo("  ".join(header).rstrip())
    for cells in lines:
        if colour_column is not None and may_draw():
            cells[colour_column] = click.style(cells[colour_column], fg=STATE_COLOURS.get(cells[colour_column].strip(), "blue"))
        click.echo("  ".join(cells).rstrip())


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]], line_width: int | None) -> list[list[str]]:
    """The cells of each line of a table, padded. A last cell that does not fit into `line_width` goes on in lines of its own."""
    widths = [max([len(header), *(len(row[i]) for row in rows)]) for i, header in enumerate(headers)]
    room = (line_width or 0) - sum(width + 2 for width in widths[:-1])
    lines = [[header.upper() for header in headers]]
    for row in rows:
        is_short = room < LEAST_ROOM or len(row[-1]) <= room
        parts = [row[-1]] if is_short else textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        lines += [[*row[:-1], parts[0]], *([""] * (len(row) - 1) + [part] for part in parts[1:])]
    return [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; the file appears whole or not at all. Raises BadInput where it cannot be written."""
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # there may be none, or no way to it; the first error is the one to tell
            draft.unlink(missing_ok=True)
        raise BadInput(f"{path} cannot be written: {error.strerror}", "name a file in a folder that you may write to") from error


def accepted(answer: str) -> str:
    """`answer` of the controller to a request. Raises NotAsRequired with it where it refuses all that was asked."""
    if answer.startswith("refused"):
        raise NotAsRequired(answer)
    return answer


def confirm(question: str, yes: bool) -> bool:
    """Ask before acting, unless `--yes`; without a terminal to ask, the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty():
        click.echo(f"{question} Not a terminal: say --yes to go on.", err=True)
        return False
    return click.confirm(question, err=True)
