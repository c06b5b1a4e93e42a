"""A YAML file as a pydantic model: everything wrong with it at once, each problem at its line and column.

loaded = load_model(Path("job.yaml"), JobSpec)      raises BadInput with every problem
loaded.model, loaded.text, loaded.sha256            the file as it was read
loaded.problem_at(("steps",), "...", "...")         for checks that need more than one field
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.domain.errors import BadInput, Problem
from orchestrator.drivers.model_problems import model_problems, salvage
from orchestrator.drivers.yaml_text import decode, read_bytes, unseen_problems
from orchestrator.drivers.yaml_tree import Marks, TreeBuilder
from orchestrator.drivers.yaml_tree import Path as ValuePath

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """A file that is right in itself."""

    model: M
    text: str
    sha256: str
    """Of the file's bytes, in hex."""
    marks: Marks = field(repr=False)

    def problem_at(self, path: ValuePath, message: str, hint: str = "") -> Problem:
        """A problem at the value (or, for a list or mapping, at the key) that `path` names."""
        return self.marks.problem_at(path, message, hint)


@dataclass(frozen=True)
class Examined(Generic[M]):
    """A file that was read as far as possible."""

    model: M | None
    """Valid where there is no problem; otherwise salvaged and unchecked. None where the file is not even YAML."""
    problems: tuple[Problem, ...]
    broken: frozenset[ValuePath]
    """Paths at which `model` holds a stand-in for a wrong or missing value."""
    text: str
    sha256: str
    marks: Marks = field(repr=False)


def load_model(path: Path, model: type[M]) -> Loaded[M]:
    """Read `path` as a `model`. Raises BadInput with every problem."""
    return _required(examine(read_bytes(path), str(path), model))


def parse_model(text: str, file: str, model: type[M]) -> Loaded[M]:
    """Read `text` as a `model`; `file` is the name that problems carry. Raises BadInput with every problem."""
    return _required(examine(text.encode("utf-8", errors="surrogatepass"), file, model))


@dataclass(frozen=True)
class Tree:
    """The plain values of one file, before any model looks at them."""

    root: dict[str, Any] | None
    """None where the file is no mapping, or reading stopped before its end."""
    problems: tuple[Problem, ...]
    broken: frozenset[ValuePath]
    text: str
    sha256: str
    marks: Marks = field(repr=False)


def read_tree(data: bytes, file: str) -> Tree:
    """Read `data` as strict YAML. Raises BadInput only where it is no text in UTF-8."""
    text = decode(data, file)
    sha256 = hashlib.sha256(data).hexdigest()
    marks = Marks(text, file)
    unseen = unseen_problems(text, file)
    if unseen:
        return Tree(None, tuple(unseen), frozenset(), text, sha256, marks)
    builder = TreeBuilder(text, file)
    builder.build()
    if not builder.complete:
        return Tree(None, tuple(builder.problems), frozenset(), text, sha256, marks)
    if not isinstance(builder.root, dict):
        shape = "is empty" if builder.root is None else f"holds a {'list' if isinstance(builder.root, list) else 'single value'}"
        nothing = Problem(
            file, 1, 1, f"the file {shape}", "write `key: value` lines; the README beside the example specs explains every key"
        )
        return Tree(None, (*builder.problems, nothing), frozenset(), text, sha256, marks)
    return Tree(builder.root, tuple(builder.problems), frozenset(builder.broken), text, sha256, marks)


def validate_tree(root: dict[str, Any], model: type[M], marks: Marks, broken: set[ValuePath]) -> tuple[M, list[Problem]]:
    """`root` as a `model`: valid without problems, else salvaged. Adds the paths of wrong values to `broken`."""
    try:
        return model.model_validate(root), []
    except ValidationError as error:
        problems = model_problems(error, model, marks, broken)
        return salvage(model, root, broken), problems


def examine(data: bytes, file: str, model: type[M]) -> Examined[M]:
    """Read `data` as a `model` and collect what is wrong. Raises BadInput only where it is no text in UTF-8."""
    tree = read_tree(data, file)
    if tree.root is None:
        return Examined(None, tree.problems, frozenset(), tree.text, tree.sha256, tree.marks)
    broken = set(tree.broken)
    read, problems = validate_tree(tree.root, model, tree.marks, broken)
    return Examined(read, (*tree.problems, *problems), frozenset(broken), tree.text, tree.sha256, tree.marks)


def _required(examined: Examined[M]) -> Loaded[M]:
    if examined.problems or examined.model is None:
        raise BadInput(tuple(sorted(set(examined.problems))))
    return Loaded(examined.model, examined.text, examined.sha256, examined.marks)
