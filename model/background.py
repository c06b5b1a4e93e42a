"""Writes tensors to disk while training goes on: a copy in host memory, then a thread.

One copy at a time, in buffers that are kept, so that memory stays bounded and a later save pays for no allocation.
"""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.manifest import FileRecord, describe_file, sync_file


class BackgroundFile:
    """One rank's file of a checkpoint on its way to disk."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._outcome: FileRecord | Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the writing still goes on."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Copies the tensors and returns; they may change as soon as it has.  `finish` comes before the next start."""
        if self._thread is not None:
            raise RuntimeError(f"{path.name}: the file before it is not finished")
        self._buffers = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        self._thread = threading.Thread(target=self._write, args=(path,), name=f"checkpoint {path.name}", daemon=True)
        self._thread.start()

    def finish(self) -> FileRecord:
        """Waits for the writing to end; the file is on disk then, for good.  Raises what the writing raised."""
        if self._thread is None:
            raise RuntimeError("no file was started")
        self._thread.join()
        self._thread = None
        outcome = self._outcome
        if isinstance(outcome, FileRecord):
            return outcome
        raise outcome or RuntimeError("the writing ended without an outcome")

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return buffer.copy_(tensor)

    def _write(self, path: Path) -> None:
        try:
            # Not there yet where the ranks do not share a disk; the manifest's writer then says so.
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(self._buffers, path)
            sync_file(path)
            self._outcome = describe_file(path.parent, path.name)
        except Exception as error:
            # Raised again by `finish`, in the thread that can act on it.
            self._outcome = error
