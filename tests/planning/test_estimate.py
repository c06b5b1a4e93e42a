"""Stage times learned from the journal, and what they say about the rest."""

from pathlib import Path

from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.rollout import RolloutRecord
from orchestrator.execution.controller import everything_settled
from orchestrator.planning.estimate import ORDER, Range, StageTimes, late_nodes, rest_of_node, time_left, time_of_plan
from orchestrator.planning.rollout import to_bring_up, waves
from orchestrator.planning.site import Site
from tests.execution.site import Rehearsal
from tests.planning.fleet import a_fleet


def measured(usual_s: float, slow_s: float) -> StageTimes:
    """Twenty measurements per stage of the lab's SKU: eighteen usual ones and two slow ones."""
    times = [usual_s] * 17 + [slow_s] * 3
    return StageTimes({("lab-2g", stage): list(times) for stage in ORDER if stage is not NodeState.READY})


def test_what_is_left_of_a_node_is_its_stages_ahead_less_what_it_has_spent() -> None:
    record = NodeRecord("r01-n1", NodeState.FIRMWARE_OK, since_s=100.0)
    assert rest_of_node(record, "lab-2g", measured(10.0, 30.0), now_s=104.0) == Range(6.0 + 10.0, 26.0 + 30.0)


def test_a_stage_that_nobody_has_passed_leaves_the_time_unknown() -> None:
    times = measured(10.0, 30.0)
    del times.by_stage["lab-2g", NodeState.ACCEPTED]
    assert rest_of_node(NodeRecord("r01-n1"), "lab-2g", times, now_s=0.0) is None


def test_waves_follow_each_other_and_the_slowest_node_ends_a_wave() -> None:
    spec = a_fleet(racks=2, per_rack=2)
    names = [node.name for node in spec.nodes]
    nodes = {name: NodeRecord(name) for name in names} | {names[0]: NodeRecord(names[0], NodeState.ACCEPTED, since_s=0.0)}
    rollout = RolloutRecord(1, ((names[0],), tuple(names[1:])), finished=False)
    assert time_left(Site.of(spec), rollout, nodes, measured(10.0, 30.0), now_s=0.0) == Range(10.0 + 90.0, 30.0 + 270.0)


def test_a_stuck_node_is_named_once_it_is_over_the_99th_percentile() -> None:
    spec = a_fleet(racks=1, per_rack=2)
    nodes = {"r01-n1": NodeRecord("r01-n1", NodeState.REACHABLE, since_s=0.0), "r01-n2": NodeRecord("r01-n2", NodeState.READY)}
    rollout = RolloutRecord(1, (("r01-n1", "r01-n2"),), finished=False)
    assert late_nodes(Site.of(spec), rollout, nodes, measured(10.0, 30.0), now_s=29.0) == []
    (late,) = late_nodes(Site.of(spec), rollout, nodes, measured(10.0, 30.0), now_s=31.0)
    assert (late.node, late.limit_s, late.learned) == ("r01-n1", 30.0, True)
    (unmeasured,) = late_nodes(Site.of(spec), rollout, nodes, StageTimes(), now_s=spec.rollout.stage_limit_s / 2 + 1)
    assert not unmeasured.learned


def test_the_range_learned_from_one_bring_up_holds_the_next_one(tmp_path: Path) -> None:
    spec = a_fleet(racks=4, per_rack=4, canary=2, growth=2)
    first = Rehearsal(tmp_path, spec, seed=1)
    first.apply()
    times = StageTimes().learn(first.journal.events())
    assert {stage for _, stage in times.by_stage} == set(ORDER) - {NodeState.READY}
    assert {len(found) for found in times.by_stage.values()} == {16}
    site = Site.of(spec)
    foretold = time_of_plan(site, waves(to_bring_up(site, {}), spec.rollout), {}, times, 0.0)
    assert foretold is not None
    other = tmp_path / "other"
    other.mkdir()
    second = Rehearsal(other, spec, seed=2)
    began_s = second.clock.now_s()
    assert everything_settled(second.apply())
    took_s = second.clock.now_s() - began_s
    assert 0.9 * foretold.low_s <= took_s <= 1.2 * foretold.high_s, (foretold, took_s)


def test_the_same_is_learned_from_a_part_of_the_journal_and_from_the_whole(tmp_path: Path) -> None:
    spec = a_fleet(racks=2, per_rack=4, canary=2, growth=2)
    rehearsal = Rehearsal(tmp_path, spec)
    rehearsal.apply()
    rehearsal.request("request.drain", nodes=["r01-n1"], reason="new fan", host="here")
    upto = rehearsal.journal.load().seq
    rehearsal.request("request.requalify", nodes=["r01-n1"], reason="mended", host="here")
    rehearsal.request("request.rollout_pause", reason="lunch", host="here")
    journal = rehearsal.journal
    whole, last = StageTimes().learn(journal.events()), journal.load().seq
    part = list(journal.events_of_stages(last))
    assert StageTimes().learn(part) == whole and len(whole.by_stage) == len(ORDER) - 1
    assert [event.seq for event in part] == sorted(event.seq for event in part) and len(part) < len(journal.events()) / 2
    assert StageTimes().learn(journal.events_of_stages(upto)).learn(journal.events(upto)) == whole, "and goes on from there"
