"""Text to batches: a corpus found on every machine, byte-level BPE, token files, and batches by step.

A batch is a function of (seed, step): resuming costs nothing, and the global order is the same in every layout.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.contract import RunSpec

END_OF_TEXT: Final = "<|endoftext|>"
"""Stands after every file; its id is 0."""
_PREPARED: Final = "corpus.json"
_FORMAT: Final = 1
_SKIPPED_FOLDERS: Final = frozenset(
    {"test", "tests", "idlelib", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)
"""Tests and IDLE are half of the library's bytes; encodings and pydoc_data are generated tables and texts, a few of
which would be most of the held-out side; installed packages are not the library."""
_TOKENIZER_SAMPLE_BYTES: Final = 2_000_000
_FILES_AT_A_TIME: Final = 64


class DataError(Exception):
    """The corpus cannot be prepared or does not fit the run; the message says what to change."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file of the corpus."""

    name: str
    """Path inside the corpus, with slashes."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFacts:
    """What was measured while the corpus was prepared; stored beside the tokens."""

    format: int
    vocabulary: int
    train_files: int
    train_bytes: int
    train_tokens: int
    heldout_files: tuple[str, ...]
    heldout_bytes: int
    heldout_tokens: int
    unigram_entropy_nats: float
    """Entropy of the training text's own token frequencies, in nat/token."""
    unigram_heldout_nats: float
    """Cross-entropy of the held-out text under the training frequencies (add-one smoothed), in nat/token: what a
    model that knows frequencies and nothing else would reach there."""
    digest: str
    """SHA-256 over both token files and the tokenizer; equal digests mean equal batches."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Prepared tokens, mapped and not read."""

    facts: CorpusFacts
    train_N: NDArray[np.uint16]
    heldout_N: NDArray[np.uint16]
    folder: Path

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids of some sequences, and the same shifted by one; int64, each (B, T)."""

    tokens_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]


class Batches:
    """Batches by step for one replica of a run.

    One epoch is every non-overlapping window of the training tokens, in an order drawn from (seed, epoch); the window
    grid is shifted anew in every epoch.  The global batch of step s is windows [(s-1)·G, s·G) of that endless order;
    it is cut into micro-batches, and replica r of d takes micro-batches r, r+d, r+2d …
    """

    def __init__(self, corpus: Corpus, spec: RunSpec, replica: int) -> None:
        self._corpus, self._spec, self._replica = corpus, spec, replica
        tokens = spec.batch.sequence_tokens
        # A window needs one token more than its length, and the grid is shifted by up to one window.
        self._windows = (len(corpus.train_N) - tokens - 1) // tokens
        self._heldout_windows = (len(corpus.heldout_N) - 1) // tokens
        self._heldout_wanted = spec.evaluate_batches * spec.batch.global_sequences
        if self._windows < 1:
            raise DataError(f"the corpus has {len(corpus.train_N)} training tokens; one sequence needs {2 * tokens + 1}")
        if self._heldout_windows < self._heldout_wanted:
            raise DataError(
                f"the held-out text has {self._heldout_windows} sequences of {tokens} tokens, an evaluation needs "
                f"{self._heldout_wanted} (evaluate_batches x batch.global_sequences); raise data.heldout_fraction "
                f"above {spec.data.heldout_fraction} or lower evaluate_batches"
            )
        self._epoch, self._order, self._shift = -1, np.empty(0, dtype=np.int64), 0

    def of_step(self, step: int) -> list[Batch]:
        """This replica's micro-batches of step 1, 2, … in the order they are to be run."""
        size = self._spec.batch.global_sequences
        windows = range((step - 1) * size, step * size)
        starts = [self._start_of(window) for window in windows]
        return self._mine(self._corpus.train_N, starts)

    def heldout(self) -> list[Batch]:
        """This replica's micro-batches of the held-out text: the same windows always, spread evenly over it."""
        spread = np.linspace(0, self._heldout_windows - 1, self._heldout_wanted).astype(np.int64)
        return self._mine(self._corpus.heldout_N, [int(w) * self._spec.batch.sequence_tokens for w in spread])

    def _start_of(self, window: int) -> int:
        epoch, index = divmod(window, self._windows)
        if epoch != self._epoch:
            draw = np.random.Generator(np.random.Philox(key=[self._spec.seed, epoch]))
            self._shift = int(draw.integers(self._spec.batch.sequence_tokens))
            self._order, self._epoch = draw.permutation(self._windows), epoch
        return int(self._order[index]) * self._spec.batch.sequence_tokens + self._shift

    def _mine(self, source: NDArray[np.uint16], starts: list[int]) -> list[Batch]:
        micro, tokens = self._spec.batch.micro_sequences, self._spec.batch.sequence_tokens
        chunks = [starts[i : i + micro] for i in range(0, len(starts), micro)]
        batches = []
        for chunk in chunks[self._replica :: self._spec.layout.data]:
            rows = np.stack([source[start : start + tokens + 1] for start in chunk]).astype(np.int64)
            batches.append(Batch(rows[:, :-1], rows[:, 1:]))
        return batches


def prepare_corpus(spec: RunSpec) -> Corpus:
    """Opens the prepared tokens of the run, making them first if they are not there.

    Two processes may do this at once: each works in a draft of its own, and the first to finish gives it the name.
    Raises DataError.
    """
    folder = prepared_folder(spec)
    if not (folder / _PREPARED).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f"{folder.name}.draft-{os.uname().nodename}-{os.getpid()}")
        try:
            write_corpus(draft, spec, standard_library_files())
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return open_corpus(folder)


def prepared_folder(spec: RunSpec) -> Path:
    """Where this run's tokens lie; the name holds everything they depend on."""
    version = sysconfig.get_python_version()
    share = f"{spec.data.heldout_fraction:g}"
    name = f"{spec.data.corpus}-{version}-bpe{spec.model.vocabulary}-heldout{share}-v{_FORMAT}"
    return Path(spec.data.directory) / name


def open_corpus(folder: Path) -> Corpus:
    """Maps a prepared folder.  Raises DataError where it is not whole."""
    try:
        value: dict[str, Any] = json.loads((folder / _PREPARED).read_text(encoding="utf-8"))
        facts = CorpusFacts(**{**value, "heldout_files": tuple(value["heldout_files"])})
        train, heldout = (np.memmap(folder / f"{part}.bin", dtype=np.uint16, mode="r") for part in ("train", "heldout"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} is not a prepared corpus ({error}); delete it and it is made again") from error
    if (len(train), len(heldout)) != (facts.train_tokens, facts.heldout_tokens):
        raise DataError(f"{folder}: the token files are shorter or longer than {_PREPARED} says; delete it to remake it")
    return Corpus(facts, train, heldout, folder)


def write_corpus(draft: Path, spec: RunSpec, files: list[TextFile]) -> None:
    """Fills the new folder `draft` with the tokenizer, both token files and, last, the facts.  Raises DataError."""
    if spec.model.vocabulary > 2**16:
        raise DataError(f"token files hold 16-bit ids; a vocabulary of {spec.model.vocabulary} needs at most {2**16}")
    if len(files) < 2:
        raise DataError(f"no Python sources below {sysconfig.get_path('stdlib')}; install the full standard library")
    train, heldout = split_files(files, spec.data.heldout_fraction)
    draft.mkdir(parents=True)
    tokenizer = train_tokenizer(_sample(train), spec.model.vocabulary)
    tokenizer.save(str(draft / "tokenizer.json"))
    train_counts, train_bytes = _encode(tokenizer, train, draft / "train.bin")
    heldout_counts, heldout_bytes = _encode(tokenizer, heldout, draft / "heldout.bin")
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "train.bin", "heldout.bin"):
        digest.update((draft / name).read_bytes())
    facts = CorpusFacts(
        format=_FORMAT,
        vocabulary=spec.model.vocabulary,
        train_files=len(train),
        train_bytes=train_bytes,
        train_tokens=int(train_counts.sum()),
        heldout_files=tuple(file.name for file in heldout),
        heldout_bytes=heldout_bytes,
        heldout_tokens=int(heldout_counts.sum()),
        unigram_entropy_nats=unigram_entropy_nats(train_counts),
        unigram_heldout_nats=unigram_cross_entropy_nats(train_counts, heldout_counts),
        digest=digest.hexdigest(),
    )
    (draft / _PREPARED).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")


def standard_library_files() -> list[TextFile]:
    """The running interpreter's own library sources, sorted by name; `_SKIPPED_FOLDERS` left out."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return sorted((TextFile(path.relative_to(root).as_posix(), path) for path in paths), key=lambda file: file.name)


def split_files(files: list[TextFile], heldout_fraction: float) -> tuple[list[TextFile], list[TextFile]]:
    """(training, held-out) files.  A file's side depends on its name alone, so a new file moves no other one."""

    def draw(file: TextFile) -> float:
        return int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8], "big") / 2**64

    heldout = [file for file in files if draw(file) < heldout_fraction] or [min(files, key=draw)]
    return [file for file in files if file not in heldout], heldout


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2); the same for the same texts.

    Raises DataError where the texts hold too few different pairs for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise DataError(
            f"the corpus gives a vocabulary of {tokenizer.get_vocab_size()} tokens, not {vocabulary}; "
            f"set model.vocabulary to {tokenizer.get_vocab_size()}"
        )
    return tokenizer


def unigram_entropy_nats(counts_V: NDArray[np.int64]) -> float:
    """-Σ p ln p of the frequencies that the counts are, in nat/token."""
    seen = counts_V[counts_V > 0]
    frequencies = seen / seen.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def unigram_cross_entropy_nats(train_V: NDArray[np.int64], heldout_V: NDArray[np.int64]) -> float:
    """-Σ q ln p in nat/token: q the held-out frequencies, p the training frequencies after adding one to each count."""
    surprise = -np.log((train_V + 1) / (train_V.sum() + len(train_V)))
    return float((heldout_V * surprise).sum() / heldout_V.sum())


def _publish(draft: Path, folder: Path) -> None:
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        draft.rename(folder)
    except OSError:
        # Another process finished first: its folder has the same content.
        if not (folder / _PREPARED).is_file():
            raise


def _sample(files: list[TextFile]) -> Iterator[str]:
    """A bounded part of the training text, from all over it: every k-th file."""
    total = sum(file.path.stat().st_size for file in files)
    for file in files[:: max(1, math.ceil(total / _TOKENIZER_SAMPLE_BYTES))]:
        yield _read(file)


def _encode(tokenizer: Tokenizer, files: list[TextFile], target: Path) -> tuple[NDArray[np.int64], int]:
    """Writes the files' tokens, each file ended by END_OF_TEXT; returns counts by token id (V,) and bytes of text."""
    vocabulary = tokenizer.get_vocab_size()
    counts_V = np.zeros(vocabulary, dtype=np.int64)
    size_bytes = 0
    with target.open("wb") as out:
        for first in range(0, len(files), _FILES_AT_A_TIME):
            texts = [_read(file) for file in files[first : first + _FILES_AT_A_TIME]]
            size_bytes += sum(len(text.encode()) for text in texts)
            for encoding in tokenizer.encode_batch_fast(texts):
                ids = np.array([*encoding.ids, 0], dtype=np.uint16)
                counts_V += np.bincount(ids, minlength=vocabulary)
                out.write(ids.tobytes())
    return counts_V, size_bytes


def _read(file: TextFile) -> str:
    # A few of the library's files are not UTF-8; one replaced letter matters less than a lost file.
    return file.path.read_bytes().decode("utf-8", errors="replace")
