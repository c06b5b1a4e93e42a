"""Token ids in files of bounded size, mapped into memory and read as one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

SHARD_TOKENS: Final = 2**27
"""Most tokens in one file: 256 MiB at two bytes."""


def type_of(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    """The narrowest type that holds every id."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence of token ids over all files of one side of a corpus."""

    shards: tuple[NDArray[Any], ...]
    begins: NDArray[np.int64]
    """Index of each file's first token."""

    @classmethod
    def open(cls, folder: Path, side: str, vocabulary: int) -> Self:
        """Maps `side`-00000.bin and those after it.  Raises OSError or ValueError where none can be mapped."""
        paths = sorted(folder.glob(f"{side}-*.bin"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no {side} tokens")
        return cls.of([np.memmap(path, dtype=type_of(vocabulary), mode="r") for path in paths])

    @classmethod
    def of(cls, shards: list[NDArray[Any]]) -> Self:
        """The sequence of these arrays one after the other."""
        return cls(tuple(shards), np.cumsum([0, *(len(shard) for shard in shards[:-1])]))

    def __len__(self) -> int:
        return int(self.begins[-1]) + len(self.shards[-1])

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """(count,) ids from token `start` on, across files where need be.  Raises IndexError beyond the end."""
        if start < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        out = np.empty(count, dtype=np.int64)
        done = 0
        shard = int(np.searchsorted(self.begins, start, side="right")) - 1
        while done < count:
            first = start + done - int(self.begins[shard])
            some = self.shards[shard][first : first + count - done]
            out[done : done + len(some)] = some
            done += len(some)
            shard += 1
        return out


class TokenWriter:
    """Writes ids to one file after the other; a context that closes the last."""

    def __init__(self, folder: Path, side: str, vocabulary: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._side, self._most = folder, side, shard_tokens
        self._type = type_of(vocabulary)
        self._number, self._room = 0, shard_tokens
        self._file = self._open()

    def write(self, ids: NDArray[np.int64]) -> None:
        """Appends ids, which lie in the vocabulary."""
        while len(ids):
            if not self._room:
                self._file.close()
                self._number, self._room = self._number + 1, self._most
                self._file = self._open()
            some, ids = ids[: self._room], ids[self._room :]
            self._file.write(some.astype(self._type).tobytes())
            self._room -= len(some)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _open(self) -> Any:
        return (self._folder / f"{self._side}-{self._number:05d}.bin").open("wb")
