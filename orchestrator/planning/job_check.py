"""What depends on several fields of a job together: pure, and every problem at once."""

import difflib

from model.contract import ContractError, RunSpec, problems_of
from model.shape import PRESETS
from orchestrator.domain.job import JobModel, JobSpec
from orchestrator.domain.run import RunRecord
from orchestrator.domain.spec import Finding
from orchestrator.planning.run_launch import RunPaths, run_spec

MODEL_FIELDS = ("model", "batch", "optimizer", "steps")
"""What a job must have to train rackray's own model, and may leave out when it names a command."""
MODEL_NUMBERS = ("layers", "d_model", "heads", "d_ff", "vocabulary", "positions")
"""What a model must have unless it names a preset."""


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
    incomplete = _incomplete_model(job.model) if job.model else []
    if incomplete:
        return incomplete
    run = RunRecord(f"{job.name}-1", job.name, {}, steps=job.steps, attempt=1, directory="/run")
    spec = run_spec(run, job, RunPaths("/shared"))
    problems = problems_of(spec)
    least = job.layout.least_data
    if least is not None and least > job.layout.data:
        problems.append(f"layout.least_data: is {least}, more than layout.data {job.layout.data}; at most {job.layout.data}")
    if not any(
        problem.startswith(("layout.pipeline", "layout.tensor", "layout.sequence", "layout.data")) for problem in problems
    ):
        problems.extend(_world_problem(spec, job))
    return [_finding(problem) for problem in problems]


def _incomplete_model(model: JobModel) -> list[Finding]:
    """A preset that does not exist, or numbers that are missing without one."""
    if model.preset is not None and model.preset not in PRESETS:
        nearest = difflib.get_close_matches(model.preset, PRESETS, n=1, cutoff=0.0)[0]
        said = f"model.preset: {model.preset!r} is not a shape that is known"
        return [Finding(("model", "preset"), said, f"did you mean {nearest}? known: {', '.join(PRESETS)}")]
    missing = [] if model.preset else [name for name in MODEL_NUMBERS if getattr(model, name) is None]
    hint = "add it, or name a published shape with preset"
    return [Finding(("model",), f"model.{name} is missing", hint) for name in missing]


def _world_problem(spec: RunSpec, job: JobSpec) -> list[str]:
    """The degrees must multiply to the ranks that the job's nodes carry."""
    try:
        spec.check_world(job.ranks)
    except ContractError:
        layout = spec.layout
        group = layout.pipeline * layout.tensor * layout.sequence
        inner = {"tensor": layout.tensor, "sequence": layout.sequence}
        tensor = "".join(f"{name} {degree} x " for name, degree in inner.items() if degree > 1)
        product = f"pipeline {layout.pipeline} x {tensor}data {layout.data} = {layout.ranks} ranks"
        asked = f"{job.nodes} nodes x {job.ranks_per_node} ranks_per_node = {job.ranks}"
        ways = []
        if layout.ranks % job.ranks_per_node == 0:
            ways.append(f"set nodes to {layout.ranks // job.ranks_per_node}")
        if job.ranks % group == 0:
            ways.append(f"set layout.data to {job.ranks // group}")
        degrees = " x ".join(["layout.pipeline", *(f"layout.{name}" for name, degree in inner.items() if degree > 1)])
        way_out = ", or ".join(ways) or f"choose {degrees} as a divisor of {job.ranks}"
        return [f"layout: {product}, but {asked}; {way_out}"]
    return []


def _finding(problem: str) -> Finding:
    """A problem in the contract's words, `place: what, how much; way out`, at its place in the job file."""
    place, _, rest = problem.partition(": ")
    message, _, hint = rest.rpartition("; ")
    return Finding(tuple(place.split(".")), f"{place}: {message or hint}", hint if message else "")
