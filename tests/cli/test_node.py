"""What the commands about single nodes say and answer, against a journal that a simulated bring-up has left."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import run
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action
from orchestrator.execution.controller import everything_settled
from orchestrator.planning.rollout_requests import node_moved
from tests.execution.site import Rehearsal


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """The lab's four nodes, three ready and one quarantined; whoever follows lets the simulated controller work."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("RACKRAY_HOME", str(home))
    rehearsal = Rehearsal(home)
    rehearsal.apply()
    monkeypatch.setattr("orchestrator.wiring.follow_or_control", lambda *_: rehearsal.run(everything_settled))
    return rehearsal


def test_a_requalified_node_that_a_run_takes_at_once_is_in_service(
    site: Rehearsal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.site.nodes["r02-n2"].sick_gpus.clear()

    def controlled(*_: object) -> None:
        site.run(everything_settled)
        now_s = site.clock.now_s()
        epoch = site.journal.take_lease("host:1:1:b", now_s)
        site.journal.commit([node_moved("r02-n2", NodeState.READY, NodeState.ALLOCATED, "held by lm-1")], epoch, now_s)

    monkeypatch.setattr("orchestrator.wiring.follow_or_control", controlled)
    assert run(["node", "requalify", "r02-n2", "--reason", "GPU reset"]) == 0
    assert "r02-n2 is allocated: held by lm-1" in capsys.readouterr().out


def test_a_node_that_fails_again_is_told_with_exit_code_1(site: Rehearsal, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "requalify", "r02-n2", "--reason", "hope"]) == 1
    assert "r02-n2 is quarantined: GPU 1" in capsys.readouterr().out


def test_a_drained_node_is_in_maintenance(site: Rehearsal, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "drain", "r01-n1", "--reason", "new fan"]) == 0
    assert "r01-n1 is maintenance: nothing ran on it" in capsys.readouterr().out


def test_a_fresh_audit_does_not_pass_off_as_new_what_a_silent_bmc_said_before(
    site: Rehearsal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    components = [
        {"id": part, "name": part, "version": version, "updateable": True}
        for part, version in (("BMC", "7.10"), ("BIOS", "2.7.4"), ("NIC1", "28.39.1002"))
    ]
    asked: list[str] = []

    def look(folder: Path, spec: Any, actions: Any, views: Any) -> dict[str, dict[Action, Any]]:
        asked.extend(machine.name for machine in spec.managed())
        return {"r01-n1": {Action.BMC_FIRMWARE: {"components": components}}, "r01-n2": {}}

    monkeypatch.setattr("orchestrator.wiring.look", look)
    assert run(["firmware", "audit", "r01-n[1-2]", "--fresh"]) == 1
    said = capsys.readouterr()
    read = {line.split()[0]: line.split()[-1] for line in said.out.splitlines()[1:]}
    assert read["r01-n1"] == "now" and read["r01-n2"] != "now"
    assert "1 BMC did not answer now: r01-n2" in said.err
    assert asked == ["r01-n1", "r01-n2"], "nobody else is asked"
    assert run(["firmware", "audit", "r01-n1", "--fresh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"][0]["name"] == "r01-n1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["node", "retire", "r01-n1", "--reason", "x"], "refused: r01-n1 is ready; take it out of service first"),
        (["node", "requalify", "r01-n1", "--reason", "x"], "refused: r01-n1 is ready; only quarantined and suspect nodes"),
        (["node", "drain", "r02-n2", "--reason", "x"], "refused: r02-n2 is quarantined, not in service"),
    ],
)
def test_what_is_refused_is_not_told_as_done_for_no_node(
    site: Rehearsal, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seq = site.journal.load().seq
    assert run(words) == 1
    assert says in capsys.readouterr().err
    assert {event.kind for event in site.journal.events(seq)} <= {
        f"request.{words[1]}",
        "controller.took",
        "controller.gave",
        "request.handled",
    }
