"""The lab in virtual time: the same simulated machines as on the wire, in a world that needs no waiting.

`SimulatedSite` is the world: it lives on when a controller dies. `simulated_hands.py` has what a controller holds of it.
One seed, one history.
"""

import hashlib
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from orchestrator.domain.health import sound_probe
from orchestrator.domain.node import COMPUTE
from orchestrator.domain.operation import MUTATING, Action, Operation, Outcome, Status
from orchestrator.domain.rehearsal import FaultProfile, StageTimes
from orchestrator.domain.spec import ClusterSpec, LabFault
from orchestrator.domain.spec import Machine as DeclaredMachine
from orchestrator.lab.machine import BootSource, FirmwarePart, Machine, MachineError, MachineSpec, PowerState
from orchestrator.lab.simulation_weather import BY_BMC, Weather

log = logging.getLogger(__name__)

IMAGE_DIGEST = "sha256:" + hashlib.sha256(b"rackray simulated image").hexdigest()
IMAGE_S = 2.0
"""How long a network boot takes to lay the image down and report, in seconds."""
OS_BOOT_S = 1.0
BOARD_LIMIT_W = 700.0
"""The power limit of a simulated GPU that nobody has capped."""
DURATION_S: Mapping[Action, float] = {
    Action.PLAYBOOK: 20.0,
    Action.NODE_COMPUTE: 5.0,
    Action.CELL_JOIN: 8.0,
    Action.BMC_CREDENTIAL: 1.0,
}
QUICK_S = 0.2
"""How long any other exchange takes, in seconds."""


class SimulatedSite:
    """Every simulated node, the site's services and the time. Exchanges take effect half-way; answers come at their end."""

    def __init__(
        self, spec: ClusterSpec, seed: int = 0, start_s: float = 1_000_000.0, profile: FaultProfile | None = None
    ) -> None:
        """Without a profile, the machines are as quick as the lab's on the wire and only the spec's own faults are planted.

        Raises KeyError when the profile names a feed that the spec does not have.
        """
        self.now_s = start_s
        self.weather = Weather(profile, spec, seed) if profile else None
        self.random = random.Random(seed)  # noqa: S311 - a simulation has to be repeatable, not secret
        self.nodes: dict[str, SimulatedNode] = {}
        self.deeds: list[Deed] = []
        """Everything that changed something at a node, in order: what really happened, whatever the journal says."""
        self.plays: list[tuple[str, ...]] = []
        """Runs of playbooks, each with the nodes that went together."""
        self.lose_answer: Callable[[Operation], bool] = lambda operation: False
        """A fault: the exchange happens and its answer is lost."""
        self.dark_until_s: dict[str, float] = {}
        """Feeds that carry no power, and until when."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._catalog: dict[str, tuple[str, str]] = {}
        self.extend(spec)
        for loss in profile.feed_losses if profile else ():
            self.at(start_s + loss.at_s, partial(self.lose_feed, loss.feed, loss.for_s))

    def lose_feed(self, feed: str, for_s: float) -> None:
        """The feed goes dark now: its machines stop, their BMCs answer again after `for_s`."""
        self.dark_until_s[feed] = self.now_s + for_s
        for node in self.nodes.values():
            if node.feed == feed:
                node.machine.lose_power(self.now_s)

    def extend(self, spec: ClusterSpec) -> None:
        """Make the machines of `spec` that are not there yet, and plant its faults in them."""
        for baseline in spec.firmware.values():
            self._catalog.update({part.image: (key, part.approved[0]) for key, part in baseline.items() if part.image})
        plants = spec.lab.plant if spec.lab else ()
        for node in spec.managed():
            if node.name not in self.nodes:
                faults = [fault for fault in plants if fault.node == node.name]
                self.nodes[node.name] = SimulatedNode(self, spec, node, faults, self._catalog)

    def at(self, due_s: float, deed: Callable[[], None]) -> None:
        """Let `deed` happen at `due_s`."""
        heapq.heappush(self._queue, (due_s, next(self._order), deed))

    def submit(self, operation: Operation, answer: Callable[[Outcome], None]) -> None:
        """Begin one exchange; `answer` is called at its end, in virtual time, with what came of it."""
        node = self.nodes[operation.node]
        if (silent_s := self._silence_s(node, operation)) is not None:
            quiet = Outcome(operation.id, operation.node, operation.action, Status.UNREACHABLE, reason="nobody answers")
            self.at(self.now_s + silent_s, partial(answer, quiet))
            return
        duration_s = self.duration_s(node, operation)
        lost = self.weather is not None and self.weather.loses(operation, self.random)
        found: list[Outcome] = []

        def act() -> None:
            if operation.action in MUTATING:
                self.deeds.append(Deed(self.now_s, operation.node, operation.action, dict(operation.args)))
            found.append(_performed(node, operation))

        def tell() -> None:
            answer(
                Outcome(operation.id, operation.node, operation.action, Status.UNKNOWN, reason="answer lost")
                if self.lose_answer(operation) or lost
                else found[0]
            )

        self.at(self.now_s + duration_s / 2, act)
        self.at(self.now_s + duration_s, tell)

    def play(self, operations: Sequence[Operation], answer: Callable[[Outcome], None]) -> None:
        """Begin one run of a playbook on all these nodes; each goes at its own pace, and its answer comes when it is through."""
        self.plays.append(tuple(operation.node for operation in operations))
        for operation in operations:
            self.submit(operation, answer)

    def duration_s(self, node: "SimulatedNode", operation: Operation) -> float:
        """How long this exchange takes, in seconds."""
        if self.weather and node.fate:
            return self.weather.duration_s(node.fate, operation.action)
        return DURATION_S.get(operation.action, QUICK_S) * self.random.uniform(0.8, 1.25)

    def _silence_s(self, node: "SimulatedNode", operation: Operation) -> float | None:
        """After how many seconds it is clear that nobody answers, or None where somebody does."""
        times = self.weather.times if self.weather else StageTimes()
        if self.dark_until_s.get(node.feed, 0.0) > self.now_s and operation.action not in AWAY_FROM_NODE:
            return times.no_answer_s
        if self.weather and node.fate and self.weather.is_silent(node.fate, operation, self.random):
            return times.no_answer_s
        if operation.action in BY_BMC and not node.machine.bmc_answers(self.now_s):
            return times.no_answer_s
        return None

    def chain_s(self, name: str, actions: Sequence[tuple[Action, str]]) -> float:
        """The least seconds the node needs for `actions` (each with its reset kind or ""), one after the other."""
        node = self.nodes[name]
        if self.weather is None or node.fate is None:
            raise ValueError("only a site with a profile knows its machines' times beforehand")
        return self.weather.chain_s(node.fate, actions)

    def pass_to(self, until_s: float) -> None:
        """Let time pass to `until_s`, and everything happen that is due by then."""
        while self.now_s < until_s:
            self.advance(until_s)

    def advance(self, until_s: float) -> None:
        """Let time pass to `until_s`, or only to the first thing that happens before it."""
        if self._queue and self._queue[0][0] <= until_s:
            due_s, _, deed = heapq.heappop(self._queue)
            self.now_s = max(self.now_s, due_s)
            deed()
        else:
            self.now_s = max(self.now_s, until_s)


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that really happened at a node."""

    at_s: float
    node: str
    action: Action
    args: Mapping[str, Any] = field(default_factory=dict)


class SimulatedNode:
    """One machine with an operating system that is a handful of facts."""

    def __init__(
        self,
        site: SimulatedSite,
        spec: ClusterSpec,
        node: DeclaredMachine,
        faults: Sequence[LabFault],
        catalog: Mapping[str, tuple[str, str]],
    ) -> None:
        sku = spec.sku_of(node)
        stale = {fault.component: fault.version for fault in faults if fault.fault == "stale_firmware"}
        baseline = spec.firmware.get(node.sku, {})
        parts = tuple(FirmwarePart(key, key, stale.get(key) or part.approved[0]) for key, part in baseline.items())
        self.site, self.node, self.sku = site, node, sku
        self.sick_gpus = {fault.gpu or 0 for fault in faults if fault.fault == "gpu_row_remap_pending"}
        identity = hashlib.sha256(node.serial.encode()).hexdigest()
        self.feed = spec.racks[node.rack].feed
        self.fate = site.weather.fate(spec, node) if site.weather else None
        boot_s, update_s = (spec.lab.boot_s, spec.lab.update_s) if spec.lab else (90.0, 300.0)
        self.image_s, self.system_boot_s = IMAGE_S, OS_BOOT_S
        if site.weather and self.fate:
            times, pace = site.weather.times, self.fate.pace
            boot_s, update_s = times.self_test_s * pace, times.update_s * pace
            self.image_s, self.system_boot_s = times.image_s * pace, times.system_boot_s * pace
            if self.fate.sick_gpu:
                self.sick_gpus.add(0)
        machine = MachineSpec(
            name=node.name,
            serial=node.serial,
            manufacturer=sku.manufacturer,
            model=sku.model,
            uuid=identity[:32],
            factory_username="factory",
            factory_password="factory-" + identity[:12],
            gpu_model=sku.gpus.model,
            gpu_count=sku.gpus.count,
            is_equipment=sku.kind != COMPUTE,
            boot_s=boot_s,
            update_s=update_s,
            firmware=parts,
            draw_idle_w=sku.idle_w,
            draw_max_w=sku.max_w,
        )
        self.machine = Machine(machine, self, catalog)
        for fault, arguments in self.fate.faults.items() if self.fate else ():
            self.machine.fault(fault, site.now_s, **arguments)
        self.certificate_sha256 = identity
        self.ours = False
        self.image_installed_at_s: float | None = None
        self.boot = 0
        self.is_up = False
        self.in_cell = False
        self.gpu_limit_w = BOARD_LIMIT_W
        self.gpus_of = (self.fate and self.fate.gpus_of) or node.serial
        """Whose GPUs it reports: its own, unless it is a twin."""

    # What the board's power switch does (`lab.machine.Board`).
    def power_on(self, boot: BootSource) -> None:
        """Start from the network (lay the image down first) or from disk."""
        self.boot += 1
        boot_number = self.boot
        delay_s = self.image_s + self.system_boot_s if boot.is_network else self.system_boot_s
        if boot.is_network or self.image_installed_at_s is not None:
            self.site.at(self.site.now_s + delay_s, lambda: self._booted(boot_number, boot.is_network))

    def power_off(self) -> None:
        """Everything that ran is gone."""
        self.boot += 1
        self.is_up = self.in_cell = False

    def _booted(self, boot_number: int, from_network: bool) -> None:
        if boot_number != self.boot:
            return
        if from_network:
            self.image_installed_at_s = self.site.now_s
        self.is_up = True

    def perform(self, operation: Operation) -> Outcome:
        """Carry out one operation now. A silent operating system answers nothing; a BMC always answers."""
        over_ssh = operation.action in OVER_SSH
        self.machine.tick(self.site.now_s)
        if over_ssh and not self.is_up:
            return self._outcome(operation, Status.UNREACHABLE, reason="no route to the node: it is not up")
        if over_ssh and operation.target.ssh_host_key != self.host_key:
            return self._outcome(operation, Status.MISMATCH, reason="another host key than the pinned one")
        try:
            facts = VERBS[operation.action](self, operation.args)
        except MachineError as refusal:
            return self._outcome(operation, Status.REFUSED, reason=str(refusal))
        return self._outcome(operation, Status.DONE, facts)

    def _outcome(self, operation: Operation, status: Status, facts: Mapping[str, Any] | None = None, reason: str = "") -> Outcome:
        return Outcome(operation.id, self.node.name, operation.action, status, facts or {}, reason)

    @property
    def host_key(self) -> str:
        """The key of the present image; a new image has a new one."""
        return f"ssh-ed25519 {hashlib.sha256(f'{self.node.serial}/{self.image_installed_at_s}'.encode()).hexdigest()}"

    # One verb per action; the facts are those of `domain.operation`.
    def identify(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        spec = self.machine.spec
        return {
            "serial": self.machine.serial,
            "model": spec.model,
            "manufacturer": spec.manufacturer,
            "uuid": spec.uuid,
            "power": str(self.machine.power_state(self.site.now_s)),
            "certificate_sha256": self.certificate_sha256,
            "bmc_firmware": "",
            "account": "ours" if self.ours else "factory",
            "password_change_required": False,
        }

    def observe(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        override = self.machine.boot_override
        return {
            "power": str(self.machine.power_state(self.site.now_s)),
            "boot_override_target": str(override.target),
            "boot_override_enabled": str(override.enabled),
            "health": self.machine.health(self.site.now_s),
            "draw_w": round(self.machine.sensors(self.site.now_s).draw_w, 1),
        }

    def credential(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        changed, self.ours = not self.ours, True
        return {"account": "ours", "changed": changed, "certificate_sha256": self.certificate_sha256}

    def reset(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        self.machine.reset(args["reset"], self.site.now_s)
        self._keep_ticking()
        return {"reset": args["reset"], "accepted": True}

    def boot_once(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        self.machine.set_boot(self.site.now_s, args["target"])
        return {"target": args["target"]}

    def firmware(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        parts = self.machine.firmware(self.site.now_s)
        return {
            "components": [{"id": p.id, "name": p.name, "version": p.version, "updateable": p.updateable} for p in parts],
        }

    def update(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        task = self.machine.start_update(args["image_uri"], self.site.now_s)
        self._keep_ticking()
        return {"task": f"/tasks/{task.id}", "component": args["component"], "version": args["version"]}

    def task(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        task = self.machine.task(args["task"].rpartition("/")[2], self.site.now_s)
        if task is None:
            return {
                "task": args["task"],
                "state": "Vanished",
                "status": "",
                "percent": None,
                "messages": [],
                "needs_reset": False,
                "is_scheduled": False,
            }
        return {
            "task": args["task"],
            "state": str(task.state),
            "status": "OK",
            "percent": task.percent,
            "messages": [task.message],
            "needs_reset": task.needs_reset,
            "is_scheduled": task.is_scheduled,
        }

    def tasks(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        listed = self.machine.tasks(self.site.now_s)
        return {
            "tasks": [{"task": f"/tasks/{t.id}", "name": t.part_id, "state": str(t.state), "percent": t.percent} for t in listed]
        }

    def image_report(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        installed = self.image_installed_at_s is not None
        return {
            "installed": installed,
            "image": args["image"],
            "digest": IMAGE_DIGEST if installed else "",
            "wanted_digest": IMAGE_DIGEST,
            "ssh_host_key": self.host_key if installed else "",
            "installed_at_s": self.image_installed_at_s,
            "boots": self.boot,
        }

    def ssh_identify(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "serial": self.machine.serial,
            "boot_id": f"{self.node.name}-{self.boot}",
            "image_digest": IMAGE_DIGEST,
            "hostname": self.node.name,
            "kernel": "simulated",
            "python": "3.11",
            "uptime_s": 1.0,
        }

    def playbook(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        self.gpu_limit_w = args.get("variables", {}).get("gpu_power_cap_w") or BOARD_LIMIT_W
        return {"ok": 12, "changed": 5, "skipped": [], "tasks": 12, "seconds": DURATION_S[Action.PLAYBOOK]}

    def probe(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        gpus, sick = self.sku.gpus, self.sick_gpus
        return sound_probe(gpus.model, gpus.count, remap_pending=sick, power_limit_w=self.gpu_limit_w, owner=self.gpus_of)

    def compute(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"device": "simulated", "gflops": 1000.0, "repeatable": True, "seconds": args["seconds"]}

    def join(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        self.in_cell = True
        return {"started": True, "ray_version": "simulated"}

    def cell_observe(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"alive": self.in_cell, "node_id": self.node.name, "labels": {}, "resources": {}}

    def _keep_ticking(self) -> None:
        """Machines act when they are ticked: tick this one at each moment it has something to do."""
        due_s = self.machine.due_s
        if due_s != float("inf"):
            self.site.at(due_s, self._tick)

    def _tick(self) -> None:
        self.machine.tick(self.site.now_s)
        if self.machine.due_s > self.site.now_s:
            self._keep_ticking()

    @property
    def is_on(self) -> bool:
        """Whether it draws more than standby power."""
        return self.machine.power_state(self.site.now_s) is not PowerState.OFF


def _performed(node: SimulatedNode, operation: Operation) -> Outcome:
    """What came of it at the node. A simulation that breaks there is no answer: as with every other kind of hands."""
    try:
        return node.perform(operation)
    except Exception as error:
        log.exception("%s on %s broke the simulation", operation.action, operation.node)
        reason = f"broken off inside the simulation: {type(error).__name__}: {error}"
        return Outcome(operation.id, operation.node, operation.action, Status.UNKNOWN, reason=reason)


OVER_SSH = frozenset(
    {Action.SSH_IDENTIFY, Action.SSH_EXEC, Action.PLAYBOOK, Action.NODE_PROBE, Action.NODE_COMPUTE, Action.CELL_JOIN}
)
AWAY_FROM_NODE = frozenset({Action.IMAGE_REPORT, Action.CELL_OBSERVE})
"""Exchanges with services of the site, which answer whatever has become of the node."""
VERBS: Mapping[Action, Callable[[SimulatedNode, Mapping[str, Any]], Mapping[str, Any]]] = {
    Action.BMC_IDENTIFY: SimulatedNode.identify,
    Action.BMC_OBSERVE: SimulatedNode.observe,
    Action.BMC_CREDENTIAL: SimulatedNode.credential,
    Action.BMC_POWER: SimulatedNode.reset,
    Action.BMC_BOOT_ONCE: SimulatedNode.boot_once,
    Action.BMC_FIRMWARE: SimulatedNode.firmware,
    Action.BMC_UPDATE: SimulatedNode.update,
    Action.BMC_TASK: SimulatedNode.task,
    Action.BMC_TASKS: SimulatedNode.tasks,
    Action.IMAGE_REPORT: SimulatedNode.image_report,
    Action.SSH_IDENTIFY: SimulatedNode.ssh_identify,
    Action.PLAYBOOK: SimulatedNode.playbook,
    Action.NODE_PROBE: SimulatedNode.probe,
    Action.NODE_COMPUTE: SimulatedNode.compute,
    Action.CELL_JOIN: SimulatedNode.join,
    Action.CELL_OBSERVE: SimulatedNode.cell_observe,
}
