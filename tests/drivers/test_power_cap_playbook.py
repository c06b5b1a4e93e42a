"""A power cap that the spec has dropped: the playbook gives the GPUs their own limit back before it forgets the cap."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

GPU_TASKS = Path(__file__).parents[2] / "playbooks" / "tasks" / "gpu.yml"
SMI = """#!/bin/sh
echo "$*" >> "$SAID"
case $1 in --query-gpu=*) [ "$QUERY" = fails ] && exit 9; printf '%b' "$QUERY" ;; *) [ "$SET" != fails ] ;; esac
"""


def tasks() -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in yaml.safe_load(GPU_TASKS.read_text())}


def restore(folder: Path, query: str, can_set: bool = True) -> tuple[int, list[str]]:
    """The task's own shell, with an nvidia-smi that notes what it is asked: the exit status, and the limits that were set."""
    smi, said = folder / "nvidia-smi", folder / "said"
    smi.write_text(SMI)
    smi.chmod(0o755)
    script = tasks()["GPUs have the power limit of their board again"]["ansible.builtin.shell"]
    environment = {**os.environ, "SAID": str(said), "QUERY": query, "SET": "works" if can_set else "fails"}
    done = subprocess.run(["/bin/sh", "-c", script.replace("/usr/bin/nvidia-smi", str(smi))], env=environment, timeout=30)
    return done.returncode, [line for line in said.read_text().splitlines() if "--power-limit" in line]


def test_every_gpu_gets_the_limit_of_its_board(tmp_path: Path) -> None:
    status, limits = restore(tmp_path, "0, 700.00\\n1, 350.00\\n2, [N/A]\\n")
    assert (status, limits) == (0, ["--id=0 --power-limit=700", "--id=1 --power-limit=350"])


@pytest.mark.parametrize(("query", "can_set"), [("fails", True), ("0, 700.00\\n1, 700.00\\n", False)])
def test_a_limit_that_could_not_be_given_back_fails_the_play(tmp_path: Path, query: str, can_set: bool) -> None:
    status, _ = restore(tmp_path, query, can_set)
    assert status != 0


def test_the_unit_goes_last_so_that_a_broken_run_does_it_all_again() -> None:
    names = list(tasks())
    order = [
        "Is a GPU power cap left from before?",
        "GPUs have the power limit of their board again",
        "GPU power cap is not set at boot any more",
        "No GPU power cap is left from before",
    ]
    assert [name for name in names if name in order] == order
    found = [tasks()[name]["when"] for name in order]
    assert all("rackray_gpu_power_cap_w | int == 0" in when and "not rackray_lab" in when for when in found)
