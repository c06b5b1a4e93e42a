"""`rackray firmware`: what runs on the nodes' components, against the applied baseline."""

from typing import Any

import click

from orchestrator import wiring
from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.nodes import chosen, folded
from orchestrator.cli.output import age, print_json, print_table
from orchestrator.cli.plan import narrowed
from orchestrator.domain.operation import Action
from orchestrator.domain.words import counted
from orchestrator.planning.firmware import audit as judge
from orchestrator.planning.site import Site


@click.group(cls=CommandGroup)
def firmware() -> None:
    """Audit firmware against the baseline."""


@firmware.command()
@click.argument("nodes", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--fresh", is_flag=True, help="Ask the BMCs now instead of using what the controller read last.")
def audit(nodes: str, as_json: bool, fresh: bool) -> int:
    """Compare the firmware of NODES (default: all) with the baseline; changes nothing.

    Exit 1 if anything deviates, or with --fresh if a BMC did not answer: of those, what was read before is shown.
    """
    folder = wiring.home()
    views = wiring.open_views(folder)
    spec = views.state.spec
    assert spec is not None, "open_views refuses a home without a spec"  # noqa: S101
    site, names = Site.of(spec), chosen(nodes, views.state)
    looks = wiring.look(folder, narrowed(spec, names), (Action.BMC_FIRMWARE,), views) if fresh else {}
    rows: list[dict[str, Any]] = []
    ages: dict[str, str] = {}
    silent: list[str] = []
    for name in names:
        found = views.node_look(name, Action.BMC_FIRMWARE)
        seen_now = looks.get(name, {}).get(Action.BMC_FIRMWARE)
        seen = seen_now or (found[1] if found else None)
        ages[name] = "now" if seen_now else age(views.now_s() - found[0]) if found else "never read"
        if fresh and not seen_now:
            silent.append(name)
        components: Any = seen["components"] if seen else []
        verdicts = judge(components, site.baseline(name))
        rows.append(
            {
                "name": name,
                "components": [
                    {"name": v.name, "installed": v.installed, "wanted": v.wanted, "verdict": str(v.verdict)} for v in verdicts
                ],
            }
        )
    deviating = [row for row in rows if any(part["verdict"] != "ok" for part in row["components"])]
    if as_json:
        print_json({"nodes": rows})
    else:
        table = [
            (row["name"], p["name"], p["installed"] or "-", p["wanted"], p["verdict"], ages[row["name"]])
            for row in rows
            for p in row["components"]
        ]
        print_table(("node", "component", "installed", "wanted", "verdict", "read"), table)
        click.echo(f"{len(rows) - len(deviating)} of {len(rows)} nodes match the baseline", err=True)
    if silent:
        click.echo(f"{counted(len(silent), 'BMC')} did not answer now: {folded(silent)}", err=True)
    return 1 if deviating or silent else 0
