"""Names by pattern: `r[001-250]-n[1-4]` stands for 1,000 names, and `{1}` beside it for the text of its first range.

Ranges are written as ClusterShell's node sets are, so that what stands in a spec can be typed on the command line. Unlike a set,
a pattern keeps its order (the last range runs fastest), and texts beside it are filled in for each name:

    {1}        the text of the first range, padding kept               r[001-250] → 001
    {2*3}      the running number over ranges 2 and 3, from 1          r[01-25]-n[1-4] as {1*2} → 1 ... 100
    {2*3+32}   the same from 33; {2:02} with at least two digits
    {2/10}     which ten it is: 1 for the first ten of range 2, 2 for the next
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import TypeVar

T = TypeVar("T")
N = TypeVar("N", int, float)

MOST_NAMES = 200_000
MOST_RANGES = 6

_GROUP = re.compile(r"\[([^\[\]]*)\]")
_ITEM = re.compile(r"([0-9]{1,9})-([0-9]{1,9})|([A-Za-z0-9]{1,32})")
_REFERENCE = re.compile(r"\{([^{}]*)\}")
_INSIDE = re.compile(r"([1-9](?:\*[1-9])*)(?:/([1-9][0-9]{0,4}))?(?:\+([0-9]{1,6}))?(?::(0[1-9]))?")


class PatternError(ValueError):
    """A pattern or a text beside it that cannot be read; `hint` is the way out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def is_pattern(text: str) -> bool:
    """Whether `text` holds a range."""
    return "[" in text or "]" in text


@dataclass(frozen=True)
class Pattern:
    """The names that one text stands for, in order."""

    text: str
    words: tuple[str, ...]
    """The text around the ranges, one more than there are ranges."""
    ranges: tuple[tuple[str, ...], ...]

    @staticmethod
    def parse(text: str, most: int = MOST_NAMES) -> "Pattern":
        """Read `text`. Raises PatternError; one that stands for more than `most` names is refused before any is made."""
        parts = _GROUP.split(text)
        words, groups = tuple(parts[::2]), parts[1::2]
        if any("[" in word or "]" in word for word in words):
            raise PatternError(f"{text} has a bracket without its partner", "write ranges as [01-40] or [1,3,7]")
        if len(groups) > MOST_RANGES:
            raise PatternError(f"{text} has {len(groups)} ranges; at most {MOST_RANGES} are read", "use fewer")
        count = math.prod(_size(text, group) for group in groups)
        if count > most:
            raise PatternError(f"{text} stands for {count:,} names; at most {most:,} are read", "shorten its ranges")
        return Pattern(text, words, tuple(_values(text, group) for group in groups))

    def __len__(self) -> int:
        return math.prod(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many values each range has."""
        return tuple(len(values) for values in self.ranges)

    def names(self) -> list[str]:
        """Every name."""
        columns: list[list[str]] = [[self.words[0]] * len(self)]
        for index, word in enumerate(self.words[1:]):
            columns.append(self.spread([value + word for value in self.ranges[index]], index, index))
        return ["".join(row) for row in zip(*columns, strict=True)]

    def fill(self, text: str) -> list[str]:
        """`text` for each name, its references filled in. Raises PatternError."""
        parts = _REFERENCE.split(text)
        if len(parts) == 1:
            return [text] * len(self)
        columns = [self._numbers(text, part) if odd else [part] * len(self) for odd, part in _numbered(parts) if odd or part]
        return columns[0] if len(columns) == 1 else ["".join(row) for row in zip(*columns, strict=True)]

    def running(self, start: N, steps: Sequence[N]) -> list[N]:
        """`start` plus the place in each range (from 0) times that range's step, for each name."""
        total = [start]
        for size, step in zip(self.sizes, steps, strict=True):
            offsets = [place * step for place in range(size)]
            total = [base + offset for base in total for offset in offsets]
        return total

    def strides(self) -> list[int]:
        """The steps that count the names one by one."""
        return [math.prod(self.sizes[index + 1 :]) for index in range(len(self.sizes))]

    def spread(self, table: Sequence[T], first: int, last: int) -> list[T]:
        """`table`, which has one value for each place in the ranges `first` to `last`, laid out over all names."""
        inner, outer = math.prod(self.sizes[last + 1 :]), math.prod(self.sizes[:first])
        return list(chain.from_iterable(repeat(value, inner) for value in table)) * outer

    def _numbers(self, text: str, inside: str) -> list[str]:
        match = _INSIDE.fullmatch(inside)
        if match is None:
            raise PatternError(
                f"{{{inside}}} in {text} is no reference to a range", "write {1}, {2*3}, {2*3+32}, {2/10} or {2:02}"
            )
        which = [int(number) - 1 for number in match[1].split("*")]
        if max(which) >= len(self.ranges):
            have = f"{self.text} has {len(self.ranges)} range{'' if len(self.ranges) == 1 else 's'}"
            raise PatternError(f"{{{inside}}} in {text} refers to range {max(which) + 1}, but {have}", "refer to one it has")
        if len(which) == 1 and match[2] is None and match[3] is None and match[4] is None:
            return self.spread(self.ranges[which[0]], which[0], which[0])
        if len(set(which)) != len(which):
            raise PatternError(f"{{{inside}}} in {text} names a range twice", "name each range once")
        steps, stride = [0] * len(self.ranges), 1
        for group in reversed(which):
            steps[group], stride = stride, stride * self.sizes[group]
        group, start, form = int(match[2] or 1), 1 + int(match[3] or 0), f"{match[4] or ''}d"
        return [format(place // group + start, form) for place in self.running(0, steps)]


def _numbered(parts: list[str]) -> list[tuple[bool, str]]:
    return [(index % 2 == 1, part) for index, part in enumerate(parts)]


def _items(text: str, group: str) -> list[re.Match[str]]:
    matches = [_ITEM.fullmatch(item) for item in group.split(",")]
    found = [match for match in matches if match is not None]
    if len(found) != len(matches):
        raise PatternError(f"[{group[:40]}] in {text[:80]} is no range", "write ranges as [01-40] or [1,3,7]")
    return found


def _size(text: str, group: str) -> int:
    total = 0
    for match in _items(text, group):
        if match[1] is None:
            total += 1
            continue
        low, high = match[1], match[2]
        if int(high) < int(low):
            raise PatternError(f"[{low}-{high}] in {text} runs backwards", f"write [{high}-{low}]")
        padded = low.startswith("0") and len(low) > 1
        if (padded or (high.startswith("0") and len(high) > 1)) and len(low) != len(high):
            width = max(len(low), len(high))
            raise PatternError(
                f"[{low}-{high}] in {text} is padded with zeros on one side only",
                f"write [{low.zfill(width)}-{high.zfill(width)}] or [{int(low)}-{int(high)}]",
            )
        total += int(high) - int(low) + 1
    return total


def _values(text: str, group: str) -> tuple[str, ...]:
    values: list[str] = []
    for match in _items(text, group):
        if match[1] is None:
            values.append(match[3])
        else:
            width = len(match[1]) if match[1].startswith("0") else 1
            values.extend(str(number).zfill(width) for number in range(int(match[1]), int(match[2]) + 1))
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise PatternError(f"[{group[:60]}] in {text[:80]} names {value} twice", "let its parts not overlap")
        seen.add(value)
    return tuple(values)
