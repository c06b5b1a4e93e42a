"""The command line's table: one row per command, loaded only when it is used, so that `rackray --help` answers at once."""

import contextlib
import errno
import importlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from orchestrator.cli.groups import CommandGroup
from orchestrator.domain.errors import RackrayError


class Row(NamedTuple):
    """Where a command lives, and the line `--help` shows for it."""

    place: str
    help: str


COMMANDS: Mapping[str, Row] = {
    "spec": Row("orchestrator.cli.spec_new:spec", "Write a first spec, commented, to start from."),
    "validate": Row(
        "orchestrator.cli.validate:validate",
        "Check a cluster spec or a training job: every problem at once, with its place and a way out.",
    ),
    "plan": Row("orchestrator.cli.plan:plan", "Show what apply would do, wave by wave, and why; changes nothing anywhere."),
    "apply": Row("orchestrator.cli.apply:apply", "Bring the cluster up or expand it; run again to resume."),
    "rollout": Row(
        "orchestrator.cli.rollout:rollout", "How the rollout stands; pause, resume, skip, retry, abort it, with a reason."
    ),
    "status": Row("orchestrator.cli.status:status", "Where every node stands, why, and since when."),
    "rehearse": Row(
        "orchestrator.cli.rehearse:rehearse", "Play a bring-up on simulated machines in virtual time: how long, what fails."
    ),
    "node": Row("orchestrator.cli.node:node", "Look at nodes, drain them, prove them again."),
    "firmware": Row("orchestrator.cli.firmware:firmware", "Audit firmware against the baseline."),
    "train": Row("orchestrator.cli.train:train", "Submit, watch and stop training runs."),
    "planner": Row("orchestrator.cli.planner:planner", "The layout planner against measured runs; the fit of its constants."),
    "inventory": Row("orchestrator.cli.inventory:inventory", "Ansible's inventory protocol, from the applied spec."),
    "lab": Row("orchestrator.cli.lab:lab", "Simulated hardware on this machine, and faults on demand."),
    "demo": Row("orchestrator.cli.demo:demo", "The whole story in minutes on a laptop."),
}
"""Every command of the program. The modules are imported late, by name: this table is the only list."""


OF_THE_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
"""What the system may answer anywhere without a mistake of ours: a full, broken or read-only disk, and no permission."""


class LateGroup(CommandGroup):
    """A group that knows its commands' names and help lines, and imports a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        module, _, name = row.place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), row.place  # noqa: S101 - a wrong row is a mistake of ours, not of a user
        return command

    def line_of(self, ctx: click.Context, name: str) -> str:
        return COMMANDS[name].help


@click.group(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rackray", message="rackray %(version)s")
def cli() -> None:
    """From a YAML of racks to a self-healing training run.

    The road: validate → plan → apply → train. State lives in RACKRAY_HOME (default ./.rackray).
    Exit codes: 0 what was asked is so; 1 the cluster is not as required; 2 bad input.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run one command; our own errors become a sentence and a hint, never a traceback."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="rackray", standalone_mode=False)
    except RackrayError as error:
        say(str(error), error.hint)
        return error.exit_code
    except OSError as error:
        # Anything else is a mistake of ours, which a traceback helps to find.
        if error.errno not in OF_THE_MACHINE:
            raise
        what = f"{error.filename} cannot be used" if error.filename else "the output cannot be written"
        say(f"{what}: {error.strerror}", "look at the disk (`df`) and the permissions; then run the command again: it goes on")
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or Python tries once more to write what is left, and complains without us
        return 1
    except click.exceptions.Abort:
        say("interrupted; nothing is lost: run the command again to go on")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


def say(message: str, hint: str = "") -> None:
    """Talk on stderr: data alone goes to stdout."""
    click.echo(message, err=True)
    if hint:
        click.echo(f"  way out: {hint}", err=True)


if __name__ == "__main__":
    main()
