"""`rackray rehearse`: predictions on stdout, the same seed the same journal, bad input told with its place."""

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.cli.nodes import folded
from orchestrator.cli.rehearse import SHOWN

SPECS = Path(__file__).parents[2] / "cluster_specs"
PROFILES = sorted((SPECS / "rehearsals").glob("*.yaml"))


def rehearsed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    run(["rehearse", *arguments, "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_same_seed_gives_the_same_journal_and_another_seed_another(capsys: pytest.CaptureFixture[str]) -> None:
    spec = str(SPECS / "example-32-dgx.yaml")
    once, again, other = (rehearsed(capsys, spec, "--seed", seed) for seed in ("7", "7", "8"))
    assert once["journal_sha256"] == again["journal_sha256"] != other["journal_sha256"]
    assert (once["nodes"], once["ready"]) == (32, 32)


def test_without_faults_it_ends_close_to_the_lower_bound(capsys: pytest.CaptureFixture[str]) -> None:
    found = rehearsed(capsys, str(SPECS / "example-32-dgx.yaml"))
    assert 1 <= float(str(found["virtual_hours"])) / float(str(found["lower_bound_hours"])) < 1.15


def test_faults_cost_nodes_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "bad-day.yaml"
    profile.write_text("wrong_serial: 0.2\ndead_bmc: 0.2\n")
    picture = tmp_path / "picture.svg"
    code = run(["rehearse", str(SPECS / "example-32-dgx.yaml"), "--faults", str(profile), "--seeds", "2", "-o", str(picture)])
    said = capsys.readouterr().out
    assert code == 1
    assert "another machine" in said and "unreachable" in said and "spares needed" in said
    assert picture.read_text().startswith("<?xml")


def test_a_history_that_stops_has_no_finish_and_its_unbegun_nodes_need_no_spares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "bad-day.yaml"
    profile.write_text("wrong_serial: 1.0\n")
    assert run(["rehearse", str(SPECS / "example-32-dgx.yaml"), "--faults", str(profile)]) == 1
    said = capsys.readouterr().out
    assert "predicted finish: none, the rollout stops before its end" in said
    found = rehearsed(capsys, str(SPECS / "example-32-dgx.yaml"), "--faults", str(profile))
    causes = found["causes"]
    assert isinstance(causes, dict) and int(str(found["spares"])) <= sum(causes.values()) < 32


def test_a_feed_that_the_spec_lacks_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "bad-day.yaml"
    profile.write_text("feed_losses:\n  - {feed: Z, at_s: 60}\n")
    assert run(["rehearse", str(SPECS / "lab-4.yaml"), "--faults", str(profile)]) == 2
    assert "bad-day.yaml:2:12: no such feed in the spec" in capsys.readouterr().err


def test_the_lab_as_it_ships_loses_the_node_with_the_planted_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearsed(capsys, str(SPECS / "lab-4.yaml"))["ready"] == 3


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_the_profiles_that_ship_are_read_and_something_goes_wrong(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rehearsed(capsys, str(SPECS / "example-32-dgx.yaml"), "--faults", str(profile))
    assert found["nodes"] == 32 and found["causes"]


def test_the_nodes_behind_each_cause_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "bad-day.yaml"
    profile.write_text("wrong_serial: 0.3\ndead_bmc: 0.1\n")
    spec = tmp_path / "many-may-fail.yaml"
    spec.write_text((SPECS / "example-32-dgx.yaml").read_text().replace("failure_budget: ", "failure_budget: 3"))
    words = (str(spec), "--faults", str(profile), "--seeds", "3")
    assert run(["rehearse", *words]) == 1
    said = capsys.readouterr().out
    histories = rehearsed(capsys, *words)["seeds"]
    assert isinstance(histories, list)
    for cause in {cause for each in histories for cause in each["causes"]}:
        worst = max((each["nodes_by_cause"].get(cause, []) for each in histories), key=len)
        (line,) = [line for line in said.splitlines() if line.startswith(cause)]
        assert {each["causes"].get(cause, 0) for each in histories} == {
            len(each["nodes_by_cause"].get(cause, [])) for each in histories
        }
        left = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
        assert folded(worst[:SHOWN]) + left in line, line
