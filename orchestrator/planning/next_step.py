"""The one next thing for one node: a pure function of its record, the spec and the time.

Each lifecycle state has one function that looks at the evidence of the present proof and answers with a step, a move, or a
wait. Nothing here remembers anything: a restarted controller asks again and gets the same answer.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from orchestrator.domain.firmware import ComponentVerdict
from orchestrator.domain.node import Cause, NodeRecord, NodeState
from orchestrator.domain.operation import Action, Status
from orchestrator.domain.plan import Decision, Hold, Move, Rest, Settle, Step
from orchestrator.domain.spec import Machine, Rollout, Sku
from orchestrator.planning.firmware import audit, to_update
from orchestrator.planning.health import judge_power_limit, judge_probe
from orchestrator.planning.settle import settle_after
from orchestrator.planning.site import Site

CAUSES: Mapping[str, Cause] = {
    Status.UNKNOWN: Cause.UNKNOWN,
    Status.UNREACHABLE: Cause.UNREACHABLE,
    Status.MISMATCH: Cause.IDENTITY,
}
"""What kind of failure it is when exchanges ended like this; all others are refusals."""
CLOCK_SKEW_S = 30.0
"""From here on a node's wrong clock is worth a word; setting it is the playbook's work."""
NEVER_S = float("-inf")
BACKOFF_CAP_S = 60.0
POWER_SETTLES_S = 30.0
"""How long a BMC may keep saying Off after it accepted a power-on before the command is repeated."""


class Context(NamedTuple):
    """One node, seen at one moment. A tuple, because one is made for every decision."""

    record: NodeRecord
    site: Site
    node: Machine
    sku: Sku
    policy: Rollout
    now_s: float

    @property
    def serial(self) -> str:
        """The serial it must have: that of a board put in by `node replace`, else the spec's."""
        return self.record.serial or self.node.serial

    def step(self, action: Action, because: str, **args: Any) -> Step:
        return Step(self.node.name, action, because, args)

    def move(self, to: NodeState, because: str) -> Move:
        return Move(self.node.name, to, because)

    def quarantine(self, because: str, cause: Cause = Cause.CHECK) -> Move:
        return Move(self.node.name, NodeState.QUARANTINED, because, str(cause))

    def look_again(self, action: Action, because: str, **args: Any) -> Decision:
        """The same look once more, not sooner than a poll interval after the last one."""
        due_s = self.record.fact_at_s(action) + self.policy.poll_s
        return self.step(action, because, **args) if self.now_s >= due_s else Hold(self.node.name, due_s, because)


def next_step(record: NodeRecord, site: Site, now_s: float) -> Decision:
    """What to do next for `record`'s node at `now_s` (seconds since the epoch). No I/O, no randomness."""
    node = site.nodes.get(record.name)
    stage = (EQUIPMENT_STAGES if record.is_equipment else STAGES).get(record.state)
    if node is None or stage is None or record.open is not None:
        return Rest(record.name)
    context = Context(record, site, node, site.sku(record.name), site.spec.rollout, now_s)
    return _held_up(context) or _lost_answer(context) or stage(context)


def backoff_s(record: NodeRecord, policy: Rollout) -> float:
    """Pause after a failed or silent exchange, in seconds: doubling, capped, with jitter that only depends on the node."""
    tries = record.failures + min(record.silences, 3)
    if not tries:
        return 0.0
    jitter = 0.75 + 0.5 * (zlib.crc32(f"{record.name}/{tries}".encode()) / 2**32)
    return float(min(BACKOFF_CAP_S, policy.poll_s * 2 ** min(tries - 1, 16)) * jitter)


def _held_up(context: Context) -> Decision | None:
    """Too many failures, too long in one stage, or simply too early after a failure."""
    record, policy = context.record, context.policy
    problem = record.last_problem or "no exchange failed"
    if record.fatal:
        return context.quarantine(record.fatal, CAUSES.get(record.last_status, Cause.REFUSED))
    if record.failures >= policy.attempts:
        because = f"{record.failures} exchanges in a row failed in {record.state}; the last: {problem}"
        return context.quarantine(because, CAUSES.get(record.last_status, Cause.REFUSED))
    stage_s = context.now_s - max(record.since_s, record.clock_s)
    if record.state is not NodeState.ENROLLED and stage_s > policy.stage_limit_s:
        return context.quarantine(
            f"{stage_s:.0f} s in {record.state}, over the limit of {policy.stage_limit_s:.0f} s; last problem: {problem}",
            Cause.UNREACHABLE if record.silences else Cause.TIMED_OUT,
        )
    if record.state is NodeState.ENROLLED and record.silences >= policy.attempts:
        because = f"its BMC at {context.node.bmc} does not answer after {record.silences} tries: {problem}"
        return context.quarantine(because, Cause.UNREACHABLE)
    if record.failed_at_s == NEVER_S:
        return None
    # What the neighbour asked for counts, but never so long that the limit of the stage would pass meanwhile.
    asked_s = min(record.retry_after_s, policy.stage_limit_s / 2)
    until_s = record.failed_at_s + max(backoff_s(record, policy), asked_s)
    if context.now_s < until_s:
        return Hold(record.name, until_s, f"pause after: {problem}")
    return None


def _lost_answer(context: Context) -> Decision | None:
    """An answer was lost: look first, then conclude; nothing is repeated before that."""
    lost = context.record.lost
    if lost is None:
        return None
    rule = settle_after(lost)
    look = context.record.facts.get(rule.look)
    if look is None or look.at_s <= lost.at_s:
        return context.step(rule.look, f"the answer to {lost.action} was lost; look before anything is repeated")
    done, facts = rule.was_done(lost, look.values)
    if not done and context.now_s < lost.at_s + rule.within_s:
        return context.look_again(rule.look, f"the answer to {lost.action} was lost; it may still take effect")
    verb = "it had taken effect" if done else "it had not taken effect"
    if facts.get("is_assumed"):
        verb = "nothing tells whether it had taken effect; it is not repeated"
    return Settle(context.node.name, done, f"looked after the lost answer to {lost.action}: {verb}", facts)


def _enrolled(context: Context) -> Decision:
    seen = context.record.fact(Action.BMC_IDENTIFY)
    if seen is None:
        return context.step(Action.BMC_IDENTIFY, "nothing has answered at its BMC address yet")
    if seen.get("password_change_required") and not seen.get("serial"):
        return context.move(
            NodeState.IDENTIFIED, "BMC answers with the delivered certificate; serial is read after the password change"
        )
    wrong = _wrong_identity(seen, context)
    return wrong or context.move(NodeState.IDENTIFIED, f"BMC says serial {seen['serial']}, model {seen['model']}, as in the spec")


def _wrong_identity(seen: Mapping[str, Any], context: Context) -> Move | None:
    """Another machine than the spec's behind this BMC: a swapped cable or board. Nothing is ever written to it."""
    said = {"serial": seen.get("serial"), "model": seen.get("model")}
    wanted = {"serial": context.serial, "model": context.sku.model}
    differ = [f"{key} {said[key]!r} instead of {wanted[key]!r}" for key in wanted if said[key] != wanted[key]]
    if not differ:
        return None
    because = f"the machine at {context.node.bmc} says {' and '.join(differ)}: check the cabling and the spec"
    return context.quarantine(because, Cause.IDENTITY)


def _identified(context: Context) -> Decision:
    record = context.record
    seen = record.fact(Action.BMC_IDENTIFY)
    if record.fact(Action.BMC_CREDENTIAL) is None:
        if seen is None and not record.pins.get("bmc_certificate_sha256"):
            return context.step(Action.BMC_IDENTIFY, "no certificate is pinned: nothing is written before it says its serial")
        wrong = _wrong_identity(seen, context) if seen is not None and seen.get("serial") else None
        return wrong or context.step(Action.BMC_CREDENTIAL, "the factory password must not stay valid")
    if seen is None or record.fact_at_s(Action.BMC_IDENTIFY) <= record.fact_at_s(Action.BMC_CREDENTIAL):
        return context.step(Action.BMC_IDENTIFY, "log in with our own account and read the serial again")
    wrong = _wrong_identity(seen, context)
    if wrong:
        return wrong
    account = record.fact(Action.BMC_CREDENTIAL) or {}
    said = "factory password replaced" if account.get("changed") else "our password works"
    return context.move(NodeState.CREDENTIALED, f"{said}, certificate pinned, serial read with our account")


def _credentialed(context: Context) -> Decision:
    """Power on. A machine without the image gets its one-time boot order while it is off: so its first boot is the right one."""
    record = context.record
    seen = record.fact(Action.BMC_OBSERVE)
    power_at_s = record.fact_at_s(Action.BMC_POWER)
    if seen is None:
        return context.step(Action.BMC_OBSERVE, "is it powered on?")
    if record.fact_at_s(Action.BMC_OBSERVE) <= power_at_s:
        return context.step(Action.BMC_OBSERVE, "read the power state back")
    if seen["power"] == "On":
        return context.move(NodeState.POWERED, "BMC says On" + ("" if power_at_s > 0 else "; it was on already"))
    if seen["power"] != "Off" or context.now_s <= power_at_s + POWER_SETTLES_S:
        return context.look_again(Action.BMC_OBSERVE, f"power is {seen['power']}, waiting for On")
    report = record.fact(Action.IMAGE_REPORT)
    if report is None:
        return _ask_for_image(context, "does it carry the image already?")
    lacks = _lacks_image(report)
    if lacks and record.fact(Action.BMC_BOOT_ONCE) is None:
        return context.step(Action.BMC_BOOT_ONCE, f"{lacks}: its first boot goes to the network", target="Pxe")
    return context.step(Action.BMC_POWER, "BMC says Off", reset="On")


def _ask_for_image(context: Context, because: str) -> Decision:
    return context.look_again(Action.IMAGE_REPORT, because, serial=context.serial, image=context.site.spec.services.image.name)


def _lacks_image(report: Mapping[str, Any]) -> str:
    """What is wrong with the image the image service knows of, or an empty string."""
    if not report["installed"]:
        return "it has no image"
    if report["digest"] != report["wanted_digest"]:
        return f"it has image {report['digest'][:19]}, published is {report['wanted_digest'][:19]}"
    return "" if report["ssh_host_key"] else "its image step reported no SSH host key"


def _powered(context: Context) -> Decision:
    record, report = context.record, context.record.fact(Action.IMAGE_REPORT)
    power_at_s, boot_at_s = record.fact_at_s(Action.BMC_POWER), record.fact_at_s(Action.BMC_BOOT_ONCE)
    reset = (record.fact(Action.BMC_POWER) or {}).get("reset")
    booted = boot_at_s > 0 and power_at_s > boot_at_s and reset == "On"
    if report is None or (booted and record.fact_at_s(Action.IMAGE_REPORT) <= power_at_s):
        return _ask_for_image(
            context, "has the network boot laid the image down?" if booted else "does it carry the image already?"
        )
    lacks = _lacks_image(report)
    if not lacks:
        return context.move(NodeState.IMAGED, f"image {report['image']} {report['digest'][:19]} read back, SSH host key pinned")
    if booted:
        return _ask_for_image(context, "waiting for the image step to report")
    return _boot_from_network(context, lacks)


def _boot_from_network(context: Context, because: str) -> Decision:
    """Off, boot order, on: a one-time boot order set on a machine that is just booting would be consumed by that boot."""
    record, seen = context.record, context.record.fact(Action.BMC_OBSERVE)
    power_at_s = record.fact_at_s(Action.BMC_POWER)
    if (record.fact(Action.BMC_POWER) or {}).get("reset") != "ForceOff":
        return context.step(Action.BMC_POWER, f"{because}: off first, so that no boot is under way", reset="ForceOff")
    if seen is None or record.fact_at_s(Action.BMC_OBSERVE) <= power_at_s:
        return context.step(Action.BMC_OBSERVE, "read the power state back")
    if seen["power"] != "Off":
        return context.look_again(Action.BMC_OBSERVE, f"power is {seen['power']}, waiting for Off")
    if record.fact_at_s(Action.BMC_BOOT_ONCE) <= power_at_s:
        return context.step(Action.BMC_BOOT_ONCE, because, target="Pxe")
    return context.step(Action.BMC_POWER, "boot once from the network", reset="On")


def _imaged(context: Context) -> Decision:
    seen = context.record.fact(Action.SSH_IDENTIFY)
    if seen is None:
        return context.step(Action.SSH_IDENTIFY, "who is behind the SSH port?")
    wanted = (context.record.fact(Action.IMAGE_REPORT) or {}).get("wanted_digest")
    if seen["serial"] != context.serial:
        address = context.site.computes[context.node.name].address
        because = f"the machine at {address} says serial {seen['serial']!r}, the spec {context.serial!r}"
        return context.quarantine(because, Cause.IDENTITY)
    if wanted and seen["image_digest"] != wanted:
        return context.quarantine(f"it runs image {seen['image_digest']!r}, the image service publishes {wanted!r}")
    skew_s = seen.get("clock_skew_s") or 0.0
    clock = f"; its clock is off by {skew_s:.0f} s" if abs(skew_s) > CLOCK_SKEW_S else ""
    because = f"SSH with the pinned host key, serial {seen['serial']}, kernel {seen['kernel']}{clock}"
    return context.move(NodeState.REACHABLE, because)


def _reachable(context: Context) -> Decision:
    done = context.record.fact(Action.PLAYBOOK)
    if done is None:
        variables = context.site.playbook_variables(context.node.name)
        because = "bring the operating system to the site's state"
        return context.step(Action.PLAYBOOK, because, playbook="bring_up.yml", variables=variables)
    skipped = done.get("skipped") or []
    tail = f"; skipped here: {', '.join(skipped)}" if skipped else ""
    return context.move(NodeState.CONFIGURED, f"playbook bring_up: {done['ok']} tasks ok, {done['changed']} changed{tail}")


def _configured(context: Context) -> Decision:
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
        ending = "; ".join((record.fact(Action.BMC_TASK) or {}).get("messages") or ())
        because = f"the update of {flashed.name} ended, but {_deviation(flashed)}"
        return context.quarantine(because + (f"; its task said: {ending}" if ending else ""))
    mendable = to_update(bad)
    if not mendable:
        return context.quarantine("; ".join(map(str, bad)))
    return _start_update(context, mendable[0].name, _deviation(mendable[0]))


def _deviation(verdict: ComponentVerdict) -> str:
    return f"{verdict.name} runs {verdict.installed or 'nothing readable'}, approved is {verdict.wanted}"


def _start_update(context: Context, component: str, because: str) -> Decision:
    """Update one component; before it, see what the BMC is already doing, so that a lost answer can be told from an old task."""
    record, wanted = context.record, context.site.baseline(context.node.name)[component]
    listed = record.fact(Action.BMC_TASKS)
    if listed is None or record.fact_at_s(Action.BMC_TASKS) <= record.fact_at_s(Action.BMC_FIRMWARE):
        return context.step(Action.BMC_TASKS, f"{because}: is an update running already?")
    busy = [task for task in listed["tasks"] if task["state"] in ("New", "Starting", "Running", "Pending")]
    if busy:
        return context.look_again(Action.BMC_TASKS, f"{because}: waiting for the BMC's own task {busy[-1]['task']}")
    return context.step(
        Action.BMC_UPDATE,
        because,
        component=component,
        image_uri=context.site.spec.services.image.url + wanted.image,
        version=wanted.approved[0],
        tasks_before=[task["task"] for task in listed["tasks"]],
    )


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
    percent = task.get("percent")
    said = f"{task['state']}" + (f" {percent}%" if percent is not None else "")
    return context.look_again(Action.BMC_TASK, f"update of {update['component']}: {said}", task=update["task"])


def _firmware_ok(context: Context) -> Decision:
    record, newest_change_s = context.record, _last_disturbance_s(context.record)
    probe = record.fact(Action.NODE_PROBE)
    if probe is None or record.fact_at_s(Action.NODE_PROBE) <= newest_change_s:
        return context.step(Action.NODE_PROBE, "probe its GPUs")
    findings = judge_probe(probe, context.sku, context.site.spec.health)
    if context.site.spec.lab is None:
        # The lab's GPUs take no power limit, and its playbook says that it set none.
        findings += judge_power_limit(probe, context.site.gpu_cap_w(context.node.name))
    if findings:
        return context.quarantine("; ".join(str(finding) for finding in findings))
    compute = record.fact(Action.NODE_COMPUTE)
    if compute is None or record.fact_at_s(Action.NODE_COMPUTE) <= newest_change_s:
        seconds = context.site.spec.health.compute_seconds
        return context.step(Action.NODE_COMPUTE, "GPUs look sound: make them compute", seconds=seconds)
    if not compute["repeatable"]:
        return context.quarantine(f"the same product computed twice on {compute['device']} differs: silent data corruption")
    count = context.sku.gpus.count
    return context.move(
        NodeState.ACCEPTED,
        f"{count} GPUs healthy; compute check on {compute['device']}: {compute['gflops']:.0f} GFLOP/s, repeatable",
    )


def _sound(context: Context) -> Decision:
    """Equipment carries no work: it is ready when its BMC, asked after the last change, says that it is on and sound."""
    record = context.record
    seen = record.fact(Action.BMC_OBSERVE)
    if seen is None or record.fact_at_s(Action.BMC_OBSERVE) <= max(_last_disturbance_s(record), record.since_s):
        return context.step(Action.BMC_OBSERVE, "is it on and sound?")
    if seen.get("health") == "Critical":
        return context.quarantine(f"the BMC of this {record.kind} calls its health Critical: see its event log")
    if seen.get("power") not in ("On", None):
        return context.look_again(Action.BMC_OBSERVE, f"power is {seen['power']}, waiting for On")
    power = f"power {seen['power']}" if seen.get("power") else "no power state"
    return context.move(NodeState.READY, f"its BMC says {power}, health {seen.get('health') or 'unknown'}")


def _last_disturbance_s(record: NodeRecord) -> float:
    """Last power event or firmware change in this proof: health evidence must be newer."""
    return max(record.fact_at_s(Action.BMC_POWER), record.fact_at_s(Action.BMC_UPDATE))


def _accepted(context: Context) -> Decision:
    record, cell = context.record, context.site.spec.cell
    seen = record.fact(Action.CELL_OBSERVE)
    joined_at_s = record.fact_at_s(Action.CELL_JOIN)
    if joined_at_s < 0:
        labels = context.site.labels(context.node.name)
        return context.step(Action.CELL_JOIN, "may serve: join the cell", address=f"{cell.address}:{cell.port}", labels=labels)
    if seen is None or record.fact_at_s(Action.CELL_OBSERVE) <= joined_at_s:
        return context.step(Action.CELL_OBSERVE, "does the cell itself list it?")
    if seen["alive"]:
        return context.move(NodeState.READY, f"the cell at {cell.address}:{cell.port} lists it alive")
    return context.look_again(Action.CELL_OBSERVE, "waiting for the cell to list it")


STAGES: Mapping[NodeState, Callable[[Context], Decision]] = {
    NodeState.ENROLLED: _enrolled,
    NodeState.IDENTIFIED: _identified,
    NodeState.CREDENTIALED: _credentialed,
    NodeState.POWERED: _powered,
    NodeState.IMAGED: _imaged,
    NodeState.REACHABLE: _reachable,
    NodeState.CONFIGURED: _configured,
    NodeState.FIRMWARE_OK: _firmware_ok,
    NodeState.ACCEPTED: _accepted,
}
EQUIPMENT_STAGES: Mapping[NodeState, Callable[[Context], Decision]] = {
    NodeState.ENROLLED: _enrolled,
    NodeState.IDENTIFIED: _identified,
    NodeState.CREDENTIALED: _configured,
    NodeState.FIRMWARE_OK: _sound,
}
"""The same for equipment: once its password is ours its firmware is audited, and then it only has to be on and sound."""
