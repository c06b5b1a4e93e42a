"""`rackray demo`: the whole story, in a private network namespace where the system allows one."""

import os
import shutil
import sys
from pathlib import Path

import click

from orchestrator import wiring

INSIDE = "RACKRAY_DEMO_INSIDE"
"""Set once the demo runs in its own network namespace."""


@click.command()
@click.option(
    "--specs",
    default="cluster_specs",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder with lab-4.yaml and lab-6.yaml.",
)
@click.option(
    "--home",
    "folder",
    default=".rackray-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the demo keeps its state.",
)
def demo(specs: Path, folder: Path) -> int:
    """From power-on to a resumed training run on simulated nodes: every line is a command you could type.

    As root the demo gives itself a private network namespace, so that nothing it starts can be reached from outside, although
    Ray's daemons listen on every interface. Exit 1 if anything of the story did not happen.
    """
    if os.geteuid() == 0 and not os.environ.get(INSIDE) and shutil.which("unshare") and shutil.which("ip"):
        _enter_namespace()
    return wiring.demo(folder.absolute(), specs.absolute())


def _enter_namespace() -> None:
    """Become the same command inside a network namespace that has loopback alone."""
    script = 'ip link set lo up && exec "$@"'
    command = ["unshare", "--net", "sh", "-c", script, "demo", sys.executable, "-m", "orchestrator.cli.main", *sys.argv[1:]]
    sys.stdout.flush()
    os.execvpe("unshare", command, {**os.environ, INSIDE: "1"})  # noqa: S606, S607 - no shell, and unshare was found above
