"""A node joins its cell, or leaves it, over SSH: `orchestrator.agent.cell_node` does it there, this asks for it."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.errors import AnswerLost, PeerRefused
from orchestrator.domain.operation import Operation
from orchestrator.drivers.interfaces import NodeShell, Secrets

TOKEN = "ray-cell.token"  # noqa: S105 - the secret's name
"""The cell's token in the secrets folder; `drivers/ray_head.py` makes it."""
MODULE = "orchestrator.agent.cell_node"
ANSWER = "RACKRAY-CELL "
"""What the module's answer begins with."""


def join(shell: NodeShell, operation: Operation, secrets: Secrets) -> Mapping[str, Any]:
    """CELL_JOIN. args: address, labels, resources (optional), temp_dir (optional). Facts: started, ray_version.

    The token goes by standard input; nothing secret is in an argument. Raises PeerRefused with the node's own words,
    and what the shell raises.
    """
    args = operation.args
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
    return _ask(shell, operation, ["start", f"--name={operation.node}", *words], secrets.read(TOKEN).reveal().strip().encode())


def leave(shell: NodeShell, operation: Operation, secrets: Secrets) -> Mapping[str, Any]:
    """CELL_LEAVE. Needs no secret. Facts: stopped (false: nothing of ours ran). Raises as `join` does."""
    return _ask(shell, operation, ["stop", f"--name={operation.node}"], b"")


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
