"""Processes of this machine by identity: pid and start time together, because a pid alone is reused.

Linux only (/proc). Everything here concerns processes of the calling user; other users' processes are never seen as ours.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for ever: the kernel gives no two processes of one boot the same pid and start time."""

    pid: int
    started_ticks: int
    """Start time in clock ticks since the boot (/proc/PID/stat, field 22)."""

    def is_alive(self) -> bool:
        """Whether exactly this process still runs; a zombie does not."""
        return find(self.pid) == self


def find(pid: int) -> ProcessId | None:
    """The identity of the process that has this pid now; None where there is none or it is a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command name stands in parentheses and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else ProcessId(pid, int(fields[19]))


def marked(marker: str) -> list[ProcessId]:
    """Every process of this user whose environment holds `marker` (NAME=VALUE): set once at the top, inherited below.

    Neither a new session nor a lost parent takes a process out of this family, as they would out of a process group.
    """
    wanted, mine, found = marker.encode(), os.getuid(), []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid == mine and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(find(int(entry.name)))
        except OSError:
            continue  # it ended while we looked, or it is not ours to read
    return [process for process in found if process is not None]


def family(marker: str, leader: ProcessId | None = None) -> Callable[[], list[ProcessId]]:
    """A question to be asked again and again: who is left of the processes below `leader`, started with `marker`?

    The marker alone is not enough: a process that sets its own title (Ray's agents do) overwrites its environment. So the
    sessions of marked processes, and `leader`'s own, count whole. Sessions are remembered, because their members may lose
    the marker or outlive the marked ones; members older than the session's first known process are strangers.
    """
    sessions = {leader.pid: leader.started_ticks} if leader else {}

    def left() -> list[ProcessId]:
        found = marked(marker)
        for process in found:
            session = _session(process.pid)
            if session > 0 and session != os.getsid(0):
                sessions[session] = min(sessions.get(session, process.started_ticks), process.started_ticks)
        known = {process.pid for process in found}
        return found + [process for process in _members(sessions) if process.pid not in known]

    return left


def _members(sessions: Mapping[int, int]) -> list[ProcessId]:
    """Processes of this user in one of `sessions` (session id -> start of its first known process)."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            session, process = _session(int(entry.name)), find(int(entry.name))
            if session in sessions and process is not None and process.started_ticks >= sessions[session]:
                found.append(process)
    return found


def _session(pid: int) -> int:
    """Session id of a process (/proc/PID/stat, field 6); 0 where there is none any more, or it is another user's."""
    try:
        entry = PROC / str(pid)
        return int((entry / "stat").read_text().rpartition(")")[2].split()[3]) if entry.stat().st_uid == os.getuid() else 0
    except OSError:
        return 0


def start_detached(argv: Sequence[str], environment: Mapping[str, str], log: Path, *, limit_s: float = 10.0) -> ProcessId:
    """Starts `argv` in a session of its own, as a child of pid 1: it outlives the command that started it.

    Standard output and error are appended to `log`. Raises OSError where the process cannot be started or ends at once.
    """
    script = 'log=$1; shift; setsid "$@" >>"$log" 2>&1 </dev/null & echo $!'
    answer = subprocess.run(  # noqa: S603 - a fixed script; argv and log are passed as words, never as text
        ["/bin/sh", "-c", script, "sh", str(log), *argv],
        env=dict(environment),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=True,
    )
    process = find(int(answer.stdout))
    if process is None:
        raise ChildProcessError(f"{argv[0]} ended at once ({answer.stderr.strip() or 'no word'}); see {log}")
    return process


def end(family: Callable[[], list[ProcessId]], *, patience_s: float, limit_s: float = 10.0) -> int:
    """Ends every process of `family`: SIGTERM, `patience_s` seconds of grace, then SIGKILL until none is left.

    `family` is asked again and again, because a dying parent may still start children. Returns how many were there.
    Raises ChildProcessError if some are left `limit_s` seconds after the first SIGKILL.
    """
    first = family()
    send(first, signal.SIGTERM)
    if _gone(family, patience_s):
        return len(first)
    give_up = time.monotonic() + limit_s
    while time.monotonic() < give_up:
        send(family(), signal.SIGKILL)
        if _gone(family, 0.2):
            return len(first)
    raise ChildProcessError(f"processes {[process.pid for process in family()]} are still there {limit_s:g} s after SIGKILL")


def send(processes: Sequence[ProcessId], number: signal.Signals) -> None:
    """Sends a signal to each process that is still exactly itself."""
    for process in processes:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _gone(family: Callable[[], list[ProcessId]], wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while family():
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True
