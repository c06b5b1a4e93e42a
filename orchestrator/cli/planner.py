"""`rackray planner`: the layout planner against measured runs, and the fit of its constants."""

from dataclasses import asdict
from pathlib import Path

import click

from orchestrator import wiring
from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.output import FILE, print_json, print_table
from orchestrator.domain.errors import BadInput
from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.calibration import HeldBack, held_back
from orchestrator.planning.parallel.leave_out import WAYS, LeftOut
from orchestrator.planning.parallel.refit import Refit, as_modules, refit
from orchestrator.planning.parallel.scoring import Score, mean_error
from orchestrator.planning.parallel.validation import Validation, predict_rows, score, validate

ROWS = click.argument("rows", type=FILE, nargs=-1, required=True)
SOME_ROWS = click.argument("rows", type=FILE, nargs=-1)


@click.group(cls=CommandGroup)
def planner() -> None:
    """The layout planner against measured runs."""


@planner.command("validate")
@ROWS
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def validate_rows(rows: tuple[Path, ...], as_json: bool) -> int:
    """Predict every run of the CSV files ROWS from its inputs alone, then compare with what was measured, per source.

    Errors are of step time unless said otherwise. Rows out of scope are counted with their reasons.
    """
    _tell(validate(_read(rows)), as_json)
    return 0


@planner.command()
@ROWS
@click.option("-o", "--output", type=FILE, required=True, help="The folder the modules are written to.")
@click.option("--date", required=True, help="The date to write into it, YYYY-MM-DD.")
def fit(rows: tuple[Path, ...], output: Path, date: str) -> int:
    """Fit the planner's constants to the CSV files ROWS, and write them as modules. Takes minutes."""
    done = refit(_read(rows))
    for name, text in as_modules(done, date, "rackray planner fit").items():
        wiring.planner_files().write_whole(output / name, text)
    click.echo(f"{output}: constants from {done.step_rows} step times")
    return 0


@planner.command()
@SOME_ROWS
@click.option("-o", "--output", type=FILE, required=True, help="Folder for the JSON and the pictures.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench(rows: tuple[Path, ...], output: Path, as_json: bool) -> int:
    """Fit on the CSV files ROWS with a fifth held back, five times over, and score the rows held back. Takes minutes."""
    measured = _read(rows)
    own = _own_runs(output / "own_runs.csv")
    if not measured:
        click.echo("no published runs were given: `make bench-planner` takes ../shared/data/published_runs*.csv", err=True)
        if as_json:
            print_json({"own_runs": [asdict(run) for run in own]})
        else:
            _tell_own(own)
        return 0
    done = refit(measured, tuple(WAYS))
    predicted = predict_rows(done.study, done.tables)
    scored = score(done.study, predicted, done.log_step, done.log_memory)
    data = _as_data(scored) | {
        "own_runs": [asdict(run) for run in own],
        "left_out": {way: _left_out_data(found) for way, found in done.left_out.items()},
    }
    wiring.planner_files().write_json(output / "held_back.json", data)
    _draw(done, output)
    if as_json:
        print_json(data)
        return 0
    _tell(scored, as_json=False)
    click.echo()
    print_table(
        ("held back at once", "groups", "mean error", "median", "p90", "worst groups"),
        [_left_out_line(found) for found in done.left_out.values()],
    )
    _tell_own(own)
    return 0


def _own_runs(path: Path) -> list[HeldBack]:
    """Runs measured with this project's own model, each held back from a calibration on the others."""
    return held_back(wiring.read_run_rows(path)) if path.exists() else []


def _tell_own(own: list[HeldBack]) -> None:
    if not own:
        return
    click.echo("\nown runs, each predicted by a calibration on the others:")
    print_table(
        ("run", "measured s", "uncalibrated s", "calibrated s", "error", "90% interval"),
        [
            (
                *(run.run, f"{run.measured_s:.3f}", f"{run.before_s:.3f}", f"{run.after_s:.3f}"),
                *(f"{100 * (run.after_s / run.measured_s - 1):+.1f}%", f"{run.low_s:.3f}-{run.high_s:.3f}"),
            )
            for run in own
        ],
    )
    for word, predicted in (("before", [run.before_s for run in own]), ("after", [run.after_s for run in own])):
        errors = [abs(s / run.measured_s - 1) for s, run in zip(predicted, own, strict=True)]
        click.echo(f"mean error {word} calibration: {100 * sum(errors) / len(errors):.1f}%")


def _read(paths: tuple[Path, ...]) -> list[RunRow]:
    """The rows of all files. Raises BadInput where files are given and none of them has a row."""
    rows = [row for path in paths for row in wiring.read_run_rows(path)]
    if paths and not rows:
        raise BadInput(
            f"there is no run in {', '.join(map(str, paths))}", "write one run per line below the line that names the columns"
        )
    return rows


def _draw(done: Refit, folder: Path) -> None:
    wiring.planner_files().draw_scatter(
        folder / "step_time.png", "step time of rows held back from the fit", done.step_points(), "s"
    )
    wiring.planner_files().draw_scatter(
        folder / "memory.png", "memory of rows held back from the fit", done.memory_points(), "GiB"
    )


def _as_data(validation: Validation) -> dict[str, object]:
    return {"sources": [asdict(row) for row in validation.scores], "out_of_scope": validation.reasons}


def _tell(validation: Validation, as_json: bool) -> None:
    if as_json:
        print_json(_as_data(validation))
        return
    headers = ("source", "rows", "out", "timed", "error", "p90", "bias", "trivial", "memory", "p90", "false fit", "false oom")
    print_table(headers, [_line(row) for row in validation.scores])
    click.echo()
    ranked = [row for row in validation.scores if row.ranking_groups or row.coverage is not None]
    print_table(
        ("source", "groups", "regret", "worst", "tau", "inside 90%"),
        [
            (
                row.source,
                str(row.ranking_groups),
                _percent(row.regret_mean),
                _percent(row.regret_max),
                "-" if row.kendall_tau is None else f"{row.kendall_tau:.2f}",
                _percent(row.coverage),
            )
            for row in ranked
        ],
    )
    for name, reasons in sorted(validation.reasons.items()):
        for reason, count in sorted(reasons.items()):
            click.echo(f"out of scope: {count} of {name}: {reason}")


def _left_out_data(found: LeftOut) -> dict[str, object]:
    error, p90, bias = mean_error(found.log_step)
    worst = [{"group": name, "rows": rows, "error_mean": mean} for name, rows, mean in found.worst(10)]
    return {
        "groups": found.groups,
        "error_mean": error,
        "error_median": found.median,
        "error_p90": p90,
        "bias": bias,
        "worst": worst,
    }


def _left_out_line(found: LeftOut) -> tuple[str, ...]:
    error, p90, _ = mean_error(found.log_step)
    worst = "; ".join(f"{name} ({rows}) {_percent(mean)}" for name, rows, mean in found.worst(3))
    return (found.way, str(found.groups), _percent(error), _percent(found.median), _percent(p90), worst)


def _line(row: Score) -> tuple[str, ...]:
    numbers = (row.step_error_mean, row.step_error_p90, row.step_bias, row.baseline_error_mean)
    return (
        *(row.source, str(row.rows), str(row.out_of_scope), str(row.step_rows)),
        *(_percent(number) for number in numbers),
        *(_percent(row.memory_error_mean), _percent(row.memory_error_p90), str(row.false_fits), str(row.false_out_of_memory)),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
