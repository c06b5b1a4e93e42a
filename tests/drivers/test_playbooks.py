"""Playbooks: what Ansible's events come to, and the real thing on simulated nodes."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.operation import Action, Operation, Outcome, Status, Target
from orchestrator.drivers.playbooks import AnsiblePlaybooks, _outcomes, _Run, host_variables, known_hosts_line, words_of
from tests.drivers.hands_contract import an_operation

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIR1cPInnedKeyOfATestThatNobodyUsesAnywhere00"


class KeyOnly:
    """Secrets of a site whose SSH key is at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ssh_key_path(self) -> str:
        return str(self.path)


def a_play(node: str, playbook: str = "bring_up.yml", **target: Any) -> Operation:
    where = Target(**{"ssh_host": "127.1.221.9", "ssh_port": 2222, "ssh_user": "gpu", "ssh_host_key": KEY, **target})
    return replace(an_operation(node, Action.PLAYBOOK, playbook=playbook, variables={"lab": True, "rack": "r01"}), target=where)


class ReplayedRun(_Run):
    """A run whose events were written down."""

    def replay(self, *events: dict[str, Any]) -> "ReplayedRun":
        for event in events:
            self.events.put(event)
        self.events.put(None)
        return self


def outcomes_of(*events: dict[str, Any], nodes: Sequence[str] = ("n1", "n2")) -> dict[str, Outcome]:
    by_node = {node: a_play(node) for node in nodes}
    run = ReplayedRun(Path("/nowhere"), "bring_up.yml", by_node, "key").replay(*events)
    return {outcome.node: outcome for outcome in _outcomes(dict(by_node), run)}


def event(kind: str, host: str, task: str = "Kernel settings", **data: Any) -> dict[str, Any]:
    return {"event": f"runner_on_{kind}", "event_data": {"host": host, "task": task, **data}}


def stats(**counts: dict[str, int]) -> dict[str, Any]:
    return {"event": "playbook_on_stats", "event_data": {"processed": {"n1": 1, "n2": 1}, **counts}}


def test_a_node_that_ended_well_tells_what_changed_and_what_was_skipped() -> None:
    found = outcomes_of(
        event("skipped", "n1", "Load the kernel settings"),
        event("skipped", "n1", "Load the kernel settings"),
        stats(ok={"n1": 9, "n2": 10}, changed={"n1": 3}, skipped={"n1": 1}),
    )
    facts = found["n1"].facts
    assert (facts["ok"], facts["changed"], facts["skipped"], facts["tasks"]) == (9, 3, ["Load the kernel settings"], 10)
    assert found["n2"].facts["changed"] == 0


def test_a_failed_task_is_named_with_its_words_and_the_other_node_is_done() -> None:
    result = {"msg": "non-zero return code", "stderr": "noise\n/srv/shared is no directory"}
    found = outcomes_of(event("failed", "n1", "The shared directory", res=result), stats(ok={"n2": 1}, failures={"n1": 1}))
    assert found["n1"].status is Status.REFUSED
    assert "'The shared directory'" in found["n1"].reason and "/srv/shared is no directory" in found["n1"].reason
    assert found["n2"].status is Status.DONE


def test_a_failure_that_a_rescue_made_good_or_that_is_to_be_ignored_is_no_failure() -> None:
    found = outcomes_of(
        event("failed", "n1", res={"msg": "no"}),
        event("failed", "n2", res={"msg": "no"}, ignore_errors=True),
        stats(ok={"n1": 5, "n2": 5}, rescued={"n1": 1}, ignored={"n2": 1}),
    )
    assert {outcome.status for outcome in found.values()} == {Status.DONE}


def test_an_unreachable_node_is_told_before_the_others_end() -> None:
    by_node = {node: a_play(node) for node in ("n1", "n2")}
    run = ReplayedRun(Path("/nowhere"), "bring_up.yml", by_node, "key")
    run.events.put(event("unreachable", "n1", res={"msg": "Connection timed out"}))
    first = next(_outcomes(dict(by_node), run))
    assert (first.node, first.status) == ("n1", Status.UNREACHABLE)


def test_a_connection_lost_after_a_task_has_run_leaves_the_node_unknown() -> None:
    found = outcomes_of(event("ok", "n1"), event("unreachable", "n1", res={"msg": "Connection reset"}), stats(ok={"n2": 1}))
    assert found["n1"].status is Status.UNKNOWN


def test_another_host_key_is_a_mismatch() -> None:
    found = outcomes_of(event("unreachable", "n1", res={"msg": "Failed to connect: Host key verification failed."}), stats())
    assert (found["n1"].status, found["n1"].retryable) == (Status.MISMATCH, False)


def test_a_run_that_ends_without_a_word_leaves_every_node_unknown() -> None:
    assert {outcome.status for outcome in outcomes_of(event("ok", "n1")).values()} == {Status.UNKNOWN}


def test_what_cannot_be_run_is_said_and_nothing_is_started(tmp_path: Path) -> None:
    playbooks = AnsiblePlaybooks(tmp_path, KeyOnly(tmp_path / "key"), PLAYBOOKS)  # type: ignore[arg-type]
    asked = [a_play("n1", "absent.yml"), a_play("n2", "../playbooks/bring_up.yml"), a_play("n3", ssh_host_key="")]
    found = {operation.node: next(iter(playbooks.run(operation.args["playbook"], [operation]))) for operation in asked}
    assert {node: outcome.status for node, outcome in found.items()} == {
        "n1": Status.REFUSED,
        "n2": Status.REFUSED,
        "n3": Status.MISMATCH,
    }
    assert not (tmp_path / "ansible").exists()


def test_ssh_is_pinned_and_takes_nothing_from_the_users_own_settings(tmp_path: Path) -> None:
    target = a_play("n1").target
    variables = host_variables(target, KeyOnly(tmp_path / "key"), tmp_path)  # type: ignore[arg-type]
    for option in (
        "-F none",
        "StrictHostKeyChecking=yes",
        "IdentityAgent=none",
        "GlobalKnownHostsFile=/dev/null",
        "ControlMaster=no",
    ):
        assert option in variables["ansible_ssh_common_args"]
    (known_hosts,) = (tmp_path / "known_hosts.d").iterdir()
    assert f"UserKnownHostsFile={known_hosts}" in variables["ansible_ssh_common_args"]
    assert known_hosts.read_text() == known_hosts_line(target)
    assert known_hosts_line(target) == f"[127.1.221.9]:2222 {KEY}\n"
    assert known_hosts_line(replace(target, ssh_port=22)) == f"127.1.221.9 {KEY}\n"


def test_the_words_of_a_loop_are_those_of_its_failed_items() -> None:
    result = {"msg": "One or more items failed", "results": [{"failed": False}, {"failed": True, "msg": "no space left"}]}
    assert words_of(result) == "One or more items failed | no space left"
    unreachable = {"msg": "All items completed", "results": [{"unreachable": True, "msg": "Connection refused"}]}
    assert words_of(unreachable).endswith("Connection refused")


@pytest.mark.parametrize("playbook", sorted(path.name for path in PLAYBOOKS.glob("*.yml")))
def test_every_playbook_is_well_formed(playbook: str) -> None:
    argv = [Path(sys.executable).parent / "ansible-playbook", "--syntax-check", "-i", "localhost,", playbook]
    done = subprocess.run(argv, cwd=PLAYBOOKS, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


def ansible_files(check: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """One execution of the module `rackray_files` on this machine, as Ansible itself does it."""
    argv = [
        Path(sys.executable).parent / "ansible",
        "localhost",
        "-c",
        "local",
        "-M",
        PLAYBOOKS / "library",
        "-m",
        "rackray_files",
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
    }
    argv += ["-i", "localhost,", "-a", json.dumps(arguments), *(["--check"] if check else [])]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_the_files_module_writes_once_repairs_what_was_changed_and_only_looks_in_check_mode(tmp_path: Path) -> None:
    mine = {"owner": Path("/proc/self").owner(), "group": Path("/proc/self").group()}
    folder, file = tmp_path / "d" / "e", tmp_path / "d" / "e" / "f"
    arguments = {
        "folders": [{"path": str(folder), "mode": "0750", **mine}],
        "files": [{"path": str(file), "content": "x = 1\n", "mode": "0640", **mine}],
    }
    assert ansible_files(True, arguments)["changed_paths"] == [str(folder), str(file)]
    assert not folder.exists()
    assert ansible_files(False, arguments)["changed_paths"] == [str(folder), str(file)]
    assert (file.read_text(), file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == ("x = 1\n", 0o640, 0o750)
    assert ansible_files(False, arguments)["changed"] is False
    file.chmod(0o666)
    assert ansible_files(False, arguments)["changed_paths"] == [str(file)]
    assert (file.stat().st_mode & 0o777, list(folder.iterdir())) == (0o640, [file])


def test_ansible_itself_says_that_nobody_listens_and_its_folder_is_private(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    playbooks = AnsiblePlaybooks(tmp_path, KeyOnly(key), PLAYBOOKS)  # type: ignore[arg-type]
    (outcome,) = playbooks.run("bring_up.yml", [a_play("n1")])
    assert outcome.status is Status.UNREACHABLE, outcome.reason
    assert "refused" in outcome.reason.lower()
    (folder,) = (tmp_path / "ansible").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    secret = key.read_text().splitlines()[1]
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_text(errors="replace")]


# ---------------------------------------------------------------------- on simulated nodes
@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two imaged nodes, and their operator."""
    from orchestrator.lab.control import lab_down, lab_up
    from tests.lab.wire_lab import Operator, skip_unless_possible, spec_of

    skip_unless_possible()
    home = tmp_path_factory.mktemp("home")
    spec = spec_of("n1", "n2")
    nodes = tuple(
        replace(node, ssh_address=f"127.1.221.{number}", bmc_address=f"127.2.221.{number}")
        for number, node in enumerate(spec.nodes, 11)
    )
    operator = Operator(home, replace(spec, nodes=nodes, image_service_address="127.3.221.2"))
    lab_up(operator.spec, home)
    try:
        for node in nodes:
            operator.install(node.name)
        yield operator
    finally:
        lab_down(home)


def on_site(site: Any, playbooks: Path, playbook: str, *nodes: str, **target: Any) -> dict[str, Outcome]:
    """One run on simulated nodes."""
    from orchestrator.drivers.secrets import SecretStore

    operations = []
    for node in nodes:
        plan = site.plan(node)
        where = {"ssh_host": plan.ssh_address, "ssh_host_key": site.host_key(node), "python": "/opt/rackray/venv/bin/python"}
        operations.append(a_play(node, playbook, **{**where, **target}))
    driver = AnsiblePlaybooks(site.home, SecretStore(site.home), playbooks)
    return {outcome.node: outcome for outcome in driver.run(playbook, operations)}


@pytest.mark.lab
@pytest.mark.slow
def test_bring_up_changes_a_fresh_node_once_and_then_nothing(site: Any) -> None:
    first, second = (on_site(site, PLAYBOOKS, "bring_up.yml", "n1", "n2") for _ in range(2))
    for node in ("n1", "n2"):
        assert first[node].status is Status.DONE, first[node].reason
        assert first[node].facts["changed"] == 1
        assert second[node].facts["changed"] == 0
        # What a simulated node cannot do is said, not claimed.
        assert "Load the kernel settings" in first[node].facts["skipped"]
        assert "NVIDIA persistence daemon runs" in first[node].facts["skipped"]
    assert json.loads(site.say("n1", "cat /etc/rackray/node.json"))["name"] == "n1"
    assert site.say("n1", "stat -c '%U %a' /var/lib/rackray /etc/rackray/node.json") == "gpu 750\nroot 644"
    assert not Path("/etc/rackray").exists(), "the play wrote to this machine instead of the node"


@pytest.mark.lab
@pytest.mark.slow
def test_a_play_that_forgot_become_fails_as_on_a_real_node(site: Any, tmp_path: Path) -> None:
    play = [{"hosts": "all", "gather_facts": False, "tasks": [{"name": "Forgotten", "copy": {"dest": "/etc/x", "content": "x"}}]}]
    (tmp_path / "forgot.yml").write_text(json.dumps(play))
    outcome = on_site(site, tmp_path, "forgot.yml", "n1")["n1"]
    assert outcome.status is Status.REFUSED
    assert "'Forgotten'" in outcome.reason and "not writable" in outcome.reason.lower()


@pytest.mark.lab
@pytest.mark.slow
def test_a_node_with_another_host_key_is_not_written_to(site: Any) -> None:
    other = site.host_key("n2")
    assert on_site(site, PLAYBOOKS, "bring_up.yml", "n1", ssh_host_key=other)["n1"].status is Status.MISMATCH


@pytest.mark.lab
@pytest.mark.slow
def test_power_lost_in_the_middle_of_a_play_leaves_the_node_unknown_and_no_process_behind(site: Any, tmp_path: Path) -> None:
    from orchestrator.lab.control import lab_fault, lab_heal

    tasks = [{"name": "First", "command": "true"}, {"name": "Long", "command": "sleep 60"}]
    (tmp_path / "long.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    found: dict[str, Outcome] = {}
    run = threading.Thread(target=lambda: found.update(on_site(site, tmp_path, "long.yml", "n2")))
    run.start()
    end = time.monotonic() + 40
    while "sleep 60" not in site.ssh("n2", "ps -eo args").stdout:
        assert time.monotonic() < end, "the play did not come to its long task"
        time.sleep(0.2)
    lab_fault(site.home, "n2", "power_cut")
    run.join(timeout=60)
    lab_heal(site.home, "n2", "power_cut")
    assert found["n2"].status is Status.UNKNOWN, found["n2"].reason
    left = [args for args in every_command() if str(site.home) in args and ("ssh" in args.split()[0] or "ansible" in args)]
    assert left == []


def every_command() -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                yield (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") or "?"
            except OSError:
                continue
