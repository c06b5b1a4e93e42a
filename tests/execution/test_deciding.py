"""One process that decides and shows: what it shows is what it decides on, and the journal is folded once."""

from pathlib import Path

import pytest

from orchestrator.domain.node import NodeState
from orchestrator.domain.spec import ClusterSpec
from orchestrator.drivers.interfaces import Hands
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.deciding import Decider
from orchestrator.execution.journal import Journal
from orchestrator.execution.views import Views
from orchestrator.lab.simulated_hands import SimulatedHands
from tests.execution.site import Rehearsal, apply_request
from tests.execution.test_rollout_words import all_at_once


class CountingJournal(Journal):
    """A journal that counts how often it is folded whole."""

    loads = 0

    def load(self):  # type: ignore[no-untyped-def]
        self.loads += 1
        return super().load()


def test_what_is_shown_is_every_event_once_and_the_journal_is_folded_once(tmp_path: Path) -> None:
    site = Rehearsal(tmp_path, all_at_once())
    journal = CountingJournal(f"sqlite:///{tmp_path}/state.db")
    journal.request(apply_request(site.spec))
    shown: list[int] = []
    states: list[NodeState] = []

    def hands(spec: ClusterSpec) -> Hands:
        return SimulatedHands(site.site)

    def show(views: Views) -> None:
        shown.extend(event.seq for event in views.latest)
        states[:] = [record.state for record in views.state.nodes.values()]

    decider = Decider(tmp_path, journal, site.clock, "host:1:1:a", hands)
    decider.run(lambda views: everything_settled(views.state), show, site.spec)
    assert journal.loads == 1
    assert set(states) == {NodeState.READY}
    first = 1 + len([event for event in journal.events() if event.seq < shown[0]])
    assert shown == list(range(first, len(journal.events()) + 1)), "every event after the first look, each once, in order"


def test_views_go_on_by_themselves_when_the_controller_that_shared_their_state_has_ended(tmp_path: Path) -> None:
    site = Rehearsal(tmp_path, all_at_once())
    views = Views(site.journal, tmp_path)
    with pytest.raises(RuntimeError), views.shared() as shared:
        shared.state.apply(site.journal.request(apply_request(site.spec)))
        raise RuntimeError("the controller broke before it told anybody")
    site.apply()
    views.refresh()
    assert {record.state for record in views.state.nodes.values()} == {NodeState.READY}
    assert views.state.seq == site.journal.load().seq
