"""Who holds SQLite's write lock: a process that was frozen inside a transaction keeps it, and with it everybody else out.

SQLite's lock belongs to a process and ends with it, so there is nothing to break and nothing to lose: an operator needs to know
which process it is. Linux lists locks in /proc/locks, by inode; in WAL mode the writer locks byte 120 of the `-shm` file
(sqlite.org/walformat.html, "WAL Locks").
"""

from dataclasses import dataclass
from pathlib import Path

WRITE_LOCK_BYTE = 120
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that is writing to a journal."""

    pid: int
    command: str
    """Its command line; empty where it is another user's."""
    is_stopped: bool
    """By a signal (Ctrl-Z, SIGSTOP) or a debugger: it will not end its transaction before it is woken."""

    def __str__(self) -> str:
        state = ", which is stopped" if self.is_stopped else ""
        return f"process {self.pid}{f' ({self.command})' if self.command else ''}{state}"

    @property
    def way_out(self) -> str:
        """What an operator can do about it."""
        end = f"end it (`kill -9 {self.pid}`): what it has acknowledged is kept, its open transaction is undone"
        return f"wake it (`kill -CONT {self.pid}`) or {end}" if self.is_stopped else f"wait for it, or {end}"


def write_lock_holder(database: str) -> LockHolder | None:
    """Who holds the write lock of the SQLite file `database`; None where nobody does, or this system does not say."""
    try:
        inode = Path(f"{database}-shm").stat().st_ino
        lines = (PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # "1: POSIX  ADVISORY  WRITE 4711 fe:00:2157262 120 120"; whoever waits for a lock stands behind "->".
        words = line.split()
        if len(words) == 8 and words[3] == "WRITE" and words[5].rpartition(":")[2] == str(inode):
            first, last = int(words[6]), float("inf") if words[7] == "EOF" else int(words[7])
            if first <= WRITE_LOCK_BYTE <= last:
                return _holder(int(words[4]))
    return None


def _holder(pid: int) -> LockHolder | None:
    try:
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        command = " ".join((PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split())
    except OSError:
        return None  # it has ended meanwhile, and the lock with it
    return LockHolder(pid, command[:100], state in ("T", "t"))
