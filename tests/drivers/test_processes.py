"""Processes by identity, and families that no change of title hides."""

import os
import signal
import time
from pathlib import Path

from orchestrator.drivers.processes import end, family, marked, start_detached


def test_a_process_that_overwrote_its_environment_is_still_found_by_its_session(tmp_path: Path) -> None:
    marker = "RACKRAY_FAMILY_TEST=1"
    # `env -i` drops the marker as a changed process title does; the child stays in the leader's session.
    leader = start_detached(
        ["/bin/sh", "-c", "env -i sleep 60 & exec sleep 61"],
        {"PATH": "/usr/bin:/bin", "RACKRAY_FAMILY_TEST": "1"},
        tmp_path / "log",
    )
    left = family(marker, leader)
    until = time.monotonic() + 5
    while len(left()) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(left()) == 2
    assert [process.pid for process in marked(marker)] == [leader.pid]
    os.kill(leader.pid, signal.SIGKILL)
    assert end(family(marker, leader), patience_s=2.0) >= 1
    assert left() == []
