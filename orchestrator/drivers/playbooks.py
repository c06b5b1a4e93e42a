"""Ansible playbooks through ansible-runner: one run on many nodes, one outcome per node.

Every run has a private folder of its own (mode 0700) under HOME/ansible: ansible-runner writes arguments into its folder and
reads them again next time, so that a second run in the same folder could silently repeat the first one's options.
"""

import datetime
import json
import os
import queue
import re
import secrets as randomness
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.domain.errors import OwnLimitReached, RackrayError
from orchestrator.domain.operation import Operation, Outcome, Status, Target
from orchestrator.drivers.interfaces import Secrets
from orchestrator.drivers.outcomes import ended, held, lost
from orchestrator.drivers.own_limits import LIMITS, own_limit, own_limits_told

FORKS = 25
"""Nodes that one run works on at once."""
KEPT_RUNS = 20
"""Run folders kept for whoever asks what happened."""
KEPT_S = 3 * 3600
"""A younger folder is never removed: another process may be running in it."""
OVERHEAD_S = 10.0
"""Left of an operation's time for Ansible to end and for us to say so."""
HOST_KEY_WORDS = ("host key verification failed", "remote host identification has changed", "no matching host key")
SSH_AT_A_LIMIT = re.compile(rf"(?:\bsocket|ssh: connect to host \S+ port \d+): (?:{'|'.join(map(os.strerror, LIMITS))})\b")
"""What OpenSSH says where this host, not the node, is at a limit."""


class AnsiblePlaybooks:
    """Implements `interfaces.Playbooks`. `playbooks` is the folder they lie in; RACKRAY_PLAYBOOKS names another."""

    def __init__(self, home: Path, secrets: Secrets, playbooks: Path | None = None) -> None:
        self._runs = home / "ansible"
        self._secrets = secrets
        shipped = Path(next(iter(orchestrator.__path__))).parent / "playbooks"
        self._playbooks = playbooks or Path(os.environ.get("RACKRAY_PLAYBOOKS") or shipped)

    def run(self, playbook: str, operations: Sequence[Operation]) -> Iterator[Outcome]:
        """Runs `playbook` once on the nodes of all `operations` and yields each one's outcome.

        A node that does not answer is told at once; all others when the play has ended, because a later `rescue` may still
        make good what failed. Status: DONE with the facts of PLAYBOOK; REFUSED with the failed task and its words;
        UNREACHABLE; MISMATCH for another host key than the pinned one; UNKNOWN where Ansible ended without a word; HELD where
        it could not be started for a reason of our own.
        """
        by_node: dict[str, Operation] = {}
        for operation in operations:
            problem = self._problem(playbook, operation) or (
                "the node is named twice in one run" if operation.node in by_node else ""
            )
            if problem:
                status = Status.MISMATCH if not operation.target.ssh_host_key else Status.REFUSED
                yield ended(operation, status, problem, retryable=False)
            else:
                by_node[operation.node] = operation
        if not by_node:
            return
        try:
            key_path = self._secrets.ssh_key_path()
            with own_limits_told(f"{playbook} cannot be started"):
                run = _Run(self._new_folder(), playbook, by_node, key_path)
                run.start(self._playbooks)
        except RackrayError as error:
            # A key that nobody can read is nobody's fault but ours.
            for operation in by_node.values():
                yield held(operation, f"{error} ({error.hint})" if error.hint else str(error))
            return
        yield from _outcomes(by_node, run)

    def _problem(self, playbook: str, operation: Operation) -> str:
        if not operation.target.ssh_host_key:
            return f"no SSH host key is pinned for {operation.node}; nothing was sent"
        path = self._playbooks / playbook
        if Path(playbook).name != playbook or not path.is_file():
            return f"there is no playbook {playbook!r} in {self._playbooks}"
        return ""

    def _new_folder(self) -> Path:
        self._runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(self._runs.iterdir())[:-KEPT_RUNS]:
            if time.time() - old.stat().st_mtime > KEPT_S:
                shutil.rmtree(old, ignore_errors=True)  # tidying only: what cannot be removed is tried again next time
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        folder = self._runs / f"{stamp}-{randomness.token_hex(3)}"
        folder.mkdir(mode=0o700)
        return folder


def host_variables(target: Target, secrets: Secrets, home: Path) -> dict[str, Any]:
    """Inventory variables of one node for whoever runs Ansible by hand; keeps its pinned host key in HOME/known_hosts.d.

    Raises SecretMissing where the SSH key is missing or open to others.
    """
    folder = home / "known_hosts.d"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known_hosts, draft = folder / f"{target.ssh_host}_{target.ssh_port}", folder / f".{randomness.token_hex(4)}"
    draft.write_text(known_hosts_line(target))
    draft.replace(known_hosts)
    return connection_variables(target, key_path=secrets.ssh_key_path(), known_hosts=known_hosts)


def connection_variables(target: Target, *, key_path: str, known_hosts: Path) -> dict[str, Any]:
    """How Ansible reaches one node, and what the playbooks want to know of the way (`rackray_...`).

    The host key is pinned, the user's own SSH configuration and agent are left out, and no connection stays behind.
    """
    options = {
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "ControlMaster": "no",
        "ConnectTimeout": 5,
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
    }
    return {
        "ansible_host": target.ssh_host,
        "ansible_port": target.ssh_port,
        "ansible_user": target.ssh_user,
        "ansible_ssh_private_key_file": key_path,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": " ".join(["-F none", *(f"-o {name}={value}" for name, value in options.items())]),
        "rackray_user": target.ssh_user,
        "rackray_python": target.python,
    }


def known_hosts_line(target: Target) -> str:
    """The pinned host key as OpenSSH wants it."""
    host = target.ssh_host if target.ssh_port == 22 else f"[{target.ssh_host}]:{target.ssh_port}"
    return f"{host} {target.ssh_host_key}\n"


@dataclass(slots=True)
class _Run:
    """One run of ansible-runner and what its events have said so far."""

    folder: Path
    playbook: str
    by_node: Mapping[str, Operation]
    key_path: str
    events: "queue.SimpleQueue[dict[str, Any] | None]" = field(default_factory=queue.SimpleQueue)
    failed: dict[str, str] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    """Nodes on which at least one task has run."""
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    stats: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    status: str = ""
    has_begun: bool = False
    """Whether Ansible has said anything at all."""
    limit: OwnLimitReached | None = None
    """The limit of this host that kept Ansible from being started."""

    def start(self, playbooks: Path) -> None:
        """Runs Ansible in a thread; its events come through `events`, and None at the end."""
        (self.folder / "project").symlink_to(playbooks.resolve())
        known_hosts = self.folder / "known_hosts"
        known_hosts.write_text("".join(known_hosts_line(operation.target) for operation in self.by_node.values()))
        hosts = {
            node: {
                **connection_variables(operation.target, key_path=self.key_path, known_hosts=known_hosts),
                "rackray_node": node,
                **{f"rackray_{name}": value for name, value in (operation.args.get("variables") or {}).items()},
            }
            for node, operation in self.by_node.items()
        }
        threading.Thread(target=self._work, args=(hosts,), daemon=True, name="rackray-ansible").start()

    def _work(self, hosts: Mapping[str, Mapping[str, Any]]) -> None:
        try:
            import ansible_runner  # heavy: half a second that only whoever runs playbooks should pay

            done = ansible_runner.run(
                private_data_dir=str(self.folder),
                inventory={"all": {"hosts": hosts}},
                playbook=self.playbook,
                envvars=self._environment(),
                event_handler=self._on_event,
                timeout=int(max(1.0, min(operation.timeout_s for operation in self.by_node.values()) - OVERHEAD_S)),
                quiet=True,
            )
            self.status = f"{done.status}, exit status {done.rc}"
        except Exception as error:
            # In a thread of ours: what is not said here would be lost, and the nodes' outcomes with it.
            self.status = f"ansible-runner broke: {error!r}"
            self.limit = own_limit(error, f"{self.playbook} cannot be started") if not self.has_begun else None
        finally:
            self.events.put(None)

    def _on_event(self, event: dict[str, Any]) -> bool:
        self.has_begun = True
        self.events.put(event)
        return True  # without it ansible-runner keeps no event file, and then has no statistics

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
            "ANSIBLE_CONFIG": str(self.folder / "project" / "ansible.cfg"),
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=no",
            "ANSIBLE_SSH_RETRIES": "0",
            "ANSIBLE_FORKS": str(min(FORKS, len(self.by_node))),
            "ANSIBLE_RETRY_FILES_ENABLED": "False",
            "ANSIBLE_NOCOLOR": "1",
        }

    def heed(self, event: Mapping[str, Any]) -> str | None:
        """Takes one event in; the node that turned out to be unreachable by it, if any."""
        data = event.get("event_data") or {}
        host, task, result = data.get("host"), data.get("task") or "?", data.get("res") or {}
        match event.get("event"):
            case "runner_on_unreachable" if host and not data.get("ignore_unreachable"):
                self.failed[host] = words_of(result)
                return str(host)
            case "runner_on_failed" if host and not data.get("ignore_errors"):
                self.failed[host] = f"task {task!r}: {words_of(result)}"
            case "runner_on_ok" if host:
                self.touched.add(host)
            case "runner_on_skipped" if host and task not in self.skipped[host]:
                self.skipped[host].append(task)
            case "playbook_on_stats":
                self.stats = {kind: dict(counts) for kind, counts in data.items() if isinstance(counts, Mapping)}
        return None


def _outcomes(by_node: dict[str, Operation], run: _Run) -> Iterator[Outcome]:
    began_s = time.monotonic()
    while (event := run.events.get()) is not None:
        node = run.heed(event)
        if node in by_node:
            yield _unreachable(run, by_node.pop(node))
    seconds = round(time.monotonic() - began_s, 3)
    for node, operation in by_node.items():
        yield _verdict(run, node, operation, seconds)


def _unreachable(run: _Run, operation: Operation) -> Outcome:
    words = run.failed[operation.node][:600]
    if any(phrase in words.lower() for phrase in HOST_KEY_WORDS):
        return ended(operation, Status.MISMATCH, words, retryable=False)
    if operation.node in run.touched:
        return lost(operation, f"{run.playbook}: the connection was lost in the middle: {words}")
    if SSH_AT_A_LIMIT.search(words):
        return held(operation, words)
    return ended(operation, Status.UNREACHABLE, words)


def _verdict(run: _Run, node: str, operation: Operation, seconds: float) -> Outcome:
    counts = {kind: run.stats.get(kind, {}).get(node, 0) for kind in ("ok", "changed", "failures", "skipped")}
    if counts["failures"] or (node in run.failed and not run.stats):
        return ended(operation, Status.REFUSED, f"{run.playbook}: {run.failed.get(node, 'a task failed')}"[:600], seconds=seconds)
    if run.limit is not None:
        return held(operation, f"{run.limit} ({run.limit.hint})")
    if node not in run.stats.get("processed", {}):
        return lost(
            operation, f"{run.playbook}: Ansible ended ({run.status}) without a word about this node; see {run.folder}", seconds
        )
    facts = {
        "ok": counts["ok"],
        "changed": counts["changed"],
        "skipped": run.skipped.get(node, []),
        "tasks": counts["ok"] + counts["skipped"],
        "seconds": seconds,
    }
    return Outcome(operation.id, node, operation.action, Status.DONE, facts=facts, seconds=seconds)


def words_of(result: Mapping[str, Any]) -> str:
    """What a failed task said, in one line: the module's message, and the last words of the command it ran."""
    said = [str(result.get("msg") or "")]
    said += [
        str(result[stream]).strip().splitlines()[-1] for stream in ("stderr", "stdout") if str(result.get(stream) or "").strip()
    ]
    for item in result.get("results") or []:
        if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
            said.append(words_of(item))
    text = " | ".join(" ".join(part.split()) for part in said if part)
    return text or json.dumps(result, default=str)[:300]
