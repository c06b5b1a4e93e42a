"""After a lost answer, and after a neighbour that asked for patience: what is next, and what is never done twice."""

from typing import Any

from orchestrator.domain.event import Event
from orchestrator.domain.node import Fact, NodeRecord, NodeState, OpenOperation
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Decision, Hold, Settle, Step
from orchestrator.domain.state import ClusterState
from orchestrator.planning.next_step import next_step
from orchestrator.planning.site import Site
from tests.execution.site import lab_4

NODE = "r01-n1"
SITE = Site.of(lab_4())
OLD = {"components": [{"id": name, "version": "0.1", "updateable": True} for name in SITE.baseline(NODE)]}
SOUND = {
    "components": [{"id": name, "version": part.approved[0], "updateable": True} for name, part in SITE.baseline(NODE).items()]
}
LOST = OpenOperation("op", Action.BMC_UPDATE, 100.0, 1, {"component": "NIC1", "version": "28.39.1002", "tasks_before": ["/t/1"]})


def after_a_lost_update(tasks: dict[str, Any], at_s: float = 130.0) -> tuple[ClusterState, Decision]:
    """A node whose update was sent and whose answer never came, after one look at the BMC's tasks."""
    facts = {Action.BMC_FIRMWARE: Fact(90.0, OLD), Action.BMC_TASKS: Fact(at_s, tasks)}
    record = NodeRecord(NODE, NodeState.CONFIGURED, since_s=80.0, facts=facts, lost=LOST)
    state = ClusterState(spec=SITE.spec, nodes={NODE: record})
    return state, next_step(record, SITE, at_s)


def settled(state: ClusterState, decision: Decision) -> NodeRecord:
    assert isinstance(decision, Settle)
    state.apply(Event("node.settled", NODE, {"done": decision.done, "facts": dict(decision.facts)}, at_s=130.0))
    return state.nodes[NODE]


def test_a_task_that_is_new_is_the_lost_one() -> None:
    _, decision = after_a_lost_update({"tasks": [{"task": "/t/1"}, {"task": "/t/2"}], "listed": True})
    assert isinstance(decision, Settle) and decision.done and decision.facts == {"task": "/t/2"}


def test_no_new_task_says_no_only_when_it_can_no_longer_become_one() -> None:
    none_yet = {"tasks": [{"task": "/t/1"}], "listed": True}
    _, early = after_a_lost_update(none_yet, at_s=103.0)
    assert isinstance(early, Hold | Step) and not (isinstance(early, Step) and early.action is Action.BMC_UPDATE)
    _, late = after_a_lost_update(none_yet)
    assert isinstance(late, Settle) and not late.done


def test_where_the_bmc_lists_no_tasks_an_update_is_never_sent_again_and_the_version_decides() -> None:
    state, decision = after_a_lost_update({"tasks": [], "listed": False})
    assert isinstance(decision, Settle) and decision.done and "is not repeated" in decision.because
    record = settled(state, decision)
    for now_s in (131.0, 140.0, 200.0):
        step = next_step(record, SITE, now_s)
        assert not isinstance(step, Step) or step.action is Action.BMC_FIRMWARE
    state.observe(NODE, Action.BMC_FIRMWARE, SOUND, 210.0)
    done = next_step(state.nodes[NODE], SITE, 210.0)
    assert "read back as approved" in done.because


def test_a_journal_from_before_bmcs_were_asked_whether_they_list_tasks_reads_as_before() -> None:
    _, decision = after_a_lost_update({"tasks": [{"task": "/t/1"}]})
    assert isinstance(decision, Settle) and not decision.done


def ended(**data: Any) -> NodeRecord:
    state = ClusterState(spec=SITE.spec, nodes={NODE: NodeRecord(NODE, NodeState.CREDENTIALED, since_s=100.0)})
    said = {"operation": "op", "action": "bmc.observe", "status": "refused", "facts": {}, "reason": "busy", "retryable": True}
    state.apply(Event("node.ended", NODE, said | data, at_s=100.0))
    return state.nodes[NODE]


def test_a_neighbour_that_asks_for_patience_is_asked_again_when_it_said_and_not_before() -> None:
    hold = next_step(ended(retry_after_s=20.0), SITE, 100.0)
    assert isinstance(hold, Hold) and hold.until_s == 120.0
    sooner = next_step(ended(), SITE, 100.0)
    assert isinstance(sooner, Hold) and sooner.until_s < 102.0


def test_no_neighbour_may_use_up_the_time_of_a_stage_by_asking_for_patience() -> None:
    hold = next_step(ended(retry_after_s=3600.0), SITE, 100.0)
    assert isinstance(hold, Hold) and hold.until_s == 100.0 + SITE.spec.rollout.stage_limit_s / 2


def test_an_answer_ends_the_patience() -> None:
    state = ClusterState(spec=SITE.spec, nodes={NODE: ended(retry_after_s=20.0)})
    state.apply(
        Event(
            "node.ended",
            NODE,
            {"operation": "op2", "action": "bmc.observe", "status": "done", "facts": {"power": "On"}, "reason": ""},
            at_s=121.0,
        )
    )
    assert state.nodes[NODE].retry_after_s == 0.0
