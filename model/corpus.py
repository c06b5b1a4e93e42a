"""Text to tokens: a corpus found on every machine or a folder of text files, byte-level BPE, memory-mapped token files.

Made once into a folder of `data.directory` and then only opened:
    tokenizer.json
    train-00000.bin … heldout-00000.bin …   token ids, 2 bytes each (4 above 65,536 tokens), at most `SHARD_TOKENS` a file
    corpus.json                             what was measured; written last
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.contract import STANDARD_LIBRARY, RunSpec
from model.tokens import SHARD_TOKENS, Tokens, TokenWriter

END_OF_TEXT: Final = "<|endoftext|>"
"""Stands after every file; its id is 0."""
_PREPARED: Final = "corpus.json"
_TOKENIZER: Final = "tokenizer.json"
_FORMAT: Final = 2
_SKIPPED_FOLDERS: Final = frozenset(
    {"test", "tests", "idlelib", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)
"""Tests and IDLE are half of the library's bytes; encodings and pydoc_data are generated tables and texts, a few of
which would be most of the held-out side; installed packages are not the library."""
_TOKENIZER_SAMPLE_BYTES: Final = 2_000_000
_PART_BYTES: Final = 4_000_000
"""Longer files are read in parts, so that memory stays bounded."""
_LEAST_PARTS: Final = 32
"""Into so many parts a single file is cut, so that some of it can be held out."""
_FILES_AT_A_TIME: Final = 64


class DataError(Exception):
    """The corpus cannot be prepared or does not fit the run; the message says what to change."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file of the corpus, or a part of a long one."""

    name: str
    """Path inside the corpus, with slashes; of a part, with `#` and the byte it begins at."""
    path: Path
    start: int = 0
    stop: int | None = None
    """Bytes [start, stop) of the file; None is its end."""


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
    """SHA-256 over the token files and the tokenizer; equal digests mean equal batches."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Prepared tokens, mapped and not read."""

    facts: CorpusFacts
    train: Tokens
    heldout: Tokens
    folder: Path

    def notes(self) -> dict[str, str]:
        """What a checkpoint keeps of this text, so that it is not continued with tokens of other meanings."""
        vocabulary = (self.folder / _TOKENIZER).read_bytes()
        return {"digest": self.facts.digest, "vocabulary_sha256": hashlib.sha256(vocabulary).hexdigest()}

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / _TOKENIZER))


def prepare_corpus(spec: RunSpec) -> Corpus:
    """Opens the prepared tokens of the run, making them first if they are not there.

    Two processes may do this at once: each works in a draft of its own, and the first to finish gives it the name.
    Raises DataError.
    """
    folder = prepared_folder(spec)
    if not is_prepared(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f"{folder.name}.draft-{os.uname().nodename}-{os.getpid()}")
        try:
            write_corpus(draft, spec, corpus_files(spec))
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return open_corpus(folder)


def prepared_folder(spec: RunSpec) -> Path:
    """Where this run's tokens lie; the name holds everything they depend on.  Raises DataError without the text."""
    if spec.data.corpus == STANDARD_LIBRARY:
        source = f"{STANDARD_LIBRARY}-{sysconfig.get_python_version()}"
    else:
        digest = hashlib.sha256()
        for file in text_files(Path(spec.data.corpus)):
            facts = file.path.stat()
            digest.update(f"{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
        source = f"{Path(spec.data.corpus).name or 'text'}-{digest.hexdigest()[:16]}"
    share = f"{spec.data.heldout_fraction:g}"
    return Path(spec.data.directory) / f"{source}-bpe{spec.model.vocabulary}-heldout{share}-v{_FORMAT}"


def is_prepared(folder: Path) -> bool:
    """Whether another process has finished this folder."""
    return (folder / _PREPARED).is_file()


def open_corpus(folder: Path) -> Corpus:
    """Maps a prepared folder.  Raises DataError where it is not whole."""
    try:
        value: dict[str, Any] = json.loads((folder / _PREPARED).read_text(encoding="utf-8"))
        facts = CorpusFacts(**{**value, "heldout_files": tuple(value["heldout_files"])})
        train, heldout = (Tokens.open(folder, part, facts.vocabulary) for part in ("train", "heldout"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} is not a prepared corpus ({error}); delete it and it is made again") from error
    if (len(train), len(heldout)) != (facts.train_tokens, facts.heldout_tokens):
        raise DataError(f"{folder}: the token files are shorter or longer than {_PREPARED} says; delete it to remake it")
    return Corpus(facts, train, heldout, folder)


def corpus_files(spec: RunSpec) -> list[TextFile]:
    """The corpus that the run names, sorted by name, long files in parts.  Raises DataError where there is none."""
    if spec.data.corpus == STANDARD_LIBRARY:
        return standard_library_files()
    files = text_files(Path(spec.data.corpus))
    if not files:
        raise DataError(f"data.corpus: {spec.data.corpus} holds no text files (UTF-8, not hidden)")
    least = _LEAST_PARTS if len(files) == 1 else 1
    return [part for file in files for part in _parts(file, least)]


def standard_library_files() -> list[TextFile]:
    """The running interpreter's own library sources, sorted by name; `_SKIPPED_FOLDERS` left out.

    Raises DataError where the interpreter came without them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    files = sorted((TextFile(path.relative_to(root).as_posix(), path) for path in paths), key=lambda file: file.name)
    if len(files) < 2:
        raise DataError(f"no Python sources below {root}; install the full standard library")
    return files


def text_files(folder: Path) -> list[TextFile]:
    """Every text file below a folder, sorted by name; hidden ones, and what does not begin as UTF-8 text, are left out.

    Raises DataError where the folder cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"data.corpus: {folder} is no folder on this machine; it must be there on rank 0's at least")
    try:
        names = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
        return [TextFile(name, path) for name, path in names if not _is_hidden(name) and _is_text(path)]
    except OSError as error:
        raise DataError(f"data.corpus: {folder} cannot be read: {error}") from error


def write_corpus(draft: Path, spec: RunSpec, files: list[TextFile], shard_tokens: int = SHARD_TOKENS) -> None:
    """Fills the new folder `draft` with the tokenizer, the token files and, last, the facts.  Raises DataError."""
    train, heldout = split_files(files, spec.data.heldout_fraction)
    if not train:
        raise DataError(f"data.corpus: {spec.data.corpus} is too little text to hold any of it out; add files")
    draft.mkdir(parents=True)
    tokenizer = train_tokenizer(_sample(train), spec.model.vocabulary)
    tokenizer.save(str(draft / _TOKENIZER))
    train_counts, train_bytes = _encode(tokenizer, train, TokenWriter(draft, "train", spec.model.vocabulary, shard_tokens))
    writer = TokenWriter(draft, "heldout", spec.model.vocabulary, shard_tokens)
    heldout_counts, heldout_bytes = _encode(tokenizer, heldout, writer)
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
        digest=_digest(draft),
    )
    (draft / _PREPARED).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")


def split_files(files: list[TextFile], heldout_fraction: float) -> tuple[list[TextFile], list[TextFile]]:
    """(training, held-out) files.  A file's side depends on its name alone, so a new file moves no other one."""

    def draw(file: TextFile) -> float:
        return int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8], "big") / 2**64

    heldout = [file for file in files if draw(file) < heldout_fraction] or [min(files, key=draw)]
    names = {file.name for file in heldout}
    return [file for file in files if file.name not in names], heldout


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, *, special: Sequence[str] = (END_OF_TEXT,), space_before: bool = False
) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2); the same for the same texts.

    With `space_before` a word at the beginning of a text is the same token as elsewhere.
    Raises DataError where the texts hold too few different pairs for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space_before)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise DataError(
            f"the text gives a vocabulary of {tokenizer.get_vocab_size()} tokens, not {vocabulary}; "
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
        if not is_prepared(folder):
            raise


def _digest(folder: Path) -> str:
    """Over the tokenizer and the token files in the order of their names, without their boundaries."""
    digest = hashlib.sha256()
    for path in (folder / _TOKENIZER, *sorted(folder.glob("train-*.bin")), *sorted(folder.glob("heldout-*.bin"))):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _sample(files: list[TextFile]) -> Iterator[str]:
    """A bounded part of the training text, from all over it: every k-th file or part."""
    sizes = [(file.stop or file.path.stat().st_size) - file.start for file in files]
    for file in files[:: max(1, math.ceil(sum(sizes) / _TOKENIZER_SAMPLE_BYTES))]:
        yield _read(file)


def _encode(tokenizer: Tokenizer, files: list[TextFile], writer: TokenWriter) -> tuple[NDArray[np.int64], int]:
    """Writes the files' tokens, each file ended by END_OF_TEXT; returns counts by token id (V,) and bytes of text."""
    vocabulary = tokenizer.get_vocab_size()
    counts_V = np.zeros(vocabulary, dtype=np.int64)
    size_bytes = 0
    with writer:
        for first in range(0, len(files), _FILES_AT_A_TIME):
            some = files[first : first + _FILES_AT_A_TIME]
            texts = [_read(file) for file in some]
            size_bytes += sum(len(text.encode()) for text in texts)
            for file, encoding in zip(some, tokenizer.encode_batch_fast(texts), strict=True):
                # A part in the middle of a file is followed by the next one, or by the next file where that is held out.
                ids = np.array([*encoding.ids, *([0] if file.stop is None else [])], dtype=np.int64)
                counts_V += np.bincount(ids, minlength=vocabulary)
                writer.write(ids)
    return counts_V, size_bytes


def _parts(file: TextFile, least: int) -> list[TextFile]:
    """The file in parts of at most about `_PART_BYTES`, and at least `least` of them, cut at line ends."""
    size = file.path.stat().st_size
    number = max(least, math.ceil(size / _PART_BYTES))
    if number == 1 or size < number:
        return [file]
    cuts = {0}
    with file.path.open("rb") as text:
        for part in range(1, number):
            text.seek(size * part // number)
            text.readline(_PART_BYTES)
            cuts.add(text.tell())
    begins = sorted(cut for cut in cuts if cut < size)
    ends: list[int | None] = [*begins[1:], None]
    return [TextFile(f"{file.name}#{begin}", file.path, begin, end) for begin, end in zip(begins, ends, strict=True)]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(4096)
    try:
        begin.decode("utf-8")
    except UnicodeDecodeError as error:
        # The last letter may have been cut in two.
        return error.start > len(begin) - 4 and len(begin) == 4096
    return b"\0" not in begin


def _read(file: TextFile) -> str:
    # A few of the library's files are not UTF-8; one replaced letter matters less than a lost file.
    with file.path.open("rb") as source:
        source.seek(file.start)
        return source.read(-1 if file.stop is None else file.stop - file.start).decode("utf-8", errors="replace")
