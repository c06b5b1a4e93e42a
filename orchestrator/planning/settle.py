"""After a lost answer: which look tells whether the command took effect, and how to read it.

Unknown is never success and never a reason to repeat at once: each mutating action names the read-only action that settles it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.node import OpenOperation
from orchestrator.domain.operation import Action

Verdict = tuple[bool, Mapping[str, Any]]
"""Whether the command had taken effect, and the facts its answer would have carried."""


BMC_EFFECT_S = 12.0
"""A BMC that has received a request obeys it within this time, in seconds, or never."""
JOIN_EFFECT_S = 40.0
"""A Ray node that was being started is listed by its cell within this time, in seconds, or never (6-20 s were measured)."""


@dataclass(frozen=True, slots=True)
class SettleRule:
    """How to find out what became of an action whose answer was lost."""

    look: Action
    was_done: Callable[[OpenOperation, Mapping[str, Any]], Verdict]
    within_s: float = 0.0
    """How long after the intent the command may still take effect: only then does not seeing it mean that it did not happen.
    0 for commands that are safe to repeat."""


def settle_after(lost: OpenOperation) -> SettleRule:
    """The rule for `lost`. Raises KeyError for an action that changes nothing: such an action is simply repeated."""
    return SETTLE[lost.action]


def _credential(lost: OpenOperation, seen: Mapping[str, Any]) -> Verdict:
    ours = seen.get("account") == "ours"
    return ours, {"account": "ours", "changed": True, "certificate_sha256": seen.get("certificate_sha256")}


def _power(lost: OpenOperation, seen: Mapping[str, Any]) -> Verdict:
    reset = lost.args["reset"]
    if reset == "On":
        return seen["power"] in ("On", "PoweringOn"), {"accepted": True}
    if reset in ("ForceOff", "GracefulShutdown"):
        return seen["power"] in ("Off", "PoweringOff"), {"accepted": True}
    # A restart leaves no power state behind: it counts as not done, and bring-up never asks for one.
    return False, {}


def _boot_once(lost: OpenOperation, seen: Mapping[str, Any]) -> Verdict:
    is_set = seen.get("boot_override_enabled") == "Once" and seen.get("boot_override_target") == lost.args["target"]
    return is_set, {"target": lost.args["target"]}


def _update(lost: OpenOperation, seen: Mapping[str, Any]) -> Verdict:
    """A task that was not listed before the POST is our lost one, whether it still runs or has finished.

    A BMC that lists no tasks to anybody cannot say no: the update counts as begun, and the version that is read back decides.
    """
    if not seen.get("listed", True):
        return True, {"task": "", "is_assumed": True}
    known = set(lost.args.get("tasks_before", ()))
    ours = [task for task in seen["tasks"] if task["task"] not in known]
    return bool(ours), {"task": ours[-1]["task"]} if ours else {}


def _joined(lost: OpenOperation, seen: Mapping[str, Any]) -> Verdict:
    return bool(seen["alive"]), {"started": True}


def _repeatable(lost: OpenOperation, seen: Mapping[str, Any]) -> Verdict:
    """Playbooks and leaving a cell are idempotent: once the node answers again they are simply run again."""
    return False, {}


SETTLE: Mapping[Action, SettleRule] = {
    Action.BMC_CREDENTIAL: SettleRule(Action.BMC_IDENTIFY, _credential, BMC_EFFECT_S),
    Action.BMC_POWER: SettleRule(Action.BMC_OBSERVE, _power, BMC_EFFECT_S),
    Action.BMC_BOOT_ONCE: SettleRule(Action.BMC_OBSERVE, _boot_once, BMC_EFFECT_S),
    Action.BMC_UPDATE: SettleRule(Action.BMC_TASKS, _update, BMC_EFFECT_S),
    Action.PLAYBOOK: SettleRule(Action.SSH_IDENTIFY, _repeatable),
    Action.CELL_JOIN: SettleRule(Action.CELL_OBSERVE, _joined, JOIN_EFFECT_S),
    Action.CELL_LEAVE: SettleRule(Action.SSH_IDENTIFY, _repeatable),
    Action.SSH_EXEC: SettleRule(Action.SSH_IDENTIFY, _repeatable),
    Action.BMC_LOCATE: SettleRule(Action.BMC_OBSERVE, _repeatable),
}
