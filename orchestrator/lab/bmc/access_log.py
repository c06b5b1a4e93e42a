"""The access log of a BMC: one JSON line per request, on disk before the answer leaves."""

import datetime
import json
from pathlib import Path
from typing import TextIO


class AccessLog:
    """Appends `{"at", "method", "path", "status", "user", "peer"}`; never a header, a query or a body, so
    never a password or a token.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, wall_s: float, method: str, path: str, status: int | None, user: str | None, peer: str) -> None:
        """One request. status is None where no answer is ever given."""
        if self._file is None:
            return
        at = datetime.datetime.fromtimestamp(wall_s, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "method": method, "path": path, "status": status, "user": user, "peer": peer}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.close()
            self._file = None
