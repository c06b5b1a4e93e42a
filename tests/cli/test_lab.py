"""`rackray lab`: what it refuses before it starts anything."""

from pathlib import Path

import pytest

from orchestrator.cli.main import run
from tests.house import PROJECT


def test_a_new_lab_is_refused_where_the_journal_of_another_one_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state.db").write_bytes(b"")
    monkeypatch.setenv("RACKRAY_HOME", str(tmp_path))
    assert run(["lab", "up", "--spec", str(PROJECT / "cluster_specs/lab-4.yaml")]) == 1
    assert "journal of a lab that is gone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["state.db"]


def test_a_spec_of_real_machines_is_no_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RACKRAY_HOME", str(tmp_path / "home"))
    assert run(["lab", "up", "--spec", str(PROJECT / "cluster_specs/example-32-dgx.yaml")]) == 2
    assert "no `lab:` section" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
