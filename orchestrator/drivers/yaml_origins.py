"""Where the values of a spec came from: which file, and which key or cell there, when patterns and includes are worked in.

`Origins` answers what `Marks` answers about a single file. Nothing is looked up before somebody has a problem to show.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.domain.errors import Problem
from orchestrator.drivers.yaml_text import one_line
from orchestrator.drivers.yaml_tree import Mark, Marks, Path

NO_FIELDS: Mapping[str, tuple[Marks, Path]] = {}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one item was written, and which of its fields came from elsewhere (defaults, a table)."""

    marks: Marks
    path: Path
    fields: Mapping[str, tuple[Marks, Path]] = field(default_factory=lambda: NO_FIELDS)


class TableMarks(Marks):
    """The cells of a CSV file. A path is (line,) or (line, column of the table, from 0)."""

    def __init__(self, file: str) -> None:
        super().__init__("", file)

    def find(self, path: Path) -> Mark | None:
        """No cell has a text that a message would repeat: a table may hold passwords."""
        return None

    def problem_at(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem at a line of the table."""
        line = path[0] if path and isinstance(path[0], int) else 1
        return Problem(self.file, line, 1, one_line(message), one_line(hint))


class Origins(Marks):
    """The positions of a spec that was put together. Paths are those of the finished spec."""

    def __init__(self, main: Marks) -> None:
        super().__init__("", main.file)
        self.main = main
        self.moved: dict[Path, Origin] = {}
        """Start of a path → where what stands there was written. What is not here stands in the main file, at the same path."""
        self.renamed: dict[tuple[str, Path], Path] = {}
        """File and path under a field's own name → the path that the file holds (`limit_w` → `limit`)."""

    def locate(self, path: Path) -> tuple[Marks, Path]:
        """The file that `path` of the finished spec came from, and the path there."""
        marks, there = self.main, path
        for length in range(len(path), 0, -1):
            origin = self.moved.get(path[:length])
            if origin is not None:
                rest = path[length:]
                if rest and rest[0] in origin.fields:
                    marks, start = origin.fields[str(rest[0])]
                    there = (*start, *rest[1:])
                else:
                    marks, there = origin.marks, (*origin.path, *rest)
                break
        for length in range(len(there), 0, -1):
            written = self.renamed.get((marks.file, there[:length]))
            if written is not None:
                return marks, (*written, *there[length:])
        return marks, there

    def source(self, path: Path) -> Path:
        """The path as its file has it."""
        return self.locate(path)[1]

    def find(self, path: Path) -> Mark | None:
        """The mark of what `path` came from."""
        marks, there = self.locate(path)
        return marks.find(there)

    def problem_at(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem at the place where the value of `path` was written."""
        marks, there = self.locate(path)
        return marks.problem_at(there, message, hint, at_key=at_key)
