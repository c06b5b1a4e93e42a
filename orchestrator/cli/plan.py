"""`rackray plan`: the controller's own decisions against a world in which every step succeeds; nothing is changed anywhere."""

from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.nodes import chosen_from, folded
from orchestrator.cli.output import FILE, print_json, print_table, time_range
from orchestrator.cli.plan_file import PlanFile, write_plan
from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Step
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.words import counted
from orchestrator.planning.estimate import StageTimes, time_of_plan
from orchestrator.planning.preview import PlannedStep, preview
from orchestrator.planning.requests import ELSEWHERE
from orchestrator.planning.rollout import to_bring_up
from orchestrator.planning.site import Site

LOOKS = (Action.BMC_IDENTIFY, Action.BMC_OBSERVE, Action.BMC_FIRMWARE)
"""What plan reads at each BMC, in this order, with a session of its own."""

Rows = tuple[tuple[str, str], ...]
"""Step and reason, for each step of one node."""


@click.command()
@click.argument("spec", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@click.option("-o", "output", type=FILE, help="Save the plan; `rackray apply FILE` carries out just that.")
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
    say_silent(silent)


def say_silent(silent: list[str]) -> None:
    """Of which nodes plan saw nothing, so that nobody takes their steps for what was looked at."""
    if silent:
        answer = f"{counted(len(silent), 'BMC')} did not answer: the steps of {folded(silent)} are planned as for new machines"
        click.echo(f"{answer}; the BMCs' addresses, power and cables decide whether apply gets further", err=True)


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
        times, nodes, now_s = StageTimes().learn(views.events_of_stages()), dict(views.state.nodes), views.now_s()
    except NotAsRequired:
        times, nodes, now_s = StageTimes(), {}, 0.0
    rounds = [list(dict.fromkeys(each.step.node for each in steps)) for _, steps in groupby(planned, lambda each: each.wave)]
    click.echo(f"time: {time_range(time_of_plan(Site.of(spec), rounds, nodes, times, now_s))}")


def make_plan(spec: ClusterSpec, offline: bool = False) -> tuple[list[PlannedStep], list[str]]:
    """The plan, and the nodes whose BMC did not answer plan's looks."""
    folder = wiring.home()
    records: dict[str, NodeRecord] = {}
    views = None
    try:
        views = wiring.open_views(folder)
        if (applied := views.state.spec) is not None and applied.cluster != spec.cluster:
            message = f"{folder} belongs to cluster {applied.cluster}, the spec describes {spec.cluster}"
            raise BadInput(message, ELSEWHERE)
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
    """The steps for people, wave by wave; nodes that take the same steps for the same reasons stand together."""
    if mute := sum(item.bmc is None for item in spec.equipment):
        click.echo(f"{mute} of {len(spec.equipment)} pieces of equipment have no BMC: nothing is done with them", err=True)
    if not planned:
        click.echo("nothing to do: every node of the spec is settled")
        return
    site = Site.of(spec)
    for wave in sorted({each.wave for each in planned}):
        alike: dict[Rows, list[str]] = {}
        for name, steps in steps_by_node(planned, wave).items():
            alike.setdefault(tuple((_words(step.action, step.args), step.because) for step in steps), []).append(name)
        steps_in_all = sum(len(rows) * len(names) for rows, names in alike.items())
        everyone = [name for names in alike.values() for name in names]
        click.echo(f"wave {wave}: {site.words(everyone)}, {counted(steps_in_all, 'step')}")
        for rows, names in alike.items():
            click.echo(f"{folded(names)}: {counted(len(rows), 'step')}{' each' if len(names) > 1 else ''}")
            print_table(("  step", "because"), [(f"  {step}", because) for step, because in rows])
        click.echo()


def steps_by_node(planned: list[PlannedStep], wave: int) -> dict[str, list[Step]]:
    """The steps of one wave, node by node, in the order in which they are taken."""
    by_node: dict[str, list[Step]] = {}
    for each in planned:
        if each.wave == wave:
            by_node.setdefault(each.step.node, []).append(each.step)
    return by_node


def _words(action: Action, args: Any) -> str:
    for key in ("reset", "target", "component", "playbook"):
        if key in args:
            return f"{action} {args[key]}"
    return str(action)
