"""Starts and stops this node's part in a cell's Ray. Run on the node, by the training runtime's interpreter, over SSH.

    python -m orchestrator.agent.cell_node start --name N --address HEAD:PORT --node-ip IP ... <TOKEN
    python -m orchestrator.agent.cell_node stop --name N

Answers one line, `RACKRAY-CELL {json}`, and exits 0 also when it refuses. The token comes by standard input and goes into a
file of mode 0600; it is in no argument and in no environment. Whether the node really joined only the cell can say: `ray
start` has been seen to say success where nothing had joined (another Python patch version).

Every process started here carries RACKRAY_CELL_NODE=NAME, and only such processes are ever ended: another Ray on the same
machine is left alone, and so are training ranks, which are given an environment of their own.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ANSWER = "RACKRAY-CELL "
RAY_TITLE = b"ray::"
MARKER = "RACKRAY_CELL_NODE"
PATIENCE_S = 5.0
"""Between SIGTERM and SIGKILL: the raylet says good-bye to the cell meanwhile."""


class Refusal(Exception):
    """Nothing was started; the sentence says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="orchestrator.agent.cell_node", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start")
    stop = commands.add_parser("stop")
    for command in (start, stop):
        command.add_argument("--name", required=True)
    start.add_argument("--address", required=True, help="HEAD:PORT of the cell's GCS")
    start.add_argument("--node-ip", required=True)
    start.add_argument("--labels", required=True, help="KEY=VALUE,...")
    start.add_argument("--resources", default="{}", help="JSON object")
    start.add_argument("--ray-version", required=True, help="the head's")
    start.add_argument("--python-version", required=True, help="the head's")
    start.add_argument("--temp-dir", default="/tmp/ray")  # noqa: S108 - the node's own; Ray opens it to everybody anyway
    start.add_argument("--limit-s", type=float, default=90.0)
    options = parser.parse_args(argv)
    try:
        answer = start_node(options) if options.command == "start" else {"stopped": stop_node(options.name) > 0}
    except Refusal as refusal:
        answer = {"refused": str(refusal)}
    print(ANSWER + json.dumps(answer), flush=True)
    return 0


def start_node(options: argparse.Namespace) -> dict[str, Any]:
    """Checks versions and the way to the head, ends an earlier life, starts Ray. Raises Refusal."""
    check_versions(options.ray_version, options.python_version)
    check_way(options.address)
    token = write_token(sys.stdin.read().strip())
    ended = stop_node(options.name)
    argv = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        f"--address={options.address}",
        f"--node-ip-address={options.node_ip}",
        f"--node-name={options.name}",
        f"--temp-dir={options.temp_dir}",
        f"--labels={options.labels}",
        f"--resources={options.resources}",
        "--num-cpus=1",
        "--object-store-memory=80000000",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        MARKER: options.name,
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and Ray's own command
            argv,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=options.limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        stop_node(options.name)
        raise Refusal(f"`ray start` did not end within {options.limit_s:.0f} s") from None
    if done.returncode != 0:
        stop_node(options.name)
        said = " | ".join(line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip())
        raise Refusal(f"`ray start` ended with {done.returncode}: {said[-600:]}")
    return {"started": True, "ray_version": options.ray_version, "leftovers_ended": ended}


def check_versions(ray_wanted: str, python_wanted: str) -> None:
    """Ray demands the same Ray and the same Python, patch version included. Raises Refusal."""
    try:
        ray_here = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise Refusal(f"{sys.executable} has no ray; install the training runtime (playbook bring_up.yml)") from None
    if (ray_here, platform.python_version()) != (ray_wanted, python_wanted):
        raise Refusal(
            f"{sys.executable} is Python {platform.python_version()} with ray {ray_here}, but the cell's head is Python "
            f"{python_wanted} with ray {ray_wanted}; install the same runtime on both"
        )


def check_way(address: str) -> None:
    """The head must answer from here: `ray start` would wait and say little. Raises Refusal."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise Refusal(
            f"the cell's head {address} does not answer from this node: {error}; is it up, is a firewall between?"
        ) from error


def write_token(token: str) -> Path:
    """Keeps the cell's token where Ray reads it, whole or not at all. Raises Refusal if there is none."""
    if not token:
        raise Refusal("no token came on standard input")
    folder = Path.home() / ".rackray"
    folder.mkdir(mode=0o700, exist_ok=True)
    draft, path = folder / f".ray.token.{os.getpid()}", folder / "ray.token"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(token)
    draft.replace(path)
    return path


def stop_node(name: str) -> int:
    """Ends every process of this node's Ray: SIGTERM, then SIGKILL. Returns how many there were. Raises Refusal."""
    sessions: set[int] = set()
    first = family(name, sessions)
    _signal(first, signal.SIGTERM)
    until = time.monotonic() + PATIENCE_S
    while (left := family(name, sessions)) and time.monotonic() < until + PATIENCE_S:
        if time.monotonic() > until:
            _signal(left, signal.SIGKILL)
        time.sleep(0.05)
    if left:
        raise Refusal(f"processes {left} of an earlier Ray are still there {PATIENCE_S:g} s after SIGKILL")
    return len(first)


def family(name: str, sessions: set[int]) -> list[int]:
    """Pids of this user's processes that `start` made, and of their children. Found by the variable they inherited.

    Ray's agents set a title of their own (`ray::...`), which overwrites that variable: they are found by the session they share
    with marked processes. `sessions` remembers those sessions between calls, for agents that outlive the marked ones.
    """
    wanted, found, titled = f"{MARKER}={name}".encode(), [], []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
                sessions.add(os.getsid(int(entry.name)))
            elif (entry / "cmdline").read_bytes().startswith(RAY_TITLE):
                titled.append((int(entry.name), os.getsid(int(entry.name))))
        except OSError:
            continue  # it ended while we looked, or it is not ours to read
    sessions.discard(os.getsid(0))
    return found + [pid for pid, session in titled if session in sessions]


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
