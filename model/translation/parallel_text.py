"""Parallel text: pairs of a sentence and its translation, read, cleaned and split so that nothing leaks.

Pairs come from message catalogues (`catalogues.py`) or from a folder: `train.SOURCE` and `train.TARGET` (for example train.en
and train.de), one sentence a line and line N of one the translation of line N of the other; beside them, if there are, `dev.*`
and `test.*`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final


class ParallelTextError(Exception):
    """The parallel text cannot be used; the message says where and what to change."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One sentence in two languages."""

    source: str
    target: str


PARTS: Final = ("train", "dev", "test")
"""dev is looked at while training, test once at the end."""


def read_line_files(folder: Path, part: str, source: str, target: str) -> Iterator[Pair]:
    """The pairs of `folder/part.source` and `folder/part.target`, in the order of the lines.

    Raises ParallelTextError for a missing side, a line that is not UTF-8, or unequal numbers of lines.
    """
    paths = (folder / f"{part}.{source}", folder / f"{part}.{target}")
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ParallelTextError(f"{folder}: {' and '.join(missing)} is missing; both sides of {part} are needed")
    counts = [0, 0]
    with paths[0].open("rb") as left, paths[1].open("rb") as right:
        for lines in itertools.zip_longest(left, right):
            for side, line in enumerate(lines):
                counts[side] += line is not None
            if None not in lines:
                yield Pair(*(_decode(line, path, counts[0]) for line, path in zip(lines, paths, strict=True)))
    if counts[0] != counts[1]:
        raise ParallelTextError(
            f"{folder}: {paths[0].name} has {counts[0]:,} lines and {paths[1].name} has {counts[1]:,}; "
            "line N of one must be the translation of line N of the other"
        )


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise ParallelTextError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error


def has_line_files(folder: Path, part: str, source: str, target: str) -> bool:
    """Whether one side of a part, at least, is there."""
    return any((folder / f"{part}.{language}").is_file() for language in (source, target))


# ---------------------------------------------------------------------- cleaning
_PLACEHOLDER = re.compile(r"%\(\w+\)[#0-9.]*[a-z]|%(?:\d+\$)?[sdrif]|\{[^{}\s]*\}|</?\w[^<>]*>|&\w+;")
_LONGEST_COPY_WORDS: Final = 3
_MOST_UNEVEN: Final = 3.0
_SHORT_CHARACTERS: Final = 20


def normalised(text: str) -> str:
    """Unicode NFC, with every run of white space as one space: what the model reads and is scored on."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _is_empty(pair: Pair) -> bool:
    return not any(c.isalpha() for c in pair.source) or not any(c.isalpha() for c in pair.target)


def _is_copy(pair: Pair) -> bool:
    # Short ones are right often enough: `Status` is German for `Status`.
    return pair.source == pair.target and len(pair.source.split()) > _LONGEST_COPY_WORDS


def _is_uneven(pair: Pair) -> bool:
    shorter, longer = sorted((len(pair.source), len(pair.target)))
    return longer >= _SHORT_CHARACTERS and longer > _MOST_UNEVEN * shorter


def _placeholders_differ(pair: Pair) -> bool:
    return sorted(_PLACEHOLDER.findall(pair.source)) != sorted(_PLACEHOLDER.findall(pair.target))


LINE_RULES: Final[dict[str, Callable[[Pair], bool]]] = {
    "a side without letters": _is_empty,
    "one side 3 times the other": _is_uneven,
}
"""Why a pair of a user's own text is left out of training; dev and test are never cleaned."""
CATALOGUE_RULES: Final[dict[str, Callable[[Pair], bool]]] = {
    **LINE_RULES,
    "an untranslated copy": _is_copy,
    "placeholders that differ": _placeholders_differ,
}
"""The same for messages of programs: a translation that lost a placeholder is a wrong one."""


def cleaned(pairs: Iterable[Pair], rules: dict[str, Callable[[Pair], bool]], dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs, normalised, that no rule throws out; `dropped` counts the others by reason."""
    for raw in pairs:
        pair = Pair(normalised(raw.source), normalised(raw.target))
        reason = next((reason for reason, applies in rules.items() if applies(pair)), None)
        if reason is None:
            yield pair
        else:
            dropped[reason] += 1


def without_repeats(pairs: Iterable[Pair], dropped: Counter[str]) -> list[Pair]:
    """Each pair once, in the order of its first time."""
    every = list(pairs)
    once = list(dict.fromkeys(every))
    dropped["said already"] += len(every) - len(once)
    return once


# ---------------------------------------------------------------------- holding out
def source_key(text: str) -> str:
    """What near-duplicates share: letters alone, without case, placeholders, digits, punctuation and white space."""
    bare = _PLACEHOLDER.sub(" ", normalised(text)).casefold()
    return "".join(c for c in bare if c.isalpha())


def part_of(pair: Pair, dev_fraction: float, test_fraction: float) -> str:
    """train, dev or test, by the source's key alone.

    So every pair with the same source, however punctuated or capitalised and whatever its translation, is on one side,
    and a pair that is added later moves no other one.
    """
    if not dev_fraction and not test_fraction:
        return "train"
    draw = int.from_bytes(hashlib.sha256(source_key(pair.source).encode()).digest()[:8], "big") / 2**64
    if draw < test_fraction:
        return "test"
    return "dev" if draw < test_fraction + dev_fraction else "train"
