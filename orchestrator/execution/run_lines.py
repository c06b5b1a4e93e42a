"""The file of a run's progress lines, as the controller keeps it: whole lines, each once, whatever killed the writer before."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TAIL_BYTES = 256 * 1024
"""How much of the file's end is read to find what is kept already; one answer brings far less."""


def lines_path(home: Path, run_id: str) -> Path:
    """Where rank 0's progress lines of a run are kept."""
    return home / "runs" / run_id / "progress.jsonl"


def keep_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append `lines` to `path`, for curves and logs; what a killed controller kept already is left out.

    A line that was torn by a kill or a full disk is cut off first: it comes again with `lines`, because the offset that
    accounts for it was never journaled. The new lines are written in one go, so that a reader meets whole lines.
    Raises OSError where the disk refuses.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Without a buffer: it would be emptied every few kilobytes, in the middle of a line.
    with io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+") as file:
        kept = set(_whole_lines_at_the_end(file))
        texts = [json.dumps(dict(line), sort_keys=True).encode() for line in lines]
        left = memoryview(b"".join(text + b"\n" for text in texts if text not in kept))
        while left:
            left = left[file.write(left) :]


def _whole_lines_at_the_end(file: io.FileIO) -> list[bytes]:
    """The last lines of the file, which ends with a whole one when this returns."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - TAIL_BYTES))
    tail = file.read(size - start)
    whole, newline, torn = tail.rpartition(b"\n")
    if torn:
        file.truncate(size - len(torn))
    return whole.split(b"\n") if newline else []
