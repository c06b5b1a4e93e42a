"""A node joins its cell, or leaves it, over SSH: `orchestrator.agent.cell_node` does it there, this asks for it."""

import importlib.metadata
import json
import platform
import socket
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.deadline import remaining_s
from orchestrator.domain.errors import AnswerLost, PeerRefused, SharedServiceDown
from orchestrator.domain.operation import Operation
from orchestrator.drivers.interfaces import NodeShell, Secrets
from orchestrator.drivers.own_limits import own_limits_told

TOKEN = "ray-cell.token"  # noqa: S105 - the secret's name
"""The cell's token in the secrets folder; `drivers/ray_head.py` makes it."""
MODULE = "orchestrator.agent.cell_node"
ANSWER = "RACKRAY-CELL "
"""What the module's answer begins with."""
HEAD_LOOK_S = 3.0
"""How long the head, on a controller host, may take to accept a connection."""


def join(shell: NodeShell, operation: Operation, secrets: Secrets) -> Mapping[str, Any]:
    """CELL_JOIN. args: address, labels, resources (optional), temp_dir (optional). Facts: started, ray_version.

    The token goes by standard input; nothing secret is in an argument. Raises PeerRefused with the node's own words,
    SharedServiceDown where the head answers nobody (before the node is asked, and for a refusal while it died), and what the
    shell raises.
    """
    args = operation.args
    _look_at_head(args["address"])
    labels = {"node": operation.node, **args.get("labels", {})}
    words = [
        f"--address={args['address']}",
        f"--node-ip={operation.target.ssh_host}",
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items() if value)}",
        f"--resources={json.dumps(args.get('resources') or {})}",
        f"--ray-version={importlib.metadata.version('ray')}",
        f"--python-version={platform.python_version()}",
        f"--limit-s={operation.timeout_s * 0.75:.0f}",
        *([f"--temp-dir={args['temp_dir']}"] if args.get("temp_dir") else []),
    ]
    token = secrets.read(TOKEN).reveal().strip().encode()
    try:
        return _ask(shell, operation, ["start", f"--name={operation.node}", *words], token)
    except PeerRefused:
        # A head that answers us but not the node is that node's trouble (a firewall, a route); a dead one is its own.
        _look_at_head(args["address"])
        raise


def leave(shell: NodeShell, operation: Operation, secrets: Secrets) -> Mapping[str, Any]:
    """CELL_LEAVE. Needs no secret. Facts: stopped (false: nothing of ours ran). Raises as `join` does."""
    return _ask(shell, operation, ["stop", f"--name={operation.node}"], b"")


def _look_at_head(address: str) -> None:
    """Raises SharedServiceDown if nothing accepts connections at `address` (HOST:PORT), OwnLimitReached."""
    host, _, port = address.rpartition(":")
    try:
        with own_limits_told(f"no connection to the cell's Ray head {address}"):
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, remaining_s(HEAD_LOOK_S))).close()
    except OSError as error:
        raise SharedServiceDown(
            f"the cell's Ray head {address} does not answer: {error}; nodes wait for it, and none is blamed",
            "rackray starts it again by itself; where it does not come up, ray/cell.log beside the journal says why",
        ) from error


def _ask(shell: NodeShell, operation: Operation, words: list[str], stdin: bytes) -> Mapping[str, Any]:
    result = shell.run([operation.target.python, "-m", MODULE, *words], stdin=stdin, timeout_s=operation.timeout_s)
    # Profiles and motd may speak before the answer; a killed command may have spoken without one.
    line = next((line for line in reversed(result.stdout.splitlines()) if line.startswith(ANSWER)), None)
    if line is None:
        said = " | ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        if result.exit_status in (1, 2, 126, 127):
            raise PeerRefused(
                f"{operation.node}: {operation.target.python} cannot run {MODULE} (exit status {result.exit_status}): {said}",
                "install the training runtime on the node (playbook bring_up.yml)",
                retryable=True,
            )
        raise AnswerLost(f"{operation.node}: {MODULE} ended with {result.exit_status} and no answer: {said}")
    answer = json.loads(line.removeprefix(ANSWER))
    if "refused" in answer:
        raise PeerRefused(f"{operation.node}: {answer['refused']}", retryable=True)
    return answer
