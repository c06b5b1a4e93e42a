"""YAML text to plain values, strictly, with the position of every key and value when somebody asks.

One pass over libyaml's events builds the values and refuses what reads differently from how it looks: duplicate keys, anchors,
aliases, merge keys, tags, several documents, empty values and the words of `yaml_words`. Nothing is composed, so an alias bomb or
a deep nest costs nothing. Positions are a second pass, made only when a problem needs one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from orchestrator.domain.errors import Problem
from orchestrator.drivers.yaml_text import one_line, syntax_problems
from orchestrator.drivers.yaml_words import Trouble, key_trouble, read_word

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the file to a value."""

MAX_DEPTH = 32
MAX_EVENTS = 1_500_000
"""Keys, values and brackets in one file: about 100,000 nodes of seven fields."""

MAX_PROBLEMS = 500
"""Reading stops there: what follows would hardly be another mistake."""

_NO_KEY = object()
_DROPPED = object()


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value and its key stand, from 1. An item of a list is its own key."""

    line: int
    column: int
    key_line: int
    key_column: int
    raw: str | None
    """The text of a scalar; None for a list or a mapping."""


class Marks:
    """The positions of one text, read on the first question."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._text = text

    @cached_property
    def _index(self) -> dict[Path, Mark]:
        builder = TreeBuilder(self._text, self.file, record=True)
        builder.build()
        return builder.marks

    def source(self, path: Path) -> Path:
        """The path as the file has it: of a single file, the same."""
        return path

    def find(self, path: Path) -> Mark | None:
        """The mark of exactly this path; None if the file does not hold it."""
        return self._index.get(path)

    def problem_at(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem at the value `path` names; at its key with `at_key`, or where the value is a list or mapping under a key.

        A path that the file does not hold (a default, a missing key) is shown at the nearest thing around it that it does hold.
        """
        message, hint = one_line(message), one_line(hint)
        for length in range(len(path), 0, -1):
            mark = self._index.get(path[:length])
            if mark is not None:
                if at_key or mark.raw is None or length < len(path):
                    return Problem(self.file, mark.key_line, mark.key_column, message, hint)
                return Problem(self.file, mark.line, mark.column, message, hint)
        return Problem(self.file, 1, 1, message, hint)


@dataclass(slots=True)
class _Frame:
    """An open list or mapping: what it holds so far, and which key or index is being filled."""

    data: Any
    is_mapping: bool
    key: Any = _NO_KEY
    key_event: Any = None
    at: str | int = 0


class TreeBuilder:
    """Reads one text. After `build`: `root`, every problem, and `broken`, the paths whose values must not be trusted."""

    def __init__(self, text: str, file: str, *, record: bool = False) -> None:
        self.root: Any = None
        self.problems: list[Problem] = []
        self.broken: set[Path] = set()
        self.marks: dict[Path, Mark] = {}
        self.complete = True
        """False where reading stopped before the end: what is missing then may only be unread."""
        self._text, self._file, self._record = text, file, record
        self._stack: list[_Frame] = []
        self._documents = 0

    def build(self) -> None:
        """Read the text to its end, or to the first place where it cannot go on."""
        try:
            for count, event in enumerate(_events(self._text)):
                if count == MAX_EVENTS:
                    self._report(
                        event, f"the file holds more than {MAX_EVENTS:,} keys and values", "split the cluster into several specs"
                    )
                    self.complete = False
                if not self.complete or not self._take(event):
                    break
                if len(self.problems) >= MAX_PROBLEMS:
                    self._report(event, f"reading stops after {MAX_PROBLEMS} problems", "correct the ones above first")
                    self.complete = False
                    break
        except yaml.YAMLError as error:
            self.complete = False
            self.problems.extend(syntax_problems(error, self._text, self._file))

    def _take(self, event: Any) -> bool:
        """Handle one event; False where reading must stop."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._refuse_properties(event)
            self._take_scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._refuse_properties(event)
            if len(self._stack) == MAX_DEPTH:
                self._report(
                    event,
                    f"lists and mappings are nested more than {MAX_DEPTH} deep here",
                    "look for a stray bracket or indentation",
                )
                self.complete = False
                return False
            is_mapping = kind is yaml.MappingStartEvent
            data: Any = {} if is_mapping else []
            self._place(data, event)
            self._stack.append(_Frame(data, is_mapping))
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._stack.pop()
        elif kind is yaml.AliasEvent:
            self._place(
                None,
                event,
                (f"*{event.anchor} is an alias; aliases are not read", "write the value out, or quote text that begins with *"),
            )
        elif kind is yaml.DocumentStartEvent:
            self._documents += 1
            if self._documents > 1:
                self._report(event, "a second YAML document begins here", "keep one document in a file: remove the line `---`")
                self.complete = False
                return False
        return True

    def _refuse_properties(self, event: Any) -> None:
        """Anchors and tags let a file mean something else than it shows."""
        if event.anchor is not None:
            self._report(
                event,
                f"&{event.anchor} is an anchor; anchors and aliases are not read",
                "remove it, or quote text that begins with &",
            )
        if event.tag is not None:
            self._report(event, f"the tag {event.tag} is not read", "remove it; quotes make a value text")

    def _take_scalar(self, event: Any) -> None:
        raw = event.value
        frame = self._stack[-1] if self._stack else None
        if frame is not None and frame.is_mapping and frame.key is _NO_KEY:
            self._take_key(frame, raw, event)
        elif event.style or event.tag is not None:
            self._place(raw, event, _escaped_control(raw) if event.style == '"' else None)
        else:
            value, trouble = read_word(raw)
            self._place(value, event, trouble)

    def _take_key(self, frame: _Frame, raw: str, event: Any) -> None:
        frame.key, frame.key_event, frame.at = raw, event, raw
        if not event.style and raw == "<<":
            self._report(event, "<< is a merge key; merge keys are not read", "write the keys out")
            frame.key = _DROPPED
            return
        trouble = _escaped_control(raw) if event.style else key_trouble(raw)
        if trouble is not None:
            self._report(event, *trouble)
        if raw in frame.data:
            self._report(event, f"the key `{raw}` stands here a second time", "remove or rename one of the two")
            frame.key = _DROPPED

    def _place(self, value: Any, event: Any, trouble: Trouble | None = None) -> None:
        """Put `value` where the innermost open list or mapping expects it."""
        frame = self._stack[-1] if self._stack else None
        if frame is None:
            self.root = value
            if value is None:
                return  # an empty file: said once, by whoever asked for the file
        elif not frame.is_mapping:
            frame.at = len(frame.data)
            frame.data.append(value)
            self._note(event, event)
        elif frame.key is _NO_KEY:
            frame.key, frame.key_event, frame.at = _DROPPED, event, "?"
            trouble = ("a list, mapping or alias cannot be a key", "quote a value that begins with {, [ or *")
        else:
            if frame.key is not _DROPPED:
                frame.data[frame.key] = value
                self._note(event, frame.key_event)
            frame.key = _NO_KEY
        if trouble is not None:
            self._report(event, *trouble)
            self.broken.add(self._path())

    def _note(self, event: Any, key_event: Any) -> None:
        if self._record:
            start, key = event.start_mark, key_event.start_mark
            raw = event.value if type(event) is yaml.ScalarEvent else None
            # The first of two equal keys counts, as it does for the values.
            self.marks.setdefault(self._path(), Mark(start.line + 1, start.column + 1, key.line + 1, key.column + 1, raw))

    def _path(self) -> Path:
        return tuple(frame.at for frame in self._stack)

    def _report(self, event: Any, message: str, hint: str) -> None:
        mark = event.start_mark
        self.problems.append(Problem(self._file, mark.line + 1, mark.column + 1, one_line(message), one_line(hint)))


def _events(text: str) -> Iterator[Any]:
    loader = yaml.CSafeLoader(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _escaped_control(text: str) -> Trouble | None:
    """Control characters that came in through an escape such as "\\x00"."""
    for character in text:
        if not character.isprintable() and character not in "\n\t":
            return f"the text holds the control character U+{ord(character):04X}", "remove the escape"
    return None
