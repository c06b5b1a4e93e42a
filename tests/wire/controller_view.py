"""What the controller makes of one answer: the journal's fold and `next_step`, with nothing between them and the real outcome."""

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.event import Event, ended_event
from orchestrator.domain.node import Fact, NodeRecord, NodeState, OpenOperation, changed
from orchestrator.domain.operation import MUTATING, Action, Outcome, Status
from orchestrator.domain.plan import Decision, Hold, Move, Settle, Step
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.planning.next_step import next_step
from orchestrator.planning.site import Site
from tests.execution.site import lab_4
from tests.wire.faults import Fault, Then

NODE = "r01-n1"
NOW_S = 10_000.0
S = NodeState
DIGEST = "sha256:image"
INVENTORY = {"components": [{"id": "NIC1", "name": "NIC1", "version": "28.36.1010", "updateable": True}]}
UPDATE = {"component": "NIC1", "version": "28.39.1002", "task": "/redfish/v1/TaskService/Tasks/1"}

STAGES: Mapping[Action, tuple[NodeState, Mapping[Action, Mapping[str, Any]]]] = {
    Action.BMC_IDENTIFY: (S.ENROLLED, {}),
    Action.BMC_CREDENTIAL: (S.IDENTIFIED, {}),
    Action.BMC_OBSERVE: (S.CREDENTIALED, {}),
    Action.BMC_POWER: (S.CREDENTIALED, {Action.BMC_OBSERVE: {"power": "Off"}}),
    Action.BMC_BOOT_ONCE: (S.CREDENTIALED, {Action.BMC_OBSERVE: {"power": "Off"}, Action.IMAGE_REPORT: {"installed": False}}),
    Action.BMC_FIRMWARE: (S.CONFIGURED, {}),
    Action.BMC_UPDATE: (S.CONFIGURED, {Action.BMC_FIRMWARE: INVENTORY, Action.BMC_TASKS: {"tasks": []}}),
    Action.BMC_TASKS: (S.CONFIGURED, {}),
    Action.BMC_TASK: (S.CONFIGURED, {Action.BMC_FIRMWARE: INVENTORY, Action.BMC_UPDATE: UPDATE}),
    Action.BMC_EVENTS: (S.CREDENTIALED, {}),
    Action.SSH_IDENTIFY: (S.IMAGED, {Action.IMAGE_REPORT: {"wanted_digest": DIGEST}}),
    Action.SSH_EXEC: (S.IMAGED, {}),
    Action.CELL_JOIN: (S.ACCEPTED, {}),
    Action.NODE_PROBE: (S.FIRMWARE_OK, {}),
}
"""Where a node stands when such an exchange is made, and what is known of it then."""


def site() -> Site:
    """The four-node lab, with the two components that the BMCs of these tests list."""
    spec: ClusterSpec = lab_4()
    (sku,) = spec.firmware
    firmware = {sku: {name: part for name, part in spec.firmware[sku].items() if name != "BIOS"}}
    return Site.of(spec.model_copy(update={"firmware": firmware}))


class View:
    """One node's record, as the journal would hold it."""

    def __init__(self, fault: Fault, serial: str = "SER-1") -> None:
        self.site = site()
        self.fault = fault
        stage, known = STAGES[fault.action]
        facts = {action: Fact(NOW_S - 50 + age, values) for age, (action, values) in enumerate(known.items())}
        facts |= {action: Fact(NOW_S - fault.knows_age_s, values) for action, values in fault.knows.items()}
        record = NodeRecord(NODE, stage, since_s=NOW_S - 60, facts=facts, serial=serial)
        self.state = ClusterState(spec=self.site.spec, nodes={NODE: record})

    @property
    def record(self) -> NodeRecord:
        return self.state.nodes[NODE]

    def take_in(self, outcome: Outcome, args: Mapping[str, Any], now_s: float = NOW_S) -> None:
        """The intent, if it changes something, and then the answer."""
        if outcome.action in MUTATING:
            opened = OpenOperation(outcome.operation, outcome.action, now_s - 1, 1, args)
            self.state.nodes[NODE] = changed(self.record, open=opened)
        event = ended_event(outcome, NODE)
        self.state.apply(Event(event.kind, event.subject, event.data, at_s=now_s))

    def decide(self, now_s: float = NOW_S) -> Decision:
        """What is next."""
        return next_step(self.record, self.site, now_s)

    def decide_after_pause(self) -> tuple[Decision, float]:
        """What is next once nothing is waited for any more, and when that is."""
        now_s = NOW_S
        for _ in range(5):
            decision = self.decide(now_s)
            if not isinstance(decision, Hold):
                return decision, now_s
            now_s = decision.until_s
        raise AssertionError(f"it holds and holds: {decision}")


def check(fault: Fault, outcome: Outcome, args: Mapping[str, Any], serial: str) -> str:
    """Make sure that the controller does with the outcome what the row says; the reason it gives."""
    view = View(fault, serial)
    view.take_in(outcome, args)
    first = view.decide()
    then, at_s = view.decide_after_pause()
    match fault.then:
        case Then.AGAIN:
            assert isinstance(first, Hold), f"no pause before it asks again: {first}"
            assert isinstance(then, Step), then
            most_s = view.site.spec.rollout.stage_limit_s / 2
            assert at_s - NOW_S >= max(0.1, min(most_s, outcome.retry_after_s)), "it asks again too early"
            assert outcome.reason[:200] in view.record.last_problem
            return first.because
        case Then.LOOK:
            assert outcome.status is Status.UNKNOWN
            assert isinstance(then, Step) and then.action not in MUTATING, f"nothing may be repeated before a look: {then}"
            return then.because
        case Then.WATCH:
            assert isinstance(first, Hold), f"it looks again at once: {first}"
            assert isinstance(then, Step) and then.action not in MUTATING, then
            return first.because
        case Then.QUARANTINE:
            assert isinstance(then, Move) and then.to is NodeState.QUARANTINED, then
            return then.because
        case Then.GO_ON:
            assert isinstance(then, Step | Move | Settle), then
            assert not (isinstance(then, Move) and then.to is NodeState.QUARANTINED), then
            return then.because


def until_given_up(fault: Fault, outcome: Outcome, args: Mapping[str, Any], serial: str) -> tuple[Move, int, float]:
    """The same answer for ever: the move that ends it, after how many answers, and after how many seconds."""
    view, now_s = View(fault, serial), NOW_S
    for answers in range(1, 5000):
        view.take_in(outcome, args, now_s)
        decision = view.decide(now_s)
        while isinstance(decision, Hold):
            now_s = decision.until_s
            decision = view.decide(now_s)
        if isinstance(decision, Move):
            return decision, answers, now_s - NOW_S
        now_s += max(0.01, outcome.seconds)
    raise AssertionError(f"{fault.id} is asked about for ever")
