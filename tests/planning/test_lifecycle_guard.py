"""What the lifecycle does not allow is not written, and stops nobody but the node it concerns."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.event import Event
from orchestrator.domain.identities import Twin
from orchestrator.domain.node import LEGAL_MOVES, NodeRecord, NodeState, can_move
from orchestrator.domain.plan import Decision, Move
from orchestrator.execution import controller
from orchestrator.execution.controller import everything_settled
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.planning.lifecycle_guard import keep_legal
from orchestrator.planning.next_step import next_step
from orchestrator.planning.site import Site
from tests.execution.site import Rehearsal, a_controller, apply_request
from tests.execution.test_rollout_words import all_at_once


def moved(name: str, old: NodeState, new: NodeState) -> Event:
    return Event("node.moved", name, {"from": str(old), "to": str(new), "because": ""})


STATES = st.sampled_from(list(NodeState))


@given(start=STATES, steps=st.lists(st.tuples(STATES, STATES), max_size=6))
def test_what_is_kept_is_a_walk_through_the_table(start: NodeState, steps: list[tuple[NodeState, NodeState]]) -> None:
    events = [moved("n1", old, new) for old, new in steps]
    kept, refused = keep_legal([*events, moved("n2", NodeState.READY, NodeState.ALLOCATED)], nodes(start))
    assert kept[-1].subject == "n2", "another node's move is kept"
    state = start
    for event in kept[:-1]:
        old, new = NodeState(event.data["from"]), NodeState(event.data["to"])
        assert old is state and can_move(old, new)
        state = new
    assert ("n1" in refused) == (len(kept) - 1 < len(events))


def nodes(start: NodeState) -> dict[str, NodeRecord]:
    return {"n1": NodeRecord("n1", start), "n2": NodeRecord("n2", NodeState.READY)}


def test_every_move_of_the_table_is_kept() -> None:
    for old, allowed in LEGAL_MOVES.items():
        for new in allowed:
            assert keep_legal([moved("n1", old, new)], nodes(old)) == ([moved("n1", old, new)], {})


def test_events_after_a_refused_move_rest_on_it_and_are_left_out_too() -> None:
    opened = Event("node.intended", "n1", {"operation": "1"})
    kept, refused = keep_legal([moved("n1", NodeState.ENROLLED, NodeState.READY), opened], nodes(NodeState.ENROLLED))
    assert kept == []
    assert refused == {"n1": "n1 is enrolled: the lifecycle has no move from enrolled to ready there"}


def test_a_mistake_in_planning_leaves_one_node_alone_and_the_others_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mistaken(record: NodeRecord, site: Site, now_s: float, twin: Twin | None) -> Decision:
        if record.name == "r01-n1" and record.state is NodeState.IDENTIFIED:
            return Move(record.name, NodeState.READY, "surely it is sound")
        return next_step(record, site, now_s, twin)

    monkeypatch.setattr(controller, "next_step", mistaken)
    site = Rehearsal(tmp_path, all_at_once(stage_limit_s=3600.0))
    site.journal.request(apply_request(site.spec))
    deciding = a_controller(site.journal, SimulatedHands(site.site), site.clock, site.home)
    deciding.run(lambda state: [r.state for r in state.nodes.values()].count(NodeState.READY) == len(site.spec.nodes) - 1)
    assert site.states()["r01-n1"] is NodeState.IDENTIFIED
    assert "no move from identified to ready" in deciding.waiting["r01-n1"]
    assert caplog.text.count("a mistake of rackray's") == 1, "said once, and not at every tick"
    monkeypatch.setattr(controller, "next_step", next_step)
    deciding.run(everything_settled)
    assert set(site.states().values()) == {NodeState.READY}, "with the mistake mended it goes on by itself"
