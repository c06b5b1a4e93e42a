"""`rackray apply`: journal the spec, then bring its nodes up, or follow the controller that does."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click

from orchestrator import wiring
from orchestrator.cli.output import FILE, accepted, confirm, print_table
from orchestrator.cli.plan import journal_seq, limited, make_plan, narrowed, print_plan, print_time, say_silent
from orchestrator.cli.plan_file import PlanFile, must_still_hold, read_plan
from orchestrator.cli.rollout_view import RolloutView
from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.domain.event import Event
from orchestrator.domain.node import BRING_UP, SETTLED, NodeRecord, NodeState
from orchestrator.domain.spec import ClusterSpec
from orchestrator.execution.controller import everything_settled
from orchestrator.execution.views import Views
from orchestrator.planning.site import Site


@click.command()
@click.argument("spec", metavar="SPEC|PLAN", type=FILE)
@click.option("--limit", default="", metavar="NODES", help="Bring up these nodes alone.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def apply(spec: Path, limit: str, yes: bool) -> int:
    """Bring up every node of SPEC that is not ready yet; nodes in service are left alone.

    A PLAN of `rackray plan -o` is carried out as it was read, and refused if the journal has moved on since.
    Ctrl-C is safe: run the same command again to go on. Exit 0 when every node asked for is ready, 1 otherwise.
    """
    folder = wiring.home()
    wanted = _wanted(spec, limit)
    names = [machine.name for machine in narrowed(wanted.spec, wanted.limit).managed()]
    if not yes:
        _ask(narrowed(wanted.spec, wanted.limit))
    data = {"spec": wanted.spec.model_dump(mode="json"), "text": wanted.text, "sha256": wanted.sha256, "file": wanted.file}
    data["limit"] = list(wanted.limit)
    asked = wiring.request(folder, "request.apply", data)
    if not wiring.has_hands_ready(folder):
        click.echo("starting the controllers' own Ray, which takes 5 to 15 s; machines are reached once it is up", err=True)
    view = RolloutView(asked.seq)
    began_s = time.monotonic()

    def done(views: Views) -> bool:
        return asked.seq in views.state.answers and everything_settled(views.state)

    with view:
        wiring.follow_or_control(folder, done, view.show, wanted.spec)
    return _conclude(wiring.open_views(folder), asked.seq, names, time.monotonic() - began_s)


def _wanted(path: Path, limit: str) -> PlanFile:
    """What is to be applied: a saved plan that still holds, or a spec. Raises BadInput or NotAsRequired."""
    plan = read_plan(path)
    if plan is None:
        loaded = wiring.load_spec(path)
        return PlanFile(loaded.spec, loaded.text, loaded.sha256, str(path), journal_seq(), tuple(limited(loaded.spec, limit)))
    if limit:
        raise BadInput("a plan says itself which nodes it is for", "give --limit to `rackray plan -o`, or apply the spec")
    must_still_hold(plan, journal_seq(), path)
    return plan


def _ask(spec: ClusterSpec) -> None:
    """Show what would be done, and let somebody say yes. Raises NotAsRequired when they do not."""
    planned, silent = make_plan(spec)
    if not planned:
        return
    print_plan(planned, spec)
    print_time(spec, planned)
    say_silent(silent)
    if not confirm(f"Bring up {Site.of(spec).words({each.step.node for each in planned})}?", yes=False):
        raise NotAsRequired("nothing was done")


def _conclude(views: Views, asked: int, names: list[str], seconds: float) -> int:
    answer = accepted(views.state.answers[asked])
    records = [views.state.nodes[name] for name in names]
    records = [record for record in records if record.state is not NodeState.RETIRED]
    ready = [record for record in records if record.state in (NodeState.READY, NodeState.ALLOCATED)]
    if answer.startswith("nothing to do"):
        click.echo(f"{answer}; {_share(ready, records)} are ready")
    else:
        click.echo(f"{_share(ready, records)} are ready after {seconds:.0f} s")
        print_stage_times(views.events_since(asked))
    for record in records:
        if record not in ready:
            click.echo(f"  {record.name} is {record.state}: {record.because}", err=True)
    rollout = views.state.rollout
    if rollout.aborted_because:
        click.echo(f"the rollout was aborted: {rollout.aborted_because}", err=True)
    elif rollout.stopped_because and any(record.state not in SETTLED for record in records):
        click.echo(f"the rollout stopped: {rollout.stopped_because}", err=True)
        click.echo("  way out: `rackray rollout status` shows what failed; `rackray rollout resume` accepts it", err=True)
    return 0 if len(ready) == len(records) else 1


def _share(ready: Sequence[NodeRecord], records: Sequence[NodeRecord]) -> str:
    """`3 of 4 nodes`, and where there is equipment ` and 2 of 2 pieces of equipment`."""
    parts = []
    for noun, is_equipment in (("nodes", False), ("pieces of equipment", True)):
        asked = sum(record.is_equipment is is_equipment for record in records)
        if asked:
            parts.append(f"{sum(record.is_equipment is is_equipment for record in ready)} of {asked} {noun}")
    return " and ".join(parts) or "0 of 0 nodes"


def print_stage_times(events: Sequence[Event]) -> None:
    """How long the nodes stayed in each stage of their bring-up: median and longest, in the order of the lifecycle."""
    entered_s: dict[str, float] = {}
    stayed: dict[NodeState, list[tuple[float, str]]] = {}
    for event in events:
        if event.kind == "node.moved":
            if event.subject in entered_s:
                stayed.setdefault(NodeState(event.data["from"]), []).append(
                    (event.at_s - entered_s[event.subject], event.subject)
                )
            entered_s[event.subject] = event.at_s
    rows = []
    for stage in BRING_UP:
        if times := sorted(stayed.get(stage, [])):
            longest_s, node = times[-1]
            rows.append((f"from {stage}", f"{median(seconds for seconds, _ in times):.1f}", f"{longest_s:.1f}", node))
    if rows:
        print_table(("stage", "median s", "longest s", "at"), rows)
