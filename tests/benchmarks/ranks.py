"""Starts the ranks of a benchmark on this machine and gives back what rank 0 printed last, a line of JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

from model.contract import RunSpec


def run_ranks(module: str, world: int, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """`python -m module arguments` as `world` processes. Raises RuntimeError where one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", **(environment or {})}
    processes = []
    for rank in range(world):
        there = {**os.environ, **common, "RANK": str(rank)}
        command = [sys.executable, "-m", module, *arguments]
        output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=there, stdout=output, text=True))
    said, _ = processes[0].communicate()
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"ranks of {module} ended with {codes}")
    return json.loads(said.splitlines()[-1])


def a_spec(model: dict[str, int], layout: dict[str, int], batch: dict[str, int], **changes: Any) -> RunSpec:
    """A run that only steps: no corpus, no checkpoint."""
    run = {
        "run_id": "benchmark",
        "seed": 1,
        "model": model,
        "data": {"corpus": "python-stdlib", "directory": "unused"},
        "layout": layout,
        "batch": batch,
        "optimizer": {"lr": 1e-4, "clip": 1.0, "schedule": "constant"},
        "steps": 100_000,
        "checkpoint": {"directory": "unused"},
        "output_directory": "unused",
        **changes,
    }
    return RunSpec.from_json(json.dumps(run))
