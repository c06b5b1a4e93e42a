"""An operation is one exchange with one neighbour, written down before it happens; an outcome is what came of it.

Both are plain data (JSON-able, no secrets, no open sockets), so that the same objects serve the plan, the journal, a Ray shard
in another process and a simulation in virtual time.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    """Every kind of exchange. `args ->` and `facts <-` are JSON objects; a secret is never among them."""

    BMC_IDENTIFY = "bmc.identify"
    """Log in and read who it is. facts <- serial, model, manufacturer, uuid, power, certificate_sha256, bmc_firmware,
    account ("factory"|"ours"), password_change_required (then serial and model may be null)."""
    BMC_OBSERVE = "bmc.observe"
    """Read power state, boot override, health. facts <- power ("On"|"Off"|"PoweringOn"|"PoweringOff"), boot_override_target,
    boot_override_enabled, health, draw_w (null if unknown)."""
    BMC_CREDENTIAL = "bmc.credential"
    """Replace the factory password by ours (made durable on our side first). facts <- account, changed (false if ours worked)."""
    BMC_POWER = "bmc.power"
    """args -> reset ("On"|"ForceOff"|"GracefulShutdown"|"ForceRestart"|"PowerCycle"). facts <- reset, accepted."""
    BMC_BOOT_ONCE = "bmc.boot_once"
    """args -> target ("Pxe"|"UefiHttp"|"Cd"). facts <- target."""
    BMC_FIRMWARE = "bmc.firmware"
    """Read the firmware inventory. facts <- components: [{"id", "name", "version", "updateable"}]; the last two may be None."""
    BMC_UPDATE = "bmc.update"
    """args -> component, image_uri, version. facts <- task (URI on the same BMC; empty if it names none), component, version."""
    BMC_TASK = "bmc.task"
    """args -> task. facts <- task, state, status, percent, messages, needs_reset (what was installed takes effect once the
    host is reset), is_scheduled (nothing is installed before the host is reset); a vanished task has state "Vanished"."""
    BMC_TASKS = "bmc.tasks"
    """List the update tasks the BMC still remembers. facts <- tasks: [{"task", "name", "state", "percent"}], newest last;
    listed (false where the BMC lists no tasks at all, so that an empty list says nothing)."""
    BMC_LOCATE = "bmc.locate"
    """args -> lit (bool). facts <- lit."""
    BMC_EVENTS = "bmc.events"
    """Read the system event log. facts <- entries: [{"at", "severity", "message"}]."""
    IMAGE_REPORT = "image.report"
    """Ask the site's image service about the node's serial. args -> serial, image.
    facts <- installed (bool), image, digest, wanted_digest, ssh_host_key ("ssh-ed25519 AAAA..."), installed_at_s, boots."""
    SSH_IDENTIFY = "ssh.identify"
    """Who is behind the SSH port. facts <- serial, boot_id, image_digest, hostname, kernel, python, uptime_s,
    clock_skew_s (its clock minus ours, null if it does not say)."""
    SSH_EXEC = "ssh.exec"
    """args -> argv (list), stdin (not secret). facts <- exit_status, stdout, stderr (tails)."""
    PLAYBOOK = "ansible.playbook"
    """args -> playbook (name in playbooks/), variables. facts <- ok, changed, skipped (task names), tasks, seconds."""
    NODE_PROBE = "node.probe"
    """NVML through the agent's probe. facts <- the probe's JSON (driver, gpus: [...])."""
    NODE_COMPUTE = "node.compute"
    """Short compute check on every GPU (or the CPU, said so). facts <- device, gflops, repeatable (bool), seconds."""
    CELL_JOIN = "cell.join"
    """Start this node's Ray node over SSH. args -> address, labels, resources. facts <- started, ray_version."""
    CELL_LEAVE = "cell.leave"
    """Stop this node's Ray node over SSH. facts <- stopped."""
    CELL_OBSERVE = "cell.observe"
    """What the cell's own membership says. facts <- alive (bool), node_id, labels, resources."""
    RANK_START = "rank.start"
    """Through the node's agent actor: start one training rank, or adopt it if it already runs. args -> run, attempt, rank,
    environment, argv, directory, run_json (text of RUN.json or ""). facts <- pid, started_ticks, log, adopted (bool)."""
    RANK_LOOK = "rank.look"
    """args -> run, attempt, rank, progress_offset. facts <- alive, exit_status (null while alive or unknown), heartbeat_age_s,
    progress (list of parsed JSON lines since the offset), progress_offset, log_tail."""
    RANK_STOP = "rank.stop"
    """args -> run, attempt, rank, signal ("TERM"|"KILL"). facts <- was_alive."""


MUTATING = frozenset(
    {
        Action.BMC_CREDENTIAL,
        Action.BMC_POWER,
        Action.BMC_BOOT_ONCE,
        Action.BMC_UPDATE,
        Action.BMC_LOCATE,
        Action.SSH_EXEC,
        Action.PLAYBOOK,
        Action.CELL_JOIN,
        Action.CELL_LEAVE,
        Action.RANK_START,
        Action.RANK_STOP,
    }
)
"""Actions that change something at the neighbour: their intent is journaled first, and a lost answer leads to looking."""

TIMEOUT_S: Mapping[Action, float] = {
    Action.BMC_IDENTIFY: 30,
    Action.BMC_OBSERVE: 20,
    Action.BMC_CREDENTIAL: 30,
    Action.BMC_POWER: 30,
    Action.BMC_BOOT_ONCE: 20,
    Action.BMC_FIRMWARE: 60,
    Action.BMC_UPDATE: 60,
    Action.BMC_TASK: 20,
    Action.BMC_TASKS: 30,
    Action.BMC_LOCATE: 20,
    Action.BMC_EVENTS: 60,
    Action.IMAGE_REPORT: 20,
    Action.SSH_IDENTIFY: 20,
    Action.SSH_EXEC: 300,
    Action.PLAYBOOK: 600,
    Action.NODE_PROBE: 60,
    Action.NODE_COMPUTE: 180,
    Action.CELL_JOIN: 120,
    Action.CELL_LEAVE: 60,
    Action.CELL_OBSERVE: 30,
    Action.RANK_START: 60,
    Action.RANK_LOOK: 30,
    Action.RANK_STOP: 30,
}
"""The longest one exchange may take, whole, in seconds."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node is and who it must turn out to be. Secrets are not here: a driver reads them by node name."""

    bmc_host: str = ""
    bmc_port: int = 443
    bmc_user: str = "rackray"
    bmc_certificate_sha256: str = ""
    """Pinned certificate (lower-case hex of the DER); empty only before first contact."""
    bmc_insecure: bool = False
    """Named in the spec as a BMC whose certificate is not checked; counted and shown loudly."""
    ssh_host: str = ""
    ssh_port: int = 22
    ssh_user: str = ""
    ssh_host_key: str = ""
    """Pinned host key, "ssh-ed25519 AAAA..."; an operation over SSH without it is refused."""
    serial: str = ""
    is_equipment: bool = False
    """A switch, a power shelf or the like: its BMC may show no computer system, only the chassis."""
    python: str = ""
    """Interpreter of the training runtime on the node."""
    image_url: str = ""
    """Base URL of the site's image service."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One exchange to be done."""

    id: str
    """Unique for ever: journaled intents, outcomes and logs are matched by it."""
    node: str
    action: Action
    epoch: int
    """The controller's lease epoch; checked immediately before the exchange."""
    target: Target
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timeout_s(self) -> float:
        """Longest this exchange may take, in seconds."""
        return TIMEOUT_S[self.action]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a pipe, a Ray shard or a journal."""
        return {**dataclasses.asdict(self), "action": str(self.action), "args": dict(self.args)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Operation":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on foreign data."""
        return Operation(
            id=data["id"],
            node=data["node"],
            action=Action(data["action"]),
            epoch=data["epoch"],
            target=Target(**data["target"]),
            args=data["args"],
        )


class Status(StrEnum):
    """How an exchange ended. Unknown is never success."""

    DONE = "done"
    """The neighbour confirmed it; `facts` say what."""
    REFUSED = "refused"
    """It answered no; `retryable` says whether asking again can help."""
    UNREACHABLE = "unreachable"
    """Nothing was sent."""
    UNKNOWN = "unknown"
    """Something was sent and no answer came."""
    MISMATCH = "mismatch"
    """The neighbour is not who it must be; nothing was written to it."""
    HELD = "held"
    """Not sent: something of our own or of the site's services is missing or broken (a key, the journal, our Ray, the image
    service). It says nothing about the node, and no node is blamed for it."""
    FENCED = "fenced"
    """Not sent: the lease epoch had passed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one operation."""

    operation: str
    node: str
    action: Action
    status: Status
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    retryable: bool = True
    retry_after_s: float = 0.0
    seconds: float = 0.0
    """How long the exchange took."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a pipe, a Ray shard or a journal."""
        return {
            **dataclasses.asdict(self),
            "action": str(self.action),
            "status": str(self.status),
            "facts": dict(self.facts),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Outcome":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on foreign data."""
        return Outcome(**{**data, "action": Action(data["action"]), "status": Status(data["status"])})
