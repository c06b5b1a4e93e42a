"""One fault kind of a neighbour: how it is made on a real socket, what the driver answers, what the controller makes of it.

The tables (`rows_*.py`) are lists of `Fault`, the ways to make them stand in `stories_*.py`; `test_wire_matrix.py` injects
each of them and checks every word of it, `matrix.py` draws them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from orchestrator.domain.operation import Action, Status, Target

if TYPE_CHECKING:
    from tests.wire.neighbours import Wire

Inject = Callable[["Wire"], Iterator["Met"]]
"""Breaks a neighbour and yields what to exchange with it; what follows the yield heals it."""


@dataclass(frozen=True)
class Met:
    """A broken neighbour, and who it is for the exchange."""

    node: str
    target: Target
    args: Mapping[str, Any] = field(default_factory=dict)


class Then(StrEnum):
    """What the controller makes of the answer."""

    AGAIN = "asks again after a pause"
    """The same step, later: a pause that doubles, with jitter and a cap, or as long as the neighbour asked for."""
    LOOK = "looks before anything is repeated"
    """The answer to a change was lost."""
    WATCH = "keeps looking"
    """It is under way; the stage's limit ends it."""
    GO_ON = "goes on"
    QUARANTINE = "quarantines the node"


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    number: str
    """Its number in the catalogue of faults."""
    kind: str
    made: str
    """How it is made, in words."""
    action: Action = Action.BMC_OBSERVE
    inject: Inject | None = None
    """None where it cannot be made here; `made` says why."""
    status: Status = Status.DONE
    says: str = ""
    """What the outcome's reason must hold (regular expression)."""
    retryable: bool = True
    retry_after_s: float = 0.0
    shows: Callable[[Mapping[str, Any]], bool] = lambda facts: True
    """What the facts of a DONE outcome must be."""
    answered: str = ""
    """What the driver does about it, in words, where the status alone does not say it."""
    then: Then = Then.AGAIN
    because: str = ""
    """What the controller's reason must hold (regular expression)."""
    knows: Mapping[Action, Mapping[str, Any]] = field(default_factory=dict)
    """What the node's record holds already when the answer comes."""
    knows_age_s: float = 5.0
    """How old that is, in seconds."""
    limit_s: float = 20.0
    """Deadline of the exchange in the test, in seconds; faults that run into it name a short one."""
    heals: bool = True
    """Whether the same exchange is DONE once the neighbour is healed."""

    @property
    def runs_out(self) -> bool:
        """Whether the exchange ends by its deadline and by nothing else."""
        return self.limit_s < 2.0

    @property
    def id(self) -> str:
        """Name of its test."""
        return f"{self.number}-{self.kind.replace(' ', '-')}"
