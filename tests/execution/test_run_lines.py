"""The kept progress lines of a run: whole, each once, whatever happened to the one who wrote them."""

import json
from pathlib import Path

import pytest

from orchestrator.execution import run_lines
from orchestrator.execution.run_lines import keep_lines, lines_path


def lines(first: int, last: int) -> list[dict[str, object]]:
    return [{"step": step, "loss": 5.0 / step, "note": "x" * 300} for step in range(first, last + 1)]


def kept_steps(path: Path) -> list[int]:
    return [json.loads(text)["step"] for text in path.read_text().splitlines()]


def test_lines_are_appended_and_a_repeated_one_is_kept_once(tmp_path: Path) -> None:
    path = lines_path(tmp_path, "lm-1")
    keep_lines(path, lines(1, 40))
    keep_lines(path, lines(30, 60))
    assert kept_steps(path) == list(range(1, 61))


@pytest.mark.parametrize("bytes_left", [1, 17, 200, 329])
def test_a_line_that_a_killed_writer_tore_is_cut_off_and_comes_again_whole(tmp_path: Path, bytes_left: int) -> None:
    path = lines_path(tmp_path, "lm-1")
    keep_lines(path, lines(1, 10))
    torn = json.dumps(lines(11, 11)[0], sort_keys=True).encode()[:bytes_left]
    with path.open("ab") as file:
        file.write(torn)
    keep_lines(path, lines(8, 12))
    assert kept_steps(path) == list(range(1, 13))


def test_a_file_that_holds_nothing_but_a_torn_line_begins_anew(tmp_path: Path) -> None:
    path = lines_path(tmp_path, "lm-1")
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1, "lo')
    keep_lines(path, lines(1, 2))
    assert kept_steps(path) == [1, 2]


def test_a_reader_between_any_two_writes_meets_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, met = lines_path(tmp_path, "lm-1"), []

    class Watched(run_lines.io.FileIO):
        def write(self, data: memoryview) -> int:
            written = super().write(data)
            met.append(path.read_bytes())
            return written

    monkeypatch.setattr(run_lines.io, "FileIO", Watched)
    keep_lines(path, lines(1, 100))
    assert len(met) == 1 and met[0].count(b"\n") == 100 and met[0].endswith(b"\n")


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lines, "TAIL_BYTES", 2000)
    path = lines_path(tmp_path, "lm-1")
    keep_lines(path, lines(1, 50))
    keep_lines(path, lines(49, 52))
    assert kept_steps(path) == list(range(1, 53))
