"""`rackray lab`: simulated hardware on this machine, and faults on demand."""

from pathlib import Path

import click

from orchestrator import wiring
from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.nodes import folded
from orchestrator.cli.output import FILE, print_json, print_table
from orchestrator.domain.errors import BadInput
from orchestrator.domain.words import counted


@click.group(cls=CommandGroup)
def lab() -> None:
    """Simulated nodes on this machine's loopback: BMCs, disks, SSH hosts, GPUs, power switches."""


@lab.command()
@click.option("--spec", required=True, type=FILE, help="A cluster spec with a `lab:` section.")
def up(spec: Path) -> None:
    """Make the spec's machines, or add those the running lab lacks."""
    report = wiring.lab_up(wiring.home(), spec)
    if report.added:
        delivered = f"{counted(len(report.added), 'machine')} delivered ({folded(report.added)})"
        click.echo(f"{delivered}: powered off, factory passwords, no image")
    if report.already_there:
        were = counted(len(report.already_there), "machine", "was", "were")
        click.echo(f"{were} there already and left as {'it is' if len(report.already_there) == 1 else 'they are'}")
    click.echo(f"image service {report.image_service_url} offers {report.image} {report.image_digest[:19]}")
    click.echo(f"the lab runs as {report.mode}; it took {report.took_s:.1f} s")
    click.echo("the lab does not simulate the fabric: ranks talk over loopback", err=True)


@lab.command()
def down() -> None:
    """End the lab and everything it started: no process, no mount stays."""
    report = wiring.lab_down(wiring.home())
    if not report.was_running:
        click.echo("no lab was running here")
        return
    click.echo(
        f"{counted(len(report.nodes), 'machine')} gone; no process and no mount is left"
        + (f"; killed {report.killed}" if report.killed else "")
    )


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """What the simulated machines really do, whatever rackray believes."""
    machines = wiring.lab_status(wiring.home())
    if as_json:
        print_json(machines)
        return
    rows = [(m["name"], m["serial"], m["power"], m["image"] or "none", m["ssh"], ", ".join(m["faults"]) or "-") for m in machines]
    print_table(("node", "serial", "power", "image", "ssh", "faults"), rows)


@lab.command()
@click.argument("name", metavar="NODE")
@click.argument("fault_name", metavar="FAULT")
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--heal", is_flag=True, help="Take the fault away instead.")
def fault(name: str, fault_name: str, settings: tuple[str, ...], heal: bool) -> None:
    """Give NODE a FAULT (gpu_row_remap_pending, bmc_silent, power_cut, ...), or heal it.

    A name that no fault has shows all there are; the tables in orchestrator/lab/README.md say what each takes and does.
    """
    arguments: dict[str, str | int | float] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise BadInput(f"{setting!r} is no KEY=VALUE")
        arguments[key] = int(value) if value.isdigit() else value
    click.echo(wiring.lab_fault(wiring.home(), name, fault_name, heal, arguments))
