"""`rackray train plan` and `rackray train calibrate`: which layout to train with, and the planner set right by one's own runs."""

from collections.abc import Sequence
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
from orchestrator.planning.parallel.calibration import SKIPPED_STEPS, beside_earlier, calibrate, calibrated
from orchestrator.planning.parallel.cluster import (
    GpuCluster,
    PlanJob,
    cluster_by_hand,
    cluster_of,
    plan_job_of,
    planned_sku,
    shape_of,
)
from orchestrator.planning.parallel.planner import Objective, Plan, other_fleets, plan, predict
from orchestrator.planning.parallel.rows import inputs_of_job, layout_of_job
from orchestrator.planning.parallel.search import Limits
from orchestrator.planning.parallel.software import SOFTWARES, software_of
from orchestrator.planning.parallel.validation import FITTED, Tables
from orchestrator.planning.power_caps import caps_of

CAP_SHARES = (0.9, 0.8, 0.7, 0.6)
"""Power caps that `--objective energy` tries, as shares of the GPU's rating."""


@click.command("plan")
@click.argument("job", type=FILE)
@click.option("--spec", type=FILE, help="The cluster's spec; or say --gpu.")
@click.option("--gpu", help="GPU type, such as H100-80G, where there is no spec.")
@click.option(
    "--gpus-per-node",
    type=click.IntRange(min=1),
    help="Left out: all that the spec's nodes have, or 8; with --as-written the job's ranks.",
)
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
@click.option("-o", "--output", type=FILE, help="A picture of the terms (PNG).")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def plan_layouts(job: Path, preset: str | None, framework: str, precision: str | None, **rest: Any) -> int:
    """Which layout to train JOB with: every one that divides, ranked by the time of the whole run. Changes nothing.

    That time is all steps' over the share of it that checkpoints and failures leave; each step time comes with its interval.
    """
    loaded = wiring.load_job(job)
    shape = shape_of(loaded.job, preset)
    asked = plan_job_of(loaded.job, shape, precision, framework)
    tables = _tables()
    each = rest["gpus_per_node"] or (loaded.job.ranks_per_node if rest["as_written"] else None)
    cluster = _cluster(loaded.job.nodes, {**rest, "gpus_per_node": each})
    _tell_of_strangers(framework)
    title = f"{job.name}: where a step's time goes"
    if rest["as_written"]:
        if rest["offload"] or rest["objective"] != "time":
            raise BadInput(
                "--as-written judges the job's own layout alone", "leave out --offload and --objective, or --as-written"
            )
        return _as_written(asked, cluster, layout_of_job(loaded.job.model_dump(mode="json")), tables, rest, title)
    limits = Limits(offload=(False, True) if rest["offload"] else (False,))
    found = _best_plan(asked, cluster, limits, rest, tables)
    _draw(rest["output"], title, found.ranked)
    fleets = sorted([*other_fleets(found, tables), (cluster.nodes, found.best)]) if rest["explain"] else []
    if rest["as_json"]:
        print_json(_as_data(found, fleets))
        return 0
    _tell(found)
    if rest["explain"]:
        _explain(found, fleets)
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
        rows += wiring.read_run_rows(Path(name)) if Path(name).suffix.lower() == ".csv" else [_row_of_run(name, gpu)]
    found = calibrate(rows)
    path = wiring.home() / "planner.json"
    kept, values, intervals = beside_earlier(found, *_earlier(path))
    wiring.planner_files().write_json(path, {"factors": values, "intervals": intervals, "runs": found.runs})
    if kept:
        click.echo(f"kept from earlier calibrations: {', '.join(kept)}", err=True)
    if as_json:
        print_json(asdict(found))
        return 0
    before, after = 100 * found.error_before, 100 * found.error_after
    said = counted(found.runs, "run")
    click.echo(f"{said}: mean error of step time {before:.1f}% before, {after:.1f}% after; written to {path}")
    return 0


def _earlier(path: Path) -> tuple[dict[str, dict[str, float]], dict[str, tuple[float, float]]]:
    """What the file holds so far; nothing where it is no calibration, which is said: the new one takes its place."""
    try:
        values, intervals = wiring.planner_files().read_calibration(path)
    except BadInput as error:
        click.echo(f"{error}; it is replaced", err=True)
        return {}, {}
    return values, intervals


def _row_of_run(run_id: str, gpu: str) -> RunRow:
    """A run of this cluster as a row: its job's shape and layout, and the median of its step times."""
    if Path(run_id).exists() and "/" in run_id.rstrip("/"):
        raise BadInput(f"{run_id} is no run and no CSV file", "name runs by their ids, or CSV files, whose names end in .csv")
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


def _tell_of_strangers(framework: str) -> None:
    """Say that a framework's name is none of the table's, before a slip of the pen is taken for a plan."""
    if software_of(framework) is SOFTWARES[-1]:
        known = ", ".join(software.name.removeprefix("deepspeed-") for software in SOFTWARES[:-1])
        click.echo(
            f"{framework!r} is none of the frameworks that are known ({known}): planned as one nobody has measured", err=True
        )


def _cluster(job_nodes: int, options: dict[str, Any]) -> GpuCluster:
    nodes, network = options["nodes"] or job_nodes, options["network_gbit"]
    if options["gpu"] and options["spec"]:
        raise BadInput("--gpu and --spec name two clusters", "leave out one of them")
    if options["gpu"]:
        cluster = cluster_by_hand(options["gpu"], nodes, options["gpus_per_node"] or 8, network)
    elif options["spec"]:
        spec = wiring.load_spec(options["spec"]).spec
        cluster = cluster_of(spec, nodes, network, options["gpus_per_node"])
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
    """The cluster under the lowest power cap that the spec's power tree puts on the GPUs of its machines; --power-cap goes
    before it."""
    sku, _ = planned_sku(spec)
    planned = {node.name for node in spec.nodes if node.sku == sku}
    caps = [cap for name, cap in caps_of(spec).items() if name in planned and cap.gpu_w is not None]
    lowest = min(caps, key=lambda cap: cap.gpu_w or 0.0, default=None)
    if lowest is None or lowest.gpu_w is None or lowest.gpu_w >= cluster.gpu.power_w:
        return cluster
    click.echo(f"power cap of the spec: {lowest}, so that any one feed may be lost (on_feed_loss: throttle)", err=True)
    return replace(cluster, gpu_power_cap_w=lowest.gpu_w)


def _as_written(job: PlanJob, cluster: GpuCluster, layout: Layout, tables: Tables, options: dict[str, Any], title: str) -> int:
    """Exit 1 where the layout does not fit."""
    found = predict(job, cluster, layout, tables)
    helps = [] if found.fits is Fits.YES else changes_that_fit(job, cluster, layout, tables)
    _draw(options["output"], title, (found,))
    if options["as_json"]:
        print_json({**asdict(found), "helps": helps})
    else:
        print_table(HEADERS, [_line(found)])
        _tell_run(found, job)
        if options["explain"]:
            _explain_layouts((found,))
    if found.fits is not Fits.YES:
        verdict = "may not fit" if found.fits is Fits.TIGHT else "does not fit"
        need, have = found.memory_bytes / 2**30, found.gpu_memory_bytes / 2**30
        way_out = f"needs {', or '.join(helps)}" if helps else "no single change makes it fit: plan without --as-written"
        click.echo(f"{layout} {verdict}: {need:.1f} of {have:.1f} GiB; {way_out}", err=True)
    return 1 if found.fits is Fits.NO else 0


def _best_plan(job: PlanJob, cluster: GpuCluster, limits: Limits, asked: dict[str, Any], tables: Tables) -> Plan:
    objective: Objective = asked["objective"]
    caps = [cluster.gpu_power_cap_w]
    if objective == "energy":
        most = cluster.gpu_power_cap_w or cluster.gpu.power_w
        caps += [cap for share in CAP_SHARES if (cap := cluster.gpu.power_w * share) < most]
    plans = [plan(job, replace(cluster, gpu_power_cap_w=cap), limits, asked["top"], tables, objective) for cap in caps]
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


HEADERS = ("layout", "step s", "90% of runs", "tokens/s", "MFU", "GiB", "fits", "kW/node", "kept", "run", "kWh")


def _tell_run(best: Prediction, job: PlanJob) -> None:
    lost = ", ".join(f"{100 * share:.1f}% {_LOST[name]}" for name, share in best.lost.items())
    steps = counted(job.steps, "step", "takes", "take")
    every_s = best.checkpoint_every_s
    saved = "nothing fails, and no checkpoint is needed" if every_s is None else f"with a checkpoint every {_span(every_s)}"
    kept = f"{100 * best.goodput:.1f}% of the time is kept"
    click.echo(f"{steps} {_span(best.run_s)} and {_kwh(best.run_kwh)} kWh; {kept}, {lost}, {saved}")


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
        _kwh(row.run_kwh),
    )


def _kwh(energy: float) -> str:
    return f"{energy:,.0f}" if energy >= 100.0 else f"{energy:.3g}"


def _span(seconds: float) -> str:
    """A time in the unit that shows it best."""
    for unit_s, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2.0 * unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.3g} s"


def _explain_layouts(rows: Sequence[Prediction]) -> None:
    best = rows[0]
    click.echo("\nwhere the time goes, seconds per step:")
    print_table(
        ("term", *(f"#{i + 1}" for i in range(len(rows)))),
        [(name, *(f"{row.terms_s[name]:z.3f}" for row in rows)) for name in best.terms_s]
        + [("total", *(f"{row.step_s:.3f}" for row in rows))],
    )
    click.echo("\nmemory of the fullest GPU, GiB:")
    print_table(
        ("part", *(f"#{i + 1}" for i in range(len(rows)))),
        [(name, *(f"{row.memory_parts_bytes[name] / 2**30:z.2f}" for row in rows)) for name in best.memory_parts_bytes]
        + [("total", *(f"{row.memory_bytes / 2**30:.2f}" for row in rows))],
    )


def _explain(found: Plan, fleets: list[tuple[int, Prediction]]) -> None:
    """`fleets`: nodes, the plan's own among them, and the best there."""
    best = found.best
    _explain_layouts(found.ranked)
    click.echo("\nfleets of other sizes, failures included:")
    print_table(
        ("nodes", "layout", "step s", "fits", "kept", "run", "kWh"),
        [
            (
                str(nodes),
                str(row.layout),
                f"{row.step_s:.3f}",
                str(row.fits),
                f"{100 * row.goodput:.1f}%",
                _span(row.run_s),
                _kwh(row.run_kwh),
            )
            for nodes, row in fleets
        ],
    )
    click.echo("\nwhy not the others:")
    for what, other in found.alternatives:
        click.echo(f"  {what}: {why_not(best, other, found.objective)}")


def why_not(best: Prediction, other: Prediction, objective: Objective) -> str:
    if other.fits is not best.fits:
        verdict = "may not fit" if other.fits is Fits.TIGHT else "does not fit"
        return f"{verdict}: needs {other.memory_bytes / 2**30:.0f} of {other.gpu_memory_bytes / 2**30:.0f} GiB ({other.layout})"
    if abs(other.run_s / best.run_s - 1.0) < 5e-5 and abs(other.run_kwh / best.run_kwh - 1.0) < 5e-5:
        return f"as good: {other.layout}"
    slower = other.step_s / best.step_s - 1.0
    said = f"{100 * slower:+.1f}% step time"
    if objective == "energy":
        said = f"{100 * (other.run_kwh / best.run_kwh - 1.0):+.1f}% energy, {said}"
    elif slower <= 0.0:
        # As fast and yet behind: what is written and done again makes the difference.
        said += f", but {100 * (other.run_s / best.run_s - 1.0):+.1f}% of the run, of which {100 * other.goodput:.1f}% is kept"
    if slower > 0.0:
        grown = max(best.terms_s, key=lambda name: other.terms_s[name] - best.terms_s[name])
        more = other.terms_s[grown] - best.terms_s[grown]
        said += f", most of it {grown.replace('_', ' ')} (+{more:.3f} s)"
    return f"{said} with {other.layout}"


def _draw(path: Path | None, title: str, rows: Sequence[Prediction]) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise BadInput(f"{path} is not the name of a PNG", f"write to {path.with_suffix('.png')}")
    terms = {name: [row.terms_s[name] for row in rows] for name in rows[0].terms_s}
    wiring.planner_files().draw_terms(path, title, [str(row.layout) for row in rows], terms)
    click.echo(f"picture: {path}", err=True)


def _as_data(found: Plan, fleets: list[tuple[int, Prediction]]) -> dict[str, Any]:
    """`fleets` of --explain, which are left out where there are none."""
    sizes = {"fleets": {str(nodes): asdict(row) for nodes, row in fleets}} if fleets else {}
    return {
        "considered": found.considered,
        "fitting": found.fitting,
        "tight": found.tight,
        "gpus": found.cluster.gpus,
        "gpu": found.cluster.gpu.name,
        "power_cap_w": found.cluster.gpu_power_cap_w,
        "objective": found.objective,
        "ranked": [asdict(row) for row in found.ranked],
        "alternatives": {what: asdict(other) for what, other in found.alternatives},
        **sizes,
    }
