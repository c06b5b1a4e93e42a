"""The deciding command is killed with SIGKILL on the wire, at the worst moments; the same command, run again, goes on.

What counts is what the machines saw: the BMCs' access logs, the processes in the nodes, the lines a training run wrote.
"""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.scenarios.canaries import Watcher, search_a_living_site
from tests.scenarios.lab_world import LabWorld, Running, skip_unless_possible, write_spec

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FIRST, SECOND = "r01-n1", "r01-n2"
STALE = {"node": FIRST, "fault": "stale_firmware", "component": "NIC1", "version": "28.36.1010"}
RESET = "Actions/ComputerSystem.Reset"
SIMPLE_UPDATE = "Actions/UpdateService.SimpleUpdate"
LATE_S = 0.25
"""Every answer of the first node's BMC comes this late: a command killed when the BMC has obeyed has not heard of it."""
STEPS = 150
JOB = f"""\
rackray_job: 1
name: survivor
nodes: 2
model: {{layers: 2, d_model: 32, heads: 4, d_ff: 64, vocabulary: 512, positions: 32}}
data: {{corpus: python-stdlib, name: python-stdlib}}
layout: {{data: 2, zero: 1}}
batch: {{global_sequences: 8, micro_sequences: 2, sequence_tokens: 32}}
optimizer: {{lr: 0.002, warmup_steps: 5}}
steps: {STEPS}
evaluate_every_steps: 75
checkpoint: {{every_steps: 75, keep: 2}}
seed: 7
heartbeat_limit_s: 180
attempts: 1
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabWorld]:
    skip_unless_possible()
    world = LabWorld(tmp_path_factory.mktemp("kill"), hands="local")
    try:
        yield world
    finally:
        left = world.close()
    assert not left, f"the lab left behind: {left}"


def one_node(world: LabWorld) -> str:
    """A lab of one node that needs everything: password, power, image, playbook, firmware, join."""
    spec = str(write_spec(world.folder / "one.yaml", [FIRST], [STALE]))
    world.must("lab", "up", "--spec", spec)
    return spec


def two_nodes(world: LabWorld) -> str:
    spec = str(write_spec(world.folder / "two.yaml", [FIRST, SECOND], [STALE]))
    world.must("lab", "up", "--spec", spec)
    return spec


def killed_when_bmc_obeyed(world: LabWorld, spec: str, action: str) -> None:
    """Run apply and kill it once the first node's BMC has taken a POST to `action`; the answer is still on its way."""
    before = count(world, action)
    apply = world.start("apply", spec, "--yes")
    world.wait_until(lambda: count(world, action) > before, f"POST {action}", apply)
    apply.kill()
    assert open_actions(world, FIRST), f"the answer to {action} was journaled: the kill came too late to matter"


def count(world: LabWorld, action: str) -> int:
    return sum(r.method == "POST" and r.path.endswith(action) for r in world.requests(FIRST))


def open_actions(world: LabWorld, node: str) -> list[str]:
    """Actions on `node` whose intent is journaled and whose end is not."""
    intended = {event.data["operation"]: event.data["action"] for event in world.events("node.intended", node)}
    for event in world.events("node.ended", node):
        intended.pop(event.data["operation"], None)
    return list(intended.values())


def killed_when(world: LabWorld, apply: Running, node: str, action: str, sign: tuple[str, ...], group: bool = False) -> None:
    """Kill `apply` while `action` on `node` is open and a process with the words `sign` works on it."""
    world.wait_until(lambda: action in open_actions(world, node) and world.processes(*sign), f"{action}: {sign}", apply)
    apply.kill(group)
    assert action in open_actions(world, node), f"{action} had ended: the kill came too late to matter"


def killed_in_playbook(world: LabWorld, apply: Running, node: str) -> None:
    """Kill `apply` while Ansible works on `node`; Ansible must not work on behind the back of whoever decides next."""
    ansible = ("ansible-playbook", str(world.home))
    killed_when(world, apply, node, "ansible.playbook", ansible)
    world.wait_until(lambda: not world.processes(*ansible), "the end of an Ansible whose command was killed", limit_s=15)


def test_a_bring_up_killed_at_every_stage_repeats_no_disruptive_step(world: LabWorld) -> None:
    spec = one_node(world)
    world.must("lab", "fault", FIRST, "bmc_slow", f"seconds={LATE_S}")
    killed_when_bmc_obeyed(world, spec, RESET)
    killed_in_playbook(world, world.start("apply", spec, "--yes"), FIRST)
    killed_when_bmc_obeyed(world, spec, SIMPLE_UPDATE)
    joining = world.start("apply", spec, "--yes")
    killed_when(world, joining, FIRST, "cell.join", ("ray.scripts.scripts", f"--node-name={FIRST}"), group=True)
    world.must("lab", "fault", FIRST, "bmc_slow", "--heal")

    done = world.rackray("apply", spec, "--yes")

    assert done.status == 0, str(done)
    assert world.states() == {FIRST: "ready"}
    writes = world.writes(FIRST)
    changes = {line.rpartition("/")[2] if "Actions" in line else line: times for line, times in writes.items()}
    assert changes == {
        "PATCH /redfish/v1/AccountService/Accounts/1": 1,
        "POST /redfish/v1/AccountService/Accounts": 1,
        "PATCH /redfish/v1/Systems/1": 1,
        "ComputerSystem.Reset": 1,
        "UpdateService.SimpleUpdate": 1,
    }
    assert len(world.events("controller.took")) == 5, "each command decided once, and only after the one before had ended"
    joins = [event for event in world.events("node.intended", FIRST) if event.data["action"] == "cell.join"]
    assert len(joins) == 1, "the join that outlived its command was repeated"


def test_with_ray_as_the_muscle_neither_a_killed_command_nor_a_killed_head_costs_more_than_a_playbook(world: LabWorld) -> None:
    spec = two_nodes(world)
    killed_in_playbook(world, world.start("apply", spec, "--yes", hands="ray"), SECOND)
    apply = world.start("apply", spec, "--yes", hands="ray")
    world.wait_until(lambda: world.processes("ansible-playbook", str(world.home)), f"the playbook on {SECOND} again", apply)
    killed = head_process(world)
    for pid, _line, environment in world.living():
        if b"RACKRAY_RAY_HEAD=management@" in environment:
            os.kill(pid, signal.SIGKILL)

    done = apply.wait()

    assert done.status == 0, str(done)
    assert world.states() == {FIRST: "ready", SECOND: "ready"}
    assert head_process(world) != killed
    lost = [event for event in world.events("node.ended", SECOND) if event.data["status"] == "unknown"]
    assert [event.data["action"] for event in lost] == ["ansible.playbook"] * 2, "once with the command, once with the head"
    assert set(world.writes(SECOND).values()) == {1}, "something was changed at its BMC twice"


def head_process(world: LabWorld) -> tuple[int, int]:
    known = json.loads((world.home / "ray" / "management.json").read_text())
    return known["pid"], known["started_ticks"]


def test_ranks_outlive_a_killed_submit_and_the_next_one_follows_the_same_attempt(world: LabWorld) -> None:
    ready = world.rackray("apply", two_nodes(world), "--yes")
    assert ready.status == 0, str(ready)
    job = world.folder / "survivor.yaml"
    job.write_text(JOB)
    submit = world.start("train", "submit", str(job))
    world.wait_until(lambda: len(told_steps(world)) >= 5, "five steps of training", submit)
    submit.kill(group=True)
    ranks = set(world.processes("model.train", program="/python"))
    told_when_killed = told_steps(world)

    done = world.rackray("train", "submit", str(job))

    assert done.status == 0, str(done)
    (run,) = world.must("train", "list", "--json").json()
    assert set(run) >= {"id", "job", "state", "step", "loss_first", "loss_last", "tokens_per_s", "nodes"}
    assert (run["job"], run["state"], run["step"]) == ("survivor", "finished", STEPS)
    assert run["loss_last"] < run["loss_first"] and sorted(run["nodes"]) == [FIRST, SECOND]
    assert len(ranks) == 2, "both ranks live on without a controller"
    assert len(told_when_killed) < STEPS, "the run had ended before its controller was killed"
    assert told_steps(world) == list(range(1, STEPS + 1)), "the curve has a gap, or a step twice"
    assert [line["event"] for line in told(world) if line.get("event") == "started"] == ["started"]
    assert sorted(event.data["rank"] for event in world.events("run.rank_started")) == [0, 1]
    assert [event.data["attempt"] for event in world.events("run.placed")] == [1]


def test_nodes_in_service_join_the_cell_that_came_up_anew_when_a_run_needs_them(world: LabWorld) -> None:
    before = {name: json.loads((world.home / "ray" / "cell.json").read_text())[name] for name in ("pid", "started_ticks")}
    for pid, _line, environment in world.living():
        if b"RACKRAY_RAY_HEAD=cell@" in environment:
            os.kill(pid, signal.SIGKILL)
    job = world.folder / "afterwards.yaml"
    job.write_text(JOB.replace("survivor", "afterwards"))

    done = world.rackray("train", "submit", str(job))

    assert done.status == 0, str(done)
    after = json.loads((world.home / "ray" / "cell.json").read_text())
    assert {name: after[name] for name in before} != before
    run = next(run for run in world.must("train", "list", "--json").json() if run["job"] == "afterwards")
    assert (run["state"], run["step"], sorted(run["nodes"])) == ("finished", STEPS, [FIRST, SECOND])
    assert [event.data["attempt"] for event in world.events("run.placed") if event.subject == run["id"]] == [1]
    assert world.states() == {FIRST: "ready", SECOND: "ready"}


def test_kills_and_training_have_left_no_secret_anywhere(world: LabWorld) -> None:
    ready = world.rackray("apply", two_nodes(world), "--yes")
    assert ready.status == 0, str(ready)
    watcher = Watcher(world)
    logs = [world.must("train", "logs", run["id"]) for run in world.must("train", "list", "--json").json()]
    watcher.end()
    searcher = search_a_living_site(world, watcher)
    assert all(done.stdout for done in logs)
    assert searcher.searched["nodes"] > 0 and searcher.searched["command lines"] > 0
    assert not searcher.finds


def told(world: LabWorld) -> list[dict[str, Any]]:
    """The lines of the run's rank 0, as the home keeps them; the last one is whole only once its writer has come back."""
    kept = [path.read_text() for path in (world.home / "runs").glob("*/progress.jsonl")]
    return [json.loads(line) for text in kept for line in text[: text.rfind("\n") + 1].splitlines()]


def told_steps(world: LabWorld) -> list[int]:
    return [line["step"] for line in told(world) if "loss" in line]
