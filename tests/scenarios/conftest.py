"""The whole road told once, every command's words and every machine's record of it kept; tests then ask what happened."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.domain.event import Event
from tests.scenarios.canaries import Searcher, Watcher, open_to_others, search_a_living_site
from tests.scenarios.lab_world import PROJECT, Done, LabWorld, Request, skip_unless_possible

LAB_4 = str(PROJECT / "cluster_specs" / "lab-4.yaml")
LAB_6 = str(PROJECT / "cluster_specs" / "lab-6.yaml")
Asked = dict[str, list[Request]]
"""Requests that each node's BMC got from one command."""


@dataclass
class Road:
    """What was done and what was seen, stage by stage."""

    validate: Done
    plan: Done
    asked_by_plan: Asked
    changed_by_plan: set[str]
    apply: Done
    status: Done
    audit: Done
    runs: Done
    asked_by_apply: Asked
    again: Done
    asked_by_again: Asked
    requalify: Done
    requalified: Done
    asked_by_requalify: Asked
    expansions: tuple[Done, Done]
    expanded: Done
    asked_by_expansions: Asked
    events: list[Event]
    secrets: Searcher
    open_to_others: list[str]
    down: Done
    leftovers: list[str]

    def writes(self, asked: Asked, node: str) -> Counter[str]:
        """What `asked` changed at one BMC, sessions left out."""
        return Counter(f"{r.method} {r.path}" for r in asked.get(node, []) if not r.is_look and not r.is_session)


class Recorder:
    """Types commands and notes which requests each of them caused."""

    def __init__(self, world: LabWorld) -> None:
        self.world = world

    def asked_meanwhile(self, *words: str) -> tuple[Done, Asked]:
        """Type one command and wait for its end."""
        before = self.counts()
        done = self.world.rackray(*words)
        return done, self.asked_since(before)

    def counts(self) -> dict[str, int]:
        """How many requests each BMC has had until now."""
        return {node: len(requests) for node, requests in self.world.all_requests().items()}

    def asked_since(self, before: dict[str, int]) -> Asked:
        """Requests beyond `before`; a node that `before` does not know is asked about from its beginning."""
        return {node: requests[before.get(node, 0) :] for node, requests in self.world.all_requests().items()}

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file of the home with its size and time; the machines' own files are left out."""
        nodes = self.world.home / "lab" / "nodes"
        paths = [path for path in self.world.home.rglob("*") if nodes not in path.parents and path.is_file()]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """lab-4 from delivery to four ready nodes, then lab-6 by two commands at once; the lab is down when this returns."""
    skip_unless_possible()
    world = LabWorld(tmp_path_factory.mktemp("road"), hands="ray")
    watcher = Watcher(world)
    try:
        road = _tell(world, watcher)
    finally:
        watcher.end()
        world.close()
    yield road


def _tell(world: LabWorld, watcher: Watcher) -> Road:
    recorder = Recorder(world)
    world.must("lab", "up", "--spec", LAB_4)
    files = recorder.files()
    validate = world.rackray("validate", LAB_4, "--json")
    plan, asked_by_plan = recorder.asked_meanwhile("plan", LAB_4, "--json")
    changed_by_plan = {str(Path(path).relative_to(world.home)) for path, _seen in files.items() ^ recorder.files().items()}
    apply, asked_by_apply = recorder.asked_meanwhile("apply", LAB_4, "--yes")
    status, audit = world.rackray("status", "--json"), world.rackray("firmware", "audit", "--json")
    runs = world.rackray("train", "list", "--json")
    again, asked_by_again = recorder.asked_meanwhile("apply", LAB_4, "--yes")
    world.must("lab", "fault", "r02-n2", "gpu_row_remap_pending", "gpu=1", "--heal")
    requalify, asked_by_requalify = recorder.asked_meanwhile("node", "requalify", "r02-n2", "--reason", "GPU reset")
    requalified = world.rackray("status", "--json")
    world.must("lab", "up", "--spec", LAB_6)
    before = recorder.counts()
    both = world.start("apply", LAB_6, "--yes"), world.start("apply", LAB_6, "--yes")
    expansions = both[0].wait(), both[1].wait()
    asked_by_expansions = recorder.asked_since(before)
    expanded = world.rackray("status", "--json")
    world.rackray("status", "--listeners")
    secrets, wide = search_a_living_site(world, watcher), open_to_others(world.home)
    events, down = world.events(), world.lab_down()
    return Road(
        validate=validate,
        plan=plan,
        asked_by_plan=asked_by_plan,
        changed_by_plan=changed_by_plan,
        apply=apply,
        status=status,
        audit=audit,
        runs=runs,
        asked_by_apply=asked_by_apply,
        again=again,
        asked_by_again=asked_by_again,
        requalify=requalify,
        requalified=requalified,
        asked_by_requalify=asked_by_requalify,
        expansions=expansions,
        expanded=expanded,
        asked_by_expansions=asked_by_expansions,
        events=events,
        secrets=secrets,
        open_to_others=wide,
        down=down,
        leftovers=world.leftovers(),
    )
