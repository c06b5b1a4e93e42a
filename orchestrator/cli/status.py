"""`rackray status`: where every node stands, why, since when; and with `--listeners`, what listens where on this host."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.nodes import chosen, folded
from orchestrator.cli.output import age, print_json, print_table
from orchestrator.domain.node import BRING_UP, NodeRecord
from orchestrator.domain.state import ClusterState
from orchestrator.domain.words import counted
from orchestrator.execution.views import Views
from orchestrator.planning.power_caps import PowerCap
from orchestrator.planning.site import Site

NOBODY = "no controller runs"
MANY = 100
"""More nodes than this are shown together."""


@click.command()
@click.argument("nodes", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--listeners", is_flag=True, help="Show which of rackray's processes listen where on this host instead.")
@click.option("--each", is_flag=True, help=f"A line for each node, also where they are more than {MANY}.")
def status(nodes: str, as_json: bool, listeners: bool, each: bool) -> None:
    """Where the NODES (default: all) stand, why, and since when.

    Of many nodes, those in the same state for the same reason share a line, with the time of the one that is longest in it.
    """
    if listeners:
        _listeners(as_json)
        return
    views = wiring.open_views(wiring.home())
    names = chosen(nodes, views.state)
    if as_json:
        print_json(as_json_status(views, names))
        return
    now_s = views.on_the_wall_s(views.now_s())
    told = as_json_status(views, names)
    for title, key, counts in (("node", "nodes", "counts"), ("equipment", "equipment", "equipment_counts")):
        rows = status_rows(told[key], now_s, together=not each and len(names) > MANY)
        if rows:
            print_table((title, "state", "since", "because"), rows, colour_column=1)
            click.echo()
            click.echo(", ".join(f"{count} {state}" for state, count in told[counts].items()))
    capped = [row["power_cap_w"] for row in told["nodes"] if "power_cap_w" in row]
    if capped:
        lowest = f"{min(capped) / 1000:.2f} kW"
        click.echo(f"{len(capped)} nodes have a power cap of {lowest} or more: any one feed may be lost (on_feed_loss: throttle)")
    holder = wiring.decides_now(views) or NOBODY
    click.echo(f"{holder}; spec {views.state.spec_file} ({views.state.spec_sha256[:12]})", err=True)
    if holder == NOBODY:
        for line in left_standing(views.state):
            click.echo(f"  {line}", err=True)


def status_rows(told: list[dict[str, Any]], now_s: float, together: bool) -> list[tuple[str, str, str, str]]:
    """Name, state, age and reason of each; `together`: of all that share state and reason, in the order of the first."""
    if not together:
        return [(row["name"], row["state"], age(now_s - row["since"]), row["because"]) for row in told]
    shared: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in told:
        shared.setdefault((row["state"], row["because"]), []).append(row)
    return [
        (folded([row["name"] for row in rows]), state, age(now_s - min(row["since"] for row in rows)), because)
        for (state, because), rows in shared.items()
    ]


def left_standing(state: ClusterState) -> Iterator[str]:
    """What nobody carries on while no controller runs, and what does."""
    rollout = state.rollout
    coming_up = [name for name, record in state.nodes.items() if record.state in BRING_UP]
    if coming_up and not (rollout.paused_because or rollout.stopped_because or rollout.aborted_because):
        are = counted(len(coming_up), "node", "stands", "stand")
        yield f"{are} still on the way to ready ({folded(coming_up)}): `rackray apply {state.spec_file}` goes on"
    for run in state.runs.values():
        if not run.is_ended:
            yield f"run {run.id} is {run.state} and nobody watches over it: `rackray train watch {run.id}` does"


def as_json_status(views: Views, names: list[str]) -> dict[str, Any]:
    """What `--json` prints: `since` in seconds since the epoch. Equipment is listed and counted apart."""
    records = [views.state.nodes[name] for name in names]
    caps = Site.of(views.state.spec).power_caps if views.state.spec is not None else {}
    told: dict[str, Any] = {}
    for key, counts, is_equipment in (("nodes", "counts", False), ("equipment", "equipment_counts", True)):
        chosen_ones = [record for record in records if record.is_equipment is is_equipment]
        told[key] = [_row(record, caps.get(record.name), views.on_the_wall_s(record.since_s)) for record in chosen_ones]
        told[counts] = dict(sorted(Counter(str(record.state) for record in chosen_ones).items()))
    return told


def _row(record: NodeRecord, cap: PowerCap | None, since_s: float) -> dict[str, Any]:
    because = record.because
    if record.state in BRING_UP and record.last_problem:
        tries = counted(record.failures + record.silences, "failed exchange")
        because += f"; {tries} since: {record.last_problem}"
    row = {"name": record.name, "state": str(record.state), "since": since_s, "because": because}
    row |= {"power_cap_w": round(cap.node_w), "gpu_power_cap_w": cap.gpu_w and round(cap.gpu_w)} if cap is not None else {}
    return {**row, "kind": record.kind} if record.is_equipment else row


def _listeners(as_json: bool) -> None:
    found = wiring.listeners(wiring.home())
    if as_json:
        print_json(
            {
                "listeners": [
                    {"address": f.address, "port": f.port, "process": f.process, "pid": f.pid, "what": f.what} for f in found
                ]
            }
        )
        return
    print_table(
        ("address", "port", "pid", "process", "what"), [(f.address, str(f.port), str(f.pid), f.process, f.what) for f in found]
    )
    wide = [each for each in found if not each.is_loopback]
    if wide:
        click.echo(
            f"{len(wide)} of these listen on every interface: Ray's daemons always do. Token authentication guards them; "
            "firewall their ports as the README says.",
            err=True,
        )
