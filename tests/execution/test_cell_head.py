"""A cell's head that dies while nodes join is one fault, and not theirs: they wait, join the new one, and none is condemned."""

from pathlib import Path

from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action
from orchestrator.execution.controller import everything_settled
from orchestrator.planning.settle import JOIN_EFFECT_S
from tests.execution.site import Rehearsal, a_controller, apply_request
from tests.execution.test_own_troubles import TiedHands


def test_nodes_that_had_joined_a_head_that_died_join_the_new_one(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    hands, site = TiedHands(rehearsal.site), rehearsal.site
    controller = a_controller(rehearsal.journal, hands, rehearsal.clock, tmp_path)
    died_at_s: list[float] = []

    def head_dies(operation: object) -> bool:
        """Between the first join and the look whether the cell lists the node; it is up again, and empty, at once."""
        if getattr(operation, "action", None) is Action.CELL_OBSERVE and not died_at_s:
            died_at_s.append(site.now_s)
            for node in site.nodes.values():
                node.in_cell = False
        return False

    hands.holds = head_dies
    controller.run(everything_settled)
    states = sorted(str(record.state) for record in controller.state.nodes.values())
    # The fourth has a GPU that the lab has broken.
    assert states == ["quarantined", "ready", "ready", "ready"], {n: r.because for n, r in controller.state.nodes.items()}
    joins = [
        event.subject
        for event in rehearsal.journal.events(0)
        if event.kind == "node.intended" and event.data["action"] == Action.CELL_JOIN
    ]
    assert sorted(joins.count(name) for name in set(joins)) == [1, 1, 2], joins
    ready_s = min(record.since_s for record in controller.state.nodes.values() if record.state is NodeState.READY)
    assert JOIN_EFFECT_S <= ready_s - died_at_s[0] < 3 * JOIN_EFFECT_S, "no sooner than a join may take to be seen, and not late"
    controller.close()
