"""The training state on disk, the same whatever layout wrote it: whole named parameters, cut into fragments.

Every parameter has three fp32 tensors, `KINDS`: its value and Adam's two moments.  Each rank writes those parts that it
owns (its ZeRO partition of its tensor-parallel shard of its stage) into a file of its own; `state.json` says which part
of which parameter lies where.  Whoever reads asks for the part it needs and gets it from whichever files hold it, so
no layout has to be converted into another (the idea of ByteCheckpoint, Wan et al. 2024, arXiv 2407.20143, and of
torch.distributed.checkpoint).  Files are safetensors: reading one runs no code of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.cut import Cut
from model.resumption import CheckpointError

KINDS: Final = ("fp32", "exp_avg", "exp_avg_sq")
"""Value, first and second moment (Kingma & Ba 2015, algorithm 1)."""
STATE_NAME: Final = "state.json"
_FORMAT: Final = 1


class StateError(CheckpointError):
    """A checkpoint does not hold what is asked of it; the message names the parameter and the numbers."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of elements of one flattened shard (of the whole parameter where `cut` is None)."""

    name: str
    whole_shape: tuple[int, ...]
    cut: Cut | None
    start: int
    numel: int

    @property
    def shard_shape(self) -> tuple[int, ...]:
        return self.cut.shape(self.whole_shape) if self.cut else self.whole_shape

    def part(self, number: int, of: int) -> Fragment:
        """One of `of` even shares of it."""
        first, last = self.numel * number // of, self.numel * (number + 1) // of
        return Fragment(self.name, self.whole_shape, self.cut, self.start + first, last - first)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A fragment and the file that holds it."""

    file: str
    cut: Cut | None
    start: int
    numel: int


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """One parameter as the files hold it."""

    whole_shape: tuple[int, ...]
    pieces: tuple[_Piece, ...]


def tensor_name(name: str, kind: str) -> str:
    """The key of a fragment's tensor in its file."""
    return f"{name}/{kind}"


def state_text(files: Mapping[str, Iterable[Fragment]], *, adam_steps: int, notes: Mapping[str, Any]) -> str:
    """The text of `state.json`: where every fragment lies, updates done, and what else a resumed run wants to know.

    Raises StateError where the fragments are not the whole of every parameter exactly once.
    """
    names: list[str] = []
    cuts: list[Cut | None] = []
    parameters: dict[str, Any] = {}
    for file, fragments in files.items():
        for fragment in fragments:
            if fragment.cut not in cuts:
                cuts.append(fragment.cut)
            stored = parameters.setdefault(fragment.name, {"whole_shape": fragment.whole_shape, "pieces": []})
            stored["pieces"].append((len(names), cuts.index(fragment.cut), fragment.start, fragment.numel))
        names.append(file)
    value = {
        "format": _FORMAT,
        "adam_steps": adam_steps,
        "notes": notes,
        "files": names,
        "cuts": [asdict(cut) if cut else None for cut in cuts],
        "parameters": parameters,
    }
    # Without spaces: thousands of ranks have millions of pieces.
    text = json.dumps(value, separators=(",", ":"))
    _parse(text, STATE_NAME)
    return text + "\n"


@dataclass
class StateReader:
    """Reads the state of one checkpoint folder.  Only for folders whose manifest was verified.

    Raises StateError where the folder holds no state or an incomplete one.
    """

    folder: Path
    parameters: dict[str, StoredParameter] = field(init=False)
    adam_steps: int = field(init=False)
    """Optimizer updates done: steps, less those that were skipped."""
    notes: dict[str, Any] = field(init=False)
    _open: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / STATE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"{path} cannot be read: {error}") from error
        self.parameters, self.adam_steps, self.notes = _parse(text, str(path))

    def whole(self, name: str, kind: str = "fp32") -> Tensor:
        """The whole parameter (or moment), fp32 on the CPU."""
        stored = self._stored(name)
        whole = torch.empty(stored.whole_shape)
        for cut in _cuts(stored):
            if cut is None:
                return self._shard(name, kind, stored, None).view(stored.whole_shape)
            shard = self._shard(name, kind, stored, cut).view(cut.shape(stored.whole_shape))
            for target, source in zip(cut.chunks(whole), shard.split(cut.lengths(), cut.dim), strict=True):
                target.copy_(source)
        return whole

    def read(self, fragment: Fragment, kind: str) -> Tensor:
        """The fragment's elements, (numel,), from whichever files hold them.

        Raises StateError where the parameter is not there or has another shape.
        """
        stored = self._stored(fragment.name)
        if stored.whole_shape != fragment.whole_shape:
            raise StateError(f"{fragment.name} has shape {stored.whole_shape} in {self.folder}, not {fragment.whole_shape}")
        if fragment.cut in _cuts(stored):
            return self._span(fragment.name, kind, stored, fragment.cut, fragment.start, fragment.numel)
        whole = self.whole(fragment.name, kind)
        shard = fragment.cut.of(whole) if fragment.cut else whole
        return shard.flatten()[fragment.start : fragment.start + fragment.numel]

    def tensor(self, file: str, key: str) -> Tensor | None:
        """Another tensor of one of the files; None where it has none of that name."""
        with self._errors(file):
            handle = self._file(file)
            return handle.get_tensor(key) if key in handle.keys() else None  # noqa: SIM118 (not a dict)

    def _stored(self, name: str) -> StoredParameter:
        if name not in self.parameters:
            raise StateError(f"{self.folder} holds no parameter {name}")
        return self.parameters[name]

    def _shard(self, name: str, kind: str, stored: StoredParameter, cut: Cut | None) -> Tensor:
        shape = cut.shape(stored.whole_shape) if cut else stored.whole_shape
        return self._span(name, kind, stored, cut, 0, math.prod(shape))

    def _span(self, name: str, kind: str, stored: StoredParameter, cut: Cut | None, start: int, numel: int) -> Tensor:
        out = torch.empty(numel)
        for piece in stored.pieces:
            first, last = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if piece.cut == cut and first < last:
                with self._errors(piece.file):
                    held = self._file(piece.file).get_slice(tensor_name(name, kind))
                    out[first - start : last - start] = held[first - piece.start : last - piece.start]
        return out

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]

    @contextmanager
    def _errors(self, file: str) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise StateError(f"{self.folder / file} cannot be read: {error}") from error


def _cuts(stored: StoredParameter) -> list[Cut | None]:
    return list(dict.fromkeys(piece.cut for piece in stored.pieces))


def _parse(text: str, where: str) -> tuple[dict[str, StoredParameter], int, dict[str, Any]]:
    try:
        value = json.loads(text)
        if value["format"] != _FORMAT:
            raise StateError(f"{where} has format {value['format']}; this program knows {_FORMAT}")
        cuts = [Cut(**{**cut, "parts": tuple(cut["parts"])}) if cut else None for cut in value["cuts"]]
        parameters = {
            name: StoredParameter(
                tuple(stored["whole_shape"]),
                tuple(_Piece(value["files"][file], cuts[cut], start, numel) for file, cut, start, numel in stored["pieces"]),
            )
            for name, stored in value["parameters"].items()
        }
        adam_steps, notes = int(value["adam_steps"]), dict(value["notes"])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise StateError(f"{where} is not readable: {error}") from error
    faults = [f"{name}: {fault}" for name, stored in parameters.items() if (fault := _fault(stored))]
    if faults:
        raise StateError(f"{where} does not hold whole parameters: {'; '.join(faults)}")
    return parameters, adam_steps, notes


def _fault(stored: StoredParameter) -> str | None:
    """Why the pieces are not the whole parameter exactly once; None where they are."""
    cuts = _cuts(stored)
    first = cuts[0]
    if first is not None:
        wanted = {Cut(first.dim, first.parts, rank, first.size) for rank in range(first.size)}
        if set(cuts) != wanted or sum(first.parts) != stored.whole_shape[first.dim]:
            return f"{len(cuts)} shards that are not the {first.size} of one cut"
    elif len(cuts) > 1:
        return "partly cut into shards and partly whole"
    for cut in cuts:
        end = 0
        for piece in sorted((p for p in stored.pieces if p.cut == cut and p.numel), key=lambda piece: piece.start):
            if piece.start != end:
                trouble = "missing" if piece.start > end else "there twice"
                return f"elements {min(end, piece.start)} to {max(end, piece.start)} are {trouble}"
            end += piece.numel
        if end != math.prod(cut.shape(stored.whole_shape) if cut else stored.whole_shape):
            return f"ends at element {end}"
    return None
