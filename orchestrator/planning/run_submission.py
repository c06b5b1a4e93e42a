"""What `rackray train submit` asks for: a new run, the continuation of an ended one, or a run that goes on already. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.errors import BadInput
from orchestrator.domain.job import JobSpec
from orchestrator.domain.run import RunRecord

SAME_FOR_RESUME = ("model", "data", "command")
"""A checkpoint can be continued only by a job that agrees with the old one in these. Layout, precision and number of nodes may
be others: the model reads any checkpoint in any layout. Another program's may not."""


@dataclass(frozen=True, slots=True)
class FollowRun:
    """An unfinished run of the job exists: nothing is submitted."""

    run: str
    because: str


@dataclass(frozen=True, slots=True)
class SubmitRun:
    """A run to ask for."""

    data: Mapping[str, Any]
    """Of the event `run.submitted`."""
    because: str


def decide_submission(
    job: JobSpec,
    job_sha256: str,
    runs: Sequence[RunRecord],
    *,
    by: str,
    resume: bool = False,
    steps: int | None = None,
    new: bool = False,
) -> FollowRun | SubmitRun:
    """What to do about `job`, given the runs there are. Raises BadInput when it cannot be continued as asked."""
    same = sorted((run for run in runs if run.job_name == job.name), key=lambda run: (run.submitted_at_s, run.id))
    unfinished = [run for run in same if not run.is_ended]
    if unfinished and not new:
        run = unfinished[-1]
        changed = "" if run.job_sha256 == job_sha256 else "; the job file has changed since, --new submits it as another run"
        return FollowRun(run.id, f"{run.id} of this job is {run.state} already{changed}")
    data: dict[str, Any] = {
        "job": job.model_dump(mode="json"),
        "job_sha256": job_sha256,
        "by": by,
        "steps": steps or job.steps,
        "resume_of": None,
        "checkpoint_run": None,
        "resume_from_step": 0,
    }
    if not resume:
        return SubmitRun(data, f"a new run of {job.name}")
    old = _to_continue(job, same)
    from_step = old.last_known_step
    data |= {"resume_of": old.id, "checkpoint_run": old.checkpoint_run, "resume_from_step": from_step}
    data["steps"] = _end_step(job, old, steps)
    said = f"continues {old.id} from its checkpoint at step {from_step}, to step {data['steps']}"
    if steps is None and data["steps"] != job.steps:
        said += f" ({old.id} had done all of its {from_step}: the job's {job.steps} more; --steps sets another end)"
    return SubmitRun(data, said)


def _to_continue(job: JobSpec, same: Sequence[RunRecord]) -> RunRecord:
    if not same:
        raise BadInput(f"there is no run of {job.name} to continue", "submit it without --resume")
    with_checkpoint = [run for run in same if run.is_ended and run.last_known_step > 0]
    if not with_checkpoint:
        states = ", ".join(f"{run.id} is {run.state}" for run in same[-3:])
        raise BadInput(f"no run of {job.name} ended with a complete checkpoint ({states})", "submit it without --resume")
    old = with_checkpoint[-1]
    before, now = old.spec.model_dump(mode="json"), job.model_dump(mode="json")
    changed = [name for name in SAME_FOR_RESUME if before[name] != now[name]]
    if job.command and old.spec.ranks != job.ranks:
        changed.append("nodes x ranks_per_node")
    if changed:
        raise BadInput(
            f"{old.id} cannot be continued: the job file now differs in {', '.join(changed)}",
            "put these back as they were, or submit without --resume",
        )
    return old


def _end_step(job: JobSpec, old: RunRecord, steps: int | None) -> int:
    """The step to stop at. A run that did everything asked of it is continued by the job's number of steps more."""
    done = old.last_known_step
    if steps is not None and steps <= done:
        raise BadInput(f"--steps {steps} is not beyond step {done}, where {old.id} stands", f"give --steps {done + 1} or more")
    if steps is not None:
        return steps
    return job.steps if job.steps > done else done + job.steps
