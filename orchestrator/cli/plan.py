"""`rackray plan`: the controller's own decisions against a world in which every step succeeds; nothing is written anywhere."""

from pathlib import Path
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.output import print_json, print_table
from orchestrator.domain.errors import NotAsRequired
from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.spec import ClusterSpec
from orchestrator.planning.preview import PlannedStep, preview
from orchestrator.planning.rollout import to_bring_up
from orchestrator.planning.site import Site

LOOKS = (Action.BMC_IDENTIFY, Action.BMC_OBSERVE, Action.BMC_FIRMWARE)
"""What plan reads at each BMC, in this order, with a session of its own."""


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@click.option("--offline", is_flag=True, help="Do not look at the BMCs; plan from the journal alone.")
def plan(spec: Path, as_json: bool, offline: bool) -> None:
    """Show every step of every wave with its reason.

    BMCs are looked at (GET, with a session of plan's own); nothing is changed at any of them, and no file is written.
    """
    loaded = wiring.load_spec(spec)
    planned, silent = make_plan(loaded.spec, offline)
    if as_json:
        print_json({"steps": [as_row(each) for each in planned]})
        return
    print_plan(planned)
    if silent:
        click.echo(
            f"{len(silent)} BMCs did not answer ({', '.join(silent[:5])}); their steps are planned as for new machines", err=True
        )


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
    narrowed = spec.model_copy(update={"nodes": tuple(site.nodes[name] for name in site.nodes if name in pending)})
    seen = wiring.look(folder, narrowed, LOOKS, views)
    usable = {name: looks for name, looks in seen.items() if _early(records.get(name))}
    return preview(site, records, usable), [name for name in pending if not seen.get(name)]


def _early(record: NodeRecord | None) -> bool:
    """Whether plan's own look is the newest there is: later stages rest on evidence the controller gathered."""
    return record is None or record.state is NodeState.ENROLLED


def as_row(planned: PlannedStep) -> dict[str, Any]:
    """One step, as `--json` prints it."""
    step = planned.step
    return {"node": step.node, "action": str(step.action), "because": step.because, "wave": planned.wave}


def print_plan(planned: list[PlannedStep]) -> None:
    """The steps for people, wave by wave."""
    if not planned:
        click.echo("nothing to do: every node of the spec is settled")
        return
    for wave in sorted({each.wave for each in planned}):
        steps = [each.step for each in planned if each.wave == wave]
        nodes = sorted({step.node for step in steps})
        click.echo(f"wave {wave}: {len(nodes)} nodes, {len(steps)} steps ({', '.join(nodes)})")
        print_table(("node", "step", "because"), [(step.node, _words(step.action, step.args), step.because) for step in steps])
        click.echo()


def _words(action: Action, args: Any) -> str:
    for key in ("reset", "target", "component", "playbook"):
        if key in args:
            return f"{action} {args[key]}"
    return str(action)
