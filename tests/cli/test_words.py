"""The words that commands share: node sets, near names, files that appear whole, a machine that says no."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.cli.node import short
from orchestrator.cli.nodes import chosen_from, folded
from orchestrator.cli.output import table_lines, write_whole
from orchestrator.domain.errors import BadInput
from orchestrator.domain.words import counted

PROJECT = Path(__file__).parents[2]
LAB_4 = str(PROJECT / "cluster_specs" / "lab-4.yaml")
NODES = ["r01-n1", "r01-n2", "r02-n1", "r02-n2"]


def test_one_is_singular_and_thousands_are_grouped() -> None:
    assert [counted(number, "node") for number in (0, 1, 12_500)] == ["0 nodes", "1 node", "12,500 nodes"]
    assert [counted(number, "node", "is", "are") for number in (1, 2)] == ["1 node is", "2 nodes are"]


def test_names_are_folded_as_operators_write_them() -> None:
    assert folded(NODES) == "r[01-02]-n[1-2]"
    assert folded(["login"]) == "login" and folded([]) == ""


def test_an_unknown_node_names_the_near_one_and_what_there_is() -> None:
    with pytest.raises(BadInput, match="not in the spec: r03-n1") as refused:
        chosen_from("r03-n1", NODES, "the spec")
    assert refused.value.hint.startswith("did you mean r0") and "r[01-02]-n[1-2]" in refused.value.hint


def test_a_fact_is_told_in_words_and_not_as_python() -> None:
    said = short(
        {"power": "On", "draw_w": 400.0, "accepted": True, "changed": False, "components": [1, 2, 3], "labels": {"a": 1}}
    )
    assert said == "power On, draw_w 400, accepted, not changed, components: 3"


def test_a_file_that_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(BadInput, match="cannot be written"):
        write_whole(target, "text")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_mistyped_file_names_the_near_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "racks.yaml").write_text("")
    assert run(["validate", str(tmp_path / "rakcs.yaml")]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"did you mean {tmp_path}/racks.yaml?")
    assert run(["validate", str(tmp_path)]) == 2
    assert f"is a folder; name a YAML file inside it: {tmp_path}/racks.yaml" in capsys.readouterr().err


def test_a_home_that_is_a_file_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("")
    monkeypatch.setenv("RACKRAY_HOME", str(home))
    assert run(["apply", LAB_4, "--yes"]) == 2
    said = capsys.readouterr().err
    assert f"RACKRAY_HOME {home} is a file" in said and "way out: set RACKRAY_HOME" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["validate", LAB_4], ["validate", LAB_4, "--json"], ["--help"]])
def test_an_output_on_a_full_disk_is_a_sentence(words: list[str]) -> None:
    command = [sys.executable, "-m", "orchestrator.cli.main", *words]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=PROJECT, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("the output cannot be written: No space left on device") and "Traceback" not in ended.stderr


def test_in_the_wrong_folder_the_nearest_journal_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".rackray").mkdir()
    (tmp_path / ".rackray" / "state.db").write_text("")
    below = tmp_path / "playbooks" / "roles"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.delenv("RACKRAY_HOME", raising=False)
    assert run(["inventory", "--list"]) == 1
    assert f"the nearest one is in {tmp_path}/.rackray: run the command there, or set RACKRAY_HOME" in capsys.readouterr().err


def test_on_a_narrow_terminal_the_last_column_is_broken_between_words_and_stays_a_column() -> None:
    rows = [
        ("r01-n1", "quarantined", "GPU 1 has a row remap pending; drain the node and power-cycle it"),
        ("r01-n2", "ready", ""),
    ]
    lines = ["  ".join(cells).rstrip() for cells in table_lines(("node", "state", "because"), rows, 60)]
    assert lines == [
        "NODE    STATE        BECAUSE",
        "r01-n1  quarantined  GPU 1 has a row remap pending; drain",
        "                     the node and power-cycle it",
        "r01-n2  ready",
    ]


@pytest.mark.parametrize("line_width", [None, 30, 200])
def test_a_table_is_not_broken_in_a_pipe_nor_where_there_is_room_nor_where_there_is_none_at_all(line_width: int | None) -> None:
    rows = [("r01-n1", "quarantined", "GPU 1 has a row remap pending; drain the node and power-cycle it")]
    assert len(table_lines(("node", "state", "because"), rows, line_width)) == 2
