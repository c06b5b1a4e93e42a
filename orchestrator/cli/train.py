"""`rackray train`: submit jobs, follow and list runs, read their logs, stop them."""

import sys
from pathlib import Path

import click

from orchestrator import wiring
from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.nodes import folded
from orchestrator.cli.output import FILE, accepted, confirm, print_json, print_table
from orchestrator.cli.train_plan import calibrate_planner, plan_layouts
from orchestrator.cli.train_view import RunView, list_row, summary
from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.domain.run import RunRecord, RunState
from orchestrator.domain.words import counted, meant
from orchestrator.execution.views import Views
from orchestrator.planning.run_submission import FollowRun, decide_submission


@click.group(cls=CommandGroup)
def train() -> None:
    """Submit, watch and stop training runs."""


train.add_command(plan_layouts)
train.add_command(calibrate_planner)


@train.command()
@click.argument("job", type=FILE)
@click.option("--resume", is_flag=True, help="Continue the newest ended run of this job from its last complete checkpoint.")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this step instead of the job's last one.")
@click.option("--new", is_flag=True, help="Submit another run, although one of this job is unfinished.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Stay until the run ends.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def submit(job: Path, resume: bool, steps: int | None, new: bool, follow: bool, yes: bool) -> int:
    """Run the training job in the file JOB.

    Ctrl-C only ends the watching where another process decides; run the same command again to follow the run.
    Exit 0 when the run finished, 1 otherwise.
    """
    loaded = wiring.load_job(job)
    folder = wiring.home()
    views = wiring.open_views(folder)
    began_seq = views.state.seq
    runs = views.run_records()
    decided = decide_submission(loaded.job, loaded.sha256, runs, by=wiring.who(), resume=resume, steps=steps, new=new)
    click.echo(f"{job.name}: {decided.because}", err=True)
    if isinstance(decided, FollowRun):
        return _follow(folder, decided.run, began_seq) if follow else 0
    if sys.stdin.isatty() and not confirm(f"Submit {loaded.job.name} for {counted(loaded.job.nodes, 'node')}?", yes):
        raise NotAsRequired("nothing was done")
    asked = wiring.request(folder, "request.submit", dict(decided.data))
    if not follow:
        click.echo(f"submitted; `rackray train watch` follows it once a controller has taken it (request {asked.seq})")
        return 0
    wiring.follow_or_control(folder, lambda now: asked.seq in now.state.answers, lambda now: None)
    return _follow(folder, accepted(wiring.open_views(folder).state.answers[asked.seq]), began_seq)


@train.command("list")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_runs(as_json: bool) -> int:
    """All runs, oldest first: state, step, loss, speed and nodes."""
    views = wiring.open_views(wiring.home())
    rows = [list_row(run, views.run_progress(run.id)) for run in views.run_records()]
    if as_json:
        print_json(rows)
        return 0
    headers = ("id", "state", "step", "loss first", "last", "held out", "tokens/s", "nodes", "because")
    print_table(
        headers,
        [
            (
                row["id"],
                row["state"],
                f"{row['step']}/{row['steps']}",
                _number(row["loss_first"]),
                _number(row["loss_last"]),
                _number(row["heldout_loss"]),
                _number(row["tokens_per_s"], 0),
                folded(row["nodes"]) + (f" (+{folded(row['spares'])})" if row["spares"] else ""),
                row["because"],
            )
            for row in rows
        ],
        colour_column=1,
    )
    return 0


@train.command()
@click.argument("run_id", metavar="[RUN]", default="")
def watch(run_id: str) -> int:
    """Follow RUN (default: the newest one) until it ends. Exit 0 when it finished."""
    folder = wiring.home()
    views = wiring.open_views(folder)
    return _follow(folder, _run(views, run_id).id, views.state.seq)


@train.command()
@click.argument("run_id", metavar="[RUN]", default="")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which rank's log.")
@click.option("--lines", type=click.IntRange(min=1), default=200, show_default=True, help="How many lines from its end.")
def logs(run_id: str, rank: int, lines: int) -> int:
    """The log of one rank of RUN (default: the newest one), read at its node."""
    folder = wiring.home()
    run = _run(wiring.open_views(folder), run_id)
    if rank not in [placed.rank for placed in run.ranks]:
        raise BadInput(
            f"{run.id} has no rank {rank}", f"it has 0 to {len(run.ranks) - 1}" if run.ranks else "it was never placed"
        )
    click.echo(wiring.rank_log(folder, run, rank, lines), nl=False)
    return 0


@train.command()
@click.argument("run_id", metavar="RUN")
@click.option("--reason", required=True, help="Journaled with your name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(run_id: str, reason: str, yes: bool) -> int:
    """End RUN: every rank writes a checkpoint first. Exit 0 when it has ended."""
    folder = wiring.home()
    views = wiring.open_views(folder)
    run = _run(views, run_id)
    if run.is_ended:
        click.echo(f"{run.id} is {run.state} already")
        return 0
    if sys.stdin.isatty() and not confirm(f"End {run.id}, which is {run.state}?", yes):
        raise NotAsRequired("nothing was done")
    wiring.request(folder, "request.cancel", {"run": run.id, "by": wiring.who(), "reason": reason})
    _watch(folder, run.id, views.state.seq)
    ended = wiring.open_views(folder).state.runs[run.id]
    click.echo(f"{ended.id} is {ended.state}: {ended.because}")
    return 0 if ended.is_ended else 1


def _follow(folder: Path, run_id: str, from_seq: int) -> int:
    """Show the run until it ends, then its summary and its loss curve."""
    _watch(folder, run_id, from_seq)
    views = wiring.open_views(folder)
    run, progress, lines_path = views.state.runs[run_id], views.run_progress(run_id), views.progress_lines(run_id)
    curve = None
    if progress is not None and progress.lines:
        curve = wiring.draw_loss_curve(lines_path, lines_path.with_name("loss.png"), run.id)
    click.echo(summary(run, progress, lines_path, curve))
    return 0 if run.state is RunState.FINISHED else 1


def _watch(folder: Path, run_id: str, from_seq: int) -> None:
    with RunView(run_id, from_seq) as view:
        wiring.follow_or_control(folder, lambda views: _is_over(views, run_id), view.show)


def _is_over(views: Views, run_id: str) -> bool:
    """The run has ended and every node it held has been given back."""
    return views.state.runs[run_id].is_ended and all(node.run != run_id for node in views.state.nodes.values())


def _run(views: Views, run_id: str) -> RunRecord:
    runs = views.run_records()
    if run_id in views.state.runs:
        return views.state.runs[run_id]
    if not runs:
        untrue = "no run was ever submitted", "`rackray train submit JOB`"
        raise BadInput(*untrue) if run_id else NotAsRequired(*untrue)
    if run_id:
        near = meant(run_id, views.state.runs)
        raise BadInput(f"there is no run {run_id}", f"{near}the newest is {runs[-1].id}; `rackray train list` shows all")
    return runs[-1]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
