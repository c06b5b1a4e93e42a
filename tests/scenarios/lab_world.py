"""A lab in a private network namespace, and the commands an operator types in it; some of them are killed.

The lab's addresses are fixed, so every world has a network of its own: worlds do not meet each other, nor a lab of the host.
The network is also how leftovers are found: whatever still lives in it when the lab is down was left behind.
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.domain.event import Event
from orchestrator.drivers.processes import ProcessId, find
from orchestrator.drivers.ray_head import temp_directory
from orchestrator.lab.control import check_machine
from orchestrator.lab.errors import LabError

PROJECT = Path(__file__).parents[2]
PROC = Path("/proc")
COMMAND_LIMIT_S = 420.0
POLL_S = 0.005
LOOKS = ("GET", "HEAD")
HEADS = ("cell", "management")


def skip_unless_possible() -> None:
    """Scenarios need root (a node's root and its user are two users only then) and Linux namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root: as a normal user a forgotten `become` passes")
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs util-linux and iproute2")
    try:
        check_machine()
    except LabError as error:
        pytest.skip(f"no lab on this machine: {error}")


@dataclass(frozen=True, slots=True)
class Done:
    """One command that has ended."""

    words: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float

    def json(self) -> Any:
        """What it printed, as data."""
        return json.loads(self.stdout)

    def __str__(self) -> str:
        return (
            f"`rackray {' '.join(self.words)}` ended with {self.status} after {self.seconds:.1f} s\n{self.stdout}\n{self.stderr}"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a BMC's access log."""

    method: str
    path: str
    status: int | None
    user: str | None

    @property
    def is_look(self) -> bool:
        return self.method in LOOKS

    @property
    def is_session(self) -> bool:
        """Opens or closes a session of the one who asks."""
        return "/SessionService/Sessions" in self.path


@dataclass
class Running:
    """A command under way."""

    words: tuple[str, ...]
    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path
    began_s: float = field(default_factory=time.monotonic)

    def said(self) -> str:
        """Everything it has printed so far."""
        return self.stdout.read_text() + self.stderr.read_text()

    def kill(self, group: bool = False) -> None:
        """SIGKILL, to the command alone or to its whole process group; returns when it is gone."""
        os.killpg(self.process.pid, signal.SIGKILL) if group else self.process.kill()
        self.process.wait(10)

    def wait(self, limit_s: float = COMMAND_LIMIT_S) -> Done:
        """Its end. A command that does not end is killed and fails the test."""
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"`rackray {' '.join(self.words)}` did not end within {limit_s:.0f} s:\n{self.said()}")
        return Done(self.words, status, self.stdout.read_text(), self.stderr.read_text(), time.monotonic() - self.began_s)


class LabWorld:
    """One home, one network namespace, one lab."""

    def __init__(self, folder: Path, hands: str) -> None:
        """`hands` is what RACKRAY_HANDS says unless a command says otherwise: ray or local."""
        self.folder, self.hands = folder, hands
        self.home = folder / "home"
        self.outputs = folder / "outputs"
        self.outputs.mkdir(parents=True)
        self._numbers = 0
        self._down: Done | None = None
        # The holder ends when its standard input closes: with this process at the latest.
        script = "ip link set lo up && echo up && read _"
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n", "no private network namespace"
        self._network = os.readlink(f"/proc/{self._holder.pid}/ns/net")

    # ------------------------------------------------------------------ commands
    def start(self, *words: str, hands: str = "") -> Running:
        """Type one command without waiting for it."""
        self._numbers += 1
        name = f"{self._numbers:02}-{'-'.join(words[:2])}".replace("/", "_")
        out, err = self.outputs / f"{name}.out", self.outputs / f"{name}.err"
        settings = {"RACKRAY_HOME": str(self.home), "RACKRAY_HANDS": hands or self.hands, "PYTHONUNBUFFERED": "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RACKRAY_", "RAY_"))}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            # nsenter becomes the command, so that the pid killed later is the command's own.
            process = subprocess.Popen(
                ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", sys.executable, "-m", "orchestrator.cli.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**inherited, **settings},
                cwd=PROJECT,
                start_new_session=True,
            )
        return Running(words, process, out, err)

    def rackray(self, *words: str, hands: str = "", limit_s: float = COMMAND_LIMIT_S) -> Done:
        """Type one command and wait for its end."""
        return self.start(*words, hands=hands).wait(limit_s)

    def must(self, *words: str, hands: str = "") -> Done:
        """Type one command that has to succeed."""
        done = self.rackray(*words, hands=hands)
        assert done.status == 0, str(done)
        return done

    def wait_until(
        self, condition: Callable[[], object], what: str, running: Running | None = None, limit_s: float = 180.0
    ) -> Any:
        """Poll until `condition()` holds and return what it said; fails if `running` ends before."""
        deadline_s = time.monotonic() + limit_s
        while not (found := condition()):
            if running is not None and running.process.poll() is not None:
                pytest.fail(f"the command ended before: {what}\n{running.said()}")
            if time.monotonic() > deadline_s:
                pytest.fail(f"not within {limit_s:.0f} s: {what}\n{running.said() if running else ''}")
            time.sleep(POLL_S)
        return found

    # ------------------------------------------------------------------ what is so
    def events(self, kind: str = "", subject: str = "") -> list[Event]:
        """The journal's events, oldest first. Read without a lock to write: it is asked every few milliseconds."""
        path = self.home / "state.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as journal:
            if not journal.execute("select 1 from sqlite_master where name = 'events'").fetchone():
                return []
            rows = journal.execute("select kind, subject, data, at_s, epoch, seq from events order by seq").fetchall()
        found = [Event(row[0], row[1], json.loads(row[2]), *row[3:]) for row in rows]
        return [event for event in found if kind in ("", event.kind) and subject in ("", event.subject)]

    def states(self) -> dict[str, str]:
        """Every node's state, as `rackray status --json` tells it."""
        return {node["name"]: node["state"] for node in self.must("status", "--json").json()["nodes"]}

    def requests(self, node: str) -> list[Request]:
        """The access log of one node's BMC."""
        path = self.home / "lab" / "nodes" / node / "bmc_access.log"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [Request(row["method"], row["path"], row["status"], row["user"]) for row in rows]

    def all_requests(self) -> dict[str, list[Request]]:
        """The access logs of all BMCs, by node."""
        return {path.name: self.requests(path.name) for path in sorted((self.home / "lab" / "nodes").iterdir())}

    def writes(self, node: str) -> Counter[str]:
        """How often each thing was changed at one BMC, sessions left out: `POST .../Actions/ComputerSystem.Reset` → 1."""
        return Counter(f"{r.method} {r.path}" for r in self.requests(node) if not r.is_look and not r.is_session)

    def processes(self, *words: str, program: str = "") -> list[ProcessId]:
        """Processes in this world's network whose command line holds all of `words`; `program` is how its first word ends."""
        found = []
        for pid, line, _environment in self.living():
            fits = line.split(b"\0")[0].endswith(program.encode()) and all(word.encode() in line for word in words)
            if fits and (process := find(pid)):
                found.append(process)
        return found

    def living(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Pid, command line and environment of everything in this world's network, the holder left out."""
        for entry in PROC.iterdir():
            if not entry.name.isdigit() or int(entry.name) == self._holder.pid:
                continue
            # A process may end while we look at it.
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns" / "net") == self._network:
                    yield int(entry.name), (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()

    # ------------------------------------------------------------------ the end
    def lab_down(self) -> Done:
        """Take the lab down, once."""
        if self._down is None:
            self._down = self.rackray("lab", "down")
        return self._down

    def leftovers(self) -> list[str]:
        """What should not be there once the lab is down: processes in the network, mounts and Ray's folders of this home."""
        found = [f"process {pid} {line.replace(bytes(1), b' ').decode(errors='replace')[:80]}" for pid, line, _ in self.living()]
        found += [
            f"mount {line.split()[1]}" for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.home) in line
        ]
        folders = [temp_directory(name, self.home) for name in HEADS]
        found += [f"folder {folder}" for folder in folders if folder.exists()]
        return found

    def close(self) -> list[str]:
        """End everything, whatever happened; returns what the lab had left behind."""
        try:
            self.lab_down()
            return self.leftovers()
        finally:
            for pid, _line, _environment in self.living():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for name in HEADS:
                shutil.rmtree(temp_directory(name, self.home), ignore_errors=True)  # already told as left behind
            assert self._holder.stdin is not None
            self._holder.stdin.close()
            self._holder.wait(10)


def write_spec(path: Path, nodes: Sequence[str], plant: Sequence[Mapping[str, Any]] = (), **lab: float) -> Path:
    """A spec with some of the nodes of lab-6.yaml and faults of its own; `lab` are settings of its `lab:` section."""
    spec = yaml.safe_load((PROJECT / "cluster_specs" / "lab-6.yaml").read_text())
    spec["nodes"] = [node for node in spec["nodes"] if node["name"] in nodes]
    spec["racks"] = {name: rack for name, rack in spec["racks"].items() if any(node["rack"] == name for node in spec["nodes"])}
    spec["rollout"]["poll_s"] = 0.3
    spec["lab"] = {"boot_s": 0.5, "update_s": 1.5, **lab, "plant": [dict(fault) for fault in plant]}
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path
