"""From a path to text that is safe to parse, and libyaml's complaints in an operator's words."""

import difflib
import os
import re
import stat
import unicodedata
from pathlib import Path

import yaml

from orchestrator.domain.errors import BadInput, Problem

MAX_BYTES = 8 * 1024 * 1024
MAX_SHOWN = 500
"""Characters of a message; a key may be a million long."""

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
"""Control characters, invisible characters and those that change the reading direction."""
_MAX_UNSEEN_REPORTED = 20
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def _inside(folder: Path) -> str:
    """Which files of `folder` may have been meant."""
    names = sorted(str(each) for each in folder.glob("*.yaml"))
    few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"name a YAML file inside it: {few}" if names else "name a YAML file"


def _near(path: Path) -> str:
    """A question about the files with the nearest names, beside where `path` would be."""
    try:
        names = [each.name for each in path.parent.iterdir() if not each.name.startswith(".")]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(str(path.with_name(name)) for name in close)}?" if close else ""


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises BadInput for what is no readable regular file of at most `MAX_BYTES`."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise BadInput(
            [_whole(path, "there is no such file", _near(path) or "check the path; relative paths start at the current folder")]
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput([_whole(path, f"cannot be read: {reason}", "check its permissions and the path")]) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise BadInput([_whole(path, "is a folder", _inside(path))])
        if not stat.S_ISREG(mode):
            raise BadInput([_whole(path, "is not a regular file", "name a YAML file")])
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput([_whole(path, f"cannot be read: {error.strerror}", "check the disk or mount it lies on")]) from error
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        size = os.stat(path).st_size
        raise BadInput([_whole(path, f"is {size / 2**20:.1f} MiB large; at most {MAX_BYTES // 2**20} MiB are read", "split it")])
    return data


def decode(data: bytes, file: str) -> str:
    """The text of `data`. Raises BadInput where it is not plain UTF-8 without a byte order mark."""
    if data.startswith(_UTF_16_OR_32):
        raise BadInput(
            [Problem(file, 1, 1, "the file is UTF-16 or UTF-32, not UTF-8", "save it as UTF-8 without a byte order mark")]
        )
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadInput(
            [Problem(file, 1, 1, "the file begins with a byte order mark", "save it as UTF-8 without a byte order mark")]
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", errors="replace")) + 1
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8"
        raise BadInput([Problem(file, line, column, message, "save the file as UTF-8 without a byte order mark")]) from None


def unseen_problems(text: str, file: str) -> list[Problem]:
    """Every character that an operator cannot see or that YAML does not allow; the first twenty of them."""
    problems: list[Problem] = []
    for match in _UNSEEN.finditer(text):
        if len(problems) == _MAX_UNSEEN_REPORTED:
            break
        line, column = position(text, match.start())
        character = match.group()
        message = (
            f"the invisible character U+{ord(character):04X} ({unicodedata.name(character, 'control character')}) stands here"
        )
        problems.append(Problem(file, line, column, message, "delete it and type the line again"))
    return problems


def one_line(text: str) -> str:
    """`text` for a message: no line breaks or control characters that a file could smuggle in, and not without end."""
    if len(text) <= MAX_SHOWN and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:MAX_SHOWN])
    return shown + "..." if len(text) > MAX_SHOWN else shown


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at `offset`. CRLF, LF and CR end a line."""
    before = text[:offset].replace("\r\n", "\n").replace("\r", "\n")
    return before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1


def syntax_problems(error: yaml.YAMLError, text: str, file: str) -> list[Problem]:
    """What libyaml could not read, at the place where it stopped. Tabs used as indentation are all named."""
    problem = str(getattr(error, "problem", None) or error)
    mark = getattr(error, "problem_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    if "cannot start any token" in problem:
        tabs = [
            Problem(file, *position(text, m.end() - 1), "a tab is used for indentation", "use spaces")
            for m in _TAB_INDENT.finditer(text)
        ]
        if tabs:
            return tabs
    context_mark = getattr(error, "context_mark", None)
    begun = f" (begun at line {context_mark.line + 1}, column {context_mark.column + 1})" if context_mark else ""
    for part, message, hint in _SENTENCES:
        if part in problem:
            return [Problem(file, line, column, message.format(begun=begun, found=_at(text, line, column)), hint)]
    return [
        Problem(
            file,
            line,
            column,
            f"this is not YAML: {problem}{begun}",
            "compare the indentation, quotes and brackets with the lines before",
        )
    ]


_TAB_INDENT = re.compile(r"^ *\t", re.MULTILINE)
_SENTENCES = (
    (
        "mapping values are not allowed",
        "a `:` stands where no key can be",
        "check the indentation of this line and the end of the one before; quote text that contains `: `",
    ),
    ("unexpected end of stream", "a quote is never closed{begun}", "close it"),
    (
        "expected ',' or ']'",
        "a list is not closed, or a comma is missing{begun}",
        "write [a, b, c]; quote items with brackets or braces in them",
    ),
    ("expected ',' or '}'", "a mapping is not closed, or a comma is missing{begun}", "write {a: 1, b: 2}"),
    ("expected '-' indicator", "a list goes on without a dash{begun}", "begin each item with `- `, all in one column"),
    (
        "did not find expected key",
        "this line does not fit the mapping around it{begun}",
        "put its keys in one column and close quotes",
    ),
    ("could not find expected ':'", "a key without a `:`{begun}", "write `key: value`"),
    ("cannot start any token", "{found} cannot begin a value", "quote the value"),
    (
        "unknown escape",
        "{found} begins an escape that YAML does not know{begun}",
        "use single quotes, or two backslashes for one",
    ),
    ("undefined tag handle", "a tag that is not defined{begun}", "remove it; quotes make a value text"),
)


def _at(text: str, line: int, column: int) -> str:
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    row = rows[line - 1] if 0 < line <= len(rows) else ""
    return f"`{row[column - 1]}`" if 0 < column <= len(row) else "this"


def _whole(path: Path, message: str, hint: str) -> Problem:
    return Problem(str(path), 0, 0, message, hint)
