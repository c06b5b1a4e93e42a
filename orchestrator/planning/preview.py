"""`rackray plan`: the controller's own decisions, played against a world in which every step succeeds."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.health import sound_probe
from orchestrator.domain.node import SETTLED, Fact, NodeRecord, NodeState, changed
from orchestrator.domain.operation import MUTATING, Action
from orchestrator.domain.plan import Hold, Move, Settle, Step
from orchestrator.planning.next_step import next_step
from orchestrator.planning.rollout import rounds, to_bring_up
from orchestrator.planning.site import Site

LIMIT = 200
"""More decisions than this for one node would be a circle in the lifecycle."""

LASTING = (Action.BMC_IDENTIFY, Action.IMAGE_REPORT, Action.BMC_FIRMWARE)
"""Looks at what stays as it is until one of CHANGES changes it."""
CHANGES = (Action.BMC_CREDENTIAL, Action.BMC_BOOT_ONCE, Action.BMC_POWER, Action.BMC_UPDATE)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of the plan, with the wave it belongs to (1 is the canary)."""

    step: Step
    wave: int


def preview(
    site: Site, nodes: Mapping[str, NodeRecord], seen: Mapping[str, Mapping[Action, Mapping[str, Any]]]
) -> list[PlannedStep]:
    """Every step `apply` would take, wave by wave.

    `nodes` are the journal's records (empty for a new cluster); `seen` holds what plan itself has just observed, read-only,
    per node: with it the plan of a half-made cluster is honest (a node that is on is not powered on again).
    """
    order = to_bring_up(site, nodes)
    planned: list[PlannedStep] = []
    for number, wave in enumerate(rounds(order, site), start=1):
        for name in wave:
            record = nodes.get(name) or site.blank(name)
            planned += [PlannedStep(step, number) for step in _walk(record, site, seen.get(name, {}))]
    return planned


def _walk(record: NodeRecord, site: Site, seen: Mapping[Action, Mapping[str, Any]]) -> list[Step]:
    steps: list[Step] = []
    now_s = record.since_s + 1.0
    world = {**_known(record, site), **seen}
    record = changed(record, open=None, failures=0, silences=0, failed_at_s=float("-inf"), since_s=now_s)
    for _ in range(LIMIT):
        now_s += 1.0
        decision = next_step(record, site, now_s)
        match decision:
            case Step():
                steps.append(decision)
                facts = {**decision.args, **_success(decision, site, world)}
                record = changed(record, facts={**record.facts, decision.action: Fact(now_s, facts)})
            case Move():
                record = changed(record, state=decision.to, since_s=now_s)
                if decision.to in SETTLED or decision.to is NodeState.QUARANTINED:
                    return steps
            case Settle():
                record = changed(record, lost=None)
            case Hold():
                now_s = max(now_s, decision.until_s)
            case _:
                return steps
    raise AssertionError(f"{record.name}: {LIMIT} decisions without an end; the lifecycle runs in a circle at {record.state}")


def _known(record: NodeRecord, site: Site) -> dict[Action, Mapping[str, Any]]:
    """What the record says of the world: what was read of things that last, and then every change made since, in its order.

    A look that was taken while something was still on its way ("not installed yet") is past; what it waited for is the change.
    """
    world = {action: record.facts[action].values for action in LASTING if action in record.facts}
    made = [(fact.at_s, action, fact.values) for action, fact in record.facts.items() if action in CHANGES]
    begun = record.open or record.lost
    if begun is not None and begun.action in CHANGES:
        made.append((begun.at_s, begun.action, begun.args))
    for _at_s, action, values in sorted(made, key=lambda change: change[0]):
        world.update(_after(Step(record.name, action, "", dict(values)), site, world))
    return world


def _success(step: Step, site: Site, world: dict[Action, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The facts `step` yields when all goes well; looks answer with what was really seen, as long as nothing changed it."""
    if step.action in world and step.action not in MUTATING:
        return world[step.action]
    name, node = step.node, site.nodes[step.node]
    after = _after(step, site, world)
    world.update(after)
    if step.action is Action.NODE_PROBE:
        return _probe(site.sku(name).gpus.model, site.sku(name).gpus.count, site.gpu_cap_w(name) or 700.0)
    if step.action is Action.BMC_IDENTIFY:
        return {"serial": node.serial, "model": site.sku(name).model, "power": "Off", "account": "factory"}
    if step.action is Action.SSH_IDENTIFY:
        return {"serial": node.serial, "image_digest": "wanted", "kernel": ""}
    if step.action is Action.BMC_FIRMWARE:
        return {"components": [{"id": key, "version": part.approved[0]} for key, part in site.baseline(name).items()]}
    if step.action is Action.BMC_OBSERVE and name not in site.computes:
        return {"power": "On", "health": "OK"}
    return ALWAYS.get(step.action, {})


@functools.cache
def _probe(model: str, count: int, limit_w: float) -> Mapping[str, Any]:
    """Made once per kind of machine, and only read."""
    return sound_probe(model, count, power_limit_w=limit_w)


ALWAYS: Mapping[Action, Mapping[str, Any]] = {
    Action.BMC_OBSERVE: {"power": "Off", "boot_override_enabled": "Disabled", "boot_override_target": "None"},
    Action.BMC_CREDENTIAL: {"account": "ours", "changed": True, "certificate_sha256": ""},
    Action.IMAGE_REPORT: {"installed": False, "image": "", "digest": "", "wanted_digest": "wanted", "ssh_host_key": ""},
    Action.PLAYBOOK: {"ok": 0, "changed": 0, "skipped": []},
    Action.BMC_TASKS: {"tasks": []},
    Action.BMC_UPDATE: {"task": "the update's task"},
    Action.BMC_TASK: {"state": "Completed"},
    Action.NODE_COMPUTE: {"repeatable": True, "device": "", "gflops": 0.0},
    Action.CELL_OBSERVE: {"alive": True},
}
"""What a node of the plan's world answers when nothing before it changed the answer."""


def _after(step: Step, site: Site, world: Mapping[Action, Mapping[str, Any]]) -> dict[Action, Mapping[str, Any]]:
    """What later looks will see because of this step."""
    if step.action is Action.BMC_POWER:
        power = "On" if step.args["reset"] == "On" else "Off"
        after = {Action.BMC_OBSERVE: {"power": power, "boot_override_enabled": "Disabled", "boot_override_target": "None"}}
        boots_anew = Action.BMC_BOOT_ONCE in world and power == "On"
        digest = (world.get(Action.IMAGE_REPORT) or {}).get("wanted_digest", "wanted")
        installed = {"installed": True, "image": "", "digest": digest, "wanted_digest": digest, "ssh_host_key": "-"}
        return {**after, **({Action.IMAGE_REPORT: installed} if boots_anew else {})}
    if step.action is Action.BMC_CREDENTIAL:
        # A BMC that insists on a new password says its serial only afterwards.
        said = world.get(Action.BMC_IDENTIFY) or {}
        serial, model = said.get("serial") or site.nodes[step.node].serial, said.get("model") or site.sku(step.node).model
        return {Action.BMC_IDENTIFY: {**said, "serial": serial, "model": model, "account": "ours"}}
    if step.action is Action.BMC_BOOT_ONCE:
        return {Action.BMC_BOOT_ONCE: {"target": step.args["target"]}}
    if step.action is Action.BMC_UPDATE:
        parts = (world.get(Action.BMC_FIRMWARE) or {}).get("components", [])
        return {
            Action.BMC_FIRMWARE: {
                "components": [
                    {**part, "version": step.args["version"]} if part["id"] == step.args["component"] else part for part in parts
                ]
            }
        }
    return {}
