"""`rackray validate`: is this spec right? Every problem at once; nothing is touched, no neighbour is asked."""

from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.output import FILE, print_json, write_whole
from orchestrator.cli.power_drawing import power_svg
from orchestrator.cli.power_view import explain_power, of_limit
from orchestrator.cli.rack_drawing import racks_svg
from orchestrator.domain.errors import BadInput, Problem
from orchestrator.domain.job import JobSpec
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.words import counted
from orchestrator.planning.power_checks import draw_by_feed_w
from orchestrator.planning.power_loss import feed_loads, power_report

DRAWINGS = ("power.svg", "racks.svg")


@click.command()
@click.argument("spec", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict and every problem as JSON.")
@click.option(
    "--explain", type=click.Choice(["power"]), help="Print the power tree: load, limit, margin, and the worst single loss."
)
@click.option(
    "-o",
    "outputs",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Draw a valid spec: a FILE called [...]power.svg is the power tree, [...]racks.svg the racks.",
)
def validate(spec: Path, as_json: bool, explain: str | None, outputs: tuple[Path, ...]) -> int:
    """Check SPEC: every problem at once, each as FILE:LINE:COLUMN: what, how much; way out. A training job is checked too.

    Exit code 0 where the spec is valid, 2 where it is not. Nothing but FILE is written and no machine is asked.
    """
    for output in outputs:
        if not output.name.endswith(DRAWINGS):
            raise BadInput(f"nothing can be drawn as {output.name}", f"end the file's name with one of: {', '.join(DRAWINGS)}")
    try:
        loaded = None if wiring.is_job(spec) else wiring.load_spec(spec)
    except BadInput as error:
        return _refuse(spec, error, {"nodes": 0, "gpus": 0, "racks": 0}, as_json)
    if loaded is None:
        if explain or outputs:
            raise BadInput(f"{spec} is a training job", "power and racks are a cluster's: give its spec")
        return _validate_job(spec, as_json)
    needs_tree = explain is not None or any(output.name.endswith("power.svg") for output in outputs)
    if needs_tree and loaded.spec.power is None:
        raise BadInput(f"{spec} has no `power:` section", "add one: cluster_specs/README.md explains it")
    wants_report = needs_tree or (bool(outputs) and loaded.spec.power is not None)
    report = power_report(loaded.spec) if wants_report else None
    if as_json:
        caps = {"power_caps_w": {name: round(cap_w, 1) for name, cap_w in report.caps_w.items()}} if report and needs_tree else {}
        print_json({"ok": True, **totals(loaded.spec), "problems": [], **caps})
    else:
        click.echo(summary(spec, loaded.spec))
        if report is not None and explain is not None:
            click.echo("\n".join(explain_power(loaded.spec, report)))
    for output in outputs:
        is_power = output.name.endswith("power.svg") and report is not None
        drawing = power_svg(loaded.spec, report) if is_power and report is not None else racks_svg(loaded.spec, report)
        write_whole(output, drawing)
        click.echo(f"wrote {output}", err=True)
    return 0


def _validate_job(path: Path, as_json: bool) -> int:
    try:
        job: JobSpec = wiring.load_job(path).job
    except BadInput as error:
        return _refuse(path, error, {"job": None, "ranks": 0}, as_json)
    if as_json:
        print_json({"ok": True, "job": job.name, "ranks": job.ranks, "problems": []})
    else:
        each = counted(job.ranks_per_node, "rank")
        click.echo(f"{path} is valid: job {job.name} on {counted(job.nodes, 'node')} of {each} each")
    return 0


def _refuse(path: Path, error: BadInput, totals: dict[str, Any], as_json: bool) -> int:
    """Every problem, in words or for machines; `totals`: what else the verdict on a right file would say."""
    problems = error.problems or (Problem(str(path), 0, 0, str(error), error.hint),)
    if as_json:
        print_json({"ok": False, **totals, "problems": [as_row(problem) for problem in problems]})
    else:
        _say_problems(path, problems)
    return BadInput.exit_code


def totals(spec: ClusterSpec) -> dict[str, int]:
    """How much a valid spec declares."""
    return {"nodes": len(spec.nodes), "gpus": sum(spec.sku_of(node).gpus.count for node in spec.nodes), "racks": len(spec.racks)}


def summary(path: Path, spec: ClusterSpec) -> str:
    """One line that says what the file declares and how loaded its feeds are."""
    count = totals(spec)
    draw_w = draw_by_feed_w(spec) if spec.power is None else {name: sum(load) for name, load in feed_loads(spec).items()}
    feeds = ", ".join(f"feed {name} {of_limit(w, spec.feeds[name].limit_w)}" for name, w in draw_w.items())
    declared = f"{counted(count['nodes'], 'node')}, {counted(count['gpus'], 'GPU')}, {counted(count['racks'], 'rack')}"
    return f"{path} is valid: {declared}" + (f"; {feeds}" if feeds else "")


def as_row(problem: Problem) -> dict[str, Any]:
    """A problem as tools read it. Line and column 0: the whole file."""
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "message": problem.message,
        "hint": problem.hint,
    }


def _say_problems(path: Path, problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)
    if len(problems) > 1:
        click.echo(f"{path} has {len(problems)} problems; nothing was touched", err=True)
