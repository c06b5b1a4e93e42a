"""`rackray plan`: the controller's own decisions against a world in which every step succeeds; nothing is changed anywhere."""

import time
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.nodes import chosen_from
from orchestrator.cli.output import print_json, print_table, time_range
from orchestrator.cli.plan_file import PlanFile, write_plan
from orchestrator.domain.errors import NotAsRequired
from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.estimate import StageTimes, time_of_plan
from orchestrator.planning.preview import PlannedStep, preview
from orchestrator.planning.rollout import to_bring_up
from orchestrator.planning.site import Site

LOOKS = (Action.BMC_IDENTIFY, Action.BMC_OBSERVE, Action.BMC_FIRMWARE)
"""What plan reads at each BMC, in this order, with a session of its own."""


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@click.option("-o", "output", type=click.Path(path_type=Path), help="Save the plan; `rackray apply FILE` carries out just that.")
@click.option("--limit", default="", metavar="NODES", help="Plan for these nodes alone.")
@click.option("--offline", is_flag=True, help="Do not look at the BMCs; plan from the journal alone.")
def plan(spec: Path, as_json: bool, output: Path | None, limit: str, offline: bool) -> None:
    """Show every step of every wave with its reason, and how long it will take where that has been measured.

    BMCs are looked at (GET, with a session of plan's own); nothing is changed at any of them, and only -o writes a file.
    """
    loaded = wiring.load_spec(spec)
    names = limited(loaded.spec, limit)
    seq = journal_seq()
    planned, silent = make_plan(narrowed(loaded.spec, names), offline)
    if output is not None:
        rows = [as_row(each) for each in planned]
        write_plan(output, PlanFile(loaded.spec, loaded.text, loaded.sha256, str(spec), seq, tuple(names)), rows)
        click.echo(
            f"saved as {output}: `rackray apply {output}` carries it out while the journal stands at event {seq}", err=True
        )
    if as_json:
        print_json({"steps": [as_row(each) for each in planned]})
        return
    print_plan(planned, loaded.spec)
    print_time(loaded.spec, planned)
    if silent:
        click.echo(
            f"{len(silent)} BMCs did not answer ({', '.join(silent[:5])}); their steps are planned as for new machines", err=True
        )


def limited(spec: ClusterSpec, limit: str) -> list[str]:
    """The machines that `--limit` names; empty when it is not given. Raises BadInput for those the spec does not bring up."""
    return chosen_from(limit, [machine.name for machine in spec.managed()], "the spec") if limit else []


def narrowed(spec: ClusterSpec, names: Collection[str]) -> ClusterSpec:
    """`spec` with only the machines called `names`; whole when there are none."""
    if not names:
        return spec
    nodes = tuple(node for node in spec.nodes if node.name in names)
    equipment = tuple(item for item in spec.equipment if item.name in names)
    return spec.model_copy(update={"nodes": nodes, "equipment": equipment})


def journal_seq() -> int:
    """Number of the journal's last event; 0 where there is no journal."""
    try:
        return wiring.open_views(wiring.home()).state.seq
    except NotAsRequired:
        return 0


def print_time(spec: ClusterSpec, planned: list[PlannedStep]) -> None:
    """How long the plan will take, from the stage times that this journal holds."""
    if not planned:
        return
    try:
        views = wiring.open_views(wiring.home())
        times, nodes = StageTimes().learn(views.events_since(0)), dict(views.state.nodes)
    except NotAsRequired:
        times, nodes = StageTimes(), {}
    rounds = [list(dict.fromkeys(each.step.node for each in steps)) for _, steps in groupby(planned, lambda each: each.wave)]
    click.echo(f"time: {time_range(time_of_plan(Site.of(spec), rounds, nodes, times, time.time()))}")


def make_plan(spec: ClusterSpec, offline: bool = False) -> tuple[list[PlannedStep], list[str]]:
    """The plan, and the nodes whose BMC did not answer plan's looks."""
    folder = wiring.home()
    records: dict[str, NodeRecord] = {}
    views = None
    try:
        views = wiring.open_views(folder)
        records = dict(views.state.nodes)
    except NotAsRequired:
        pass  # a new cluster has no journal yet, and plan must not make one
    site = Site.of(spec)
    pending = to_bring_up(site, records)
    if offline or not pending:
        return preview(site, records, {}), []
    seen = wiring.look(folder, narrowed(spec, set(pending)), LOOKS, views)
    usable = {name: looks for name, looks in seen.items() if _early(records.get(name))}
    return preview(site, records, usable), [name for name in pending if not seen.get(name)]


def _early(record: NodeRecord | None) -> bool:
    """Whether plan's own look is the newest there is: later stages rest on evidence the controller gathered."""
    return record is None or record.state is NodeState.ENROLLED


def as_row(planned: PlannedStep) -> dict[str, Any]:
    """One step, as `--json` prints it."""
    step = planned.step
    return {"node": step.node, "action": str(step.action), "because": step.because, "wave": planned.wave}


def print_plan(planned: list[PlannedStep], spec: ClusterSpec) -> None:
    """The steps for people, wave by wave; equipment is counted apart."""
    if mute := sum(item.bmc is None for item in spec.equipment):
        click.echo(f"{mute} of {len(spec.equipment)} pieces of equipment have no BMC: nothing is done with them", err=True)
    if not planned:
        click.echo("nothing to do: every node of the spec is settled")
        return
    site = Site.of(spec)
    for wave in sorted({each.wave for each in planned}):
        steps = [each.step for each in planned if each.wave == wave]
        nodes = sorted({step.node for step in steps})
        click.echo(f"wave {wave}: {site.words(nodes)}, {len(steps)} steps ({', '.join(nodes)})")
        print_table(("node", "step", "because"), [(step.node, _words(step.action, step.args), step.because) for step in steps])
        click.echo()


def _words(action: Action, args: Any) -> str:
    for key in ("reset", "target", "component", "playbook"):
        if key in args:
            return f"{action} {args[key]}"
    return str(action)
