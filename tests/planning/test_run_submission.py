from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.errors import BadInput
from orchestrator.domain.job import JobSpec
from orchestrator.domain.run import RunRecord, RunState, next_run_id
from orchestrator.planning.run_submission import FollowRun, SubmitRun, decide_submission
from tests.planning.run_world import a_job


def a_run(job: JobSpec, **changes: Any) -> RunRecord:
    run = RunRecord("lm-1", "lm", job.model_dump(mode="json"), job_sha256="a", steps=10, checkpoint_run="lm-1")
    return replace(run, **changes)


def decide(job: JobSpec, runs: list[RunRecord], **options: Any) -> FollowRun | SubmitRun:
    return decide_submission(job, "a", runs, by="ops", **options)


def test_a_job_with_an_unfinished_run_is_followed_unless_another_is_asked_for() -> None:
    job = a_job()
    runs = [a_run(job, state=RunState.RUNNING)]
    assert decide(job, runs) == FollowRun("lm-1", "lm-1 of this job is running already")
    assert isinstance(decide(job, runs, new=True), SubmitRun)


def test_resume_continues_the_newest_ended_run_on_the_first_ones_checkpoints() -> None:
    job = a_job(steps=30)
    first = a_run(job, state=RunState.FAILED, checkpoint_step=10)
    second = a_run(job, id="lm-2", state=RunState.STOPPED, resume_of="lm-1", resume_from_step=10, submitted_at_s=5.0)
    found = decide(job, [second, first], resume=True)
    assert isinstance(found, SubmitRun)
    assert (found.data["resume_of"], found.data["checkpoint_run"]) == ("lm-2", "lm-1")
    assert (found.data["resume_from_step"], found.data["steps"]) == (10, 30)


def test_resuming_a_run_that_did_everything_goes_on_for_as_many_steps_more_and_says_so() -> None:
    job = a_job()
    done = a_run(job, state=RunState.FINISHED, checkpoint_step=10)
    found = decide(job, [done], resume=True)
    assert isinstance(found, SubmitRun) and found.data["steps"] == 20 and "10 more" in found.because
    shorter = decide(job, [done], resume=True, steps=12)
    assert isinstance(shorter, SubmitRun) and shorter.data["steps"] == 12


@pytest.mark.parametrize(
    ("job", "runs", "steps", "words"),
    [
        (a_job(), [], None, "no run of lm to continue"),
        (a_job(), [a_run(a_job(), state=RunState.FAILED)], None, "no run of lm ended with a complete checkpoint"),
        (a_job(), [a_run(a_job(), state=RunState.FINISHED, checkpoint_step=10)], 10, "--steps 10 is not beyond step 10"),
        (
            a_job(data={"name": "other"}),
            [a_run(a_job(), state=RunState.FINISHED, checkpoint_step=10)],
            None,
            "differs in data",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(job: JobSpec, runs: list[RunRecord], steps: int | None, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        decide(job, runs, resume=True, steps=steps)


def test_another_layout_precision_and_number_of_nodes_continue_a_run() -> None:
    old = a_run(a_job(), state=RunState.FINISHED, checkpoint_step=10)
    job = a_job(nodes=2, layout={"data": 2, "zero": 3}, precision="bf16")
    asked = decide(job, [old], resume=True, steps=20)
    assert isinstance(asked, SubmitRun)
    assert (asked.data["resume_of"], asked.data["resume_from_step"]) == (old.id, 10)


def test_another_programs_run_keeps_its_ranks() -> None:
    program = {"model": None, "batch": None, "optimizer": None, "steps": 0, "command": ["./train"]}
    old = a_run(a_job(**program), state=RunState.FINISHED, checkpoint_step=10)
    with pytest.raises(BadInput, match="nodes x ranks_per_node"):
        decide(a_job(**program, nodes=2), [old], resume=True, steps=20)


def test_runs_are_numbered_after_their_job_and_no_number_is_given_twice() -> None:
    assert next_run_id("lm", []) == "lm-1"
    assert next_run_id("lm", ["lm-2", "lm-zero3-7", "other-9", "lm-x"]) == "lm-3"
