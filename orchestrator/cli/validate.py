"""`rackray validate`: is this spec right? Every problem at once; nothing is touched, no neighbour is asked."""

from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.output import print_json
from orchestrator.domain.errors import BadInput, Problem
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.power_checks import draw_by_feed_w, kilowatts


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the verdict and every problem as JSON.")
def validate(spec: Path, as_json: bool) -> int:
    """Check SPEC: every problem at once, each as FILE:LINE:COLUMN: what, how much; way out.

    Exit code 0 where the spec is valid, 2 where it is not. Nothing is written and no machine is asked.
    """
    try:
        loaded = wiring.load_spec(spec)
    except BadInput as error:
        problems = error.problems or (Problem(str(spec), 0, 0, str(error), error.hint),)
        if as_json:
            print_json({"ok": False, "nodes": 0, "gpus": 0, "racks": 0, "problems": [as_row(problem) for problem in problems]})
        else:
            _say_problems(spec, problems)
        return BadInput.exit_code
    if as_json:
        print_json({"ok": True, **totals(loaded.spec), "problems": []})
    else:
        click.echo(summary(spec, loaded.spec))
    return 0


def totals(spec: ClusterSpec) -> dict[str, int]:
    """How much a valid spec declares."""
    return {"nodes": len(spec.nodes), "gpus": sum(spec.sku_of(node).gpus.count for node in spec.nodes), "racks": len(spec.racks)}


def summary(path: Path, spec: ClusterSpec) -> str:
    """One line that says what the file declares and how loaded its feeds are."""
    count = totals(spec)
    feeds = ", ".join(
        f"feed {name} {kilowatts(w)} of {kilowatts(spec.feeds[name].limit_w)} kW" for name, w in draw_by_feed_w(spec).items()
    )
    declared = f"{_count(count['nodes'], 'node')}, {_count(count['gpus'], 'GPU')}, {_count(count['racks'], 'rack')}"
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
