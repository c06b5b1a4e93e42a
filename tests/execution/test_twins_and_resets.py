"""Two nodes with the same GPUs, and firmware that waits for a reset of its host, in virtual time."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.rehearsal import FaultProfile, StageTimes
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.journal import Journal
from orchestrator.lab.simulated_hands import SimulatedHands, VirtualClock
from orchestrator.lab.simulation import SimulatedSite
from tests.execution.site import a_controller, apply_request, lab_4
from tests.simulation.fleet import a_fleet

TIMES = StageTimes(self_test_s=10, image_s=10, system_boot_s=5, playbook_s=10, update_s=20, compute_s=5, join_s=5)


def brought_up(home: Path, site: SimulatedSite, spec: ClusterSpec) -> ClusterState:
    journal = Journal(f"sqlite:///{home}/state.db")
    journal.request(apply_request(spec))
    controller = a_controller(journal, SimulatedHands(site), VirtualClock(site), home)
    controller.run(everything_settled)
    controller.close()
    return controller.state


def test_the_later_of_two_nodes_with_the_same_gpus_is_stopped_and_both_are_named(tmp_path: Path) -> None:
    spec = lab_4().model_copy(update={"lab": None})
    site = SimulatedSite(spec, seed=3, profile=FaultProfile(times=TIMES))
    site.nodes["r02-n1"].gpus_of = site.nodes["r01-n1"].node.serial
    state = brought_up(tmp_path, site, spec)
    twins = [state.nodes[name] for name in ("r01-n1", "r02-n1")]
    assert sorted(record.state for record in twins) == [NodeState.QUARANTINED, NodeState.READY]
    (stopped,) = [record for record in twins if record.state is NodeState.QUARANTINED]
    assert stopped.cause == "another machine" and "GPU UUID GPU-" in stopped.because
    assert "r01-n1" in stopped.because and "r02-n1" in stopped.because
    assert all(record.state is NodeState.READY for record in state.nodes.values() if record not in twins)


def test_once_the_board_is_back_in_its_place_the_node_comes_in(tmp_path: Path) -> None:
    spec = lab_4().model_copy(update={"lab": None})
    site = SimulatedSite(spec, seed=3, profile=FaultProfile(times=TIMES))
    site.nodes["r02-n1"].gpus_of = site.nodes["r01-n1"].node.serial
    state = brought_up(tmp_path, site, spec)
    (name,) = [record.name for record in state.nodes.values() if record.state is NodeState.QUARANTINED]
    site.nodes[name].gpus_of = site.nodes[name].node.serial + "-new board"
    journal = Journal(f"sqlite:///{tmp_path}/state.db")
    journal.request(requalify(name))
    controller = a_controller(journal, SimulatedHands(site), VirtualClock(site), tmp_path, "host:2:2:b")
    controller.run(everything_settled)
    assert controller.state.nodes[name].state is NodeState.READY, controller.state.nodes[name].because
    controller.close()


def test_a_restart_from_a_snapshot_still_knows_whose_gpus_are_whose(tmp_path: Path) -> None:
    spec = lab_4().model_copy(update={"lab": None})
    site = SimulatedSite(spec, seed=3, profile=FaultProfile(times=TIMES))
    state = brought_up(tmp_path, site, spec)
    journal = Journal(f"sqlite:///{tmp_path}/state.db")
    journal.keep_snapshot(state.nodes.values(), state.seq, journal.take_lease("host:3:3:c", site.now_s))
    loaded = journal.load()
    for name, record in loaded.nodes.items():
        loaded.identities.follow(replace(record, name=f"copy of {name}"))
        twin = loaded.identities.twin_of(f"copy of {name}", {name, f"copy of {name}"})
        assert twin is not None and twin.other == name


def test_a_host_is_reset_once_for_firmware_that_waits_for_it(tmp_path: Path) -> None:
    spec = lab_4().model_copy(update={"lab": None})
    site = SimulatedSite(spec, seed=3, profile=FaultProfile(times=TIMES, stale_firmware=1.0, pending_reset=1.0))
    state = brought_up(tmp_path, site, spec)
    assert {record.state for record in state.nodes.values()} == {NodeState.READY}
    for name, record in state.nodes.items():
        deeds = [(deed.action, deed.args.get("reset")) for deed in site.deeds if deed.node == name]
        after = deeds[deeds.index((Action.BMC_UPDATE, None)) + 1 :]
        power = [reset for action, reset in after if action is Action.BMC_POWER]
        assert power == ["ForceOff", "On"]
        assert record.fact_at_s(Action.NODE_PROBE) > record.fact_at_s(Action.BMC_POWER) > record.fact_at_s(Action.BMC_UPDATE)


def test_resets_wait_for_the_watts_of_a_start_like_any_other_power_on(tmp_path: Path) -> None:
    fleet = a_fleet(8, headroom=1.0625)  # one node at a time may draw half as much again while it starts
    policy = {"inrush_factor": 1.5, "inrush_s": 30.0, "canary": 8, "failure_budget": 0}
    spec = fleet.model_copy(update={"rollout": fleet.rollout.model_copy(update=policy)})
    site = SimulatedSite(spec, seed=1, profile=FaultProfile(times=TIMES, stale_firmware=1.0, pending_reset=1.0))
    state = brought_up(tmp_path, site, spec)
    assert {record.state for record in state.nodes.values()} == {NodeState.READY}
    made = [(deed.at_s, deed.node) for deed in site.deeds if deed.action is Action.BMC_POWER and deed.args["reset"] == "On"]
    assert len(made) == 2 * len(state.nodes)
    everybody_is_on_s = max(min(at_s for at_s, node in made if node == name) for name in state.nodes)
    starts = [at_s for at_s, _ in made if at_s >= everybody_is_on_s]
    assert len(starts) > 2
    assert min(later - sooner for sooner, later in itertools.pairwise(sorted(starts))) >= 30.0


def requalify(name: str) -> Event:
    data: Mapping[str, Any] = {"by": "a test", "host": "here", "reason": "the board is back", "nodes": [name]}
    return Event("request.requalify", "cluster", data)
