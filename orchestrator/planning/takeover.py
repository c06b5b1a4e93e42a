"""What a controller writes down before its first decision: what the one before had begun, and how long nobody decided."""

from collections.abc import Mapping

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import NodeRecord
from orchestrator.domain.operation import Status
from orchestrator.domain.state import STAGES_WITH_A_CLOCK

ASLEEP_S = 60.0
"""A controller that decides is never silent for so long: nobody decided meanwhile, or the clock was set."""


def disowned(nodes: Mapping[str, NodeRecord]) -> list[Event]:
    """Exchanges that an earlier controller had begun and never heard of: their answers are lost, so each is looked at again."""
    events = []
    for record in nodes.values():
        if record.open is not None:
            data = {
                "operation": record.open.id,
                "action": str(record.open.action),
                "status": str(Status.UNKNOWN),
                "facts": {},
                "reason": "the controller ended before the answer was written down",
                "takeover": True,
            }
            events.append(Event("node.ended", record.name, data))
    return events


def slept(nodes: Mapping[str, NodeRecord], last_s: float, now_s: float) -> list[Event]:
    """Nobody decided from `last_s` to `now_s` (seconds since the epoch): nodes in the middle of a stage are not blamed for it."""
    if now_s - last_s <= ASLEEP_S or not any(record.state in STAGES_WITH_A_CLOCK for record in nodes.values()):
        return []
    return [Event("controller.slept", CLUSTER, {"idle_s": round(now_s - last_s, 1)})]
