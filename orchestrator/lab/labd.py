"""The lab daemon: holds the power cords of all nodes, serves every BMC and the image service, accepts SSH.

    python -m orchestrator.lab.labd HOME READY_FD

Forks twice into a session of its own, so that it outlives the command that started it; says `ready`, or one sentence of
what is wrong, on READY_FD. When it ends, in whatever way, every node ends with it (see `node_init`).
"""

import asyncio
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import RackrayError
from orchestrator.lab.control_channel import LONGEST_LINE_BYTES, short_path
from orchestrator.lab.errors import LabError
from orchestrator.lab.hosting import HostedLab
from orchestrator.lab.namespaces import start_time
from orchestrator.lab.plan import LabPaths, LabSpec

log = logging.getLogger(__name__)


def main(home: str, ready_descriptor: int) -> None:
    """Becomes a daemon and serves until told to go down, or SIGTERM."""
    paths = LabPaths(Path(home))
    _detach()
    # Not inherited by nodes or sshd: the command that waits for it would wait for them.
    os.set_inheritable(ready_descriptor, False)
    _set_limits()
    with os.fdopen(ready_descriptor, "w") as ready:
        lock = os.open(paths.lab / "labd.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ready.write(f"another lab daemon runs in {paths.lab}")
            return
        _redirect(paths.log)
        draft = paths.pid_file.with_suffix(".draft")
        draft.write_text(f"{os.getpid()} {start_time(os.getpid())}\n")
        draft.replace(paths.pid_file)
        listener = _listen(paths.control)
        ready.write("ready")
    asyncio.run(_serve(paths, listener))


async def _serve(paths: LabPaths, listener: socket.socket) -> None:
    lab = HostedLab(paths)
    going = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, going.set)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            reply, is_last = await _answer(lab, request)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
            if is_last:
                going.set()
        except (OSError, ValueError) as error:  # the asker went away, or spoke no JSON
            log.warning("a control connection ended early: %s", error)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(converse, sock=listener, limit=LONGEST_LINE_BYTES)
    log.info("the lab daemon serves %s", paths.lab)
    await going.wait()
    server.close()
    await lab.stop()
    log.info("the lab daemon ends")


async def _answer(lab: HostedLab, request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """One request's reply, and whether it was the last."""
    verb = request.get("verb")
    try:
        match verb:
            case "add":
                return {"answer": {"added": await lab.add(LabSpec.from_json(request["spec"]))}}, False
            case "status":
                return {"answer": lab.status()}, False
            case "fault":
                lab.fault(request["node"], request["fault"], request["arguments"])
            case "heal":
                lab.heal(request["node"], request["fault"], request["arguments"])
            case "down":
                await lab.stop_nodes()
                return {"answer": {}}, True
            case _:
                raise LabError(f"the lab daemon knows no verb {verb!r}")
    except RackrayError as error:
        return {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}, False
    except Exception as error:  # the asker must hear of our own faults too; the log keeps the whole story
        log.exception("%s failed", verb)
        return {"error": f"the lab daemon failed at {verb!r}: {error!r}", "hint": "see labd.log", "exit_code": 1}, False
    return {"answer": {}}, False


def _detach() -> None:
    """Leaves the caller's session, terminal and process group for good (daemon(7), SysV daemons)."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)


def _set_limits() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a few descriptors per node
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold passwords


def _redirect(path: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    text = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(text, 1)
    os.dup2(text, 2)
    os.close(nothing)
    os.close(text)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _listen(control: Path) -> socket.socket:
    control.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with short_path(control) as name:
        listener.bind(name)
    control.chmod(0o600)
    listener.listen(16)
    return listener


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
