"""`rackray status`: where every node stands, why, since when; and with `--listeners`, what listens where on this host."""

import time
from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.nodes import chosen
from orchestrator.cli.output import age, print_json, print_table
from orchestrator.execution.views import Views


@click.command()
@click.argument("nodes", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--listeners", is_flag=True, help="Show which of rackray's processes listen where on this host instead.")
def status(nodes: str, as_json: bool, listeners: bool) -> None:
    """Where the NODES (default: all) stand, why, and since when."""
    if listeners:
        _listeners(as_json)
        return
    views = wiring.open_views(wiring.home())
    names = chosen(nodes, views.state)
    if as_json:
        print_json(as_json_status(views, names))
        return
    now_s = time.time()
    records = [views.state.nodes[name] for name in names]
    rows = [(record.name, str(record.state), age(now_s - record.since_s), record.because) for record in records]
    print_table(("node", "state", "since", "because"), rows, colour_column=1)
    click.echo()
    click.echo(", ".join(f"{count} {state}" for state, count in as_json_status(views, names)["counts"].items()))
    lease = views.lease()
    holder = (
        f"a controller decides (epoch {lease.epoch})"
        if lease and lease.holder and lease.until_s > now_s
        else "no controller runs"
    )
    click.echo(f"{holder}; spec {views.state.spec_file} ({views.state.spec_sha256[:12]})", err=True)


def as_json_status(views: Views, names: list[str]) -> dict[str, Any]:
    """What `--json` prints: `since` in seconds since the epoch."""
    records = [views.state.nodes[name] for name in names]
    counts: dict[str, int] = {}
    for record in records:
        counts[str(record.state)] = counts.get(str(record.state), 0) + 1
    rows = [{"name": r.name, "state": str(r.state), "since": r.since_s, "because": r.because} for r in records]
    return {"nodes": rows, "counts": dict(sorted(counts.items()))}


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
