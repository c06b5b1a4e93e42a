"""The words between `rackray lab …` and the lab daemon: one JSON line each way, over a Unix socket in the lab's folder.

    {"verb": "add", "spec": {…}}                                     →  {"answer": {"added": [names]}}
    {"verb": "status"}                                               →  {"answer": {…}}
    {"verb": "fault" | "heal", "node", "fault", "arguments": {…}}    →  {"answer": {}}
    {"verb": "down"}                                                 →  {"answer": {}} once every node has ended
    anything that fails                                              →  {"error", "hint", "exit_code"}

The folder has mode 0700: who may talk to the daemon is who may read its files.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.lab.errors import BadLabInput, LabError

LONGEST_LINE_BYTES = 64 * 1024 * 1024


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """The same socket under a name short enough for sun_path (108 bytes, unix(7)), however deep the folder lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(control: Path, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Sends one request and waits for its answer.

    Raises: LabError with the daemon's own words, when it answers no (BadLabInput to unknown names); when nobody listens;
    when it takes over `limit_s`.
    """
    try:
        with short_path(control) as name, socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(limit_s)
            channel.connect(name)
            channel.sendall(json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as lines:
                line = lines.readline(LONGEST_LINE_BYTES)
    except TimeoutError:
        raise LabError(f"the lab daemon gave no answer to {request['verb']!r} in {limit_s:.0f} s") from None
    except OSError as error:
        raise LabError(
            f"no lab daemon answers at {control}: {error.strerror}", hint="start one: `rackray lab up --spec SPEC`"
        ) from error
    if not line:
        raise LabError(f"the lab daemon ended while it did {request['verb']!r}", hint=f"see {control.with_name('labd.log')}")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        kind = BadLabInput if reply["exit_code"] == BadLabInput.exit_code else LabError
        raise kind(reply["error"], hint=reply["hint"])
    answer: dict[str, Any] = reply["answer"]
    return answer
