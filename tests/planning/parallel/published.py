"""The published runs, where they lie beside the checkout; tests that need them skip elsewhere."""

from functools import cache
from pathlib import Path

import pytest

from orchestrator.domain.run_row import RunRow
from orchestrator.drivers.run_rows import read_run_rows

FOLDER = Path(__file__).parents[4] / "shared" / "data"
FILES = ("published_runs.csv", "published_runs_small.csv")

needs_published_runs = pytest.mark.skipif(
    not all((FOLDER / name).exists() for name in FILES), reason="the published runs are not beside the checkout"
)


@cache
def published_rows() -> tuple[RunRow, ...]:
    return tuple(row for name in FILES for row in read_run_rows(FOLDER / name))
