"""What a controller writes down before its first decision: what the one before had begun, and how long nobody decided."""

from collections.abc import Mapping

from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.node import NodeRecord
from orchestrator.domain.operation import Status
from orchestrator.domain.state import STAGES_WITH_A_CLOCK

ASLEEP_S = 60.0
"""A controller that decides is never silent for so long: nobody decided meanwhile, or the clock was set."""

JUMP_S = 5.0
"""A clock that is off by more than this against the machine's timer was set by somebody."""


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


def clock_was_set(ahead_before_s: float, ahead_s: float) -> list[Event]:
    """The clock was `ahead_before_s` ahead of the journal's time and is `ahead_s` ahead of it now, in seconds: who set it?

    Drift is no news; the machine's timer is disciplined along with the clock.
    """
    by_s = ahead_s - ahead_before_s
    if abs(by_s) <= JUMP_S:
        return []
    where = "forward" if by_s > 0 else "back"
    because = (
        f"the clock of this host was set {where} by {_span(abs(by_s))}; rackray goes by the machine's own timer: "
        "no deadline, pause, lease or estimate has moved, and ages are shown as they are"
    )
    return [Event("controller.clock", CLUSTER, {"ahead_s": round(ahead_s, 3), "by_s": round(by_s, 3), "because": because})]


def _span(seconds: float) -> str:
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.1f} s"
