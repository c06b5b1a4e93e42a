"""A cluster spec from its file: strict YAML, the schema of `domain/spec.py`, and checks that the caller brings along.

The checks come in as a function because they are planning's, and drivers know nothing of planning. They also run on a file with
mistakes in its fields, on whatever is right in it, so that an operator sees everything at once.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.domain.errors import BadInput, Problem
from orchestrator.domain.spec import ClusterSpec, Finding, SpecPath
from orchestrator.drivers.yaml_expand import Expansion
from orchestrator.drivers.yaml_file import read_tree, validate_tree
from orchestrator.drivers.yaml_origins import Origins
from orchestrator.drivers.yaml_sources import Gathered
from orchestrator.drivers.yaml_text import one_line, read_bytes
from orchestrator.drivers.yaml_tree import Marks

MOST_AT_ONE_PLACE = 4

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
    """The same from the file's bytes; `file` is the name that problems carry. Raises BadInput."""
    with _no_search_for_circles():
        return _parsed(data, file, check)


@contextmanager
def _no_search_for_circles() -> Iterator[None]:
    """A large site makes millions of small values and no circles among them: looking for some would be a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _parsed(data: bytes, file: str, check: Check) -> LoadedSpec:
    tree = read_tree(data, file)
    if tree.root is None:
        raise BadInput(tuple(sorted(set(tree.problems))))
    gathered = Gathered(tree)
    expansion = Expansion(gathered)
    expansion.work()
    broken = set(gathered.broken)
    if gathered.incomplete:
        broken |= {(name,) for name in ClusterSpec.model_fields if name not in gathered.data}
    for section in ("nodes",):
        if (section,) in expansion.void and not gathered.data.get(section):
            broken.add((section,))
    spec, wrong = validate_tree(gathered.data, ClusterSpec, gathered.origins, broken)
    void = frozenset(broken | expansion.void)
    problems = {*gathered.problems, *wrong, *_few(list(_checked(spec, check, gathered.origins, void)))}
    if problems:
        raise BadInput(tuple(sorted(problems)))
    return LoadedSpec(spec, tree.text, gathered.sha256, gathered.origins)


def _checked(spec: ClusterSpec, check: Check, origins: Origins, void: frozenset[SpecPath]) -> Iterator[Problem]:
    for finding in check(spec):
        others = () if finding.other is None else (finding.other,)
        if any(_rests_on(path, void) for path in (finding.path, *others, *finding.rests_on)):
            continue
        message = finding.message
        place = origins.problem_at(finding.path, message, finding.hint)
        for other in others:
            there = origins.problem_at(other, "")
            file = "" if there.file == place.file else f"{there.file}, "
            message += f", {file}line {there.line}"
        yield replace(place, message=one_line(message))


def _few(problems: list[Problem]) -> list[Problem]:
    """At most `MOST_AT_ONE_PLACE` problems of one place: a pattern's mistake is not said for each of its 12,500 names."""
    by_place: dict[tuple[str, int, int], list[Problem]] = {}
    for problem in problems:
        by_place.setdefault((problem.file, problem.line, problem.column), []).append(problem)
    kept: list[Problem] = []
    for found in by_place.values():
        if len(found) <= MOST_AT_ONE_PLACE:
            kept += found
            continue
        more = len(found) - MOST_AT_ONE_PLACE + 1
        kept += found[: MOST_AT_ONE_PLACE - 1]
        kept.append(replace(max(found), message=f"… and {more:,} more like these come from this place"))
    return kept


def _rests_on(path: SpecPath, broken: frozenset[SpecPath]) -> bool:
    """Whether the value at `path`, or something around it, is only a stand-in."""
    if "*" not in path:
        return any(path[:length] in broken for length in range(len(path) + 1))
    return any(
        len(bad) <= len(path) and all(mine in (theirs, "*") for mine, theirs in zip(path, bad, strict=False)) for bad in broken
    )
