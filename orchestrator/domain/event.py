"""What the journal holds: events. An event says that something changed; it is never edited or removed.

kind                  subject   data
spec.applied          cluster   spec (JSON), text, sha256, file, by
rollout.started       cluster   waves [[node, ...], ...], because
rollout.extended      cluster   nodes, wave (index), because                 (they join that wave)
                                called (true: they begin although the breaker has stopped it)
rollout.stopped       cluster   because                                      (the breaker: no new node starts)
rollout.paused        cluster   because
rollout.resumed       cluster   because, forgiven [node, ...]                (failures that no longer count)
rollout.skipped       cluster   nodes, because, at_once (true: not even the present stage is ended)
rollout.aborted       cluster   because
rollout.finished      cluster   ready, quarantined, left
node.moved            node      from, to, because, cause (in quarantine)
node.intended         node      operation, action, args, because
node.ended            node      operation, action, status, facts, reason, retryable
node.settled          node      operation, action, done, facts, because      (after a lost answer: what looking showed)
node.replaced         node      serial, old_serial, because                  (`node replace`: another board)
node.host_key         node      ssh_host_key, by, reason                     (`node enroll`)
run.*                 run       see domain/run.py
request.*             cluster   what somebody asks of the controller: by, host, reason, ...
request.handled       cluster   request (seq), answer
controller.took       cluster   holder
controller.clock      cluster   ahead_s, by_s, because                       (somebody set the clock; times here do not follow it)
controller.slept      cluster   idle_s                                       (nobody decided: stages have their time again)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from orchestrator.domain.operation import Outcome

CLUSTER = "cluster"
"""Subject of events that concern no single node or run."""


class Event(NamedTuple):
    """One line of the journal. `seq`, `at_s` and `epoch` are given by the journal when it is made durable.

    A tuple, because a restart makes them by the million.
    """

    kind: str
    subject: str
    data: Mapping[str, Any] = MappingProxyType({})
    at_s: float = 0.0
    """Seconds since the epoch, by the writer's clock."""
    epoch: int = 0
    """Lease epoch of the controller that decided it; 0 for requests, which anyone may append."""
    seq: int = 0


def ended_event(outcome: Outcome, node: str) -> Event:
    """What the journal keeps of an outcome."""
    data = {
        "operation": outcome.operation,
        "action": str(outcome.action),
        "status": str(outcome.status),
        "facts": dict(outcome.facts),
        "reason": outcome.reason,
        "retryable": outcome.retryable,
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.retry_after_s:
        data["retry_after_s"] = outcome.retry_after_s
    return Event("node.ended", node, data)
