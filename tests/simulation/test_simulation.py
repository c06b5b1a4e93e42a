"""Random faults × killed and frozen controllers × seeds: what must always hold is checked after every commit."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.simulation import story
from tests.simulation.planted_bugs import BUGS

SEEDS = 240
"""Histories in one run of the tests; `make soak` plays 10,000."""
MOST_SEEDS_FOR_A_BUG = 300


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Histories use one processor each; a planted bug stays in its process."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        yield pool


@pytest.fixture(scope="module")
def catches(pool: ProcessPoolExecutor) -> list[Future[str]]:
    """Per planted bug, what was said about it first."""
    return [pool.submit(first_breach_with, number) for number in range(len(BUGS))]


def first_breach_with(number: int) -> str:
    """Play histories with a bug planted until something is noticed."""
    with BUGS[number].plant():
        return next(filter(None, map(story.breach_of, range(MOST_SEEDS_FOR_A_BUG))), "")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BUGS)), ids=[bug.says.replace(" ", "-") for bug in BUGS])
def test_a_planted_bug_is_noticed(number: int, catches: list[Future[str]]) -> None:
    assert catches[number].result(), f"{MOST_SEEDS_FOR_A_BUG} histories, and nobody noticed that {BUGS[number].says}"


@pytest.mark.slow
def test_no_history_breaks_an_invariant(pool: ProcessPoolExecutor) -> None:
    assert [breach for breach in pool.map(story.breach_of, range(SEEDS), chunksize=5) if breach] == []


def test_one_seed_is_one_history_to_the_byte_whatever_the_hash_seed() -> None:
    program = "from tests.simulation.story import digest; print(digest(3))"
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
        digests.add(ran.stdout)
    assert len(digests) == 1
    assert story.digest(4) not in digests
