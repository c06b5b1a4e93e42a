"""`rackray spec new`: a first spec to start from, with what is still to be filled in."""

import re
from pathlib import Path

import click

from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.output import FILE, write_whole
from orchestrator.domain.errors import BadInput
from orchestrator.domain.spec_words import NAME_FORM, NAME_PATTERN
from orchestrator.domain.words import counted
from orchestrator.planning.spec_draft import MACHINES, MOST_PER_RACK, MOST_RACKS, Draft, draft_spec, draft_table


@click.group(cls=CommandGroup)
def spec() -> None:
    """Begin a cluster spec."""


@spec.command()
@click.argument("file", type=FILE)
@click.option(
    "--machine", type=click.Choice(tuple(MACHINES)), default="hgx-h100", show_default=True, help="What is in the racks."
)
@click.option("--racks", type=click.IntRange(1, MOST_RACKS), default=2, show_default=True, help="How many racks.")
@click.option("--per-rack", type=click.IntRange(1, MOST_PER_RACK), default=4, show_default=True, help="Machines in each.")
@click.option("--cluster", default="", metavar="NAME", help="Name of the cluster. Left out: that of FILE.")
def new(file: Path, machine: str, racks: int, per_rack: int, cluster: str) -> None:
    """Write FILE, a commented spec to start from, and beside it a table for the serials of its machines.

    Two PDUs to a rack, on feeds A and B. Nothing that is there is overwritten.
    """
    table = file.with_name(f"{file.stem}-machines.csv")
    for path in (file, table):
        if path.exists():
            raise BadInput(f"{path} is there already", "name another file, or remove it first")
    name = cluster or file.stem
    if not re.fullmatch(NAME_PATTERN, name):
        raise BadInput(f"{name!r} cannot be a cluster's name", f"say --cluster NAME: {NAME_FORM}")
    asked = Draft(name, machine, racks, per_rack)
    text = draft_spec(asked, table.name)
    write_whole(table, draft_table(asked))
    write_whole(file, text)
    click.echo(f"wrote {file}: {counted(len(asked.nodes), 'node')}, {counted(racks, 'rack')}; and {table}", err=True)
    click.echo(f"next: fill in the serials, make the lines marked <- yours, then `rackray validate {file}`", err=True)
