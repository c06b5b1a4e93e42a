"""From `configured` to `firmware_ok`: the audit, one update at a time, and the host reset that some updates need to take effect.

Only the version read back counts. What does not read back as approved after its update, or after the one reset that its task
asked for, ends in quarantine: nothing is flashed or switched off again and again.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.firmware import ComponentVerdict
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Decision, Hold
from orchestrator.planning.firmware import audit, to_update
from orchestrator.planning.node_context import POWER_SETTLES_S, Context

FLUSH_S = 60.0
"""How long after the playbook a host may be switched off: Linux writes what it holds after 30 s (vm.dirty_expire_centisecs)."""
SCHEDULED_S = 60.0
"""From so long after it was accepted on an update counts as waiting for a reset of the host, where its task says that it does:
until then it may begin by itself. So long after that reset, with its system up, it has to have begun."""
AT_WORK = ("New", "Starting", "Running", "Pending")
"""States of a BMC's task that has not ended."""


def configured(context: Context) -> Decision:
    """Everything the baseline names runs an approved version; what does not is updated, once."""
    record, baseline = context.record, context.site.baseline(context.node.name)
    inventory = record.fact(Action.BMC_FIRMWARE)
    update = record.fact(Action.BMC_UPDATE)
    updated_at_s, read_at_s = record.fact_at_s(Action.BMC_UPDATE), record.fact_at_s(Action.BMC_FIRMWARE)
    if inventory is None:
        return context.step(Action.BMC_FIRMWARE, "compare its firmware with the baseline")
    if update is not None and read_at_s <= updated_at_s:
        return _follow_update(context, update)
    bad = [verdict for verdict in audit(inventory["components"], baseline) if not verdict.is_ok]
    if not bad:
        return context.move(NodeState.FIRMWARE_OK, f"{len(baseline)} components read back as approved")
    flashed = next((verdict for verdict in bad if update is not None and update.get("component") == verdict.name), None)
    if update is not None and flashed is not None:
        if not update.get("task"):
            # Nothing tells when it ends: the version is looked at until it is the approved one, or the stage's time is over.
            because = f"an update was accepted and the BMC named no task; {_deviation(flashed)}"
            return context.look_again(Action.BMC_FIRMWARE, because)
        return _not_in_effect(context, flashed)
    mendable = to_update(bad)
    if not mendable:
        return context.quarantine("; ".join(map(str, bad)))
    return _start_update(context, mendable[0].name, _deviation(mendable[0]))


def _deviation(verdict: ComponentVerdict) -> str:
    return f"{verdict.name} runs {verdict.installed or 'nothing readable'}, approved is {verdict.wanted}"


def _start_update(context: Context, component: str, because: str) -> Decision:
    """Update one component; before it, see what the BMC is already doing, so that a lost answer can be told from an old task."""
    wanted = context.site.baseline(context.node.name)[component]
    if not_yet := _at_work(context, because):
        return not_yet
    listed = context.record.fact(Action.BMC_TASKS) or {"tasks": []}
    return context.step(
        Action.BMC_UPDATE,
        because,
        component=component,
        image_uri=context.site.spec.services.image.url + wanted.image,
        version=wanted.approved[0],
        tasks_before=[task["task"] for task in listed["tasks"]],
    )


def _at_work(context: Context, because: str, scheduled: str = "") -> Decision | None:
    """What comes before anything that must not meet an update under way; None once the BMC, asked anew, has none.

    `scheduled` is the task that is known to wait for the host's reset.
    """
    record, listed = context.record, context.record.fact(Action.BMC_TASKS)
    changed_s = max(record.fact_at_s(Action.BMC_FIRMWARE), record.fact_at_s(Action.BMC_UPDATE))
    if listed is None or record.fact_at_s(Action.BMC_TASKS) <= changed_s:
        return context.step(Action.BMC_TASKS, f"{because}: is an update running already?")
    # A task and its monitor have different addresses and the same last part.
    ours = scheduled.rpartition("/")[2]
    busy = [task for task in listed["tasks"] if task["state"] in AT_WORK and task["task"].rpartition("/")[2] != ours]
    return context.look_again(Action.BMC_TASKS, f"{because}: waiting for the BMC's own task {busy[-1]['task']}") if busy else None


def _not_in_effect(context: Context, flashed: ComponentVerdict) -> Decision:
    """The update has ended and another version is read: a reset of the host, where its task asks for one, or the end."""
    record, task = context.record, context.record.fact(Action.BMC_TASK) or {}
    updated_s, power_s = record.fact_at_s(Action.BMC_UPDATE), record.fact_at_s(Action.BMC_POWER)
    was_reset = power_s > updated_s and (record.fact(Action.BMC_POWER) or {}).get("reset") == "On"
    if was_reset and power_s < record.fact_at_s(Action.SSH_IDENTIFY) < record.fact_at_s(Action.BMC_FIRMWARE):
        return context.quarantine(f"the update of {flashed.name} ended and the host was reset, but {_deviation(flashed)}")
    if task.get("needs_reset") and not record.is_equipment:
        not_yet = _reset_host(context, f"{flashed.name} takes effect when the host is reset")
        return not_yet or context.step(Action.BMC_FIRMWARE, "the host was reset: read the version back")
    because = f"the update of {flashed.name} ended, but {_deviation(flashed)}"
    ending = "; ".join(task.get("messages") or ())
    return context.quarantine(because + (f"; its task said: {ending}" if ending else ""))


def _reset_host(context: Context, because: str, scheduled: str = "") -> Decision | None:
    """Off, on, and its system up again: two power commands, each admitted like any other. None once that is so.

    Not `ForceRestart`: it leaves no power state behind by which a lost answer could be settled.
    """
    record, power_s = context.record, context.record.fact_at_s(Action.BMC_POWER)
    reset = (record.fact(Action.BMC_POWER) or {}).get("reset") if power_s > record.fact_at_s(Action.BMC_UPDATE) else None
    if reset is None:
        if not_yet := _at_work(context, because, scheduled):
            return not_yet
        flushed_s = record.fact_at_s(Action.PLAYBOOK) + FLUSH_S
        if context.now_s < flushed_s:
            return Hold(record.name, flushed_s, f"{because}: what the playbook wrote must reach the disk first")
        return context.step(Action.BMC_POWER, f"{because}: off", reset="ForceOff")
    wanted, seen = ("Off" if reset == "ForceOff" else "On"), record.fact(Action.BMC_OBSERVE)
    if seen is None or record.fact_at_s(Action.BMC_OBSERVE) <= power_s:
        return context.step(Action.BMC_OBSERVE, "read the power state back")
    if seen["power"] != wanted and not (seen["power"] == "Off" and context.now_s > power_s + POWER_SETTLES_S):
        return context.look_again(Action.BMC_OBSERVE, f"{because}: power is {seen['power']}, waiting for {wanted}")
    if seen["power"] == "Off":
        return context.step(Action.BMC_POWER, f"{because}: on again", reset="On")
    system = record.fact(Action.SSH_IDENTIFY)
    if system is None or record.fact_at_s(Action.SSH_IDENTIFY) <= power_s:
        return context.step(Action.SSH_IDENTIFY, "the host was reset: is its system up again?")
    return context.another_system(system)


def _follow_update(context: Context, update: Mapping[str, Any]) -> Decision:
    record, task = context.record, context.record.fact(Action.BMC_TASK)
    if not update.get("task"):
        return context.step(Action.BMC_FIRMWARE, "the BMC named no task: read the version back")
    if task is None or record.fact_at_s(Action.BMC_TASK) <= record.fact_at_s(Action.BMC_UPDATE):
        return context.step(Action.BMC_TASK, f"update of {update['component']} was accepted", task=update["task"])
    if task["state"] in ("Completed", "Vanished"):
        return context.step(Action.BMC_FIRMWARE, f"task is {task['state']}: only the version read back counts")
    if task["state"] in ("Exception", "Killed", "Cancelled"):
        messages = "; ".join(task.get("messages") or ()) or "no message"
        return context.quarantine(f"the update of {update['component']} to {update['version']} failed: {messages}")
    if task.get("is_scheduled") and not record.is_equipment and (decision := _begin_scheduled(context, update)):
        return decision
    percent = task.get("percent")
    said = f"{task['state']}" + (f" {percent}%" if percent is not None else "")
    return context.look_again(Action.BMC_TASK, f"update of {update['component']}: {said}", task=update["task"])


def _begin_scheduled(context: Context, update: Mapping[str, Any]) -> Decision | None:
    """The reset of the host that a scheduled update waits for, once; None while its task is to be looked at."""
    record, component = context.record, update["component"]
    updated_s, looked_s = record.fact_at_s(Action.BMC_UPDATE), record.fact_at_s(Action.BMC_TASK)
    if looked_s < updated_s + SCHEDULED_S:
        return None
    if not_yet := _reset_host(context, f"the update of {component} is scheduled for the host's next reset", update["task"]):
        return not_yet
    if looked_s > record.fact_at_s(Action.SSH_IDENTIFY) + SCHEDULED_S:
        return context.quarantine(f"the host was reset, but the update of {component} that waits for it has not begun")
    return None
