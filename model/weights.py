"""The weights of a checkpoint in one process, without DeepSpeed: for generation, comparison, averaging and export.

Whatever layout wrote it, tied and tensor-parallel ones included: `model/state.py` gives whole parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.contract import ManifestError, ModelSpec, newest_complete, verify_manifest
from model.layers import Recipe
from model.manifest import MANIFEST_NAME, Manifest, step_folders
from model.resumption import CheckpointError
from model.state import StateReader
from model.strict_json import build
from model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint whose every file was compared with its manifest."""

    folder: Path
    manifest: Manifest
    reader: StateReader

    @property
    def model(self) -> ModelSpec:
        """The model it was written by.  Raises CheckpointError where this program does not know it."""
        problems: list[str] = []
        spec = build(ModelSpec, self.manifest.model, "model", problems)
        if spec is None or problems:
            raise CheckpointError(f"{self.folder} holds a model that this program does not know: {'; '.join(problems)}")
        return spec

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole fp32 parameter), one after the other, so that no more than one need be in memory."""
        return ((name, self.reader.whole(name)) for name in self.reader.parameters)


def open_weights(path: Path) -> Weights:
    """The checkpoint at `path`: a `step-…` folder, or a directory of them, of which the newest complete one.

    Raises CheckpointError where there is none that its manifest vouches for.
    """
    if (path / MANIFEST_NAME).is_file():
        try:
            manifest = verify_manifest(path)
        except ManifestError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return Weights(path, manifest, StateReader(path))
    choice = newest_complete(path)
    if choice is None:
        there = f"none of its {len(step_folders(path))} checkpoints is complete" if step_folders(path) else "it holds none"
        raise CheckpointError(f"{path} is no checkpoint and no directory of checkpoints that can be read: {there}")
    return Weights(choice.folder, choice.manifest, StateReader(choice.folder))


def load_model(path: Path) -> Transformer:
    """The decoder-only model of a checkpoint with its weights, in fp32 on the CPU, ready to evaluate.  Raises CheckpointError."""
    return model_with(open_weights(path))


def model_with(weights: Weights) -> Transformer:
    """`load_model` of a checkpoint that is open."""
    if weights.model.encoder_layers:
        raise CheckpointError(f"{weights.folder} holds an encoder-decoder, which does not continue a text; use model.translate")
    model = Transformer(Recipe(weights.model.shape(), seed=None))
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{weights.folder} does not fit its own model: {error}") from error
    return model.eval()
