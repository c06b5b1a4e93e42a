"""Every fault kind of GPUs that the lab's NVML can make: the probe as it travels, the health table, the controller's verdict."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orchestrator.agent
from orchestrator.domain.event import Event, ended_event
from orchestrator.domain.health import Severity
from orchestrator.domain.node import NodeState, changed
from orchestrator.domain.operation import Action, Outcome, Status
from orchestrator.domain.plan import Decision, Move, Step
from orchestrator.lab.gpus import GPU_FAULTS, NodeGpus
from orchestrator.lab.nvml.library import SONAME, compile_library
from orchestrator.planning.health import GPU_CHECKS, NODE_CHECKS, inspect_probe, judge_probe
from orchestrator.planning.next_step import next_step
from tests.wire import controller_view
from tests.wire.faults import Fault
from tests.wire.gpu_faults import GPU_NUMBERS, GPU_TABLE, Bench, GpuFault
from tests.wire.matrix import GPU_README, with_gpu_matrix

SCRIPT = Path(orchestrator.agent.__file__).with_name("probe.py")
MADE = [row for row in GPU_TABLE if row.plant is not None]
PROBE = Fault("F97", "probe", "", Action.NODE_PROBE)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(folder / SONAME)
    return folder


@pytest.fixture
def bench(tmp_path: Path, library: Path) -> Iterator[Bench]:
    yield Bench(tmp_path, library, NodeGpus(tmp_path / "nvml", "H100", 2, "SER-0001"))


def probed(bench: Bench, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-", "--timeout-s", str(limit_s)]
    done = subprocess.run(command, input=SCRIPT.read_bytes(), env=bench.environment(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1].removeprefix("rackray-probe:"))
    return report


def test_every_fault_kind_of_gpus_has_its_row() -> None:
    assert {row.number for row in GPU_TABLE} == set(GPU_NUMBERS)
    assert len({row.id for row in GPU_TABLE}) == len(GPU_TABLE)


def test_every_gpu_fault_of_the_lab_is_in_a_row() -> None:
    words = " ".join(row.made for row in GPU_TABLE)
    assert [name for name in GPU_FAULTS if f"`{name}`" not in words] == []


def test_every_check_of_the_health_table_is_met_by_a_row_or_said_to_be_met_elsewhere() -> None:
    met = {check for row in GPU_TABLE for check, _ in row.found}
    elsewhere = {"gpu-errors", "busy"}  # tests/planning/test_health.py
    assert {check.name for check in (*NODE_CHECKS, *GPU_CHECKS)} == met | elsewhere


def test_the_readme_shows_the_gpu_matrix_as_it_is() -> None:
    text = GPU_README.read_text(encoding="utf-8")
    assert text == with_gpu_matrix(text), "run `python -m tests.wire.matrix`"


@pytest.mark.parametrize("row", MADE, ids=lambda row: row.id)
def test_a_gpu_fault_is_found_and_judged_as_its_row_says(bench: Bench, row: GpuFault) -> None:
    assert row.plant is not None
    row.plant(bench)
    began_s = time.monotonic()
    report = probed(bench, row.limit_s)
    assert time.monotonic() - began_s < row.limit_s + 15
    view = controller_view.View(PROBE)
    sku, policy = view.site.sku(controller_view.NODE), view.site.spec.health
    found = inspect_probe(report, sku, policy)
    assert [(finding.check, finding.gpu) for finding in found] == list(row.found)
    if found:
        assert re.search(row.says, found[0].says), found[0].says
        assert {finding.severity for finding in found} == {row.severity}
        assert all(finding.way_out for finding in found)
    keeps_out = bool(found) and row.severity is Severity.FAILED
    assert bool(judge_probe(report, sku, policy)) == keeps_out

    outcome = Outcome("op", controller_view.NODE, Action.NODE_PROBE, Status.DONE, report)
    view.take_in(outcome, {})
    decision = view.decide()
    if keeps_out:
        assert isinstance(decision, Move) and decision.to is NodeState.QUARANTINED
        assert found[0].says in decision.because
    else:
        assert isinstance(decision, Step) and decision.action is Action.NODE_COMPUTE


def test_two_nodes_whose_probes_say_the_same_gpus_are_compared(bench: Bench, tmp_path: Path) -> None:
    # The second node's library shows the GPUs of the first one's machine: the serial they follow from is the same.
    second = Bench(tmp_path, bench.library, NodeGpus(tmp_path / "nvml-2", "H100", 2, "SER-0001"))
    view = controller_view.View(PROBE)
    other = "r01-n2"
    view.state.nodes[other] = changed(view.record, name=other)
    for name, report in ((controller_view.NODE, probed(bench, 20.0)), (other, probed(second, 20.0))):
        event = ended_event(Outcome("op", name, Action.NODE_PROBE, Status.DONE, report), name)
        view.state.apply(Event(event.kind, event.subject, event.data, at_s=controller_view.NOW_S))

    def decided(name: str) -> Decision:
        twin = view.state.identities.twin_of(name, view.site.nodes)
        return next_step(view.state.nodes[name], view.site, controller_view.NOW_S, twin)

    assert isinstance(decided(controller_view.NODE), Step), "who said it first goes on"
    moved = decided(other)
    assert isinstance(moved, Move) and moved.to is NodeState.QUARANTINED
    assert re.match(
        rf"{other} and {controller_view.NODE} both say GPU (UUID|serial) \S+, {controller_view.NODE} first", moved.because
    )


@pytest.mark.parametrize("name", sorted(set(GPU_FAULTS) - {"gpu_hang"}))
def test_a_healed_gpu_is_sound_again(bench: Bench, name: str) -> None:
    before = bench.gpus.read()
    bench.gpus.fault(name, 1)
    assert bench.gpus.read() != before and bench.gpus.faults()
    bench.gpus.heal(name)
    assert bench.gpus.read() == before and bench.gpus.faults() == []
