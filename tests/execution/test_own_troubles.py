"""What is broken on our own side, or in a service that all nodes share: everything waits, and no node is condemned for it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import MUTATING, Action, Operation, Outcome, Status
from orchestrator.domain.plan import Hold
from orchestrator.drivers.outcomes import held
from orchestrator.execution.controller import everything_settled
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.planning.next_step import next_step
from orchestrator.planning.site import Site
from tests.execution.site import Rehearsal, a_controller, apply_request, lab_4

REASON = "secrets/ssh_key cannot be read: Too many open files"


class TiedHands(SimulatedHands):
    """Hands that hold back what `holds` says, as long as it says so."""

    holds: Callable[[Operation], bool] = staticmethod(lambda operation: False)
    held_back = 0

    def submit(self, operations: Sequence[Operation]) -> None:
        tied = [operation for operation in operations if self.holds(operation)]
        self.held_back += len(tied)
        for operation in tied:
            self._site.at(self._site.now_s + 0.1, lambda operation=operation: self._arrive(held(operation, REASON)))
        super().submit([operation for operation in operations if operation not in tied])


@pytest.mark.parametrize(
    "action",
    [
        Action.BMC_IDENTIFY,
        Action.BMC_CREDENTIAL,
        Action.IMAGE_REPORT,
        Action.PLAYBOOK,
        Action.BMC_POWER,
        Action.CELL_JOIN,
        Action.CELL_OBSERVE,
    ],
)
def test_an_hour_without_what_we_need_condemns_nobody_and_is_said(
    tmp_path: Path, action: Action, caplog: pytest.LogCaptureFixture
) -> None:
    rehearsal = Rehearsal(tmp_path)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    hands, begin_s = TiedHands(rehearsal.site), rehearsal.site.now_s
    hands.holds = lambda operation: operation.action is action and rehearsal.site.now_s < begin_s + 3600.0
    controller = a_controller(rehearsal.journal, hands, rehearsal.clock, tmp_path)
    controller.run(everything_settled)
    states = [str(record.state) for record in controller.state.nodes.values()]
    # The fourth has a GPU that the lab has broken.
    assert sorted(states) == ["quarantined", "ready", "ready", "ready"], {n: r.because for n, r in controller.state.nodes.items()}
    assert 60 < hands.held_back < 4 * 3600 / 10, "asked again every now and then, not all the time"
    assert 30 <= caplog.text.count(REASON) <= 70, "said about once a minute"
    assert not any(record.lost for record in controller.state.nodes.values())
    controller.close()


def test_what_was_held_back_has_not_been_sent_and_is_no_failure() -> None:
    site = Site.of(lab_4())
    record = NodeRecord(
        "r01-n1", NodeState.IDENTIFIED, since_s=0.0, last_status=Status.HELD, failed_at_s=10_000.0, clock_s=10_000.0
    )
    decision = next_step(record, site, 10_001.0)
    assert isinstance(decision, Hold) and "no fault of its own" in decision.because
    outcome = held(Operation("1", "r01-n1", Action.BMC_POWER, 1, site.target(record)), REASON)
    assert outcome.status is Status.HELD and outcome.retryable and Action.BMC_POWER in MUTATING
    assert Outcome.from_json(outcome.to_json()) == outcome
