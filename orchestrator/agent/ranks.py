"""Training ranks on one node: started at most once per attempt, outliving whoever started them, found again by anyone.

Standard library only. A rank's facts are files in DIRECTORY/attempt-N, written by the rank's own wrapper:

    rank-R.pid    three lines: boot id, pid, /proc/PID/stat of the wrapper; linked into place before the command starts,
                  so that a lost answer or a dead agent never leads to a second start
    rank-R.log    standard output and error
    rank-R.exit   exit status of the command, written when it ends, whether or not an agent is there to see it

The wrapper is a child of pid 1 in a session of its own, because Ray kills the children of its workers.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRESS_BYTES = 256 * 1024
"""Most of a progress file read in one look."""
LOG_TAIL_BYTES = 2048
START_LIMIT_S = 20.0
"""How long the wrapper may take to say that it runs."""

# `trap : TERM` and not `trap '' TERM`: an ignored signal would be ignored by the rank too; a handled one is not inherited.
# `ln` and not `mv`: it fails where another wrapper of the same rank and attempt has been quicker.
WRAPPER = r"""
trap : TERM INT HUP
base=$1; shift
read -r boot </proc/sys/kernel/random/boot_id
read -r stat </proc/$$/stat
printf '%s\n%s\n%s\n' "$boot" "$$" "$stat" >"$base.pid.$$" || exit 1
ln "$base.pid.$$" "$base.pid"; claimed=$?
rm -f "$base.pid.$$"
[ $claimed = 0 ] || exit 1
"$@" </dev/null
status=$?
printf '%s\n' "$status" >"$base.exit.$$" && mv "$base.exit.$$" "$base.exit"
"""
LAUNCHER = 'log=$1; shift; setsid /bin/sh -c "$@" >>"$log" 2>&1 </dev/null &'


class RankError(Exception):
    """A rank cannot be started or looked at; the sentence says where and why."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """The process that stands for one rank, as its pid file says it."""

    boot_id: str
    pid: int
    started_ticks: int

    def is_alive(self) -> bool:
        """Whether the wrapper, or without it anything of its session, runs in exactly this boot."""
        now = _stat(self.pid)
        if now is not None and now.started_ticks == self.started_ticks and self.boot_id == _boot_id() and now.state not in "ZX":
            return True
        return bool(self.members())

    def members(self) -> set[int]:
        """Pids of every living process of the rank's session, wrapper included.

        The kernel gives a pid to nobody while a session bears its number: a stranger under it means that all of ours are gone.
        """
        now = _stat(self.pid)
        if self.boot_id != _boot_id() or (now is not None and now.started_ticks != self.started_ticks):
            return set()
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return {pid for pid in pids if (stat := _stat(pid)) is not None and stat.session == self.pid and stat.state not in "ZX"}


@dataclass(frozen=True, slots=True)
class RankFiles:
    """Where one rank of one attempt keeps its files."""

    directory: Path
    """Of the run, on storage that every node sees."""
    attempt: int
    rank: int

    @property
    def base(self) -> Path:
        return self.directory / f"attempt-{self.attempt}" / f"rank-{self.rank}"

    @property
    def log(self) -> Path:
        return self.base.with_suffix(".log")

    def wrapper(self) -> Wrapper | None:
        """The rank's process as it was written down; None if it was never started. Raises OSError, RankError."""
        path = self.base.with_suffix(".pid")
        try:
            boot_id, pid, stat = path.read_text().splitlines()[:3]
            return Wrapper(boot_id, int(pid), _parse_stat(stat).started_ticks)
        except FileNotFoundError:
            return None
        except (ValueError, IndexError) as error:
            raise RankError(f"{path} does not name a process: {error}; the storage lost part of it") from error

    def exit_status(self) -> int | None:
        """Exit status of the command (128 + n: ended by signal n); None if it was not written down."""
        try:
            return int(self.base.with_suffix(".exit").read_text())
        except FileNotFoundError:
            return None

    @staticmethod
    def of(args: Mapping[str, Any]) -> "RankFiles":
        """From the args of a RANK_* operation. Raises RankError where they are incomplete."""
        try:
            return RankFiles(Path(args["directory"]), int(args["attempt"]), int(args["rank"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RankError(f"the operation does not say which rank is meant: {error!r}") from error


def start_rank(args: Mapping[str, Any]) -> dict[str, Any]:
    """RANK_START: starts the rank unless this attempt of it was started before. Facts as in `domain.operation`.

    A rank that has already ended is not started again; looking at it tells its exit status. Raises RankError, OSError.
    """
    files = RankFiles.of(args)
    found = files.wrapper()
    if found is None:
        files.base.parent.mkdir(parents=True, exist_ok=True)
        _write_run_json(files.directory, str(args.get("run_json") or ""))
        _launch(files, [str(word) for word in args["argv"]], _environment(args.get("environment") or {}))
        adopted, found = False, _wait_for_wrapper(files)
    else:
        adopted = True
    return {"pid": found.pid, "started_ticks": found.started_ticks, "log": str(files.log), "adopted": adopted}


def look_at_rank(args: Mapping[str, Any]) -> dict[str, Any]:
    """RANK_LOOK: what the rank's process and files say now. Facts as in `domain.operation`.

    Besides those: `heartbeat_step` and `heartbeat_phase` where there is a heartbeat. Raises RankError if it never started.
    """
    files = RankFiles.of(args)
    wrapper = files.wrapper()
    if wrapper is None:
        raise RankError(f"rank {files.rank} of attempt {files.attempt} was never started in {files.directory}")
    alive = wrapper.is_alive()
    output = _output_directory(files.directory)
    # Asked after `alive`: a rank that ends in between has both, and the status is then the better answer.
    status = files.exit_status()
    lines, offset = read_lines(output / f"progress-{files.rank}.jsonl", int(args.get("progress_offset") or 0))
    return {
        "alive": alive and status is None,
        "exit_status": status,
        **_heartbeat(output / f"heartbeat-{files.rank}", wrapper, alive),
        "progress": lines,
        "progress_offset": offset,
        "log_tail": _tail(files.log),
    }


def stop_rank(args: Mapping[str, Any], *, killed_within_s: float = 3.0) -> dict[str, Any]:
    """RANK_STOP: sends TERM or KILL to every process of the rank's session and returns without waiting for a TERM to work.

    With KILL the command goes first and the wrapper may write the status down; then the wrapper goes too. Facts: was_alive.
    """
    files = RankFiles.of(args)
    kind = str(args.get("signal") or "TERM")
    if kind not in ("TERM", "KILL"):
        raise RankError(f"signal {kind!r} is not one of TERM, KILL")
    wrapper = files.wrapper()
    if wrapper is None:
        return {"was_alive": False}
    was_alive = wrapper.is_alive() and files.exit_status() is None
    if kind == "TERM":
        _signal(wrapper.members() - {wrapper.pid}, signal.SIGTERM)
        return {"was_alive": was_alive}
    until = time.monotonic() + killed_within_s
    while (left := wrapper.members()) and time.monotonic() < until:
        _signal(left - {wrapper.pid}, signal.SIGKILL)
        time.sleep(0.02)
    _signal(wrapper.members(), signal.SIGKILL)
    return {"was_alive": was_alive}


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete JSON lines of `path` from byte `offset` on, at most PROGRESS_BYTES, and the offset to go on from.

    A line still being written waits for the next look. A line that is no JSON object is left out. A file shorter than the
    offset was replaced and is read from its start.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = offset if 0 <= offset <= size else 0
            file.seek(start)
            data = file.read(PROGRESS_BYTES)
    except FileNotFoundError:
        return [], 0
    complete = data.rfind(b"\n") + 1
    if not complete and len(data) == PROGRESS_BYTES:
        return [], start + len(data)  # one line longer than a whole look: no progress line of ours, so it is passed over
    found = []
    for line in data[:complete].splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, start + complete


def _launch(files: RankFiles, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    if not argv:
        raise RankError(f"rank {files.rank}: the command is empty")
    subprocess.run(  # noqa: S603 - a fixed script; the command is passed as words
        ["/bin/sh", "-c", LAUNCHER, "sh", str(files.log), WRAPPER, "rank", str(files.base), *argv],
        env=dict(environment),
        cwd=files.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=START_LIMIT_S,
        check=True,
    )


def _wait_for_wrapper(files: RankFiles) -> Wrapper:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        if (found := files.wrapper()) is not None:
            return found
        time.sleep(0.01)
    raise RankError(f"rank {files.rank} did not start within {START_LIMIT_S:g} s: {_tail(files.log) or 'no word in its log'}")


def _environment(wanted: Mapping[str, Any]) -> dict[str, str]:
    """What a rank sees: a plain base and what the controller assigned; nothing of Ray, and no token of it."""
    base = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", "/"),
        "USER": os.environ.get("USER", ""),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    return {**base, **{str(key): str(value) for key, value in wanted.items()}}


def _write_run_json(directory: Path, text: str) -> None:
    if not text:
        return
    path, draft = directory / "RUN.json", directory / f".RUN.json.{os.uname().nodename}.{os.getpid()}"
    draft.write_text(text)
    draft.replace(path)


def _output_directory(directory: Path) -> Path:
    """Where the training writes progress and heartbeats: what RUN.json says; the run's directory if there is none."""
    try:
        said = json.loads((directory / "RUN.json").read_text())["output_directory"]
    except (OSError, ValueError, KeyError, TypeError):
        return directory  # a run of the operator's own command has no RUN.json
    return directory / str(said)


def _heartbeat(path: Path, wrapper: Wrapper, alive: bool) -> dict[str, Any]:
    """Seconds since the rank's main loop last spoke; since its start while it has not; None for a rank that has ended.

    Reckoned on this node's monotonic clock, because the shared storage's and the nodes' clocks differ.
    """
    try:
        said = json.loads(path.read_text())
        mine = _stat(int(said["pid"]))
        if alive and mine is not None and mine.session == wrapper.pid:
            age = max(0.0, time.monotonic() - float(said["monotonic_s"]))
            return {"heartbeat_age_s": round(age, 3), "heartbeat_step": said.get("step"), "heartbeat_phase": said.get("phase")}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, of an earlier attempt, or half a file on a storage without atomic replace: the start counts
    return {"heartbeat_age_s": round(_seconds_since_start(wrapper), 3) if alive else None}


def _seconds_since_start(wrapper: Wrapper) -> float:
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, uptime_s - wrapper.started_ticks / os.sysconf("SC_CLK_TCK"))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    session: int
    started_ticks: int


def _parse_stat(text: str) -> _Stat:
    # The command name stands in parentheses and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[3]), int(fields[19]))


def _stat(pid: int) -> _Stat | None:
    try:
        return _parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
