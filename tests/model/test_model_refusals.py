"""What an operator sees of a run that cannot go on: one sentence on stderr that names place and way out, and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_launch import Launcher, tiny_spec

from model.contract import ExitCode
from model.corpus import prepare_corpus


@pytest.fixture(scope="module")
def nowhere(runs: Path) -> str:
    """No directory can be made below a file, whoever asks."""
    file = runs / "a-file"
    file.write_text("")
    return f"{file}/below"


@pytest.mark.parametrize(
    ("part", "code", "words"),
    [
        ("output", ExitCode.BAD_RUN, "output_directory {place} cannot be written"),
        ("data", ExitCode.BAD_DATA, "data.directory: {place} cannot be filled from python-stdlib"),
        ("checkpoint", ExitCode.BAD_CHECKPOINT, "step-000002.draft cannot be made"),
    ],
)
def test_a_directory_that_cannot_be_written(
    part: str, code: ExitCode, words: str, nowhere: str, start: Launcher, runs: Path
) -> None:
    changes: dict[str, Any] = {part: {"directory": nowhere}} if part != "output" else {"output_directory": nowhere}
    changes["checkpoint"] = {"every_steps": 2, **changes.get("checkpoint", {})}
    prepare_corpus(tiny_spec(runs / "any"))
    # Ranks that train find it out together: none is left waiting for another.
    launch = start(tiny_spec(runs / f"unwritable-{part}", layout={"data": 2 if part == "checkpoint" else 1}, **changes))
    assert set(launch.wait()) == {code}, launch.say()
    said = launch.logs[0].read_text()
    assert words.format(place=nowhere) in said
    assert "Traceback" not in launch.say()


@pytest.mark.parametrize(
    ("point", "code", "words"),
    [
        ("no room for a checkpoint", ExitCode.BAD_CHECKPOINT, "step-000002.draft could not be written: rank 0: "),
        ("no room for the progress", ExitCode.CRASHED, "cannot be written: [Errno 27] File too large; make room there"),
    ],
)
def test_a_disk_that_is_full(point: str, code: ExitCode, words: str, start: Launcher, runs: Path) -> None:
    spec = tiny_spec(runs / point.replace(" ", "-"), checkpoint={"every_steps": 2})
    prepare_corpus(spec)
    launch = start(spec, point)
    assert launch.wait() == [code], launch.say()
    assert words in launch.say()
    assert "Traceback" not in launch.say()
    assert not list(Path(spec.checkpoint.directory).glob("step-??????"))
