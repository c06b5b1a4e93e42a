import json

import pytest

from model.contract import RunSpec
from orchestrator.domain.job import JobSpec
from orchestrator.domain.operation import Action
from orchestrator.domain.run import RunState
from orchestrator.planning.elastic import as_placed, smaller_jobs
from orchestrator.planning.job_check import job_problems
from tests.planning.run_world import Drive, a_job, a_node, four_nodes


def elastic(**changes: object) -> JobSpec:
    return a_job(**{"layout": {"pipeline": 2, "data": 2, "zero": 1, "least_data": 1}, **changes})


def test_smaller_layouts_divide_the_batch_and_fill_their_nodes() -> None:
    batch = {"global_sequences": 24, "micro_sequences": 2, "sequence_tokens": 32}
    layout = {"pipeline": 2, "data": 12, "least_data": 2}
    job = a_job(nodes=6, ranks_per_node=4, layout=layout, batch=batch)
    # 24 / 2 = 12 micro-batches: 6, 4, 3, 2 replicas divide them, and 3 replicas would leave a node half empty.
    assert [(each.layout.data, each.nodes) for each in smaller_jobs(job)] == [(6, 3), (4, 2), (2, 1)]
    assert job_problems(job) == []
    for smaller in smaller_jobs(job):
        assert job_problems(smaller) == []
        assert as_placed(job, smaller.ranks) == smaller
    assert as_placed(job, job.ranks) is job
    assert list(smaller_jobs(a_job())) == []


def test_a_run_that_lost_a_node_goes_on_with_fewer_replicas_from_its_checkpoint() -> None:
    drive = Drive.of(elastic(), four_nodes())
    drive.until(RunState.RUNNING)
    drive.train(1, 4)
    drive.spin(3)
    drive.dead_nodes.add("r02-n2")
    drive.end(0, 6)
    drive.until(RunState.RECOVERING)
    drive.until(RunState.RUNNING)
    assert drive.run.attempt == 2
    assert len(drive.run.ranks) == 2
    assert "r02-n2" not in drive.run.nodes
    placed = [event for event in drive.journal if event.kind == "run.placed"][-1]
    assert "1 of 2 replicas, for the job needs 4 ready nodes and 3 are free" in placed.data["because"]
    start = [step for step in drive.submitted if step.action is Action.RANK_START][-1]
    spec = RunSpec.from_json(start.args["run_json"])
    assert (spec.layout.pipeline, spec.layout.data, spec.resume) == (2, 1, True)
    assert spec.batch.global_sequences == 8
    spec.check_world(int(start.args["environment"]["WORLD_SIZE"]))
    json.loads(start.args["run_json"])


def test_a_run_never_begins_with_fewer_and_takes_all_again_when_they_are_back() -> None:
    drive = Drive.of(elastic(), four_nodes()[:3])
    drive.spin(30)
    assert drive.run.state is RunState.WAITING
    assert "needs 4 ready nodes" in drive.run.because
    drive.nodes["r09-n1"] = a_node("r09-n1", address="127.1.9.1")
    drive.until(RunState.RUNNING)
    assert len(drive.run.ranks) == 4
    drive.train(1, 4)
    drive.dead_nodes.add("r09-n1")
    drive.end(0, 6)
    drive.until(RunState.RECOVERING)
    drive.until(RunState.RUNNING)
    assert len(drive.run.ranks) == 2
    # The next attempt looks at all nodes anew.
    drive.nodes["r09-n2"] = a_node("r09-n2", address="127.1.9.2")
    drive.write({"event": "checkpoint", "step": 6, "at": 0.0, "size_bytes": 10})
    drive.end(0, 1)
    drive.until(RunState.RECOVERING)
    drive.until(RunState.RUNNING)
    assert len(drive.run.ranks) == 4


def test_a_crash_of_the_program_costs_no_replica() -> None:
    drive = Drive.of(elastic(), four_nodes())
    for _ in range(2):
        drive.until(RunState.RUNNING)
        drive.end(0, 1)
        drive.until(RunState.RECOVERING)
    drive.until(RunState.RUNNING)
    assert len(drive.run.ranks) == 4
    assert drive.run.excluded == {}


@pytest.mark.parametrize("least", [3, 9])
def test_a_least_number_above_the_usual_one_is_refused(least: int) -> None:
    (finding,) = job_problems(a_job(layout={"pipeline": 2, "data": 2, "least_data": least}))
    assert f"least_data: is {least}, more than layout.data 2" in str(finding)
