"""Answering what people ask where nobody decides at the moment: a controller for one moment, that begins nothing."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.errors import LeaseHeld
from orchestrator.domain.operation import Operation, Outcome
from orchestrator.drivers.interfaces import Clock
from orchestrator.execution.controller import Controller
from orchestrator.execution.journal import Journal
from orchestrator.execution.views import Views

LOOK_EVERY_S = 0.1


def answer_requests(journal: Journal, holder: str, clock: Clock, home: Path, views: Views) -> None:
    """Take the lease, answer every request that waits, and give it back. Raises LeaseHeld while somebody else decides."""
    epoch = journal.take_lease(holder, views.now_s())
    with views.shared() as shared:
        controller = Controller(journal, NoHands(), clock, epoch, home, shared.state, shared.tell)
        try:
            controller.answer()
        finally:
            controller.close()


def wait_for_answer(journal: Journal, request: int, holder: str, clock: Clock, home: Path) -> str:
    """What became of the request with this number: from whoever decides, or by answering it ourselves if nobody does."""
    views = Views(journal, home, clock)
    while request not in views.state.answers:
        if journal.is_free(journal.lease(), views.now_s()):
            with contextlib.suppress(LeaseHeld):  # somebody was quicker and will answer
                answer_requests(journal, holder, clock, home, views)
        else:
            clock.wait_s(LOOK_EVERY_S)
        views.refresh()
    return views.state.answers[request]


class NoHands:
    """Hands of a controller that answers and begins nothing."""

    def submit(self, operations: Sequence[Operation]) -> None:
        """Nothing may be asked of them. Raises AssertionError."""
        raise AssertionError(f"{len(operations)} operations for a controller without hands")

    def poll(self) -> list[Outcome]:
        """Nothing is under way."""
        return []

    def close(self) -> None:
        """Nothing to end."""
