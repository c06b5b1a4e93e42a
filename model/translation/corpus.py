"""Parallel text to token files: one byte-level BPE for both languages, prepared once and mapped ever after.

A prepared folder holds `tokenizer.json`, for each part `PART.tokens.bin` (16-bit ids) and `PART.lengths.bin` (source and
target tokens of each pair), the dev and test sentences as text, and, written last, `parallel.json` with what was measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from model.contract import RunSpec
from model.corpus import DataError, train_tokenizer, unigram_cross_entropy_nats, unigram_entropy_nats
from model.run_rules import CATALOGUES
from model.translation.catalogues import CatalogueUse, read_installed, read_wheels, wheels_in
from model.translation.parallel_text import (
    CATALOGUE_RULES,
    LINE_RULES,
    PARTS,
    Pair,
    ParallelTextError,
    cleaned,
    has_line_files,
    normalised,
    part_of,
    read_line_files,
    without_repeats,
)
from model.translation.special_tokens import BEGIN, END, PAD, SPECIAL_TOKENS

_FACTS: Final = "parallel.json"
_FORMAT: Final = 1
_PAIRS_AT_A_TIME: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelFacts:
    """What was measured while the parallel text was prepared; tokens count each sentence's END."""

    format: int
    source_language: str
    target_language: str
    vocabulary: int
    pairs: dict[str, int]
    """By part."""
    source_tokens: dict[str, int]
    target_tokens: dict[str, int]
    dropped: dict[str, int]
    """Pairs left out of training by reason; of catalogues, out of dev and test too."""
    catalogues: tuple[CatalogueUse, ...]
    unigram_entropy_nats: float
    """Entropy of the training targets' own token frequencies, in nat/token."""
    unigram_heldout_nats: float
    """Cross-entropy of dev's targets under the training frequencies (add-one smoothed), in nat/token."""
    digest: str
    """SHA-256 over tokenizer and token files; equal digests mean equal batches."""

    @property
    def train_tokens(self) -> int:
        return self.target_tokens["train"]

    @property
    def heldout_tokens(self) -> int:
        return self.target_tokens["dev"]


@dataclass(frozen=True, slots=True)
class PairTokens:
    """One part: tokens of pair after pair, source then target, without BEGIN or END."""

    tokens_N: NDArray[np.uint16]
    starts_P: NDArray[np.int64]
    """Where each pair's source begins in `tokens_N`."""
    lengths_P2: NDArray[np.int32]
    """Tokens of source and target."""

    def source(self, pair: int) -> NDArray[np.uint16]:
        return self.tokens_N[self.starts_P[pair] : self.starts_P[pair] + self.lengths_P2[pair, 0]]

    def target(self, pair: int) -> NDArray[np.uint16]:
        begin = self.starts_P[pair] + self.lengths_P2[pair, 0]
        return self.tokens_N[begin : begin + self.lengths_P2[pair, 1]]


@dataclass(frozen=True, slots=True)
class ParallelCorpus:
    """A prepared parallel text, mapped and not read."""

    facts: ParallelFacts
    parts: dict[str, PairTokens]
    folder: Path

    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.folder / "tokenizer.json")

    def notes(self) -> dict[str, str]:
        """What a checkpoint keeps of this text."""
        return vocabulary_facts(self.tokenizer(), self.facts.source_language, self.facts.target_language)

    def sentences(self, part: str) -> tuple[list[str], list[str]]:
        """Sources and references of dev or test as text."""
        languages = (self.facts.source_language, self.facts.target_language)
        source, target = ((self.folder / f"{part}.{each}").read_text(encoding="utf-8").split("\n")[:-1] for each in languages)
        return source, target


def vocabulary_facts(tokenizer: Tokenizer, source_language: str, target_language: str) -> dict[str, str]:
    """What a checkpoint keeps of the text it learnt from, so that it is never used with another vocabulary or pair."""
    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return {"vocabulary_sha256": digest, "source_language": source_language, "target_language": target_language}


def prepare_parallel(spec: RunSpec) -> ParallelCorpus:
    """Opens the prepared parallel text of the run, making it first if it is not there.

    Two processes may do this at once: each works in a draft of its own, and the first to finish gives it the name; a draft
    that fails leaves nothing behind.  Raises DataError.
    """
    folder = prepared_parallel_folder(spec)
    if not (folder / _FACTS).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f"{folder.name}.draft-{os.uname().nodename}-{os.getpid()}")
        try:
            _write(draft, spec)
            _publish(draft, folder)
        except ParallelTextError as error:
            raise DataError(str(error)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return open_parallel(folder)


def prepared_parallel_folder(spec: RunSpec) -> Path:
    """Where this run's tokens lie; the name holds everything they depend on but the text itself."""
    data = spec.data
    corpus = (
        data.corpus if data.corpus == CATALOGUES else hashlib.sha256(str(Path(data.corpus).resolve()).encode()).hexdigest()[:12]
    )
    name = f"{corpus}-{data.source_language}-{data.target_language}-bpe{spec.model.vocabulary}-heldout{data.heldout_fraction:g}"
    return Path(data.directory) / f"{name}-v{_FORMAT}"


def is_prepared_parallel(folder: Path) -> bool:
    """Whether the prepared text at `folder` is complete."""
    return (folder / _FACTS).is_file()


def open_parallel(folder: Path) -> ParallelCorpus:
    """Maps a prepared folder.  Raises DataError where it is not whole."""
    try:
        value: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        facts = ParallelFacts(**{**value, "catalogues": tuple(CatalogueUse(**use) for use in value["catalogues"])})
        parts = {part: _open_part(folder, part) for part in PARTS}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} is not a prepared parallel text ({error}); delete it and it is made again") from error
    for part, tokens in parts.items():
        if len(tokens.tokens_N) != tokens.lengths_P2.sum() or len(tokens.lengths_P2) != facts.pairs[part]:
            raise DataError(f"{folder}: the files of {part} are shorter or longer than {_FACTS} says; delete it to remake it")
    return ParallelCorpus(facts, parts, folder)


def _open_part(folder: Path, part: str) -> PairTokens:
    lengths_P2 = np.fromfile(folder / f"{part}.lengths.bin", dtype=np.int32).reshape(-1, 2)
    starts_P = np.concatenate(([0], np.cumsum(lengths_P2.sum(axis=1, dtype=np.int64))))[:-1]
    return PairTokens(np.memmap(folder / f"{part}.tokens.bin", dtype=np.uint16, mode="r"), starts_P, lengths_P2)


def train_shared_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """One byte-level BPE over both languages; a word is the same token wherever it stands.  Raises as `train_tokenizer` does."""
    tokenizer = train_tokenizer(texts, vocabulary, special=SPECIAL_TOKENS, space_before=True)
    tokenizer.encode_special_tokens = True
    return tokenizer


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file that `train_shared_bpe` gave."""
    tokenizer = Tokenizer.from_file(str(path))
    # A text that spells `</s>` is text: it must not end its own sentence.  The file does not keep this setting.
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_sentences(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    """Token ids of each sentence, normalised first; no BEGIN and no END."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast([normalised(sentence) for sentence in sentences])]


def decode_sentence(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of token ids up to the first END."""
    kept = []
    for token in ids:
        if token == END:
            break
        if token not in (PAD, BEGIN):
            kept.append(int(token))
    return str(tokenizer.decode(kept)).strip()


# ---------------------------------------------------------------------- preparing
def _write(draft: Path, spec: RunSpec) -> None:
    """Fills the new folder `draft`, the facts last.  Raises DataError or ParallelTextError."""
    if spec.model.vocabulary > 2**16:
        raise DataError(f"token files hold 16-bit ids; a vocabulary of {spec.model.vocabulary} needs at most {2**16}")
    text = _Text(spec)
    draft.mkdir(parents=True)
    sides = (side for pair in text.of("train", Counter()) for side in (pair.source, pair.target))
    tokenizer = train_shared_bpe(sides, spec.model.vocabulary)
    tokenizer.save(str(draft / "tokenizer.json"))
    dropped: Counter[str] = Counter()
    counts = {part: _write_part(draft, part, tokenizer, text, dropped if part == "train" else Counter()) for part in PARTS}
    digest = hashlib.sha256()
    for path in sorted(draft.iterdir()):
        digest.update(path.read_bytes())
    facts = ParallelFacts(
        format=_FORMAT,
        source_language=spec.data.source_language,
        target_language=spec.data.target_language,
        vocabulary=spec.model.vocabulary,
        pairs={part: count.pairs for part, count in counts.items()},
        source_tokens={part: count.source_tokens for part, count in counts.items()},
        target_tokens={part: int(count.targets_V.sum()) for part, count in counts.items()},
        dropped=dict(dropped),
        catalogues=text.catalogues,
        unigram_entropy_nats=unigram_entropy_nats(counts["train"].targets_V),
        unigram_heldout_nats=unigram_cross_entropy_nats(counts["train"].targets_V, counts["dev"].targets_V),
        digest=digest.hexdigest(),
    )
    (draft / _FACTS).write_text(json.dumps(asdict(facts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Text:
    """The run's pairs by part, read anew each time they are asked for: a corpus of millions is never held whole."""

    def __init__(self, spec: RunSpec) -> None:
        data = spec.data
        self.languages = (data.source_language, data.target_language)
        self.catalogues: tuple[CatalogueUse, ...] = ()
        self._heldout_fraction = data.heldout_fraction
        self._messages: list[Pair] | None = None
        self._folder, self.name = Path(data.corpus), data.corpus
        self._own = {part: has_line_files(self._folder, part, *self.languages) for part in PARTS}
        if data.corpus == CATALOGUES:
            self.name, read = "the installed catalogues", read_installed
        elif not self._own["train"] and wheels_in(self._folder):
            read = partial(read_wheels, self._folder)
        else:
            return
        if data.source_language != "en":
            raise ParallelTextError(f"data.source_language: catalogues are translated from en, not from {data.source_language!r}")
        self._messages, catalogues = read(data.target_language)
        self.catalogues = tuple(catalogues)

    def of(self, part: str, dropped: Counter[str]) -> Iterator[Pair]:
        """One part's pairs; `dropped` counts what was left out by reason, of the text that the part comes from."""
        if self._messages is not None:
            kept = without_repeats(cleaned(self._messages, CATALOGUE_RULES, dropped), dropped)
            share = self._heldout_fraction
            yield from (pair for pair in kept if part_of(pair, share, share) == part)
        elif part != "train" and self._own[part]:
            # dev and test are what a user wants scored: every line of them counts.
            for pair in read_line_files(self._folder, part, *self.languages):
                yield Pair(normalised(pair.source), normalised(pair.target))
        else:
            # Parts that have files of their own take nothing from train.
            shares = [0.0 if self._own[each] else self._heldout_fraction for each in ("dev", "test")]
            every = read_line_files(self._folder, "train", *self.languages)
            yield from (pair for pair in cleaned(every, LINE_RULES, dropped) if part_of(pair, *shares) == part)


@dataclass(slots=True)
class _Counts:
    pairs: int
    source_tokens: int
    targets_V: NDArray[np.int64]


def _write_part(draft: Path, part: str, tokenizer: Tokenizer, text: _Text, dropped: Counter[str]) -> _Counts:
    vocabulary = tokenizer.get_vocab_size()
    counts = _Counts(0, 0, np.zeros(vocabulary, dtype=np.int64))
    pairs = text.of(part, dropped)
    with (
        (draft / f"{part}.tokens.bin").open("wb") as tokens,
        (draft / f"{part}.lengths.bin").open("wb") as lengths,
        (draft / f"{part}.{text.languages[0]}").open("w", encoding="utf-8") as left,
        (draft / f"{part}.{text.languages[1]}").open("w", encoding="utf-8") as right,
    ):
        while chunk := list(islice(pairs, _PAIRS_AT_A_TIME)):
            sources = encode_sentences(tokenizer, [pair.source for pair in chunk])
            targets = encode_sentences(tokenizer, [pair.target for pair in chunk])
            for source, target in zip(sources, targets, strict=True):
                tokens.write(np.array(source + target, dtype=np.uint16).tobytes())
                lengths.write(np.array([len(source), len(target)], dtype=np.int32).tobytes())
            every = np.concatenate([np.array([*target, END]) for target in targets])
            counts.targets_V += np.bincount(every, minlength=vocabulary)
            counts.pairs += len(chunk)
            counts.source_tokens += sum(len(source) + 1 for source in sources)
            if part != "train":
                left.writelines(pair.source + "\n" for pair in chunk)
                right.writelines(pair.target + "\n" for pair in chunk)
    return counts


def _publish(draft: Path, folder: Path) -> None:
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        draft.rename(folder)
    except OSError:
        # Another process finished first: its folder has the same content.
        if not (folder / _FACTS).is_file():
            raise
