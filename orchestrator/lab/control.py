"""The lab from outside: bring it up, break it, mend it, take it down. Blocking, one call each.

State lies under RACKRAY_HOME/lab (see `plan.LabPaths`) and belongs to one daemon; what the operator needs to reach the
simulated site (factory papers, SSH key, image token, the image service's certificate) lies in RACKRAY_HOME/secrets.
"""

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.lab.control_channel import ask
from orchestrator.lab.delivery import take_back, take_site_secrets_back
from orchestrator.lab.errors import LabError
from orchestrator.lab.image import remove_tree
from orchestrator.lab.namespaces import mounts_below, probe, processes_using, start_time
from orchestrator.lab.nvml.library import find_compiler, find_header
from orchestrator.lab.plan import LabPaths, LabSpec
from orchestrator.lab.runtime import project_root
from orchestrator.lab.ssh_acceptor import SSHD

START_LIMIT_S = 30.0
ADD_LIMIT_S = 300.0
ASK_LIMIT_S = 30.0
DOWN_LIMIT_S = 60.0
END_LIMIT_S = 10.0
REAP_LIMIT_S = 1.0

Value = str | int | float


@dataclass(frozen=True, slots=True)
class LabReport:
    """What `lab_up` did."""

    added: tuple[str, ...]
    already_there: tuple[str, ...]
    image_service_url: str
    image: str
    image_digest: str
    mode: str
    """`root` or `user`: who the lab, and so its nodes' root, really is."""
    daemon_pid: int
    took_s: float
    cleared: tuple[str, ...] = ()
    """What an earlier lab that died had left, and was removed first; such a lab's nodes are new machines now."""


@dataclass(frozen=True, slots=True)
class LabNodeStatus:
    """One node, as the simulated hardware itself knows it (a BMC may be told to lie)."""

    name: str
    serial: str
    power: str
    boots: int
    has_image: bool
    ssh_listening: bool
    pid: int | None
    """The node's pid 1 on this machine; None while it is down."""
    faults: tuple[str, ...]
    failure: str
    """Why its last boot failed; empty if it did not."""


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A running lab."""

    daemon_pid: int
    mode: str
    image: str
    image_digest: str
    image_service_url: str
    nodes: tuple[LabNodeStatus, ...]


@dataclass(frozen=True, slots=True)
class LabDown:
    """What `lab_down` found and ended."""

    was_running: bool
    nodes: tuple[str, ...]
    killed: tuple[str, ...]
    """Processes that had to be killed because the daemon did not end them; empty in an orderly end."""


def lab_up(spec: LabSpec, home: Path) -> LabReport:
    """Starts the lab, or adds the nodes it does not have yet to the running one; returns when every BMC answers.

    Raises: NamespacesRefused (one sentence, nothing started), LabError (something is missing on this machine, the spec
    clashes with itself or with the running lab, an address is taken).
    """
    began_s = time.monotonic()
    spec.check()
    check_machine()
    paths = LabPaths(home.absolute())
    with _alone(paths):
        cleared: tuple[str, ...] = ()
        is_new = daemon_pid(paths) is None
        if is_new:
            cleared = _clear_dead_lab(paths)
            _start_daemon(paths)
        try:
            added = set(ask(paths.control, {"verb": "add", "spec": spec.to_json()}, ADD_LIMIT_S)["added"])
        except LabError:
            if is_new:  # nobody asked for a lab without nodes
                _end(paths, keep=False)
            raise
    for node in spec.nodes:
        _await_bmc(paths, node.name, node.bmc_address, node.bmc_port)
    status = lab_status(home)
    return LabReport(
        added=tuple(node.name for node in spec.nodes if node.name in added),
        already_there=tuple(node.name for node in spec.nodes if node.name not in added),
        image_service_url=status.image_service_url,
        image=status.image,
        image_digest=status.image_digest,
        mode=status.mode,
        daemon_pid=status.daemon_pid,
        took_s=time.monotonic() - began_s,
        cleared=cleared,
    )


def lab_down(home: Path, keep: bool = False) -> LabDown:
    """Ends the lab and proves it: no process and no mount of it is left. Removes its folder and its secrets unless `keep`.

    Raises: LabError that names what could not be ended.
    """
    paths = LabPaths(home.absolute())
    if not paths.home.exists():
        return LabDown(was_running=False, nodes=(), killed=())
    with _alone(paths):
        return _end(paths, keep)


def lab_fault(home: Path, node: str, fault: str, **arguments: Value) -> None:
    """Breaks something of one node; seen at once. Raises: BadLabInput for an unknown node, fault or argument."""
    request = {"verb": "fault", "node": node, "fault": fault, "arguments": arguments}
    ask(LabPaths(home.absolute()).control, request, ASK_LIMIT_S)


def lab_heal(home: Path, node: str, fault: str, **arguments: Value) -> None:
    """Ends a fault of one node; of all its GPUs unless `gpu` is given. Raises: LabError as `lab_fault` does."""
    request = {"verb": "heal", "node": node, "fault": fault, "arguments": arguments}
    ask(LabPaths(home.absolute()).control, request, ASK_LIMIT_S)


def lab_status(home: Path) -> LabStatus:
    """What every node is doing. Raises: LabError when no lab runs."""
    values = ask(LabPaths(home.absolute()).control, {"verb": "status"}, ASK_LIMIT_S)
    return LabStatus(
        daemon_pid=values["pid"],
        mode=values["mode"],
        image=values["image"],
        image_digest=values["image_digest"],
        image_service_url=values["image_service_url"],
        nodes=tuple(_node_status(node) for node in values["nodes"]),
    )


def check_machine() -> None:
    """Everything the lab needs of this machine. Raises: LabError or NamespacesRefused, one sentence."""
    if not Path(SSHD).exists():
        raise LabError(f"{SSHD} is missing: the lab's nodes are reached by real OpenSSH", hint="apt install openssh-server")
    for program in ("ssh-keygen", "unshare", "nsenter"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            raise LabError(f"{program} is missing", hint="apt install openssh-client util-linux")
    if not Path("/usr/bin/python3").exists():
        raise LabError("/usr/bin/python3 is missing: it starts the lab's nodes and serves Ansible", hint="apt install python3")
    find_compiler()
    find_header()
    probe()


def daemon_pid(paths: LabPaths) -> int | None:
    """The pid of the lab's running daemon, or None."""
    try:
        pid, started = map(int, paths.pid_file.read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    return pid if start_time(pid) == started else None


@contextlib.contextmanager
def _alone(paths: LabPaths) -> Iterator[None]:
    """One `lab up` or `lab down` at a time in one home; the second waits. The lock is on the folder, so no file is left."""
    paths.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(paths.home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _end(paths: LabPaths, keep: bool) -> LabDown:
    pid = daemon_pid(paths)
    nodes: tuple[str, ...] = ()
    if pid is not None:
        nodes = _ask_to_go(paths, pid)
    killed = _kill_leftovers(paths)
    left = [*_leftovers(paths).values(), *mounts_below(paths.lab)]
    if left:
        raise LabError(f"the lab could not be ended; left are: {', '.join(left)}", hint="end them, then run it again")
    if not keep:
        _forget(paths)
    return LabDown(was_running=pid is not None, nodes=nodes, killed=killed)


def _start_daemon(paths: LabPaths) -> None:
    paths.lab.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.lab.chmod(0o700)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "orchestrator.lab.labd", str(paths.home), str(writing)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(project_root())}
    started = subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.DEVNULL, pass_fds=(writing,), env=environment, cwd="/", start_new_session=True
    )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()  # until the daemon has spoken and closed its end, or died
    started.wait(START_LIMIT_S)
    if said != "ready":
        text = paths.log.read_text(errors="replace")[-600:] if paths.log.exists() else ""
        raise LabError(f"the lab daemon does not start: {said or text or 'it said nothing'}", hint=f"see {paths.log}")


def _await_bmc(paths: LabPaths, name: str, address: str, port: int) -> None:
    """One GET of the service's version, verified by the BMC's certificate; the daemon listens already, so once is enough."""
    context = ssl.create_default_context(cafile=str(paths.node(name).bmc / f"{name}.pem"))
    connection = http.client.HTTPSConnection(address, port, timeout=ASK_LIMIT_S, context=context)
    try:
        connection.request("GET", "/redfish")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"the BMC of {name} at {address}:{port} does not answer: {error}", hint=f"see {paths.log}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise LabError(f"the BMC of {name} at {address}:{port} answers {status} to GET /redfish", hint=f"see {paths.log}")


def _ask_to_go(paths: LabPaths, pid: int) -> tuple[str, ...]:
    """Lets the daemon end its nodes and itself; kills it where it does not. Returns: the nodes it had."""
    nodes: tuple[str, ...] = ()
    # A daemon that cannot answer is killed below, and its nodes go with it.
    with contextlib.suppress(LabError):
        nodes = tuple(node.name for node in lab_status(paths.home).nodes)
        ask(paths.control, {"verb": "down"}, DOWN_LIMIT_S)
    if not _await_end(paths, END_LIMIT_S if nodes else 0.0):
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.kill(pid, signal.SIGKILL)
        _await_end(paths, END_LIMIT_S)
    # An ended process shows in `ps` until this machine's pid 1 has reaped it; give it the moment, but do not depend on it.
    deadline_s = time.monotonic() + REAP_LIMIT_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return nodes


def _await_end(paths: LabPaths, limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while daemon_pid(paths) is not None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _leftovers(paths: LabPaths) -> dict[int, str]:
    """Processes of this lab's nodes and daemon that live."""
    found = processes_using(paths.lab) if paths.lab.exists() else {}
    pid = daemon_pid(paths)
    return found | ({pid: "the lab daemon"} if pid is not None else {})


def _kill_leftovers(paths: LabPaths) -> tuple[str, ...]:
    """Kills what an orderly end should not have left; gives what dies by itself (the daemon is gone) a moment first."""
    deadline_s = time.monotonic() + 2.0
    while (left := _leftovers(paths)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + END_LIMIT_S
    while _leftovers(paths) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return tuple(f"{pid} {command}" for pid, command in left.items())


def _clear_dead_lab(paths: LabPaths) -> tuple[str, ...]:
    """What a daemon that was killed left: its nodes died with it, its BMCs' memory too, so the machines are gone for good."""
    if not paths.lab.exists():
        return ()
    killed = _kill_leftovers(paths)
    _forget(paths)
    return (str(paths.lab), *killed)


def _forget(paths: LabPaths) -> None:
    """Removes the folder, and of the secrets those that opened this lab."""
    with contextlib.suppress(FileNotFoundError):
        serials = _serials(paths)
        take_back(paths.factory_csv, serials)
    take_site_secrets_back(paths)
    remove_tree(paths.lab)


def _serials(paths: LabPaths) -> set[str]:
    return {node["serial"] for node in json.loads(paths.spec.read_text())["nodes"]}


def _node_status(values: Mapping[str, Any]) -> LabNodeStatus:
    return LabNodeStatus(**{**values, "faults": tuple(values["faults"])})
