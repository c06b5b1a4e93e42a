"""Carries out one operation and says what came of it: the table from actions to doors, the border where errors become statuses.

PeerUnreachable → unreachable    PeerRefused → refused    AnswerLost → unknown    IdentityMismatch → mismatch
the epoch has passed → fenced    a secret or an argument is missing → refused, and asking again does not help
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from orchestrator.domain.deadline import within
from orchestrator.domain.errors import (
    AnswerLost,
    IdentityMismatch,
    NodeSecretMissing,
    PeerError,
    PeerRefused,
    PeerUnreachable,
    RackrayError,
)
from orchestrator.domain.operation import MUTATING, Action, Operation, Outcome, Status
from orchestrator.drivers.interfaces import Bmc, BmcDoor, ImageService, MayAct, NodeShell, Secrets, ShellDoor, ShellResult
from orchestrator.drivers.pools import Pool

LOG = logging.getLogger(__name__)

EXCHANGES_PER_BMC = 2
EXCHANGES_PER_SHELL = 4
OUTPUT_TAIL_CHARACTERS = 16 * 1024
SYSTEM_PYTHON = "/usr/bin/python3"
"""Runs the identity script: it must answer before the training runtime is there."""
IDENTITY_MARKER = "rackray-identity:"
PROBE_MARKER = "rackray-probe:"
COMPUTE_MARKER = "rackray-compute:"
PROBE_HANG_S = 40.0
"""How long the probe lets NVML hang before it reports that; less than the exchange may take."""

Facts = Mapping[str, Any]
CellStep = Callable[[NodeShell, Operation, Secrets], Facts]
"""Joins a node to the cell's Ray over its shell, or takes it out."""
BMC_VERBS: Mapping[Action, Callable[[Bmc, Mapping[str, Any]], Facts]] = {
    Action.BMC_IDENTIFY: lambda bmc, args: bmc.identify(),
    Action.BMC_OBSERVE: lambda bmc, args: bmc.observe(),
    Action.BMC_CREDENTIAL: lambda bmc, args: bmc.replace_factory_password(),
    Action.BMC_POWER: lambda bmc, args: bmc.reset(args["reset"]),
    Action.BMC_BOOT_ONCE: lambda bmc, args: bmc.boot_once(args["target"]),
    Action.BMC_FIRMWARE: lambda bmc, args: bmc.firmware(),
    Action.BMC_UPDATE: lambda bmc, args: bmc.update(args["component"], args["image_uri"], args["version"]),
    Action.BMC_TASK: lambda bmc, args: bmc.task(args["task"]),
    Action.BMC_TASKS: lambda bmc, args: bmc.tasks(),
    Action.BMC_LOCATE: lambda bmc, args: bmc.locate(args["lit"]),
    Action.BMC_EVENTS: lambda bmc, args: bmc.events(),
}
REQUIRED_ARGUMENTS: Mapping[Action, Sequence[str]] = {
    Action.BMC_POWER: ("reset",),
    Action.BMC_BOOT_ONCE: ("target",),
    Action.BMC_UPDATE: ("component", "image_uri", "version"),
    Action.BMC_TASK: ("task",),
    Action.BMC_LOCATE: ("lit",),
    Action.IMAGE_REPORT: ("serial", "image"),
    Action.SSH_EXEC: ("argv",),
    Action.CELL_JOIN: ("address", "labels"),
}
STATUS_OF: Sequence[tuple[type[RackrayError], Status]] = (
    (PeerUnreachable, Status.UNREACHABLE),
    (PeerRefused, Status.REFUSED),
    (AnswerLost, Status.UNKNOWN),
    (IdentityMismatch, Status.MISMATCH),
    # A neighbour's error of no finer kind says nothing about what was done.
    (PeerError, Status.UNKNOWN),
    (NodeSecretMissing, Status.REFUSED),
    # A key that nobody can read, the journal that cannot be asked, no descriptor left, a dead head: nothing was done, and no
    # neighbour is to blame.
    (RackrayError, Status.HELD),
)
ASK_AGAIN = frozenset({Status.UNREACHABLE, Status.UNKNOWN, Status.HELD})
"""Trouble that may be over the next time, by itself."""


class Exchange:
    """Performs operations through the doors it is given. Thread-safe; keeps connections open between operations."""

    def __init__(
        self,
        *,
        bmcs: BmcDoor,
        shells: ShellDoor,
        images: ImageService,
        secrets: Secrets,
        join: CellStep,
        leave: CellStep,
        redact: Callable[[str], str],
        idle_s: float = 30.0,
    ) -> None:
        """`join` and `leave` are those of `drivers/cell_join.py`; `redact` takes secrets out of every reason."""
        self._images = images
        self._secrets = secrets
        self._redact = redact
        self._bmcs: Pool[Bmc] = Pool(bmcs.open, users_per_node=EXCHANGES_PER_BMC, idle_s=idle_s)
        self._shells: Pool[NodeShell] = Pool(
            shells.open,
            users_per_node=EXCHANGES_PER_SHELL,
            idle_s=idle_s,
            is_alive=lambda shell: bool(getattr(shell, "is_alive", True)),
        )
        self._shell_verbs: Mapping[Action, Callable[[NodeShell, Operation], Facts]] = {
            Action.SSH_IDENTIFY: identify_node,
            Action.SSH_EXEC: execute,
            Action.NODE_PROBE: probe,
            Action.NODE_COMPUTE: compute,
            Action.CELL_JOIN: lambda shell, operation: join(shell, operation, secrets),
            Action.CELL_LEAVE: lambda shell, operation: leave(shell, operation, secrets),
        }

    @property
    def actions(self) -> frozenset[Action]:
        """What it can perform."""
        return frozenset({*BMC_VERBS, *self._shell_verbs, Action.IMAGE_REPORT})

    def perform(self, operation: Operation, may_act: MayAct) -> Outcome:
        """Do it, within `operation.timeout_s` in all. Never raises for what a neighbour does."""
        started_s = time.monotonic()
        status, facts, reason, retryable, retry_after_s = Status.DONE, {}, "", True, 0.0
        try:
            with within(operation.timeout_s):
                found = self._perform(operation, may_act)
            if found is None:
                status, reason = Status.FENCED, f"another controller decides since epoch {operation.epoch}; nothing was sent"
            else:
                facts = dict(found)
        except RackrayError as error:
            status = next(status for kind, status in STATUS_OF if isinstance(error, kind))
            if operation.action is Action.IMAGE_REPORT:
                # One service for all nodes: what is wrong with it is wrong with none of them.
                status = Status.HELD
            reason = self._redact(f"{error} ({error.hint})" if error.hint else str(error))
            retryable = status in ASK_AGAIN or (isinstance(error, PeerRefused) and error.retryable)
            retry_after_s = getattr(error, "retry_after_s", 0.0)
            LOG.info("%s %s: %s: %s", operation.node, operation.action, status, reason)
        return Outcome(
            operation=operation.id,
            node=operation.node,
            action=operation.action,
            status=status,
            facts=facts,
            reason=reason,
            retryable=retryable,
            retry_after_s=retry_after_s,
            seconds=time.monotonic() - started_s,
        )

    def close(self) -> None:
        """Log out everywhere and close every connection."""
        self._bmcs.close()
        self._shells.close()

    def _perform(self, operation: Operation, may_act: MayAct) -> Facts | None:
        """The facts, or None if the epoch has passed."""
        if not may_act(operation.epoch):
            return None
        action, node, target = operation.action, operation.node, operation.target
        missing = [name for name in REQUIRED_ARGUMENTS.get(action, ()) if name not in operation.args]
        if missing:
            raise PeerRefused(f"{action} for {node} lacks {', '.join(missing)}; nothing was sent")
        if bmc_verb := BMC_VERBS.get(action):
            with self._bmcs.lend(node, target, operation.timeout_s) as bmc:
                return bmc_verb(bmc, operation.args) if self._may_still(operation, may_act) else None
        if shell_verb := self._shell_verbs.get(action):
            if not target.ssh_host_key:
                raise IdentityMismatch(
                    f"no SSH host key is pinned for {node}; nothing was sent",
                    "it comes from the image step, or from `rackray node enroll`",
                )
            with self._shells.lend(node, target, operation.timeout_s) as shell:
                return shell_verb(shell, operation) if self._may_still(operation, may_act) else None
        if action is Action.IMAGE_REPORT:
            serial, image = operation.args["serial"], operation.args["image"]
            return self._images.report(target.image_url, serial, image, operation.timeout_s)
        raise PeerRefused(f"{action} for {node} is not done over Redfish, SSH or the image service")

    def _may_still(self, operation: Operation, may_act: MayAct) -> bool:
        # Opening the connection may have taken seconds: a change is fenced once more, immediately before it.
        return operation.action not in MUTATING or may_act(operation.epoch)


def identify_node(shell: NodeShell, operation: Operation) -> Facts:
    """Facts of SSH_IDENTIFY. IdentityMismatch if the machine behind the port is another than the spec's."""
    result = shell.run([SYSTEM_PYTHON, "-"], stdin=_agent_script("identity.py"), timeout_s=operation.timeout_s)
    facts = _marked(result, IDENTITY_MARKER, operation.node)
    clock_s = facts.pop("clock_s", None)
    facts["clock_skew_s"] = round(clock_s - time.time(), 1) if isinstance(clock_s, int | float) else None
    serial = facts.get("serial")
    if serial and operation.target.serial and serial != operation.target.serial:
        raise IdentityMismatch(
            f"the machine that answers for {operation.node} at {operation.target.ssh_host} has the serial {str(serial)[:64]}; "
            f"the spec says {operation.target.serial}",
            "do two machines share an address?",
        )
    return facts


def execute(shell: NodeShell, operation: Operation) -> Facts:
    """Facts of SSH_EXEC. A command that fails is an answer too: its exit status is among the facts."""
    argv = operation.args["argv"]
    if isinstance(argv, str) or not argv or not all(isinstance(word, str) for word in argv):
        raise PeerRefused(f"the command for {operation.node} is no list of words; nothing was sent")
    stdin = str(operation.args.get("stdin", "")).encode()
    result = shell.run(list(argv), stdin=stdin, timeout_s=operation.timeout_s)
    return {
        "exit_status": result.exit_status,
        "stdout": result.stdout[-OUTPUT_TAIL_CHARACTERS:],
        "stderr": result.stderr[-OUTPUT_TAIL_CHARACTERS:],
    }


def probe(shell: NodeShell, operation: Operation) -> Facts:
    """Facts of NODE_PROBE: what the agent's probe printed."""
    python = _runtime_python(operation)
    argv = [python, "-", "--timeout-s", str(PROBE_HANG_S)]
    result = shell.run(argv, stdin=_agent_script("probe.py"), timeout_s=operation.timeout_s)
    return _marked(result, PROBE_MARKER, operation.node)


def compute(shell: NodeShell, operation: Operation) -> Facts:
    """Facts of NODE_COMPUTE. args -> seconds (per device; 1 if absent)."""
    seconds = float(operation.args.get("seconds", 1.0))
    argv = [_runtime_python(operation), "-m", "orchestrator.agent.compute", "--seconds", str(seconds)]
    return _marked(shell.run(argv, timeout_s=operation.timeout_s), COMPUTE_MARKER, operation.node)


def _marked(result: ShellResult, marker: str, node: str) -> dict[str, Any]:
    """The JSON object after the last `marker`; login shells may print what they like before it."""
    for line in reversed(result.stdout.splitlines()):
        _, found, text = line.partition(marker)
        if not found:
            continue
        try:
            facts = json.loads(text)
        except ValueError:
            break
        if isinstance(facts, dict):
            return facts
    # nologin(8) and broken profiles talk on the standard output.
    said = " ".join((result.stderr.strip() or result.stdout).split())[-300:] or "nothing"
    raise PeerRefused(
        f"{marker.rstrip(':')} on {node} ended with status {result.exit_status} and no result; it said: {said}",
        "does the interpreter named in runtime.python run there?",
        retryable=True,
    )


def _runtime_python(operation: Operation) -> str:
    if not operation.target.python:
        raise PeerRefused(f"no interpreter is named for {operation.node}", "runtime.python in the spec")
    return operation.target.python


def _agent_script(name: str) -> bytes:
    return resources.files("orchestrator.agent").joinpath(name).read_bytes()
