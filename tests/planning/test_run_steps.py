from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action, Status
from orchestrator.domain.run import LEGAL_RUN_MOVES, RunRecord, RunState, fold_run
from orchestrator.planning.run_steps import TRY_EVERY_S, allocation_events, held_by_others, queue_order
from orchestrator.planning.settle import JOIN_EFFECT_S
from tests.planning.run_world import Drive, a_job, four_nodes


def running(spares: int = 0, **job: object) -> Drive:
    drive = Drive.of(a_job(spares=spares, **job), four_nodes(spares))
    drive.until(RunState.RUNNING)
    drive.tick()
    return drive


def test_a_run_goes_from_waiting_to_finished_and_every_move_is_legal() -> None:
    drive = running()
    drive.train(1, 10)
    drive.write({"event": "finished", "step": 10, "at": 0.0})
    for rank in range(4):
        drive.end(rank, 0)
    drive.until(RunState.FINISHED)
    states = [RunState(event.data["to"]) for event in drive.journal if event.kind == "run.moved"]
    assert states == [RunState.PLACING, RunState.PREFLIGHT, RunState.LAUNCHING, RunState.RUNNING, RunState.FINISHED]
    assert (drive.progress.loss_first, drive.progress.loss_last, drive.progress.unigram) == (5.9, 5.0, 5.5)
    assert (drive.run.first_step, drive.run.checkpoint_step, drive.run.held) == (1, 10, ())


def test_ranks_are_started_with_the_whole_rendezvous_in_their_environment() -> None:
    drive = running()
    starts = {step.args["rank"]: step for step in drive.submitted if step.action is Action.RANK_START}
    environment = starts[3].args["environment"]
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("3", "4", "0")
    assert environment["MASTER_ADDR"] == drive.nodes[starts[0].node].address
    assert len({step.args["environment"]["MASTER_PORT"] for step in starts.values()}) == 1
    assert (environment["DS_ACCELERATOR"], environment["GLOO_SOCKET_IFNAME"]) == ("cpu", "lo")
    assert starts[0].args["argv"][1:] == ["-m", "model.train", "/srv/shared/rackray/runs/lm-1/RUN.json"]
    assert '"resume": false' in starts[0].args["run_json"]


def test_a_controller_that_dies_in_the_middle_of_a_launch_adopts_what_runs() -> None:
    drive = Drive.of(a_job(), four_nodes())
    drive.until(RunState.LAUNCHING)
    drive.tick(answer=False)
    for step in drive.submitted[-4:-1]:
        drive._do(step)  # Three ranks were started; nobody lived to hear it.
    drive.restart()
    drive.until(RunState.RUNNING)
    assert drive.starts == 4
    assert [rank.pid for rank in drive.run.ranks] == [1001, 1002, 1003, 1004]


def test_a_controller_that_dies_while_training_starts_nothing_again() -> None:
    drive = running()
    drive.train(1, 3)
    drive.tick()
    drive.restart()
    drive.spin(10)
    assert (drive.run.state, drive.starts) == (RunState.RUNNING, 4)


def test_a_crash_restarts_the_run_from_its_newest_checkpoint() -> None:
    drive = running()
    drive.train(1, 4)
    drive.spin(3)
    drive.end(2, 1)
    drive.until(RunState.RECOVERING)
    assert "rank 2" in drive.run.because and "bad luck" in drive.run.because
    drive.until(RunState.RUNNING)
    assert (drive.run.attempt, drive.starts) == (2, 8)
    assert all("KILL" in drive.ranks[(1, rank)].signals for rank in (0, 1, 3))
    second = [step for step in drive.submitted if step.action is Action.RANK_START][-1]
    assert '"resume": true' in second.args["run_json"]
    drive.train(5, 6)
    drive.spin(3)
    assert (drive.run.first_step, drive.progress.loss_first, drive.progress.step) == (5, 5.9, 6)


def test_the_rank_that_crashed_is_told_from_those_that_lost_their_peer() -> None:
    drive = running()
    for rank in (0, 1, 3):
        drive.end(rank, 6)
    drive.spin(2)
    assert drive.run.state is RunState.RUNNING
    drive.end(2, 139)
    drive.until(RunState.RECOVERING)
    assert "rank 2" in drive.run.because and "signal 11" in drive.run.because


def test_a_node_is_excluded_when_a_second_failure_is_laid_at_its_door() -> None:
    drive = running(spares=1)
    victim = drive.run.rank(2).node
    for _ in range(2):
        rank = next(rank.rank for rank in drive.run.ranks if rank.node == victim)
        drive.end(rank, 1)
        drive.until(RunState.RECOVERING)
        if victim not in drive.run.excluded:
            drive.until(RunState.RUNNING)
    assert victim in drive.run.excluded
    drive.until(RunState.RUNNING)
    assert victim not in drive.run.nodes


def test_a_lost_node_is_replaced_by_a_spare() -> None:
    drive = running(spares=1)
    spare, lost = drive.run.spares[0], drive.run.nodes[1]
    drive.dead_nodes.add(lost)
    drive.until(RunState.RECOVERING)
    assert drive.run.because.startswith("lost node") and set(drive.run.excluded) == {lost}
    drive.until(RunState.RUNNING)
    assert spare in drive.run.nodes and lost not in drive.run.nodes


def test_a_lost_node_without_a_spare_makes_the_run_wait_and_say_for_what() -> None:
    drive = running()
    lost = drive.run.nodes[1]
    drive.dead_nodes.add(lost)
    drive.until(RunState.WAITING)
    drive.tick()
    assert "needs 4 ready nodes and 3 are free" in drive.run.because and lost in drive.run.because
    written = len(drive.journal)
    drive.spin(60)
    assert len(drive.journal) == written, "waiting for the same thing is no event"
    fresh = four_nodes(1)[-1]
    drive.nodes[fresh.name] = fresh
    drive.until(RunState.RUNNING)


def test_when_no_agent_answers_no_node_is_blamed() -> None:
    drive = running(heartbeat_limit_s=30.0)
    drive._is_unreachable = lambda step: step.action is not Action.CELL_OBSERVE  # type: ignore[method-assign]
    drive.spin(120)
    assert (drive.run.state, dict(drive.run.excluded)) == (RunState.RUNNING, {})


def test_a_hang_is_found_by_the_heartbeat_and_blames_only_a_rank_that_hangs_alone() -> None:
    drive = running(heartbeat_limit_s=30.0)
    drive.train(1, 2)
    drive.spin(3)
    for _ in range(30):
        drive.spin(2)
        for rank in drive.now_ranks()[:3]:
            rank.heartbeat_at_s, rank.step = drive.now_s, 3
        if drive.run.state is RunState.RECOVERING:
            break
    assert drive.run.state is RunState.RECOVERING and drive.run.because.startswith("hang: 1 of 4 ranks")
    assert dict(drive.run.blamed) == {drive.run.rank(3).node: 1}


def test_a_slow_start_is_no_hang_before_its_own_limit() -> None:
    drive = running(heartbeat_limit_s=5.0, start_limit_s=300.0)
    drive.spin(200)
    assert drive.run.state is RunState.RUNNING
    drive.spin(120)
    assert drive.run.restarts >= 1


@pytest.mark.parametrize(("status", "words"), [(3, "not a number"), (2, "RUN.json"), (4, "checkpoint"), (5, "data")])
def test_what_would_come_again_is_not_tried_again(status: int, words: str) -> None:
    drive = running()
    drive.end(0, status)
    drive.until(RunState.FAILED)
    assert words in drive.run.because and drive.run.attempt == 1
    assert all(not rank.alive for rank in drive.now_ranks()), "nothing of a failed run is left running"


def test_a_run_is_given_up_after_its_attempts_without_a_new_checkpoint() -> None:
    drive = running(attempts=2)
    for _ in range(3):
        drive.end(0, 1)
        drive.tick()
        drive.until(RunState.RECOVERING)
        for _ in range(60):
            drive.tick()
            if drive.run.state in (RunState.RUNNING, RunState.FAILED):
                break
    assert drive.run.state is RunState.FAILED and drive.run.attempt == 3
    assert "2 restarts are allowed" in drive.run.because


def test_a_stop_lets_every_rank_write_its_checkpoint_and_end() -> None:
    drive = running()
    drive.note(Event("run.stop_requested", "lm-1", {"by": "ops", "reason": "power work"}))
    drive.until(RunState.STOPPED)
    assert all(rank.signals == ["TERM"] for rank in drive.now_ranks())
    assert "ops" in drive.run.because and "power work" in drive.run.because


def test_a_rank_that_ignores_a_stop_is_killed_after_its_time() -> None:
    drive = running(stop_limit_s=20.0)
    drive.obeys_term = False
    drive.note(Event("run.stop_requested", "lm-1", {"by": "ops", "reason": "now"}))
    drive.until(RunState.STOPPED)
    assert all(rank.signals[-1] == "KILL" for rank in drive.now_ranks())


def test_a_stop_in_the_middle_of_a_launch_leaves_nothing_behind() -> None:
    drive = Drive.of(a_job(), four_nodes())
    drive.until(RunState.LAUNCHING)
    drive.tick(answer=False)
    late = drive.submitted[-4:]
    drive.note(Event("run.stop_requested", "lm-1", {"by": "ops", "reason": "typo"}))
    drive.tick()
    for step in late:
        drive.answer(step)
    drive.until(RunState.STOPPED)
    assert drive.starts == 4 and all(not rank.alive for rank in drive.now_ranks())


def test_a_node_that_leaves_between_placement_and_launch_is_not_used() -> None:
    drive = Drive.of(a_job(), four_nodes(1))
    drive.until(RunState.PREFLIGHT)
    lost = drive.run.nodes[0]
    drive.dead_nodes.add(lost)
    drive.until(RunState.RUNNING)
    assert lost not in drive.run.nodes and drive.run.restarts == 0


def test_ending_well_before_the_last_step_is_not_finishing() -> None:
    drive = running()
    drive.train(1, 5)
    for rank in range(4):
        drive.end(rank, 0)
    drive.until(RunState.RECOVERING)
    assert drive.run.because.startswith("ended early")


def test_the_last_lines_of_rank_0_are_read_before_it_counts_as_ended() -> None:
    drive = running()
    drive.train(1, 10)
    drive.write({"event": "finished", "step": 10, "at": 0.0})
    for rank in (1, 2, 3, 0):
        drive.end(rank, 0)
    drive.until(RunState.FINISHED)
    kinds = [event.kind for event in drive.journal if event.data.get("rank") == 0 or event.kind == "run.milestone"]
    assert kinds[-1] == "run.rank_ended"


def test_an_answer_about_an_earlier_attempt_changes_nothing() -> None:
    drive = running()
    old = next(step for step in drive.submitted if step.action is Action.RANK_LOOK)
    drive.end(0, 1)
    drive.until(RunState.RECOVERING)
    drive.until(RunState.RUNNING)
    before = drive.run
    drive.answer(old)
    assert drive.run == before


def test_a_move_the_table_does_not_know_is_refused() -> None:
    drive = running()
    with pytest.raises(ValueError, match="cannot move"):
        fold_run(drive.run, Event("run.moved", "lm-1", {"from": "running", "to": "waiting", "because": ""}))
    assert set(LEGAL_RUN_MOVES) == set(RunState)
    assert all(LEGAL_RUN_MOVES[state] == frozenset() for state in RunState if RunRecord("x", "x", {}, state=state).is_ended)


def test_nodes_follow_the_run_that_holds_them() -> None:
    drive = running(spares=1)
    runs = {"lm-1": drive.run}
    nodes = {name: NodeRecord(name, NodeState.READY) for name in drive.nodes}
    assert {event.data["to"] for event in allocation_events(runs, nodes)} == {"allocated"}
    assert set(held_by_others(runs, "other-1")) == set(nodes)
    nodes = {name: NodeRecord(name, NodeState.ALLOCATED, run="lm-1") for name in drive.nodes}
    assert allocation_events(runs, nodes) == []
    lost = drive.run.nodes[0]
    gave_up = replace(drive.run, excluded={lost: "left the cell"}, suspects=frozenset({lost}))
    assert [(e.subject, e.data["to"]) for e in allocation_events({"lm-1": gave_up}, nodes)] == [(lost, "suspect")]
    crashed_there = replace(gave_up, suspects=frozenset())
    assert [(e.subject, e.data["to"]) for e in allocation_events({"lm-1": crashed_there}, nodes)] == [(lost, "ready")]
    ended = replace(drive.run, state=RunState.FINISHED)
    assert [e.data["to"] for e in allocation_events({"lm-1": ended}, nodes)] == ["ready"] * 5


def test_waiting_runs_are_served_by_priority_and_then_by_age() -> None:
    def a_run(name: str, at_s: float, priority: int) -> RunRecord:
        return RunRecord(name, name, {"priority": priority}, submitted_at_s=at_s)

    runs = {run.id: run for run in (a_run("late", 2, 0), a_run("urgent", 3, 5), a_run("early", 1, 0))}
    assert [run.id for run in queue_order(runs)] == ["urgent", "early", "late"]


def forgotten_by_the_cell(*names: str, **world: Any) -> Drive:
    """A run whose nodes `names` the cell does not list, because its head came up anew, say."""
    drive = Drive.of(a_job(), four_nodes())
    drive.forgotten = set(names)
    drive.joins = {name: {"address": "10.0.0.9:6380", "labels": {"node": name}} for name in drive.nodes}
    for name, value in world.items():
        setattr(drive, name, value)
    return drive


def joins_of(drive: Drive) -> list[str]:
    return [step.node for step in drive.submitted if step.action is Action.CELL_JOIN]


def test_nodes_that_a_new_head_does_not_know_join_it_before_a_run_is_launched() -> None:
    drive = forgotten_by_the_cell(*(node.name for node in four_nodes()), listed_after_s=JOIN_EFFECT_S - 10)
    drive.until(RunState.LAUNCHING)
    assert sorted(joins_of(drive)) == sorted(drive.nodes), "each once"
    assert drive.run.excluded == {} and drive.run.attempt == 1
    assert {step.args["address"] for step in drive.submitted if step.action is Action.CELL_JOIN} == {"10.0.0.9:6380"}


@pytest.mark.parametrize(
    ("world", "why"),
    [
        ({"listed_after_s": float("inf")}, "the cell does not list it alive"),
        ({"join_status": Status.REFUSED}, "refused"),
        ({"join_status": Status.UNREACHABLE}, "unreachable"),
    ],
)
def test_a_node_that_cannot_join_again_is_left_out_with_the_reason(world: dict[str, Any], why: str) -> None:
    drive = forgotten_by_the_cell("r01-n2", **world)
    drive.until(RunState.PLACING)
    drive.until(RunState.PREFLIGHT)
    drive.until(RunState.PLACING)
    assert why in drive.run.excluded["r01-n2"]
    assert joins_of(drive) == ["r01-n2"]


def test_while_the_head_answers_nobody_a_run_waits_and_leaves_nobody_out() -> None:
    drive = forgotten_by_the_cell("r01-n1", "r01-n2", join_status=Status.HELD)
    drive.until(RunState.PREFLIGHT)
    drive.spin(300)
    assert drive.run.state is RunState.PREFLIGHT and drive.run.excluded == {}
    assert 100 < len(joins_of(drive)) <= 2 * 300 / TRY_EVERY_S + 2, "tried again and again, at a pace"
    drive.join_status = Status.DONE
    drive.until(RunState.LAUNCHING)
