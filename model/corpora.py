"""Which text a run learns from, and its batches by step: one text for a decoder alone, parallel text with an encoder."""

from __future__ import annotations

from pathlib import Path

from model.contract import RunSpec
from model.corpus import Corpus, DataError, is_prepared, open_corpus, prepare_corpus, prepared_folder
from model.data import Batches
from model.translation.batches import PairBatches
from model.translation.corpus import (
    ParallelCorpus,
    is_prepared_parallel,
    open_parallel,
    prepare_parallel,
    prepared_parallel_folder,
)

AnyCorpus = Corpus | ParallelCorpus
AnyBatches = Batches | PairBatches


def folder_of(spec: RunSpec) -> Path:
    """Where the run's prepared text lies, or will."""
    return prepared_parallel_folder(spec) if spec.model.encoder_layers else prepared_folder(spec)


def prepare(spec: RunSpec) -> AnyCorpus:
    """Opens the run's prepared text, making it first if it is not there.  Raises DataError."""
    try:
        return prepare_parallel(spec) if spec.model.encoder_layers else prepare_corpus(spec)
    except OSError as error:
        raise DataError(
            f"data.directory: {spec.data.directory} cannot be filled from {spec.data.corpus}: {error}; make room there, or name "
            "a directory that this user may write"
        ) from error


def open_or_prepare(spec: RunSpec, folder: Path) -> AnyCorpus:
    """The prepared text at `folder`, if there is one; otherwise `prepare`.  Raises DataError."""
    if spec.model.encoder_layers:
        return open_parallel(folder) if is_prepared_parallel(folder) else prepare(spec)
    return open_corpus(folder) if is_prepared(folder) else prepare(spec)


def batches_of(corpus: AnyCorpus, spec: RunSpec, replica: int) -> AnyBatches:
    """Batches by step for one replica.  Raises DataError where the text is too small for them."""
    if isinstance(corpus, ParallelCorpus):
        return PairBatches(corpus, spec, replica)
    return Batches(corpus, spec, replica)
