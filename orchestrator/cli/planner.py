"""`rackray planner`: the layout planner against measured runs, and the fit of its constants."""

from dataclasses import asdict
from pathlib import Path

import click

from orchestrator import wiring
from orchestrator.cli.output import print_json, print_table
from orchestrator.domain.run_row import RunRow
from orchestrator.planning.parallel.refit import Refit, as_modules, refit
from orchestrator.planning.parallel.scoring import Score
from orchestrator.planning.parallel.validation import Validation, predict_rows, score, validate

ROWS = click.argument("rows", type=click.Path(path_type=Path), nargs=-1, required=True)


@click.group()
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
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder the modules are written to.")
@click.option("--date", required=True, help="The date to write into it, YYYY-MM-DD.")
def fit(rows: tuple[Path, ...], output: Path, date: str) -> int:
    """Fit the planner's constants to the CSV files ROWS, and write them as modules. Takes minutes."""
    done = refit(_read(rows))
    for name, text in as_modules(done, date, "rackray planner fit").items():
        wiring.planner_files().write_whole(output / name, text)
    click.echo(f"{output}: constants from {done.step_rows} step times")
    return 0


@planner.command()
@ROWS
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the pictures.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench(rows: tuple[Path, ...], output: Path, as_json: bool) -> int:
    """Fit on the CSV files ROWS with a fifth held back, five times over, and score the rows held back. Takes minutes."""
    done = refit(_read(rows))
    predicted = predict_rows(done.study, done.tables)
    scored = score(done.study, predicted, done.log_step, done.log_memory)
    wiring.planner_files().write_json(output / "held_back.json", _as_data(scored))
    _draw(done, output)
    _tell(scored, as_json)
    return 0


def _read(paths: tuple[Path, ...]) -> list[RunRow]:
    return [row for path in paths for row in wiring.read_run_rows(path)]


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


def _line(row: Score) -> tuple[str, ...]:
    numbers = (row.step_error_mean, row.step_error_p90, row.step_bias, row.baseline_error_mean)
    return (
        *(row.source, str(row.rows), str(row.out_of_scope), str(row.step_rows)),
        *(_percent(number) for number in numbers),
        *(_percent(row.memory_error_mean), _percent(row.memory_error_p90), str(row.false_fits), str(row.false_out_of_memory)),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
