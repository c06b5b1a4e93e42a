"""The namespaces a lab node consists of: making them, entering them, stopping them, and proving that none is left.

A node is a mount + pid + uts + ipc namespace, made with util-linux's `unshare` (unshare(1), namespaces(7)); as a normal user
a user namespace with that one user is put around it. Ending its pid 1 ends every process of the node: pid_namespaces(7),
"If the init process of a PID namespace terminates, the kernel terminates all of the processes in the namespace".
"""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.lab.errors import LabError, NamespacesRefused

NODE_INIT = Path(__file__).with_name("node_init.py")
SYSTEM_PYTHON = "/usr/bin/python3"
BOOT_LIMIT_S = 60.0
AS_ROOT = os.geteuid() == 0

_NEW_USER = () if AS_ROOT else ("--user", "--map-current-user", "--keep-caps")
_ENTER_USER = () if AS_ROOT else ("--user", "--preserve-credentials")
# A normal user is root over the node's namespaces while it is built; nothing of that may reach its processes.
_DROP_CAPABILITIES = () if AS_ROOT else ("setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all")
NODE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""All that the lab's own environment gives to a node: nothing of the operator's."""
DISK_PLACES = ("/etc", "/opt", "/home", "/root", "/usr/local", "/var")
"""Where a node's own disk is mounted (`node_init.py` lays it)."""


@dataclass(frozen=True, slots=True)
class Share:
    """A file or directory of this machine that a node sees."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class BootOrder:
    """Everything `node_init.py` must know to build one node; travels as JSON."""

    hostname: str
    root: str
    disk: str
    identity: Mapping[str, str]
    """Files of /sys/class/dmi/id; names that end in _serial or _uuid are for the node's root only."""
    binds: tuple[Share, ...]
    hidden: tuple[str, ...]
    """Directories that the shares would show and the node must see empty."""
    command_prefix: tuple[str, ...] = _DROP_CAPABILITIES


def probe() -> None:
    """Tries the namespaces a node needs.

    Raises: NamespacesRefused, one sentence, where the system says no.
    """
    command = ["unshare", *_NEW_USER, "--mount", "--pid", "--fork", "--uts", "--ipc", "/bin/mount", "-t", "proc", "proc", "/proc"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=NODE_ENVIRONMENT, timeout=20)  # noqa: S603 - fixed words
    except FileNotFoundError:
        raise NamespacesRefused("the lab needs `unshare` of util-linux, and it is not installed") from None
    if done.returncode != 0:
        raise NamespacesRefused(
            f"this system refuses the namespaces a lab node is made of ({done.stderr.strip() or 'no reason given'})",
            hint="run as root, or on a machine that allows them (a container needs CAP_SYS_ADMIN; "
            "Ubuntu 24.04 restricts normal users by AppArmor)",
        )


class NodeProcess:
    """A running node: its pid 1, and the power cord that ends it together with whoever holds this object."""

    def __init__(self, pid: int, unshare: subprocess.Popen[bytes], cord: int) -> None:
        self.pid = pid
        self._unshare = unshare
        self._cord = cord

    @staticmethod
    def start(order: BootOrder, order_file: Path, console: Path) -> "NodeProcess":
        """Boots a node and returns when it can be entered (about 0.1 s).

        Raises: LabError with the end of the console when it does not come up.
        """
        order_file.write_text(json.dumps(asdict(order)))
        Path(order.root).mkdir(exist_ok=True)
        read_end, cord = os.pipe()
        command = [
            "unshare",
            *_NEW_USER,
            *("--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child"),
            *(SYSTEM_PYTHON, "-I", "-S", str(NODE_INIT), str(order_file)),
        ]
        with console.open("ab") as log:
            unshare = subprocess.Popen(  # noqa: S603 - our own script in namespaces of its own
                command, stdin=read_end, stdout=subprocess.PIPE, stderr=log, env=NODE_ENVIRONMENT, cwd="/", start_new_session=True
            )
        os.close(read_end)
        words = _first_line(unshare).split()
        if len(words) != 2 or words[0] != b"ready":
            os.close(cord)
            unshare.kill()
            unshare.wait()
            raise LabError(f"node {order.hostname} does not boot: {_tail(console)}", hint=f"see {console}")
        return NodeProcess(int(words[1]), unshare, cord)

    def enter_command(self) -> list[str]:
        """The words that run a command inside the node (nsenter(1))."""
        return ["nsenter", "--target", str(self.pid), *_ENTER_USER, "--mount", "--pid", "--uts", "--ipc"]

    @property
    def alive(self) -> bool:
        """Whether the node's pid 1 lives."""
        return self._unshare.poll() is None

    def cut(self) -> None:
        """Takes the power away: SIGKILL to pid 1; returns at once. The kernel ends the rest."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it ended between the question and the signal
                os.kill(self.pid, signal.SIGKILL)

    def wait_gone(self, limit_s: float = 10.0) -> None:
        """Returns when no process of the node is left. Raises: LabError when some are after `limit_s` seconds."""
        try:
            self._unshare.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"the node with pid 1 = {self.pid} still has processes {limit_s:.0f} s after its end") from None
        if self._cord >= 0:
            os.close(self._cord)
            self._cord = -1

    def remount_disk(self, how: str) -> None:
        """Makes the node's own disk read-only (`ro`) to it, or writable again (`rw`). Raises: LabError with mount's words."""
        for place in DISK_PLACES:
            words = [*self.enter_command(), "/bin/mount", "-o", f"remount,bind,{how}", place]
            done = subprocess.run(words, capture_output=True, text=True, env=NODE_ENVIRONMENT, timeout=20)  # noqa: S603 - fixed words
            if done.returncode != 0:
                raise LabError(f"{place} of the node cannot be remounted {how}: {done.stderr.strip()}")

    def freeze(self) -> None:
        """The silent power fault: the node's processes stop, sockets stay open, nothing answers any more.

        Two kinds go on. Pid 1, because a stopped one could not see the lab end, and would outlive it. And those whose parent
        is outside, the first sshd of a connection: nsenter(1) stops itself when its child stops, could not reap it then,
        and a namespace ends only when all its processes are reaped. That sshd only waits for the one that talks.
        """
        stopped: set[int] = set()
        while fresh := set(_born_inside(self.pid)) - stopped:  # until none was forked meanwhile
            for pid in fresh:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= fresh

    def thaw(self) -> None:
        """Ends `freeze`."""
        for pid in processes_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def processes_of(pid: int) -> Iterator[int]:
    """Pids (as seen here) of every process in the pid namespace of `pid`."""
    try:
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
    except FileNotFoundError:
        return
    for other in _all_pids():
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            if os.readlink(f"/proc/{other}/ns/pid") == namespace:
                yield other


def _born_inside(pid: int) -> Iterator[int]:
    """Processes of the namespace of `pid` whose parent is in it too."""
    inside = set(processes_of(pid))
    for other in inside:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if _stat_fields(other)[1] in map(str, inside):
                yield other


def processes_using(directory: Path) -> dict[int, str]:
    """Processes elsewhere that have something below `directory` mounted: the nodes of a lab, whoever started them.

    Returns: pid (as seen here) to command line. Asks each mount namespace once; those of other users are not readable and
    cannot be ours.
    """
    ours = os.readlink("/proc/self/ns/mnt")
    device, prefix = _place_on_device(directory)
    verdicts: dict[str, bool] = {ours: False}
    found: dict[int, str] = {}
    for pid in _all_pids():
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError, OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in verdicts:
                verdicts[namespace] = _mounts_below(Path(f"/proc/{pid}/mountinfo").read_text(), device, prefix)
            if verdicts[namespace]:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def mounts_below(directory: Path) -> list[str]:
    """Mount points of this process's own namespace at or below `directory`."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(directory.resolve())]


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat: when the process started, in clock ticks after boot; None when there is none.

    Together with the pid it names one process for good, and a zombie counts as none.
    """
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: state, parent, …; the name before may hold anything, spaces too."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    if process.stdout is None:
        raise LabError("the node was started without a pipe to hear it by")
    with process.stdout as pipe:
        readable, _, _ = select.select([pipe], [], [], BOOT_LIMIT_S)
        return pipe.readline() if readable else b""


def _tail(console: Path) -> str:
    """What the node said last: of a traceback, the line that names the error."""
    lines = console.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _mounts_below(mountinfo: str, device: str, prefix: str) -> bool:
    """Whether a mount of /proc/PID/mountinfo shows a place below `prefix` of the filesystem `device` (proc(5))."""
    for line in mountinfo.splitlines():
        fields = line.split()
        if fields[2] == device and (fields[3] + "/").startswith(prefix.rstrip("/") + "/"):
            return True
    return False


def _place_on_device(directory: Path) -> tuple[str, str]:
    """`MAJOR:MINOR` and the path inside that filesystem, as mountinfo would print a bind mount of `directory`."""
    resolved = directory.resolve()
    best: tuple[int, str, str] = (-1, "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        point = Path(fields[4])
        if resolved.is_relative_to(point) and len(point.parts) >= best[0]:
            inside = Path(fields[3]) / resolved.relative_to(point)
            best = (len(point.parts), fields[2], str(inside))
    return best[1], best[2]
