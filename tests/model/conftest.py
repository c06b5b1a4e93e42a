"""Real processes that train tiny runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_launch import PROJECT, Launch, Launcher

from model.contract import RunSpec


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts a run's ranks as an orchestrator does: one process each, found by the environment alone."""
    launches: list[Launch] = []

    def start_run(spec: RunSpec) -> Launch:
        folder = tmp_path_factory.mktemp(spec.run_id)
        run = folder / "RUN.json"
        run.write_text(spec.to_json())
        launch = Launch(spec, [folder / f"rank-{rank}.log" for rank in range(spec.layout.ranks)])
        launches.append(launch)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(spec.layout.ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(spec.layout.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(PROJECT),
            }
            command = [sys.executable, "-m", "model.train", str(run)]
            # A folder of its own for each rank, so that a relative path is a disk that the others do not see.
            disk = folder / f"disk-{rank}"
            disk.mkdir()
            with launch.logs[rank].open("wb") as log:
                process = subprocess.Popen(command, cwd=disk, env=environment, stdout=log, stderr=log)
            launch.processes.append(process)
        return launch

    yield start_run
    for launch in launches:
        for process in launch.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs; they share one prepared corpus in it."""
    return tmp_path_factory.mktemp("runs")
