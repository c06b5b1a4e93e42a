"""A cluster spec from its file: strict YAML, the schema of `domain/spec.py`, and checks that the caller brings along.

The checks come in as a function because they are planning's, and drivers know nothing of planning. They also run on a file with
mistakes in its fields, on whatever is right in it, so that an operator sees everything at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.domain.errors import BadInput, Problem
from orchestrator.domain.spec import ClusterSpec, Finding, SpecPath
from orchestrator.drivers.yaml_file import Examined, examine
from orchestrator.drivers.yaml_text import read_bytes
from orchestrator.drivers.yaml_tree import Marks

Check = Callable[[ClusterSpec], Iterable[Finding]]


@dataclass(frozen=True)
class LoadedSpec:
    """A spec that is right, and the text it came from."""

    spec: ClusterSpec
    text: str
    sha256: str
    """Of the file's bytes, in hex."""
    marks: Marks = field(repr=False)
    """Positions of keys and values, for problems that are found later."""


def read_spec(path: Path, check: Check) -> LoadedSpec:
    """Read and check `path`. Raises BadInput with every problem, in the order of the file."""
    return parse_spec(read_bytes(path), str(path), check)


def parse_spec(data: bytes, file: str, check: Check) -> LoadedSpec:
    """The same from the file's bytes; `file` is the name that problems carry."""
    examined = examine(data, file, ClusterSpec)
    problems = set(examined.problems)
    if examined.model is not None:
        problems |= set(_checked(examined, examined.model, check))
    if problems or examined.model is None:
        raise BadInput(tuple(sorted(problems)))
    return LoadedSpec(examined.model, examined.text, examined.sha256, examined.marks)


def _checked(examined: Examined[ClusterSpec], spec: ClusterSpec, check: Check) -> Iterable[Problem]:
    for finding in check(spec):
        others = () if finding.other is None else (finding.other,)
        if any(_rests_on(path, examined.broken) for path in (finding.path, *others, *finding.rests_on)):
            continue
        message = finding.message
        for other in others:
            message += f", line {examined.marks.problem_at(other, '').line}"
        yield examined.marks.problem_at(finding.path, message, finding.hint)


def _rests_on(path: SpecPath, broken: frozenset[SpecPath]) -> bool:
    """Whether the value at `path`, or something around it, is only a stand-in."""
    if "*" not in path:
        return any(path[:length] in broken for length in range(len(path) + 1))
    return any(
        len(bad) <= len(path) and all(mine in (theirs, "*") for mine, theirs in zip(path, bad, strict=False)) for bad in broken
    )
