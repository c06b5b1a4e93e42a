"""Hands in a cell: what its Ray says of a node, and training ranks through the node's agent actor."""

from collections.abc import Sequence

from orchestrator.domain.operation import Action, Operation, Outcome, Status
from orchestrator.drivers.door_process import DoorProcess
from orchestrator.drivers.outcomes import ended
from orchestrator.drivers.ray_hands import WIRING, ray_door
from orchestrator.drivers.ray_head import HeadConfig, ensure_token

ACTIONS = frozenset({Action.CELL_OBSERVE, Action.RANK_START, Action.RANK_LOOK, Action.RANK_STOP})
"""What can be done here."""


class CellHands:
    """Implements `interfaces.Hands` for ACTIONS. The cell's head and token are made in the background if there are none."""

    def __init__(self, head: HeadConfig, db_url: str, *, wiring: str = WIRING) -> None:
        # At once, not in the background: the first join may come before the head is up, and it carries the token.
        ensure_token(head.home, head.name)
        self._door = DoorProcess(head.name, lambda: ray_door("cell", head, db_url, wiring))
        self._refused: list[Outcome] = []

    def submit(self, operations: Sequence[Operation]) -> None:
        """Takes the operations and returns at once."""
        wrong = [operation for operation in operations if operation.action not in ACTIONS]
        self._refused += [ended(op, Status.REFUSED, f"{op.action} is not done in a cell", retryable=False) for op in wrong]
        self._door.submit([operation for operation in operations if operation.action in ACTIONS])

    def poll(self) -> list[Outcome]:
        """The outcomes that have come since the last call."""
        refused, self._refused = self._refused, []
        return refused + self._door.poll()

    def close(self) -> None:
        """Ends the door; head, agents and ranks stay."""
        self._door.close()
