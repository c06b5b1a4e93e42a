"""A plan can be asked for at any moment of a bring-up, also one that a killed controller left half done."""

from pathlib import Path

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import MUTATING, Action
from orchestrator.domain.state import ClusterState
from orchestrator.planning.preview import preview
from orchestrator.planning.site import Site
from tests.execution.site import Rehearsal

ONCE_ONLY = (Action.BMC_CREDENTIAL, Action.BMC_BOOT_ONCE, Action.BMC_POWER, Action.BMC_UPDATE, Action.CELL_JOIN)


def moments_of_a_bring_up(folder: Path) -> list[Event]:
    rehearsal = Rehearsal(folder)
    rehearsal.apply()
    return rehearsal.journal.events()


def test_at_every_moment_of_a_bring_up_the_plan_comes_to_an_end_and_repeats_nothing_that_is_done(tmp_path: Path) -> None:
    state, done = ClusterState(), set[tuple[str, Action]]()
    planned_before = None
    for event in moments_of_a_bring_up(tmp_path):
        state.apply(event)
        if event.kind == "node.ended" and event.data["status"] == "done" and event.data["action"] in ONCE_ONLY:
            done.add((event.subject, Action(event.data["action"])))
        if state.spec is None:
            continue
        steps = [each.step for each in preview(Site.of(state.spec), state.nodes, {})]
        again = done & {(step.node, step.action) for step in steps}
        assert not again, f"after event {event.seq} ({event.kind} {event.subject}) the plan would repeat {again}"
        planned_before = planned_before if planned_before is not None else len(steps)
    assert planned_before, "the first plan, of four new machines, had no step"
    assert not [step for step in steps if step.action in MUTATING], "all is settled, yet there is something to do"
    settled = {NodeState.READY, NodeState.QUARANTINED}
    assert {record.state for record in state.nodes.values()} == settled
