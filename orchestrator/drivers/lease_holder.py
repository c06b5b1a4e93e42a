"""A process as a lease names it: HOST:PID:START:NONCE, so that a pid used again is not mistaken for it."""

import os
import socket
import uuid

from orchestrator.drivers.processes import ProcessId, find


def this_holder() -> str:
    """This process."""
    me = find(os.getpid())
    return f"{socket.gethostname()}:{os.getpid()}:{me.started_ticks if me else 0}:{uuid.uuid4().hex[:8]}"


def has_ended(holder: str) -> bool:
    """Whether the process that held a lease has certainly ended: only known for this host."""
    host, pid, ticks, *_ = [*holder.split(":"), "0", "0"]
    return host == socket.gethostname() and not ProcessId(int(pid), int(ticks)).is_alive()
