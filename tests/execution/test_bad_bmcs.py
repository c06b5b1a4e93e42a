"""BMCs that reboot, flap or tell old news, in virtual time: the whole road to `ready`, with nobody's help."""

from pathlib import Path

import pytest

from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.rehearsal import FaultProfile, StageTimes
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.journal import Journal
from orchestrator.lab.simulated_hands import SimulatedHands, VirtualClock
from orchestrator.lab.simulation import SimulatedSite
from tests.execution.site import a_controller, apply_request, lab_4

TIMES = StageTimes(self_test_s=10, image_s=10, system_boot_s=5, playbook_s=10, update_s=20, compute_s=5, join_s=5)


@pytest.mark.parametrize("bad", ["rebooting_bmc", "flapping_bmc", "stale_power"])
def test_a_bmc_that_comes_back_or_tells_old_news_costs_time_and_no_node(tmp_path: Path, bad: str) -> None:
    spec = lab_4().model_copy(update={"lab": None})
    spec = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"stage_limit_s": 1200.0, "poll_s": 2.0})})
    profile = FaultProfile(times=TIMES, stale_firmware=1.0, **{bad: 1.0})
    site = SimulatedSite(spec, seed=3, profile=profile)
    journal = Journal(f"sqlite:///{tmp_path}/state.db")
    journal.request(apply_request(spec))
    controller = a_controller(journal, SimulatedHands(site), VirtualClock(site), tmp_path)
    controller.run(everything_settled)
    states = {name: record.state for name, record in controller.state.nodes.items()}
    assert set(states.values()) == {NodeState.READY}, {n: r.because for n, r in controller.state.nodes.items()}
    powered = [deed.node for deed in site.deeds if deed.action is Action.BMC_POWER and deed.args["reset"] == "On"]
    assert len(powered) == len(set(powered)), "a power-on was repeated although it had been obeyed"
    updated = [deed.node for deed in site.deeds if deed.action is Action.BMC_UPDATE]
    assert sorted(updated) == sorted(states), "an update was begun twice, or never"
    controller.close()


def test_updates_that_only_a_reset_of_the_host_begins_get_one_each_and_cost_no_node(tmp_path: Path) -> None:
    spec = lab_4().model_copy(update={"lab": None})
    spec = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"stage_limit_s": 1200.0, "poll_s": 2.0})})
    site = SimulatedSite(spec, seed=3, profile=FaultProfile(times=TIMES, stale_firmware=1.0))
    for node in site.nodes.values():
        node.machine.fault("update_scheduled", site.now_s)
    journal = Journal(f"sqlite:///{tmp_path}/state.db")
    journal.request(apply_request(spec))
    controller = a_controller(journal, SimulatedHands(site), VirtualClock(site), tmp_path)
    controller.run(everything_settled)
    records = controller.state.nodes
    assert {record.state for record in records.values()} == {NodeState.READY}, {n: r.because for n, r in records.items()}
    resets = [(deed.node, deed.args["reset"]) for deed in site.deeds if deed.action is Action.BMC_POWER]
    assert {resets.count((name, "ForceOff")) for name in records} == {1}, "the reset that its update waits for"
    assert sorted(deed.node for deed in site.deeds if deed.action is Action.BMC_UPDATE) == sorted(records)
    controller.close()
