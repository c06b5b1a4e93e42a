"""A YAML file as a pydantic model: everything wrong with it at once, each problem at its line and column.

loaded = load_model(Path("job.yaml"), JobSpec)      raises BadInput with every problem
loaded.model, loaded.text, loaded.sha256            the file as it was read
loaded.problem_at(("steps",), "...", "...")         for checks that need more than one field
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

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


def examine(data: bytes, file: str, model: type[M]) -> Examined[M]:
    """Read `data` as a `model` and collect what is wrong. Raises BadInput only where it is no text in UTF-8."""
    text = decode(data, file)
    sha256 = hashlib.sha256(data).hexdigest()
    marks = Marks(text, file)
    unseen = unseen_problems(text, file)
    if unseen:
        return Examined(None, tuple(unseen), frozenset(), text, sha256, marks)
    tree = TreeBuilder(text, file)
    tree.build()
    if not tree.complete:
        return Examined(None, tuple(tree.problems), frozenset(), text, sha256, marks)
    if not isinstance(tree.root, dict):
        shape = "is empty" if tree.root is None else f"holds a {'list' if isinstance(tree.root, list) else 'single value'}"
        nothing = Problem(
            file, 1, 1, f"the file {shape}", "write `key: value` lines; the README beside the example specs explains every key"
        )
        return Examined(None, (*tree.problems, nothing), frozenset(), text, sha256, marks)
    broken = set(tree.broken)
    try:
        return Examined(model.model_validate(tree.root), tuple(tree.problems), frozenset(broken), text, sha256, marks)
    except ValidationError as error:
        problems = (*tree.problems, *model_problems(error, model, marks, broken))
        return Examined(salvage(model, tree.root, broken), problems, frozenset(broken), text, sha256, marks)


def _required(examined: Examined[M]) -> Loaded[M]:
    if examined.problems or examined.model is None:
        raise BadInput(tuple(sorted(set(examined.problems))))
    return Loaded(examined.model, examined.text, examined.sha256, examined.marks)
