"""What planning answers about one node: a step to take, a move to make, a wait, or a conclusion from a look."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action


@dataclass(frozen=True, slots=True)
class Step:
    """One exchange to make. The same object is printed by `plan`, journaled by the controller and compared in tests."""

    node: str
    action: Action
    because: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.node}: {self.action} ({self.because})"


@dataclass(frozen=True, slots=True)
class Move:
    """The evidence is complete (or damning): the node changes its state."""

    node: str
    to: NodeState
    because: str
    cause: str = ""
    """For a move into quarantine: its `Cause`."""

    def __str__(self) -> str:
        return f"{self.node}: → {self.to} ({self.because})"


@dataclass(frozen=True, slots=True)
class Settle:
    """What looking showed about an exchange whose answer was lost."""

    node: str
    done: bool
    because: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing to do for this node before `until_s`."""

    node: str
    until_s: float
    because: str


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do for this node until something happens to it."""

    node: str


Decision = Step | Move | Settle | Hold | Rest
