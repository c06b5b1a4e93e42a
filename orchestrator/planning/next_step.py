"""The one next thing for one node: a pure function of its record, the spec and the time.

Each lifecycle state has one function that looks at the evidence of the present proof and answers with a step, a move, or a
wait. Nothing here remembers anything: a restarted controller asks again and gets the same answer.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.domain.identities import Twin
from orchestrator.domain.node import Cause, NodeRecord, NodeState
from orchestrator.domain.operation import Action, Status
from orchestrator.domain.plan import Decision, Hold, Move, Rest, Settle
from orchestrator.domain.spec import Rollout
from orchestrator.planning.firmware_stage import configured
from orchestrator.planning.health import judge_power_limit, judge_probe
from orchestrator.planning.node_context import POWER_SETTLES_S, Context
from orchestrator.planning.settle import JOIN_EFFECT_S, settle_after
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
HELD_PAUSE_S = 20.0
"""How soon it is tried again whether what held us up on our own side is over."""


def next_step(record: NodeRecord, site: Site, now_s: float, twin: Twin | None = None) -> Decision:
    """What to do next for `record`'s node at `now_s` (seconds since the epoch). No I/O, no randomness.

    `twin` is what another node said of itself before this one said it too.
    """
    node = site.nodes.get(record.name)
    stage = (EQUIPMENT_STAGES if record.is_equipment else STAGES).get(record.state)
    if node is None or stage is None or record.open is not None:
        return Rest(record.name)
    context = Context(record, site, node, site.sku(record.name), site.spec.rollout, now_s)
    if twin is not None:
        return context.quarantine(str(twin), Cause.IDENTITY)
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
    if record.last_status == Status.HELD and context.now_s < (until_s := record.failed_at_s + HELD_PAUSE_S):
        return Hold(record.name, until_s, f"held up by no fault of its own: {problem}")
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
    if wrong := context.another_system(seen):
        return wrong
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
    joined_at_s, looked_at_s = record.fact_at_s(Action.CELL_JOIN), record.fact_at_s(Action.CELL_OBSERVE)
    # A head that has died comes up again knowing nobody: whoever joined the old one is listed only after joining the new one.
    is_forgotten = seen is not None and not seen["alive"] and 0 <= joined_at_s < looked_at_s - JOIN_EFFECT_S
    if joined_at_s < 0 or is_forgotten:
        because = f"not listed {JOIN_EFFECT_S:.0f} s after it joined: join again" if is_forgotten else "may serve: join the cell"
        return context.step(Action.CELL_JOIN, because, **context.site.joins_with(context.node.name))
    if seen is None or looked_at_s <= joined_at_s:
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
    NodeState.CONFIGURED: configured,
    NodeState.FIRMWARE_OK: _firmware_ok,
    NodeState.ACCEPTED: _accepted,
}
EQUIPMENT_STAGES: Mapping[NodeState, Callable[[Context], Decision]] = {
    NodeState.ENROLLED: _enrolled,
    NodeState.IDENTIFIED: _identified,
    NodeState.CREDENTIALED: configured,
    NodeState.FIRMWARE_OK: _sound,
}
"""The same for equipment: once its password is ours its firmware is audited, and then it only has to be on and sound."""
