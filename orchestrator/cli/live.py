"""Following something: a stamped line per change, and on a terminal a display below the lines that redraws itself."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from orchestrator.cli.output import may_draw
from orchestrator.domain.event import Event
from orchestrator.execution.views import Views

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REDRAW_EVERY_S = 0.5


class LiveLines:
    """Base of the live views. A context manager: the display ends with it, the lines stay."""

    def __init__(self, from_seq: int) -> None:
        """`from_seq`: events above it are news."""
        self.began_s = time.monotonic()
        self._from_seq = self._shown_seq = from_seq
        self._drawn_s = float("-inf")
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if may_draw():
            # rich costs 0.1 s to import; plain lines do not need it.
            from rich.live import Live

            self._live = Live(refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def news(self, views: Views) -> list[Event]:
        """Events that have not been shown yet; the journal is asked only when the last look at it brought some."""
        if not views.latest and self._shown_seq != self._from_seq:
            return []
        events = views.events_since(self._shown_seq)
        self._shown_seq = max([self._shown_seq, *(event.seq for event in events)])
        return events

    @property
    def is_terminal(self) -> bool:
        """Whether there is a display to draw."""
        return self._live is not None

    def say(self, line: str) -> None:
        """One line, stamped with the seconds since the beginning."""
        stamped = f"{time.monotonic() - self.began_s:6.1f} s  {line}"
        if self._live is not None:
            self._live.console.print(stamped, highlight=False, markup=False)
        else:
            click.echo(stamped)

    def draw(self, make: "Callable[[], RenderableType]") -> None:
        """Redraw the display, not more often than twice a second; `make` is called only then."""
        if self._live is not None and time.monotonic() >= self._drawn_s + REDRAW_EVERY_S:
            self._drawn_s = time.monotonic()
            self._live.update(make())
