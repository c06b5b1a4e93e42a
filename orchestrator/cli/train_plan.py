"""`rackray train plan` and `rackray train calibrate`: which layout to train with, and the planner set right by one's own runs."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.output import FILE, print_json, print_table
from orchestrator.domain.errors import BadInput
from orchestrator.domain.layout import Fits, Layout, Prediction
from orchestrator.domain.run_row import RunMeasured, RunRow
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.words import counted
from orchestrator.planning.parallel.advice import changes_that_fit
from orchestrator.planning.parallel.calibration import SKIPPED_STEPS, calibrate, calibrated
from orchestrator.planning.parallel.cluster import (
    GpuCluster,
    PlanJob,
    cluster_by_hand,
    cluster_of,
    plan_job_of,
    shape_of,
)
from orchestrator.planning.parallel.planner import Plan, other_fleets, plan, predict
from orchestrator.planning.parallel.rows import inputs_of_job, layout_of_job
from orchestrator.planning.parallel.search import Limits
from orchestrator.planning.parallel.validation import FITTED, Tables
from orchestrator.planning.power_caps import caps_of

CAP_SHARES = (0.9, 0.8, 0.7, 0.6)
"""Power caps that `--objective energy` tries, as shares of the GPU's rating."""


@click.command("plan")
@click.argument("job", type=FILE)
@click.option("--spec", type=FILE, help="The cluster's spec; or say --gpu.")
@click.option("--gpu", help="GPU type, such as H100-80G, where there is no spec.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="With --gpu. Left out: 8; with --as-written the job's ranks.")
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes to plan for. Left out: the job's.")
@click.option("--network-gbit", type=click.FloatRange(min=1), help="Gbit/s per node. Left out: the vendor's reference system.")
@click.option("--preset", help="A published model shape instead of the job's, such as llama-70b.")
@click.option(
    "--framework", default="rackray", show_default=True, help="Whose layouts: rackray, megatron-core, nemo, torchtitan, ..."
)
@click.option("--precision", help="bf16, fp16, fp32, fp8 or fp4. Left out: the job's.")
@click.option("--offload", is_flag=True, help="Also layouts that keep the optimizer's state in the host's memory.")
@click.option("--as-written", is_flag=True, help="Only the job's own layout: whether it fits, what it takes, what would help.")
@click.option(
    "--power-cap",
    type=click.FloatRange(min=50),
    help="Watts per GPU. Left out: what the spec's power tree allows.",
)
@click.option("--failures", type=click.FloatRange(min=0), help="Failures per node and day. Left out: those of Llama 3's fleet.")
@click.option("--restart-min", type=click.FloatRange(min=0), help="Minutes from a failure to training again. Left out: 10.")
@click.option(
    "--storage-gb-s", type=click.FloatRange(min=0.001), help="Rate at which a node writes checkpoints. Left out: 2 GB/s."
)
@click.option("--objective", type=click.Choice(("time", "energy")), default="time", show_default=True, help="What is made small.")
@click.option("--top", type=click.IntRange(min=1, max=100), default=5, show_default=True, help="Layouts to show.")
@click.option("--explain", is_flag=True, help="Term by term, and why not the others.")
@click.option("-o", "--output", type=FILE, help="With --explain: a picture of the terms (PNG).")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def plan_layouts(job: Path, preset: str | None, framework: str, precision: str | None, **rest: Any) -> int:
    """Which layout to train JOB with: every one that divides, ranked by the time of the whole run. Changes nothing.

    That time is all steps' over the share of it that checkpoints and failures leave; each step time comes with its interval.
    """
    loaded = wiring.load_job(job)
    shape = shape_of(loaded.job, preset)
    asked = plan_job_of(loaded.job, shape, precision, framework)
    tables = _tables()
    each = rest["gpus_per_node"] or (loaded.job.ranks_per_node if rest["as_written"] else 8)
    cluster = _cluster(loaded.job.nodes, {**rest, "gpus_per_node": each})
    if rest["as_written"]:
        return _as_written(asked, cluster, layout_of_job(loaded.job.model_dump(mode="json")), tables, rest["as_json"])
    limits = Limits(offload=(False, True) if rest["offload"] else (False,))
    found = _best_plan(asked, cluster, limits, rest, tables)
    if rest["explain"] and rest["output"]:
        wiring.planner_files().draw_terms(rest["output"], f"{job.name}: seconds per step", *_bars(found))
        click.echo(f"picture: {rest['output']}", err=True)
    if rest["as_json"]:
        print_json(_as_data(found))
        return 0
    _tell(found)
    if rest["explain"]:
        _explain(found, other_fleets(found.job, found.cluster, tables))
    return 0


@click.command("calibrate")
@click.argument("runs", nargs=-1, required=True)
@click.option("--gpu", default="", help="GPU type the runs ran on. Required for runs of this cluster; a CSV file states it.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def calibrate_planner(runs: tuple[str, ...], gpu: str, as_json: bool) -> int:
    """Set the planner right by measured RUNS: ids of this cluster's runs, or CSV files with the planner's columns.

    Writes planner.json into RACKRAY_HOME; `rackray train plan` uses it from then on.
    """
    rows: list[RunRow] = []
    for name in runs:
        rows += wiring.read_run_rows(Path(name)) if name.endswith(".csv") else [_row_of_run(name, gpu)]
    found = calibrate(rows)
    path = wiring.home() / "planner.json"
    wiring.planner_files().write_json(path, {"factors": found.values, "intervals": found.intervals, "runs": found.runs})
    if as_json:
        print_json(asdict(found))
        return 0
    before, after = 100 * found.error_before, 100 * found.error_after
    said = counted(found.runs, "run")
    click.echo(f"{said}: mean error of step time {before:.1f}% before, {after:.1f}% after; written to {path}")
    return 0


def _row_of_run(run_id: str, gpu: str) -> RunRow:
    """A run of this cluster as a row: its job's shape and layout, and the median of its step times."""
    views = wiring.open_views(wiring.home())
    run = {run.id: run for run in views.run_records()}.get(run_id)
    if run is None:
        raise BadInput(f"there is no run {run_id}", "`rackray train list` shows all; a CSV file's name ends in .csv")
    if not gpu:
        raise BadInput(f"on which GPU did {run_id} run?", "say --gpu, such as --gpu H100-80G, or --gpu CPU")
    step_s, _ = wiring.planner_files().measured_steps(views.progress_lines(run_id), SKIPPED_STEPS)
    if step_s is None:
        raise BadInput(f"{run_id} reported no step", "calibrate with a run that trained")
    return RunRow(run_id, "own runs", inputs_of_job(run.job, gpu), RunMeasured(step_s=step_s))


def _tables() -> Tables:
    """The constants that ship, or those that `rackray train calibrate` has set right, which is said."""
    path = wiring.home() / "planner.json"
    values, intervals = wiring.planner_files().read_calibration(path)
    if not values:
        return FITTED
    click.echo(f"calibrated by own runs: {path}; delete it to plan with the constants that ship", err=True)
    return calibrated(FITTED, values, intervals)


def _cluster(job_nodes: int, options: dict[str, Any]) -> GpuCluster:
    nodes, network = options["nodes"] or job_nodes, options["network_gbit"]
    if options["gpu"]:
        cluster = cluster_by_hand(options["gpu"], nodes, options["gpus_per_node"], network)
    elif options["spec"]:
        spec = wiring.load_spec(options["spec"]).spec
        cluster = cluster_of(spec, nodes, network)
        cluster = cluster if options["power_cap"] else _capped_by_spec(cluster, spec)
    else:
        raise BadInput("for which cluster?", "say --spec SPEC, or --gpu with --gpus-per-node and --nodes")
    said = {
        "gpu_power_cap_w": options["power_cap"],
        "failures_per_node_day": options["failures"],
        "restart_s": None if options["restart_min"] is None else 60.0 * options["restart_min"],
        "storage_gb_s_per_node": options["storage_gb_s"],
    }
    return replace(cluster, **{name: value for name, value in said.items() if value is not None})


def _capped_by_spec(cluster: GpuCluster, spec: ClusterSpec) -> GpuCluster:
    """The cluster under the lowest power cap that the spec's power tree puts on its GPUs; --power-cap goes before it."""
    caps = [cap for cap in caps_of(spec).values() if cap.gpu_w is not None]
    if not caps:
        return cluster
    lowest = min(caps, key=lambda cap: cap.gpu_w or 0.0)
    click.echo(f"power cap of the spec: {lowest}, so that any one feed may be lost (on_feed_loss: throttle)", err=True)
    return replace(cluster, gpu_power_cap_w=lowest.gpu_w)


def _as_written(job: PlanJob, cluster: GpuCluster, layout: Layout, tables: Tables, as_json: bool) -> int:
    """Exit 1 where the layout does not fit."""
    found = predict(job, cluster, layout, tables)
    helps = [] if found.fits is Fits.YES else changes_that_fit(job, cluster, layout, tables)
    if as_json:
        print_json({**asdict(found), "helps": helps})
    else:
        print_table(HEADERS, [_line(found)])
        _tell_run(found, job)
    if found.fits is not Fits.YES:
        verdict = "may not fit" if found.fits is Fits.TIGHT else "does not fit"
        need, have = found.memory_bytes / 2**30, found.gpu_memory_bytes / 2**30
        way_out = f"needs {', or '.join(helps)}" if helps else "no single change makes it fit: plan without --as-written"
        click.echo(f"{layout} {verdict}: {need:.1f} of {have:.1f} GiB; {way_out}", err=True)
    return 1 if found.fits is Fits.NO else 0


def _best_plan(job: PlanJob, cluster: GpuCluster, limits: Limits, asked: dict[str, Any], tables: Tables) -> Plan:
    top = asked["top"]
    if asked["objective"] == "time":
        return plan(job, cluster, limits, keep=top, tables=tables)
    most = cluster.gpu_power_cap_w or cluster.gpu.power_w
    caps = [most, *(cap for share in CAP_SHARES if (cap := cluster.gpu.power_w * share) < most)]
    plans = [plan(job, replace(cluster, gpu_power_cap_w=cap), limits, keep=top, tables=tables) for cap in caps]
    return min(plans, key=lambda found: found.best.run_kwh)


def _tell(found: Plan) -> None:
    cluster, best = found.cluster, found.best
    cap = f", capped at {cluster.gpu_power_cap_w:.0f} W per GPU" if cluster.gpu_power_cap_w else ""
    click.echo(
        f"{found.considered} layouts on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}{cap}: "
        f"{found.fitting} fit, {found.tight} are tight"
    )
    if best.fits is not Fits.YES:
        click.echo("none fits for certain: try the first with a few steps before relying on it", err=True)
    print_table(HEADERS, [_line(prediction) for prediction in found.ranked])
    _tell_run(best, found.job)


HEADERS = ("layout", "step s", "90% of runs", "tokens/s", "MFU", "GiB", "fits", "kW/node", "kept", "run")


def _tell_run(best: Prediction, job: PlanJob) -> None:
    lost = ", ".join(f"{100 * share:.1f}% {_LOST[name]}" for name, share in best.lost.items())
    steps = counted(job.steps, "step", "takes", "take")
    click.echo(
        f"{steps} {_span(best.run_s)} and {best.run_kwh:,.1f} kWh; {100 * best.goodput:.1f}% "
        f"of the time is kept, {lost}, with a checkpoint every {best.checkpoint_every_s / 60:.0f} min"
    )


_LOST = {"checkpoints": "goes into checkpoints", "again": "into steps done again", "restarts": "into restarts"}


def _line(row: Prediction) -> tuple[str, ...]:
    return (
        str(row.layout),
        f"{row.step_s:.3f}",
        f"{row.step_low_s:.3f}-{row.step_high_s:.3f}",
        f"{row.tokens_per_s:,.0f}",
        f"{100 * row.mfu:.1f}%",
        f"{row.memory_bytes / 2**30:.1f}",
        str(row.fits),
        f"{row.node_power_w / 1000:.1f}",
        f"{100 * row.goodput:.1f}%",
        _span(row.run_s),
    )


def _span(seconds: float) -> str:
    """A time in the unit that shows it best."""
    for unit_s, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2.0 * unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.3g} s"


def _explain(found: Plan, fleets: list[tuple[int, Prediction]]) -> None:
    best = found.best
    click.echo("\nwhere the time goes, seconds per step:")
    print_table(
        ("term", *(f"#{i + 1}" for i in range(len(found.ranked)))),
        [(name, *(f"{row.terms_s[name]:z.3f}" for row in found.ranked)) for name in best.terms_s]
        + [("total", *(f"{row.step_s:.3f}" for row in found.ranked))],
    )
    click.echo("\nmemory of the fullest GPU, GiB:")
    print_table(("part", "#1"), [(name, f"{size / 2**30:.2f}") for name, size in best.memory_parts_bytes.items()])
    click.echo("\nfleets of other sizes, failures included:")
    print_table(
        ("nodes", "layout", "step s", "kept", "run", "MWh"),
        [
            (
                str(nodes),
                str(row.layout),
                f"{row.step_s:.3f}",
                f"{100 * row.goodput:.1f}%",
                _span(row.run_s),
                f"{row.run_kwh / 1e3:.3g}",
            )
            for nodes, row in sorted([*fleets, (found.cluster.nodes, best)])
        ],
    )
    click.echo("\nwhy not the others:")
    for what, other in found.alternatives:
        if other is not None:
            click.echo(f"  {what}: {_why_not(best, other)}")


def _why_not(best: Prediction, other: Prediction) -> str:
    if other.fits is not Fits.YES:
        verdict = "may not fit" if other.fits is Fits.TIGHT else "does not fit"
        return f"{verdict}: needs {other.memory_bytes / 2**30:.0f} of {other.gpu_memory_bytes / 2**30:.0f} GiB ({other.layout})"
    slower = other.step_s / best.step_s - 1.0
    grown = max(best.terms_s, key=lambda name: other.terms_s[name] - best.terms_s[name])
    more = other.terms_s[grown] - best.terms_s[grown]
    return f"{100 * slower:+.1f}% step time, most of it {grown.replace('_', ' ')} (+{more:.3f} s) with {other.layout}"


def _bars(found: Plan) -> tuple[list[str], dict[str, list[float]]]:
    return [str(row.layout) for row in found.ranked], {
        name: [row.terms_s[name] for row in found.ranked] for name in found.best.terms_s
    }


def _as_data(found: Plan) -> dict[str, Any]:
    return {
        "considered": found.considered,
        "fitting": found.fitting,
        "tight": found.tight,
        "gpus": found.cluster.gpus,
        "gpu": found.cluster.gpu.name,
        "power_cap_w": found.cluster.gpu_power_cap_w,
        "ranked": [asdict(row) for row in found.ranked],
        "alternatives": {what: None if other is None else asdict(other) for what, other in found.alternatives},
    }
