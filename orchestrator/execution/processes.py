"""Telling one process from another that got the same number later: pid and start time, read from /proc."""

import os
from pathlib import Path


def start_ticks(pid: int) -> int:
    """Start time of `pid` in clock ticks since boot (field 22 of /proc/PID/stat); 0 if there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def own_start_ticks() -> int:
    """Start time of this process."""
    return start_ticks(os.getpid())


def alive(pid: int, ticks: int) -> bool:
    """Whether the very process that had `pid` and `ticks` still runs."""
    return pid > 0 and start_ticks(pid) == ticks
