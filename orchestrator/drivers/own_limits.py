"""Limits of the host that rackray runs on (descriptors, ports, memory, threads), told apart from a neighbour's silence.

A connect that fails here says nothing about whoever should have been asked: `OwnLimitReached` becomes `Status.HELD`, which holds
nodes up and condemns none. Meanings of the numbers: errno(3), connect(2), socket(2), pthread_create(3).
"""

import errno
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from orchestrator.domain.errors import OwnLimitReached

FEWER = "or let fewer exchanges run at once (rollout.max_in_flight)"
LIMITS: Mapping[int, tuple[str, str]] = {
    errno.EMFILE: (
        "this process has no file descriptor left of its {descriptors} (EMFILE)",
        f"raise `ulimit -n` (LimitNOFILE= of its systemd unit) and start rackray again, {FEWER}",
    ),
    errno.ENFILE: (
        "this host has no file descriptor left (ENFILE)",
        f"see who holds them (`cat /proc/sys/fs/file-nr`), raise fs.file-max, {FEWER}",
    ),
    errno.EADDRNOTAVAIL: (
        "this host has no free local port, or no address, towards it (EADDRNOTAVAIL)",
        "see `ss -s` and `ip address`; widen net.ipv4.ip_local_port_range, " + FEWER,
    ),
    errno.ENOMEM: ("this host has no memory left (ENOMEM)", f"see `free` and the unit's MemoryMax=, {FEWER}"),
    errno.ENOSPC: ("this host's disk is full (ENOSPC)", "see `df -h`, and make room"),
    errno.ENOBUFS: ("this host has no memory left for its network (ENOBUFS)", f"see net.core and net.ipv4.tcp_mem, {FEWER}"),
}
"""errno → what has run out here, and the way out."""
NO_THREAD = "can't start new thread"
"""What Python says with RuntimeError where pthread_create answers EAGAIN."""
THREADS = (
    "this process may start no more threads",
    f"raise `ulimit -u` (TasksMax= of its systemd unit) and start rackray again, {FEWER}",
)
MEMORY = ("this process has no memory left", LIMITS[errno.ENOMEM][1])


def own_limit(error: BaseException | None, doing: str) -> OwnLimitReached | None:
    """What to raise instead of `error` if it comes from a limit of this host; None if it does not. `doing` says what failed."""
    while error is not None:
        if told := _told(error):
            what, way_out = told
            return OwnLimitReached(f"{doing}: {what}; it is no fault of whoever should have been asked", way_out)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def own_limits_told(doing: str) -> Iterator[None]:
    """OwnLimitReached for what fails inside at a limit of this host; other errors pass. Only around what sends nothing."""
    try:
        yield
    except Exception as error:
        if limit := own_limit(error, doing):
            raise limit from error
        raise


def _told(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, RuntimeError) and NO_THREAD in str(error):
        return THREADS
    what, way_out = LIMITS.get(error.errno or 0, ("", "")) if isinstance(error, OSError) else ("", "")
    return (what.format(descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0]), way_out) if what else None
