"""Mistakes a controller could make, each as a patch of one function: the simulation must notice every one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from orchestrator.domain.event import Event
from orchestrator.domain.identities import IdentityBook
from orchestrator.domain.node import NodeRecord
from orchestrator.domain.operation import MUTATING, Action, Operation
from orchestrator.domain.plan import Decision, Settle, Step
from orchestrator.domain.state import ClusterState
from orchestrator.execution import controller
from orchestrator.execution.controller import Controller, Flying
from orchestrator.execution.journal import Journal
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.planning import firmware_stage, next_step, node_requests, rollout
from orchestrator.planning.fleet_book import FleetBook
from orchestrator.planning.node_context import Context
from orchestrator.planning.power_book import PowerBook
from orchestrator.planning.settle import SETTLE, SettleRule


@dataclass(frozen=True)
class Bug:
    """One mistake: what it is, and where it is planted."""

    says: str
    where: Any
    name: str
    planted: Any

    @contextmanager
    def plant(self) -> Iterator[None]:
        """The mistake, for as long as this lasts."""
        with patch.object(self.where, self.name, self.planted):
            yield


def _believes_lost_answers(context: Context) -> Decision | None:
    lost = context.record.lost
    if lost is None:
        return None
    once_only = SETTLE[lost.action].within_s > 0
    return Settle(context.node.name, once_only, "surely it worked", {"account": "ours"} if once_only else {})


def _forgets_lost_answers(context: Context) -> Decision | None:
    return None


def _acts_before_it_writes(self: Controller, steps: list[Step], now_s: float) -> bool:
    if not steps or self._site is None or self._book is None:
        return False
    self._follow_all(self._book)
    admitted, refused = rollout.admit(steps, self.state.rollout, self.state.nodes, self._site, self._book, now_s)
    self._held.update({refusal.step.node: None for refusal in refused})
    operations = []
    for step in admitted:
        target = self._site.target(self.state.nodes[step.node])
        operations.append(Operation(self._operation_id(step.node), step.node, step.action, self.epoch, target, step.args))
    for operation in operations:
        self._flying[operation.id] = Flying(operation, now_s)
        self._busy.add(operation.node)
    self.hands.submit(operations)
    intents = [
        Event("node.intended", o.node, {"operation": o.id, "action": str(o.action), "args": dict(o.args), "because": ""})
        for o in operations
        if o.action in MUTATING
    ]
    self._commit(intents, now_s)
    return bool(operations)


def _keeps_open_intents(self: Controller) -> None:
    """An earlier controller's exchanges are waited for, though nobody will ever tell their end."""


def _whoever_writes_may(self: Journal, connection: Any, epoch: int) -> None:
    """The lease is not looked at."""


def _whoever_acts_may(self: SimulatedHands, operations: Sequence[Operation]) -> None:
    for operation in operations:
        self._site.submit(operation, self._arrive)


def _follows_no_power_step(self: FleetBook, name: str) -> None:
    """Machines that are down are not counted."""


def _knows_no_pairs(self: FleetBook, name: str) -> tuple[tuple[str, str], ...]:
    node, rack = self.site.nodes[name], self.site.rack(name)
    return ("rack", node.rack), ("feed", rack.feed), ("leaf", rack.leaf)


def _forgets_the_breaker(names: Sequence[str], state: ClusterState, because: str) -> list[Event]:
    """Who is sent into a stopped rollout ends it: the others are forgotten."""
    return [Event("rollout.started", "cluster", {"waves": [list(names)], "because": because})] if names else []


def _forgets_watts(self: PowerBook, name: str) -> None:
    """Nothing is reserved."""


def _nothing_seen(*arguments: Any, **more: Any) -> Any:
    return []


def _none(*arguments: Any, **more: Any) -> Any:
    return None


def _no_words(*arguments: Any, **more: Any) -> str:
    return ""


def _last_wave(self: FleetBook) -> int:
    return len(self._moving)


def _never_settled_update(lost: Any) -> SettleRule:
    rule = SETTLE[lost.action]
    return SettleRule(rule.look, lambda lost, seen: (False, {}), 0.0)


def _no_hold(record: NodeRecord, policy: Any) -> float:
    return 1e9


def _trusts_completed_tasks(context: Context, update: Any) -> Decision:
    return context.move(next_step.NodeState.FIRMWARE_OK, "the BMC accepted the update")


def _resets_again_and_again(context: Context, flashed: Any) -> Decision:
    return context.step(Action.BMC_POWER, "it will help this time", reset="ForceOff")


BUGS: Sequence[Bug] = (
    Bug("a lost answer is taken for success", next_step, "_lost_answer", _believes_lost_answers),
    Bug("a lost answer is forgotten and the step repeated", next_step, "_lost_answer", _forgets_lost_answers),
    Bug("a look after a lost answer never finds anything", next_step, "settle_after", _never_settled_update),
    Bug("exchanges are begun before their intent is on disk", Controller, "_start", _acts_before_it_writes),
    Bug("open intents of a killed controller are never disowned", Controller, "_disown_open_intents", _keeps_open_intents),
    Bug("a stale epoch may write", Journal, "_check", _whoever_writes_may),
    Bug("a stale epoch may act", SimulatedHands, "submit", _whoever_acts_may),
    Bug("watts are not reserved", PowerBook, "charge", _forgets_watts),
    Bug("machines that are down are not counted per rack", FleetBook, "take_down", _follows_no_power_step),
    Bug("redundancy pairs are not looked at", FleetBook, "groups", _knows_no_pairs),
    Bug("a requalified node ends the stopped rollout of the others", node_requests, "take_part", _forgets_the_breaker),
    Bug("every wave is open at once", FleetBook, "open_wave", property(_last_wave)),
    Bug("the failure budget is never used up", controller, "why_stop", _no_words),
    Bug("another machine's serial is not noticed", next_step, "_wrong_identity", _none),
    Bug("the probe's findings are not looked at", next_step, "judge_probe", _nothing_seen),
    Bug("the firmware audit finds nothing", firmware_stage, "audit", _nothing_seen),
    Bug("an accepted update counts as an installed one", firmware_stage, "_follow_update", _trusts_completed_tasks),
    Bug("a host is reset as often as its firmware is not in effect", firmware_stage, "_not_in_effect", _resets_again_and_again),
    Bug("two nodes with the same GPUs are not compared", IdentityBook, "twin_of", _none),
    Bug("nobody is ever given up", next_step, "_held_up", _none),
    Bug("the pause after a failure never ends", next_step, "backoff_s", _no_hold),
)
