"""Random faults × killed and frozen controllers × seeds: what must always hold is checked after every commit."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.simulation import story
from tests.simulation.planted_bugs import BUGS, Bug

SEEDS = int(os.environ.get("RACKRAY_SEEDS", "200"))
MOST_SEEDS_FOR_A_BUG = 300


def breach_of(seed: int) -> str:
    """What is wrong with the history of `seed`; empty where nothing is."""
    try:
        story.play(seed)
    except story.Breach as breach:
        return str(breach)
    return ""


@pytest.mark.slow
def test_no_history_breaks_an_invariant() -> None:
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        breaches = [breach for breach in pool.map(breach_of, range(SEEDS), chunksize=5) if breach]
    assert breaches == []


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.says.replace(" ", "-"))
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    with bug.plant():
        caught = next((seed for seed in range(MOST_SEEDS_FOR_A_BUG) if breach_of(seed)), None)
    assert caught is not None, f"{MOST_SEEDS_FOR_A_BUG} histories, and nobody noticed that {bug.says}"


def test_one_seed_is_one_history_to_the_byte_whatever_the_hash_seed() -> None:
    program = "from tests.simulation.story import digest; print(digest(3))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert story.digest(4) not in digests
