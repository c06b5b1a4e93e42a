"""The only place that builds concrete drivers; imported by the command line and the Ray workers alone.

Drivers that carry heavy libraries (httpx, paramiko, ansible-runner, SQLAlchemy) are imported inside the functions that build
them, so that `rackray validate` and `--help` do not pay for what they do not use.
"""

import contextlib
import getpass
import logging
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.domain.errors import BadInput, NotAsRequired
from orchestrator.domain.event import CLUSTER, Event
from orchestrator.domain.operation import Action, Operation, Status
from orchestrator.domain.spec import ClusterSpec
from orchestrator.drivers.lease_holder import has_ended, this_holder
from orchestrator.drivers.spec_reader import LoadedSpec, read_spec
from orchestrator.drivers.wall_clock import WallClock
from orchestrator.planning.site import Site
from orchestrator.planning.validation import check_spec

if TYPE_CHECKING:
    from orchestrator.domain.run import RunRecord
    from orchestrator.domain.run_row import RunRow
    from orchestrator.drivers.exchange import Exchange
    from orchestrator.drivers.interfaces import Hands, MayAct, Playbooks
    from orchestrator.drivers.secrets import SecretStore
    from orchestrator.execution.journal import Journal
    from orchestrator.execution.journal_clock import JournalClock
    from orchestrator.execution.rehearsal import Rehearsed
    from orchestrator.execution.views import Views

NO_JOURNAL = "apply a spec first: `rackray apply SPEC`, or set RACKRAY_HOME"
CELL_ACTIONS = (Action.CELL_OBSERVE, Action.RANK_START, Action.RANK_LOOK, Action.RANK_STOP)
"""Exchanges that go through the cell's own Ray; all others go through the management side."""


def home() -> Path:
    """The folder of everything rackray keeps: RACKRAY_HOME, or .rackray in the current folder."""
    return Path(os.environ.get("RACKRAY_HOME", ".rackray")).absolute()


def load_spec(path: Path) -> LoadedSpec:
    """Read and check a cluster spec. Raises BadInput with every problem."""
    return read_spec(path, check_spec)


# ---------------------------------------------------------------------- the journal and those who read it
def journal_url(folder: Path) -> str:
    """The journal of `folder`; RACKRAY_DATABASE_URL names another database."""
    return os.environ.get("RACKRAY_DATABASE_URL") or f"sqlite:///{folder.resolve()}/state.db"


def open_journal(folder: Path) -> "Journal":
    """Open the journal, and make it (folder mode 0700) if there is none."""
    from orchestrator.execution.journal import Journal

    with _home_in_words(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "state.db"
        if "RACKRAY_DATABASE_URL" not in os.environ and not file.exists():
            # Made before SQLite makes it readable for all; its other files take over this one's mode. Never opened once it is
            # there: closing it would end the locks that this process holds on it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return Journal(journal_url(folder), has_ended=has_ended, steady_s=time.monotonic)


def open_views(folder: Path) -> "Views":
    """Read-only views of the journal. Raises NotAsRequired where nothing was ever applied; then nothing is made either."""
    from orchestrator.execution.views import Views

    with _home_in_words(folder):
        is_there = "RACKRAY_DATABASE_URL" in os.environ or (folder / "state.db").exists()
    if not is_there:
        near = next((home for home in (up / ".rackray" for up in folder.parent.parents) if (home / "state.db").exists()), None)
        way_out = f"the nearest one is in {near}: run the command there, or set RACKRAY_HOME" if near else NO_JOURNAL
        raise NotAsRequired(f"there is no journal in {folder}", way_out)
    return Views(open_journal(folder), folder, WallClock())


@contextlib.contextmanager
def _home_in_words(folder: Path) -> Iterator[None]:
    """Inside, what the system says against the folder becomes a sentence of ours."""
    try:
        yield
    except OSError as error:
        trouble = "is a file" if isinstance(error, FileExistsError) else f"cannot be used by {who()}: {error.strerror}"
        raise BadInput(f"RACKRAY_HOME {folder} {trouble}", "set RACKRAY_HOME to a folder that you may write to") from error


def _check_home_is_ours(folder: Path, make: bool = False) -> None:
    """Raises BadInput where this user may not write to RACKRAY_HOME, if it is there, or may not `make` it."""
    with _home_in_words(folder):
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.exists():
            tempfile.TemporaryFile(dir=folder).close()


def request(folder: Path, kind: str, data: dict[str, Any]) -> Event:
    """Journal what somebody asks of the controller; it is durable when this returns."""
    asked = {**data, "by": data.get("by") or who(), "host": socket.gethostname()}
    journal = open_journal(folder)
    return journal.request(Event(kind, CLUSTER, asked, _time_of(journal).now_s()))


def who() -> str:
    """The person at the keyboard, as the journal names them."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def decides_now(views: "Views") -> str:
    """The process that decides at the moment, for people; empty where none does, also where its process has just ended."""
    from orchestrator.execution.journal import describe_holder

    lease = views.lease()
    if lease is None or not lease.holder or lease.until_s <= views.now_s() or has_ended(lease.holder):
        return ""
    return f"{describe_holder(lease.holder)} decides (epoch {lease.epoch})"


# ---------------------------------------------------------------------- deciding, or following who decides
def follow_or_control(
    folder: Path, until: "Callable[[Views], bool]", on_tick: "Callable[[Views], None]", spec: ClusterSpec | None = None
) -> None:
    """Until `until(views)`: decide, if nobody else does, or follow who does. See `execution/deciding.py`."""
    from orchestrator.execution.deciding import Decider

    decider = Decider(folder, open_journal(folder), WallClock(), this_holder(), lambda site: build_hands(folder, site))
    decider.run(until, on_tick, spec)


def tell(folder: Path, kind: str, data: dict[str, Any]) -> str:
    """Ask something of whoever decides and wait for the answer; where nobody does, decide just that and begin nothing."""
    from orchestrator.execution.answering import wait_for_answer

    return wait_for_answer(open_journal(folder), request(folder, kind, data).seq, this_holder(), WallClock(), folder)


# ---------------------------------------------------------------------- training jobs
def load_job(path: Path) -> Any:
    """Read and check a job file. Raises BadInput with every problem."""
    from orchestrator.drivers.job_reader import read_job
    from orchestrator.planning.job_check import job_problems

    return read_job(path, job_problems)


def is_job(path: Path) -> bool:
    """Whether a file says that it is a job. Raises BadInput where it cannot be read."""
    from orchestrator.drivers.job_reader import is_job as says_so

    return says_so(path)


def read_run_rows(path: Path) -> "tuple[RunRow, ...]":
    """The rows of a CSV table of measured runs. Raises BadInput."""
    from orchestrator.drivers.run_rows import read_run_rows as read

    return read(path)


def planner_files() -> Any:
    """The layout planner's files: calibration, measured steps, pictures."""
    from orchestrator.drivers import planner_files

    return planner_files


def draw_loss_curve(lines: Path, picture: Path, title: str) -> Path:
    """The loss curve of a progress file, as a PNG; returns where it is."""
    from orchestrator.drivers.curve import draw_loss_curve as draw

    return draw(lines, picture, title)


def rank_log(folder: Path, run: "RunRecord", rank: int, lines: int) -> str:
    """The end of one rank's log, read over SSH at its node."""
    from orchestrator.planning.run_launch import rank_log_path

    views = open_views(folder)
    spec = views.state.spec
    if spec is None:
        raise NotAsRequired("no spec has been applied", "apply one first: `rackray apply SPEC`")

    node = run.rank(rank).node
    argv = ["tail", "-n", str(lines), rank_log_path(run, rank)]
    exchange = build_exchange(folder, "")
    try:
        target = Site.of(spec).target(views.state.nodes[node])
        outcome = exchange.perform(
            Operation("log", node, Action.SSH_EXEC, 0, target, {"argv": argv, "stdin": ""}), lambda epoch: True
        )
    finally:
        exchange.close()
    if outcome.status is not Status.DONE or outcome.facts["exit_status"] != 0:
        raise NotAsRequired(f"cannot read the log of rank {rank} at {node}: {outcome.reason or outcome.facts.get('stderr', '')}")
    return str(outcome.facts["stdout"])


# ---------------------------------------------------------------------- hands
def build_hands(folder: Path, spec: ClusterSpec) -> "Hands":
    """A controller's muscles: shards on the management Ray (threads with RACKRAY_HANDS=local), and the cell's own Ray."""
    from orchestrator.drivers.cell_hands import CellHands
    from orchestrator.drivers.ray_hands import RayHands
    from orchestrator.drivers.ray_head import HeadConfig
    from orchestrator.drivers.routed_hands import RoutedHands

    url = journal_url(folder)
    cell = CellHands(HeadConfig(name="cell", address=str(spec.cell.address), port=spec.cell.port, home=folder), url)
    if _are_hands_threads():
        return RoutedHands(dict.fromkeys(CELL_ACTIONS, cell), build_local_hands(folder, url))
    management = HeadConfig(name="management", address=str(spec.management.address), port=spec.management.port, home=folder)
    return RoutedHands(dict.fromkeys(CELL_ACTIONS, cell), RayHands(management, url))


def _are_hands_threads() -> bool:
    return os.environ.get("RACKRAY_HANDS", "ray") == "local"


def has_hands_ready(folder: Path) -> bool:
    """Whether what a controller reaches machines with needs no start of its own: its Ray runs, or it is made of threads."""
    from orchestrator.drivers.ray_head import head_info

    return _are_hands_threads() or head_info("management", folder) is not None


def build_local_hands(folder: Path, url: str) -> "Hands":
    """Hands made of threads in this process."""
    from orchestrator.drivers.local_hands import LocalHands

    exchange, may_act = build_exchange(folder, url), build_may_act(url)
    return LocalHands(lambda operation: exchange.perform(operation, may_act), build_playbooks(folder), may_act=may_act)


def build_exchange(folder: Path, url: str) -> "Exchange":
    """The doors to BMCs, nodes and the image service, with the secrets of `folder`."""
    from orchestrator.drivers import cell_join
    from orchestrator.drivers.exchange import Exchange
    from orchestrator.drivers.image_service import ImageServiceClient
    from orchestrator.drivers.redfish import RedfishDoor
    from orchestrator.drivers.secrets import SecretStore
    from orchestrator.drivers.ssh import SshDoor

    secrets = SecretStore(folder)
    guard_secrets(secrets)
    return Exchange(
        bmcs=RedfishDoor(secrets),
        shells=SshDoor(secrets),
        images=ImageServiceClient(secrets),
        secrets=secrets,
        join=cell_join.join,
        leave=cell_join.leave,
        redact=secrets.redact,
    )


def guard_secrets(secrets: "SecretStore") -> None:
    """The second line of defence: no core dumps, and every log line passes a filter that knows the secrets handed out."""
    from orchestrator.domain.secret import RedactingFilter

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter(secrets.redactor))


def build_playbooks(folder: Path) -> "Playbooks":
    """Ansible, with the secrets of `folder`."""
    from orchestrator.drivers.playbooks import AnsiblePlaybooks
    from orchestrator.drivers.secrets import SecretStore

    return AnsiblePlaybooks(folder, SecretStore(folder))


def build_may_act(url: str) -> "MayAct":
    """The question every exchange asks immediately before it: does this epoch still decide?"""
    from orchestrator.execution.journal import Journal

    return _time_of(Journal(url)).holds


def _time_of(journal: "Journal") -> "JournalClock":
    """The journal's time in this process."""
    from orchestrator.execution.journal_clock import JournalClock

    return JournalClock(journal, WallClock())


def look(
    folder: Path, spec: ClusterSpec, actions: Sequence[Action], views: "Views | None" = None
) -> dict[str, dict[Action, Any]]:
    """Read-only looks at every node of `spec`, by threads, without a lease and without writing anything.

    Returns what each node answered, per action; an action that got no answer is missing.
    """
    from orchestrator.execution.looking import look_at

    exchange = build_exchange(folder, "")
    try:
        return look_at(
            spec, actions, views.state.nodes if views else {}, lambda operation: exchange.perform(operation, lambda epoch: True)
        )
    finally:
        exchange.close()


# ---------------------------------------------------------------------- the lab
def lab_up(folder: Path, path: Path) -> Any:
    """Start the simulated machines of a spec, or add those that are missing to the running lab."""
    from orchestrator.lab.control import lab_up as up
    from orchestrator.lab.from_spec import lab_spec

    if (folder / "state.db").exists() and not (folder / "lab").exists():
        raise NotAsRequired(
            f"{folder} holds the journal of a lab that is gone; new machines would contradict it",
            f"remove {folder}, or set RACKRAY_HOME to another folder",
        )
    spec = lab_spec(load_spec(path).spec)
    _check_home_is_ours(folder, make=True)
    return up(spec, folder)


def lab_down(folder: Path) -> Any:
    """End the lab, and the Ray heads of this home, which were only there for it."""
    from orchestrator.drivers.ray_head import stop_head
    from orchestrator.lab.control import lab_down as down

    _check_home_is_ours(folder)
    report = down(folder)
    if folder.exists():
        for name in ("cell", "management"):
            stop_head(name, folder)
    return report


def lab_status(folder: Path) -> list[dict[str, Any]]:
    """What the simulated machines really do."""
    from orchestrator.lab.control import lab_status as ask

    status = ask(folder)
    return [
        {
            "name": node.name,
            "serial": node.serial,
            "power": node.power,
            "image": status.image if node.has_image else "",
            "ssh": "listening" if node.ssh_listening else "closed",
            "boots": node.boots,
            "faults": list(node.faults),
            "failure": node.failure,
        }
        for node in status.nodes
    ]


def lab_fault(folder: Path, node: str, fault: str, heal: bool, arguments: dict[str, str | int | float]) -> str:
    """Break something in a simulated node, or mend it; answers with a sentence."""
    from orchestrator.lab.control import lab_fault as break_it
    from orchestrator.lab.control import lab_heal as mend

    (mend if heal else break_it)(folder, node, fault, **arguments)
    return f"{fault} {'healed' if heal else 'planted'} in {node}"


def rehearse(path: Path, faults: Path | None, seeds: Sequence[int]) -> "Iterator[Rehearsed]":
    """The bring-up of a spec in virtual time, once per seed, each in a journal of its own. Raises BadInput for a bad file."""
    from orchestrator.drivers.yaml_profile import read_profile
    from orchestrator.execution.journal import Journal
    from orchestrator.execution.rehearsal import rehearse as play
    from orchestrator.lab.simulated_hands import SimulatedHands, VirtualClock
    from orchestrator.lab.simulation import SimulatedSite
    from orchestrator.lab.simulation_weather import usual_profile

    loaded = load_spec(path)
    profile = read_profile(faults, loaded.spec.feeds) if faults else usual_profile(loaded.spec)
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="rackray-rehearsal-") as folder:
            site = SimulatedSite(loaded.spec, seed, profile=profile)
            journal = Journal(f"sqlite:///{folder}/state.db", durable=False)
            hands, clock = SimulatedHands(site), VirtualClock(site, 1.0)
            yield play(journal, hands, clock, Path(folder), loaded.spec, loaded.sha256, site.chain_s, seed)
            journal.close()


def draw_rehearsal(rehearsed: "Rehearsed", spec: ClusterSpec, picture: Path) -> Path:
    """Nodes by state over time and draw against limits, as a picture; returns where it is."""
    from orchestrator.drivers.rehearsal_picture import draw_rehearsal as draw

    return draw(rehearsed.samples, {name: feed.limit_w for name, feed in spec.feeds.items()}, rehearsed.title, picture)


def demo(folder: Path, cluster_specs: Path) -> int:
    """The whole story, each line a command; returns the exit code."""
    from orchestrator.lab.story import Story

    return Story(folder, cluster_specs).tell()


# ---------------------------------------------------------------------- small doors for reading commands
def listeners(folder: Path) -> list[Any]:
    """What listens where, of all processes that belong to this home."""
    from orchestrator.drivers.listeners import listeners as find_listeners

    return list(find_listeners(folder))


def scan_host_key(views: "Views", node: str) -> tuple[str, str]:
    """The SSH host key a node presents, and its SHA-256 fingerprint. Nothing is trusted or stored."""
    from orchestrator.drivers.ssh import scan_host_key as scan

    spec = views.state.spec
    if spec is None:
        raise NotAsRequired("no spec has been applied", "apply one first: `rackray apply SPEC`")
    found = scan(spec.node(node).address, spec.access.ssh_port)
    return found.line, found.fingerprint


def ansible_variables(folder: Path, views: "Views") -> dict[str, dict[str, Any]]:
    """Ansible's variables of every node whose host key is pinned."""
    from orchestrator.drivers.playbooks import host_variables
    from orchestrator.drivers.secrets import SecretStore

    spec = views.state.spec
    if spec is None:
        return {}
    site = Site.of(spec)
    pinned = {
        name: record for name, record in views.state.nodes.items() if name in site.computes and record.pins.get("ssh_host_key")
    }
    variables = {}
    for name, record in pinned.items():
        ours = {f"rackray_{key}": value for key, value in site.playbook_variables(name).items()}
        variables[name] = {**host_variables(site.target(record), SecretStore(folder), folder), **ours}
    return variables
