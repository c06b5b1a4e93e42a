"""The files that a spec consists of: what it includes, and the table of its machines. None of them may lie outside its folder.

`include: [racks.yaml]` brings in files that hold parts of the spec; `inventory: machines.csv` names a table of machines.
"""

import csv
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import BadInput, Problem
from orchestrator.domain.spec import TABLE_COLUMNS, ClusterSpec
from orchestrator.drivers.yaml_file import Tree, read_tree
from orchestrator.drivers.yaml_origins import Origin, Origins, TableMarks
from orchestrator.drivers.yaml_quantities import Quantities
from orchestrator.drivers.yaml_text import decode, one_line, read_bytes
from orchestrator.drivers.yaml_tree import Path as ValuePath

MOST_FILES = 64
SECRET_COLUMNS = ("username", "password", "bmc_certificate_sha256")
"""Columns of the vendor's list of factory passwords. They are never read here; a table that has them must be private."""


class Gathered:
    """One spec's files, merged. Whatever is wrong with a file stands in `problems`; the rest is still there."""

    def __init__(self, main: Tree) -> None:
        assert main.root is not None, "a file that is no mapping was refused before"  # noqa: S101 - tells the type checker
        self.data: dict[str, Any] = main.root
        self.origins = Origins(main.marks)
        self.problems: list[Problem] = list(main.problems)
        self.broken: set[ValuePath] = set(main.broken)
        self.incomplete = False
        """True where a part of the spec could not be read at all: what seems to be missing may stand there."""
        self._digests = [main.sha256]
        self._folder = Path(main.marks.file).parent
        self._quantities(main)
        self._include(main, (main.marks.file,))

    @property
    def sha256(self) -> str:
        """Of the file's bytes; of several files, of their hashes in the order of reading."""
        return self._digests[0] if len(self._digests) == 1 else hashlib.sha256("".join(self._digests).encode()).hexdigest()

    def table(self) -> "Table | None":
        """The table that the spec names, if it can be read."""
        named = self.data.pop("inventory", None)
        path: ValuePath = ("inventory",)
        if named is None or path in self.broken:
            return None
        data = self._read(named, path, "inventory")
        if data is None:
            return None
        self._digests.append(hashlib.sha256(data).hexdigest())
        file = str(self._folder / named)
        try:
            table = Table.of(decode(data, file), file)
        except BadInput as error:
            self.problems.extend(error.problems)
            self.incomplete = True
            return None
        mode = stat.S_IMODE(os.stat(file).st_mode)
        if table.has_secrets and mode & 0o077:
            message = f"{named} holds factory passwords and has mode {mode:04o}: others can read it"
            self._say(path, message, f"chmod 600 {named}, or keep the passwords in the secrets folder's factory.csv")
        self.problems.extend(table.problems)
        return table

    def _quantities(self, tree: Tree) -> None:
        quantities = Quantities()
        quantities.rewrite(tree.root, ClusterSpec)
        for path, message, hint in quantities.troubles:
            self.problems.append(tree.marks.problem_at(path, message, hint))
        for new, old in quantities.renamed.items():
            self.origins.renamed[(tree.marks.file, new)] = old
            if any(trouble[0][: len(old)] == old for trouble in quantities.troubles):
                self.broken.add(new)

    def _include(self, tree: Tree, chain: tuple[str, ...]) -> None:
        assert tree.root is not None, "only mappings are included"  # noqa: S101 - tells the type checker
        listed = tree.root.pop("include", None)
        if listed is None:
            return
        if not isinstance(listed, list):
            self.problems.append(
                tree.marks.problem_at(("include",), "include must be a list of file names", "write [racks.yaml]")
            )
            self.incomplete = True
            return
        for index, named in enumerate(listed):
            path: ValuePath = ("include", index)
            data = self._read(named, path, "include", tree)
            if data is None:
                continue
            file = str(self._folder / named)
            if file in chain or len(self._digests) >= MOST_FILES:
                what = "includes itself" if file in chain else f"is one file too many: at most {MOST_FILES} are read"
                self.problems.append(tree.marks.problem_at(path, f"{named} {what}", "remove it from `include`"))
                continue
            self._take(data, file, chain)

    def _take(self, data: bytes, file: str, chain: tuple[str, ...]) -> None:
        try:
            part = read_tree(data, file)
        except BadInput as error:
            self.problems.extend(error.problems)
            self.incomplete = True
            return
        self.problems.extend(part.problems)
        self._digests.append(part.sha256)
        if part.root is None:
            self.incomplete = True
            return
        if part.broken:
            self.incomplete = True
        self._quantities(part)
        self._include(part, (*chain, file))
        self._merge(self.data, part.root, (), (), part)

    def _merge(self, into: dict[str, Any], new: dict[str, Any], path: ValuePath, there: ValuePath, part: Tree) -> None:
        """Work `new`, which stands at `there` in `part`, into the spec at `path`: mappings and lists grow."""
        for key, value in new.items():
            at, source = (*path, key), (*there, key)
            if key not in into:
                into[key] = value
                self.origins.moved[at] = Origin(part.marks, source)
            elif isinstance(value, dict) and isinstance(into[key], dict):
                self._merge(into[key], value, at, source, part)
            elif isinstance(value, list) and isinstance(into[key], list):
                for index, item in enumerate(value):
                    self.origins.moved[(*at, len(into[key]))] = Origin(part.marks, (*source, index))
                    into[key].append(item)
            else:
                other = self.origins.problem_at(at, "")
                message = f"`{key}` stands here and in {other.file}, line {other.line}"
                self.problems.append(part.marks.problem_at(source, message, "remove one of the two", at_key=True))

    def _read(self, named: Any, path: ValuePath, word: str, tree: Tree | None = None) -> bytes | None:
        """The bytes of the file `named`, if it is one that this spec may name."""
        marks = tree.marks if tree is not None else self.origins
        trouble = self._trouble_with(named, word)
        if trouble is None:
            try:
                return read_bytes(self._folder / named)
            except BadInput as error:
                trouble = (f"{word} names {named}: {error.problems[0].message}", error.problems[0].hint)
        self.problems.append(marks.problem_at(path, *trouble))
        self.incomplete = True
        return None

    def _trouble_with(self, named: Any, word: str) -> tuple[str, str] | None:
        if not isinstance(named, str) or not named:
            return f"{word} must name a file", "write a path relative to the folder of this spec"
        if os.path.isabs(named) or "\0" in named:
            return f"{word} names {one_line(named)}, an absolute path", "write a path relative to the folder of this spec"
        folder, real = os.path.realpath(self._folder), os.path.realpath(self._folder / named)
        if os.path.commonpath([folder, real]) != folder:
            return (
                f"{word} names {one_line(named)}, which leads out of the folder of this spec",
                "move or copy the file into the folder",
            )
        return None

    def _say(self, path: ValuePath, message: str, hint: str) -> None:
        self.problems.append(self.origins.problem_at(path, message, hint))


@dataclass(frozen=True)
class Table:
    """What a CSV file says about machines, by name."""

    marks: TableMarks
    rows: dict[str, tuple[int, dict[str, str]]]
    """Name → line in the file, and what it says."""
    has_secrets: bool
    problems: tuple[Problem, ...]

    @staticmethod
    def of(text: str, file: str) -> "Table":
        """Read `text`. Raises BadInput where its first line does not name the columns."""
        marks = TableMarks(file)
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = [name.strip() for name in next(lines, [])]
            unknown = [name for name in header if name not in ("node", *TABLE_COLUMNS, *SECRET_COLUMNS)]
            if "node" not in header or unknown or len(set(header)) != len(header):
                wrong = f"unknown column {one_line(unknown[0])!r}" if unknown else "no column `node`, or one twice"
                hint = "the first line names the columns: node, then any of " + ", ".join((*TABLE_COLUMNS, *SECRET_COLUMNS))
                raise BadInput([marks.problem_at((1,), f"the table has {wrong}", hint)])
            rows: dict[str, tuple[int, dict[str, str]]] = {}
            problems = list(_fill(rows, lines, header, marks))
        except csv.Error as error:
            raise BadInput([marks.problem_at((lines.line_num,), f"this is not CSV: {error}", "close its quotes")]) from error
        return Table(marks, rows, bool(set(header) & {"password"}), tuple(problems))


def _fill(rows: dict[str, tuple[int, dict[str, str]]], lines: Any, header: list[str], marks: TableMarks) -> Iterator[Problem]:
    for cells in lines:
        line = lines.line_num
        if not cells:
            continue
        if len(cells) != len(header):
            yield marks.problem_at(
                (line,), f"the line has {len(cells)} cells, the first line {len(header)}", "give each column a cell"
            )
            continue
        given = {
            name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip() and name not in SECRET_COLUMNS
        }
        name = given.pop("node", "")
        if not name or name in rows:
            what = f"{name} stands in line {rows[name][0]} too" if name else "the line names no node"
            yield marks.problem_at((line,), what, "give each machine one line")
            continue
        rows[name] = (line, given)
