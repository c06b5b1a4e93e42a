"""Real processes that train tiny runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_launch import PROJECT, Launch, Launcher, RankServer

from model.contract import RunSpec


@pytest.fixture(scope="session")
def server() -> Iterator[RankServer]:
    server = RankServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def start(server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts a run's ranks as an orchestrator does: one process each, found by the environment alone."""
    launches: list[Launch] = []

    def start_run(spec: RunSpec, breaking: str = "") -> Launch:
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
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(spec.layout.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": f"{PROJECT}{os.pathsep}{Path(__file__).parent}",
            }
            # A folder of its own for each rank, so that a relative path is a disk that the others do not see.
            disk = folder / f"disk-{rank}"
            disk.mkdir()
            launch.processes.append(server.start([str(run)], environment, disk, launch.logs[rank], breaking))
        return launch

    yield start_run
    for launch in launches:
        for process in launch.processes:
            process.kill()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs; they share one prepared corpus in it."""
    return tmp_path_factory.mktemp("runs")
