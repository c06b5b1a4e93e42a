"""The commands that say something about a rollout, and plans in files, against a journal that a simulated bring-up has left."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator import wiring
from orchestrator.cli.main import run
from orchestrator.cli.rollout_view import RolloutView
from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.state import ClusterState
from orchestrator.execution.answering import NoHands
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.journal import Journal
from tests.execution.site import SPECS, Rehearsal, a_controller, apply_request, lab_4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("RACKRAY_HOME", str(folder))
    return folder


def brought_up(home: Path) -> Rehearsal:
    """The lab's four nodes: three ready, one quarantined."""
    rehearsal = Rehearsal(home)
    rehearsal.apply()
    return rehearsal


def half_way(home: Path) -> Rehearsal:
    """The canary is under way, and the controller has gone."""
    rehearsal = Rehearsal(home)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    rehearsal.run(lambda state: any(record.state is NodeState.REACHABLE for record in state.nodes.values()))
    return rehearsal


def rackray(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_status_tells_waves_failures_and_the_budget(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brought_up(home)
    code, out, _ = rackray(capsys, "rollout", "status")
    assert code == 1, "one node failed and nobody has accepted it"
    assert "finished" in out and "failed 1 of a budget of 1 (1 check failed)" in out
    code, out, _ = rackray(capsys, "rollout", "status", "--json")
    found = json.loads(out)
    assert [wave["nodes"] for wave in found["waves"]] == [1, 3]
    assert found["failed"] == ["r02-n2"] and found["causes"] == {"check failed": 1}


def test_status_without_a_rollout_says_what_starts_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Journal(f"sqlite:///{home}/state.db").close()
    code, _, err = rackray(capsys, "rollout", "status")
    assert code == 1 and "rackray apply" in err


def test_status_says_that_the_time_left_is_unknown_before_anything_was_measured(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_way(home)
    _, out, _ = rackray(capsys, "rollout", "status")
    assert "going on" in out and "time left: unknown" in out


def test_a_pause_with_nobody_deciding_is_written_down_and_begins_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsal = half_way(home)
    before = rehearsal.journal.events()[-1].seq
    code, out, _ = rackray(capsys, "rollout", "pause", "--reason", "the chiller is loud")
    assert code == 0 and out.startswith("paused")
    added = [event.kind for event in rehearsal.journal.events(before)]
    assert added == ["request.rollout_pause", "controller.took", "controller.slept", "rollout.paused", "request.handled"]
    _, out, _ = rackray(capsys, "rollout", "status")
    assert "paused" in out and "the chiller is loud" in out
    assert rehearsal.journal.lease().holder == ""  # type: ignore[union-attr]


def test_words_about_a_finished_rollout_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brought_up(home)
    for words in (("pause",), ("resume",), ("abort",), ("skip", "r01-n1")):
        code, _, err = rackray(capsys, "rollout", *words, "--reason", "x")
        assert code == 1 and "refused: the rollout is finished" in err


def test_every_word_but_status_wants_a_reason(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("pause",), ("resume",), ("abort",), ("skip", "r01-n1"), ("retry",)):
        code, _, err = rackray(capsys, "rollout", *words)
        assert code == 2 and "--reason" in err


def test_retiring_nodes_out_of_service(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsal = brought_up(home)
    code, out, _ = rackray(capsys, "node", "retire", "r02-n2", "--reason", "sold")
    assert code == 0 and "nothing was sent" in out
    code, _, err = rackray(capsys, "node", "retire", "r01-n1", "--reason", "sold")
    assert code == 1 and "rackray node drain r01-n1" in err
    assert rehearsal.states()["r02-n2"] is NodeState.RETIRED


def test_replacing_a_node_in_service_is_refused_on_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brought_up(home)
    words = ("node", "replace", "r01-n1", "--serial", "B2", "--reason", "swapped", "--yes")
    code, _, err = rackray(capsys, *words)
    assert code == 1 and "take it out of service first" in err


# ---------------------------------------------------------------------- plans
def save_plan(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> int:
    return rackray(capsys, "plan", str(SPECS / "lab-4.yaml"), "--offline", "-o", str(path), *more)[0]


def test_a_saved_plan_is_refused_once_the_journal_has_moved_on(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    assert save_plan(capsys, plan) == 0
    journal = Journal(f"sqlite:///{home}/state.db")
    journal.request(Event("request.drain", "cluster", {"by": "ann", "nodes": [], "reason": "x"}))
    code, _, err = rackray(capsys, "apply", str(plan), "--yes")
    assert code == 1 and "made at event 0, the journal stands at 1" in err and "rackray plan" in err
    assert [event.kind for event in journal.events()] == ["request.drain"], "nothing was asked"


def test_a_saved_plan_that_was_edited_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    save_plan(capsys, plan)
    plan.write_text(plan.read_text().replace('"failure_budget": 1', '"failure_budget": 4'))
    code, _, err = rackray(capsys, "apply", str(plan), "--yes")
    assert code == 2 and "its digest differs" in err


def test_a_plan_for_some_nodes_holds_their_steps_alone(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    assert save_plan(capsys, plan, "--limit", "r01-n[1-2]") == 0
    saved = json.loads(plan.read_text())
    assert saved["limit"] == ["r01-n1", "r01-n2"]
    assert {step["node"] for step in saved["steps"]} == {"r01-n1", "r01-n2"}
    assert len(saved["spec"]["nodes"]) == 4, "the whole spec is applied, whatever the limit"


def test_a_limit_of_unknown_nodes_is_bad_input(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = rackray(capsys, "plan", str(SPECS / "lab-4.yaml"), "--offline", "--limit", "r09-n1")
    assert code == 2 and "not in the spec: r09-n1" in err


def test_a_saved_plan_asks_for_what_it_says(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller is a simulated one; what `apply` asks of it comes from the plan."""
    plan = tmp_path / "plan.json"
    save_plan(capsys, plan, "--limit", "r01-n1")
    rehearsal = Rehearsal(home, lab_4())

    def simulate(folder: Path, until: object, on_tick: object, spec: object = None) -> None:
        rehearsal.run(everything_settled)

    monkeypatch.setattr("orchestrator.wiring.follow_or_control", simulate)
    code, out, _ = rackray(capsys, "apply", str(plan), "--yes")
    assert code == 0 and "1 of 1 nodes are ready" in out
    assert {deed.node for deed in rehearsal.site.deeds} == {"r01-n1"}


def test_plan_and_status_give_a_range_once_stages_were_measured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsal = brought_up(home)
    larger = rehearsal.spec.nodes[0].model_copy(update={"name": "r01-n3", "serial": "LAB00005", "unit": 9, "bmc": "127.2.1.3"})
    spec = rehearsal.spec.model_copy(update={"nodes": (*rehearsal.spec.nodes, larger)})
    rehearsal.journal.request(apply_request(spec, "another"))
    controller = a_controller(rehearsal.journal, NoHands(), rehearsal.clock, home)
    controller.answer()
    controller.close()
    _, out, _ = rackray(capsys, "rollout", "status")
    (line,) = [line for line in out.splitlines() if line.startswith("time left:")]
    assert "unknown" not in line and "if nothing more fails" in line


def test_the_live_table_tells_the_time_left(home: Path) -> None:
    rehearsal = half_way(home)
    view = RolloutView(0)
    assert view._outlook(wiring.open_views(home)).startswith("time left unknown: no node has passed every stage here yet")
    rehearsal.run(_is_ready)
    assert "if nothing more fails" in view._outlook(wiring.open_views(home))


def _is_ready(state: ClusterState) -> bool:
    return state.nodes[state.rollout.waves[0][0]].state is NodeState.READY


def test_while_no_controller_runs_status_says_what_stands_still_and_what_goes_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_way(home)
    _, _, err = rackray(capsys, "status")
    assert "no controller runs" in err
    assert "4 nodes stand still on the way to ready (r[01-02]-n[1-2]): `rackray apply" in err
    _, _, err = rackray(capsys, "rollout", "status")
    assert "nothing moves until `rackray apply" in err


def test_a_controller_whose_process_has_just_ended_decides_nothing(home: Path) -> None:
    half_way(home)
    journal = Journal(f"sqlite:///{home}/state.db")
    (gone := subprocess.Popen(["true"])).wait()
    journal.take_lease(f"{socket.gethostname()}:{gone.pid}:1:x", time.time())
    assert wiring.decides_now(wiring.open_views(home)) == ""
    journal.close()


def test_the_controller_that_runs_is_named(home: Path) -> None:
    half_way(home)
    journal = Journal(f"sqlite:///{home}/state.db")
    journal.take_lease(wiring.this_holder(), time.time())
    assert wiring.decides_now(wiring.open_views(home)).startswith(f"process {os.getpid()} on {socket.gethostname()} decides")
    journal.close()


def test_nodes_with_the_same_steps_stand_together_in_a_plan(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rackray(capsys, "plan", str(SPECS / "lab-4.yaml"), "--offline")
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ["wave 1: 1 node, 16 steps", "r01-n1: 16 steps"]
    assert "wave 2: 3 nodes, 48 steps" in lines and "r02-n[1-2],r01-n2: 16 steps each" in lines
    assert sum(line.startswith("  bmc.power On") for line in lines) == 2


def test_a_plan_for_another_cluster_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brought_up(home)
    code, out, err = rackray(capsys, "plan", str(SPECS / "example-32-dgx.yaml"), "--offline")
    assert (code, out) == (2, "")
    assert f"{home} belongs to cluster lab, the spec describes example" in err and "set RACKRAY_HOME" in err


def test_a_node_that_does_not_answer_is_told_once_while_it_is_tried_and_status_says_why(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsal = Rehearsal(home)
    rehearsal.site.nodes["r01-n1"].machine.fault("bmc_gone", rehearsal.site.now_s)
    rehearsal.journal.request(apply_request(rehearsal.spec))
    rehearsal.run(lambda state: "r01-n1" in state.nodes and state.nodes["r01-n1"].silences >= 3)
    RolloutView(0).show(wiring.open_views(home))
    said = [line for line in capsys.readouterr().out.splitlines() if "unreachable" in line]
    assert len(said) == 1 and "r01-n1" in said[0] and said[0].endswith("; it is tried again")
    _, out, _ = rackray(capsys, "status", "r01-n1")
    assert "named in the spec; 3 failed exchanges since: " in out
