"""Escape sequences go to terminals alone, and not even there for people who ask for none (https://no-color.org)."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.execution.site import Rehearsal
from tests.house import PROJECT

ESCAPE = b"\x1b"
STATUS = [sys.executable, "-m", "orchestrator.cli.main", "status"]
LIVE = """
from orchestrator.cli.live import LiveLines
with LiveLines(0) as lines:
    lines.say("r01-n1 is ready")
    lines.draw(lambda: "a display")
"""
FOLLOWING = [sys.executable, "-c", LIVE]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nodes ready, one quarantined: states that have colours."""
    folder = tmp_path_factory.mktemp("home")
    Rehearsal(folder).apply()
    return folder


def said_on_a_terminal(command: list[str], home: Path, **environment: str) -> bytes:
    ours, theirs = pty.openpty()
    # Read at its end: what is said here fits into the terminal's buffer.
    surroundings = {**os.environ, "TERM": "xterm-256color", "RACKRAY_HOME": str(home), **environment}
    done = subprocess.run(command, stdout=theirs, stderr=theirs, stdin=theirs, env=surroundings, cwd=PROJECT, timeout=60)
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:
        pass  # the end of a terminal that nobody writes to any more
    os.close(ours)
    assert done.returncode == 0, said
    assert b"r01-n1" in said
    return said


@pytest.mark.parametrize("command", [STATUS, FOLLOWING], ids=["status", "following"])
def test_a_terminal_gets_escape_sequences_and_no_color_takes_them_away(command: list[str], home: Path) -> None:
    assert ESCAPE in said_on_a_terminal(command, home, NO_COLOR="")
    assert ESCAPE not in said_on_a_terminal(command, home, NO_COLOR="1")
    assert ESCAPE not in said_on_a_terminal(command, home, NO_COLOR="", TERM="dumb")


@pytest.mark.parametrize("command", [STATUS, FOLLOWING], ids=["status", "following"])
def test_a_pipe_gets_none(command: list[str], home: Path) -> None:
    surroundings = {**os.environ, "TERM": "xterm-256color", "RACKRAY_HOME": str(home), "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}
    done = subprocess.run(command, capture_output=True, env=surroundings, cwd=PROJECT, timeout=60, check=True)
    assert b"r01-n1" in done.stdout and ESCAPE not in done.stdout + done.stderr
