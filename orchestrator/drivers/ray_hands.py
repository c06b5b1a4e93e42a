"""Hands made of shards on the management Ray: SSH, Redfish and playbooks in worker processes of the controllers' cluster.

The head is adopted or started in the background. Ray's death, or its driver's, costs the operations in flight (their
outcomes are UNKNOWN) and nothing else: both are started again.
"""

import sys
from collections.abc import Sequence

from orchestrator.domain.operation import Operation, Outcome
from orchestrator.drivers.door_process import DoorProcess, Launch
from orchestrator.drivers.ray_head import HeadConfig, client_environment, ensure_head, ensure_token

WIRING = "orchestrator.wiring"
"""Module whose build_exchange, build_playbooks and build_may_act the shards call; tests name another."""


class RayHands:
    """Implements `interfaces.Hands`: `shards` processes with `threads` exchanges at once each."""

    def __init__(self, head: HeadConfig, db_url: str, *, shards: int = 2, threads: int = 32, wiring: str = WIRING) -> None:
        ensure_token(head.home, head.name)
        words = (f"--shards={shards}", f"--threads={threads}")
        self._door = DoorProcess(head.name, lambda: ray_door("shards", head, db_url, wiring, words))

    def submit(self, operations: Sequence[Operation]) -> None:
        """Takes the operations and returns at once."""
        self._door.submit(operations)

    def poll(self) -> list[Outcome]:
        """The outcomes that have come since the last call."""
        return self._door.poll()

    def close(self) -> None:
        """Ends the shards; the head stays for the next command."""
        self._door.close()


def ray_door(program: str, head: HeadConfig, db_url: str, wiring: str, words: Sequence[str] = ()) -> Launch:
    """Sees to it that the head runs, and says how to start a door to it. Raises PeerUnreachable, SecretMissing, OSError."""
    running = ensure_head(head)
    argv = [
        *(sys.executable, "-m", "orchestrator.worker", program),
        f"--home={head.home}",
        f"--gcs={head.gcs}",
        f"--address={head.address}",
        f"--wiring={wiring}",
        *words,
    ]
    environment = client_environment(ensure_token(head.home, head.name))
    log = head.home / "ray" / f"{head.name}-door.log"
    return Launch(argv, environment, log, {"db_url": db_url}, running.process.is_alive)
