"""`on_feed_loss: throttle` becomes a power limit of a run's GPUs: worked out, set, read back, and told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.domain.health import sound_probe
from orchestrator.domain.node import Fact, NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Step
from orchestrator.domain.run import RunState
from orchestrator.domain.spec import ClusterSpec
from orchestrator.drivers.spec_reader import read_spec
from orchestrator.lab.simulation import BOARD_LIMIT_W
from orchestrator.planning.health import judge_power_limit
from orchestrator.planning.next_step import next_step
from orchestrator.planning.placement import Placement, place, placeable
from orchestrator.planning.power_caps import PowerCap, caps_of, gpu_cap_w
from orchestrator.planning.site import Site
from orchestrator.planning.validation import check_spec
from tests.execution.site import SPECS, Rehearsal, lab_4
from tests.planning.run_world import Drive, a_job, four_nodes

XE9680_W, SUPPLIES_LEFT_W, H200_W = 11_000.0, 3 * 2800.0, 700.0


@pytest.fixture(scope="module")
def throttling() -> ClusterSpec:
    """250 XE9680: after the loss of a side three of six 2.8 kW supplies are left, 8.4 kW for machines of 11 kW."""
    return read_spec(SPECS / "example-250-xe9680.yaml", check_spec).spec


def test_what_the_supplies_leave_is_shared_by_the_gpus_after_the_rest_of_the_machine(throttling: ClusterSpec) -> None:
    caps = caps_of(throttling)
    assert set(caps) == {node.name for node in throttling.nodes}
    cap = caps[throttling.nodes[0].name]
    assert cap.node_w <= SUPPLIES_LEFT_W
    rest_w = XE9680_W - 8 * H200_W
    assert cap.gpu_w == pytest.approx((cap.node_w - rest_w) / 8)


def test_no_cap_without_throttling_and_none_for_gpus_that_nobody_knows(throttling: ClusterSpec) -> None:
    assert caps_of(lab_4()) == {}
    sku = throttling.skus[throttling.nodes[0].sku]
    unknown = sku.model_copy(update={"gpus": sku.gpus.model_copy(update={"model": "Strange 9000"})})
    assert gpu_cap_w(unknown, 8400) is None
    assert gpu_cap_w(sku, 1000) == pytest.approx(0.2 * H200_W), "no GPU takes a limit near nothing"


def test_the_playbook_is_told_the_limit_and_a_probe_that_shows_more_quarantines(throttling: ClusterSpec) -> None:
    site = Site.of(throttling)
    name = throttling.nodes[0].name
    cap_w = site.gpu_cap_w(name)
    assert cap_w is not None
    assert site.playbook_variables(name)["gpu_power_cap_w"] == int(cap_w)
    loose = sound_probe("NVIDIA H200", 8, power_limit_w=700.0)
    (first, *others) = judge_power_limit(loose, cap_w)
    assert len(others) == 7 and f"may draw 700 W, the power cap is {cap_w:.0f} W" in str(first)
    facts = {Action.NODE_PROBE: Fact(10.0, loose)}
    record = NodeRecord(name, state=NodeState.FIRMWARE_OK, since_s=5.0, facts=facts)
    decision = next_step(record, site, 11.0)
    assert getattr(decision, "to", None) is NodeState.QUARANTINED
    tight = {Action.NODE_PROBE: Fact(10.0, sound_probe("NVIDIA H200", 8, power_limit_w=int(cap_w)))}
    assert isinstance(next_step(NodeRecord(name, state=NodeState.FIRMWARE_OK, since_s=5.0, facts=tight), site, 11.0), Step)


def test_a_bring_up_sets_the_limit_and_reads_it_back(tmp_path: Path, throttling: ClusterSpec) -> None:
    few = throttling.model_copy(update={"nodes": throttling.nodes[:4], "equipment": (), "links": ()})
    caps = caps_of(few)
    rehearsal = Rehearsal(tmp_path, few)
    rehearsal.apply()
    assert set(rehearsal.states().values()) == {NodeState.READY}
    limits = {name: node.gpu_limit_w for name, node in rehearsal.site.nodes.items()}
    assert limits == {name: int(cap.gpu_w or 0) for name, cap in caps.items()}

    # Once the spec caps nothing any more, whoever proves itself again has its board's own limit.
    (name, *_), power = caps, few.power
    assert power is not None
    racks = {rack: each.model_copy(update={"on_feed_loss": None}) for rack, each in few.racks.items()}
    free = few.model_copy(update={"power": power.model_copy(update={"on_feed_loss": "lose"}), "racks": racks})
    rehearsal.apply(free, "another")
    rehearsal.request("request.drain", host="here", reason="the cap is gone", nodes=[name])
    rehearsal.request("request.requalify", host="here", reason="the cap is gone", nodes=[name])
    assert rehearsal.states()[name] is NodeState.READY
    assert rehearsal.site.nodes[name].gpu_limit_w == BOARD_LIMIT_W
    assert all(node.gpu_limit_w < BOARD_LIMIT_W for other, node in rehearsal.site.nodes.items() if other != name)


def test_a_placement_tells_the_cap_and_who_does_not_keep_it(throttling: ClusterSpec) -> None:
    site = Site.of(throttling)
    names = [node.name for node in throttling.nodes[:2]]
    cap = site.power_caps[names[0]]
    nodes = []
    for name, limit_w in zip(names, (700.0, float(int(cap.gpu_w or 0))), strict=True):
        facts = {Action.NODE_PROBE: Fact(1.0, sound_probe("NVIDIA H200", 8, power_limit_w=limit_w))}
        nodes.append(placeable(site, NodeRecord(name, state=NodeState.READY, facts=facts)))
    found = place(a_job(nodes=2, ranks_per_node=2), nodes, {}, {})
    assert isinstance(found, Placement)
    assert f"power cap {cap}, so that any one feed may be lost" in found.because
    assert "but 1 of 2 nodes let their GPUs draw 700 W" in found.because


def test_ranks_are_told_the_cap_of_their_node() -> None:
    capped = [replace(node, power_cap=PowerCap(8400.0, 375.0)) if node.name == "r01-n1" else node for node in four_nodes()]
    drive = Drive.of(a_job(), capped)
    drive.until(RunState.RUNNING)
    starts = [step for step in drive.submitted if step.action is Action.RANK_START]
    told = {step.node: {key: word for key, word in step.args["environment"].items() if "POWER" in key} for step in starts}
    assert told.pop("r01-n1") == {"RACKRAY_NODE_POWER_CAP_W": "8400", "RACKRAY_GPU_POWER_CAP_W": "375"}
    assert set(map(len, told.values())) == {0}


def test_a_plan_for_a_throttling_spec_is_made_under_its_cap(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "plan", str(SPECS / "jobs" / "lm-zero3.yaml"), "--spec", str(SPECS / "example-250-xe9680.yaml")]
    words += ["--preset", "llama-8b", "--nodes", "8", "--json"]
    caps = []
    for more in ([], ["--power-cap", "700"]):
        assert run([*words, *more]) == 0
        out, err = capsys.readouterr()
        caps.append((round(json.loads(out)["power_cap_w"]), "power cap of the spec: 8.40 kW per node, 375 W per GPU" in err))
    assert caps == [(375, True), (700, False)]
