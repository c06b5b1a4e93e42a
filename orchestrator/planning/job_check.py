"""What depends on several fields of a job together: pure, and every problem at once."""

from model.contract import ContractError, RunSpec, problems_of
from orchestrator.domain.job import JobSpec
from orchestrator.domain.run import RunRecord
from orchestrator.domain.spec import Finding
from orchestrator.planning.run_launch import RunPaths, run_spec

MODEL_FIELDS = ("model", "batch", "optimizer", "steps")
"""What a job must have to train rackray's own model, and may leave out when it names a command."""


def job_problems(job: JobSpec) -> list[Finding]:
    """Everything about `job` that could not be run, in the order of its fields."""
    findings = _command_problems(job) if job.command else _model_problems(job)
    if job.heartbeat_limit_s > job.start_limit_s:
        findings.append(
            Finding(
                ("start_limit_s",),
                f"start_limit_s is {job.start_limit_s:g} s, below heartbeat_limit_s {job.heartbeat_limit_s:g} s: a rank would "
                "get less time to start than to make one step",
                f"set start_limit_s to at least {job.heartbeat_limit_s:g}",
            )
        )
    return findings


def _command_problems(job: JobSpec) -> list[Finding]:
    given = [name for name in MODEL_FIELDS if name in job.model_fields_set]
    return [
        Finding(
            (name,), f"{name} is given together with command, which replaces rackray's own training", f"delete {name}, or command"
        )
        for name in given
    ]


def _model_problems(job: JobSpec) -> list[Finding]:
    missing = [name for name in MODEL_FIELDS if not getattr(job, name)]
    if missing:
        return [Finding((), f"{name} is missing", f"add {name}, or name another program with command: [...]") for name in missing]
    run = RunRecord(f"{job.name}-1", job.name, {}, steps=job.steps, attempt=1, directory="/run")
    spec = run_spec(run, job, RunPaths("/shared"))
    problems = problems_of(spec)
    if not any(problem.startswith(("layout.pipeline", "layout.data")) for problem in problems):
        problems.extend(_world_problem(spec, job))
    return [_finding(problem) for problem in problems]


def _world_problem(spec: RunSpec, job: JobSpec) -> list[str]:
    """The degrees must multiply to the ranks that the job's nodes carry."""
    try:
        spec.check_world(job.ranks)
    except ContractError:
        layout = spec.layout
        product = f"pipeline {layout.pipeline} x data {layout.data} = {layout.ranks} ranks"
        asked = f"{job.nodes} nodes x {job.ranks_per_node} ranks_per_node = {job.ranks}"
        ways = []
        if layout.ranks % job.ranks_per_node == 0:
            ways.append(f"set nodes to {layout.ranks // job.ranks_per_node}")
        if job.ranks % layout.pipeline == 0:
            ways.append(f"set layout.data to {job.ranks // layout.pipeline}")
        way_out = ", or ".join(ways) or f"choose layout.pipeline as a divisor of {job.ranks}"
        return [f"layout: {product}, but {asked}; {way_out}"]
    return []


def _finding(problem: str) -> Finding:
    """A problem in the contract's words, `place: what, how much; way out`, at its place in the job file."""
    place, _, rest = problem.partition(": ")
    message, _, hint = rest.rpartition("; ")
    return Finding(tuple(place.split(".")), f"{place}: {message or hint}", hint if message else "")
