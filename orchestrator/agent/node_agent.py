"""The one actor that rackray keeps on each node of a cell: it starts, watches and re-adopts training ranks.

A plain class: `orchestrator.worker` makes it a detached Ray actor named `agent-NODE`. It holds no state of its own, so a new
one takes over from a dead one without a word. It holds no management secret and can reach nothing of management.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.agent.ranks import RankError, look_at_rank, start_rank, stop_rank

NAMESPACE = "rackray"
"""Ray namespace of the agents."""
THREADS = 8
"""Calls at once: a look that hangs on the shared storage must not delay a stop."""


def agent_name(node: str) -> str:
    """Name of the agent actor of `node` within NAMESPACE."""
    return f"agent-{node}"


class NodeAgent:
    """Answers with {"facts": {...}} or {"refused": sentence}; whatever else it raises is a fault of its own."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._starting = threading.Lock()

    def about(self) -> dict[str, Any]:
        """Who and where this agent is: node, hostname, pid."""
        return {"node": self.node, "hostname": os.uname().nodename, "pid": os.getpid()}

    def start(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """RANK_START."""
        with self._starting:
            return _answer(start_rank, args)

    def look(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """RANK_LOOK."""
        return _answer(look_at_rank, args)

    def stop(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """RANK_STOP."""
        return _answer(stop_rank, args)


def _answer(method: Callable[[Mapping[str, Any]], dict[str, Any]], args: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"facts": method(args)}
    except RankError as error:
        return {"refused": str(error)}
    except (OSError, subprocess.SubprocessError) as error:
        # The storage or the machine said no. Asking again is safe: a rank that did start is adopted.
        return {"refused": f"in {args.get('directory')}: {error}"}
