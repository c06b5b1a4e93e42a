"""A training job from its file: strict YAML, the schema of `domain/job.py`, and checks that the caller brings along.

The checks come in as a function because they are planning's, and drivers know nothing of planning.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import BadInput
from orchestrator.domain.job import JobSpec
from orchestrator.domain.spec import Finding
from orchestrator.drivers.yaml_file import examine
from orchestrator.drivers.yaml_text import read_bytes

Check = Callable[[JobSpec], Iterable[Finding]]


@dataclass(frozen=True)
class LoadedJob:
    """A job that is right, and the text it came from."""

    job: JobSpec
    text: str
    sha256: str
    """Of the file's bytes, in hex."""


def is_job(path: Path) -> bool:
    """Whether a file says that it is a job, right or wrong. Raises BadInput where it cannot be read."""
    return re.search(rb"^rackray_job\s*:", read_bytes(path), re.MULTILINE) is not None


def read_job(path: Path, check: Check) -> LoadedJob:
    """Read and check `path`. Raises BadInput with every problem, in the order of the file."""
    return parse_job(read_bytes(path), str(path), check)


def parse_job(data: bytes, file: str, check: Check) -> LoadedJob:
    """The same from the file's bytes; `file` is the name that problems carry."""
    examined = examine(data, file, JobSpec)
    problems = set(examined.problems)
    if examined.model is not None and not problems:
        # Degrees and batches are reckoned with only where every number can be trusted.
        problems |= {examined.marks.problem_at(finding.path, finding.message, finding.hint) for finding in check(examined.model)}
    if problems or examined.model is None:
        raise BadInput(tuple(sorted(problems)))
    return LoadedJob(examined.model, examined.text, examined.sha256)
