"""Words shared by the commands: JSON on stdout, ages, tables that stay readable where stdout is no terminal."""

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.domain.errors import BadInput
from orchestrator.planning.estimate import Range

FILE = click.Path(path_type=Path, readable=False)
"""A path among the arguments. Whoever reads it says what is wrong with it, and the way out; click would only say that it is."""
STATE_COLOURS = {
    "ready": "green",
    "allocated": "cyan",
    "quarantined": "red",
    "suspect": "yellow",
    "maintenance": "magenta",
    "retired": "bright_black",
}


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
    """A plain aligned table; the last column takes what is left of the line. States are coloured on a terminal."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(header), *(len(row[i]) for row in body)]) for i, header in enumerate(headers)]
    click.echo("  ".join(header.upper().ljust(width) for header, width in zip(headers, widths, strict=True)).rstrip())
    for row in body:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colour_column is not None and sys.stdout.isatty():
            cells[colour_column] = click.style(cells[colour_column], fg=STATE_COLOURS.get(row[colour_column], "blue"))
        click.echo("  ".join(cells).rstrip())


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


def confirm(question: str, yes: bool) -> bool:
    """Ask before acting, unless `--yes`; without a terminal to ask, the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty():
        click.echo(f"{question} Not a terminal: say --yes to go on.", err=True)
        return False
    return click.confirm(question, err=True)
