"""One node, seen at one moment: what every stage of the lifecycle decides from, and the words it answers with."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.domain.node import Cause, NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.plan import Decision, Hold, Move, Step
from orchestrator.domain.spec import Machine, Rollout, Sku
from orchestrator.planning.site import Site

POWER_SETTLES_S = 30.0
"""How long a BMC may keep saying Off after it accepted a power-on before the command is repeated."""


class Context(NamedTuple):
    """One node, seen at one moment. A tuple, because one is made for every decision."""

    record: NodeRecord
    site: Site
    node: Machine
    sku: Sku
    policy: Rollout
    now_s: float

    @property
    def serial(self) -> str:
        """The serial it must have: that of a board put in by `node replace`, else the spec's."""
        return self.record.serial or self.node.serial

    def step(self, action: Action, because: str, **args: Any) -> Step:
        return Step(self.node.name, action, because, args)

    def move(self, to: NodeState, because: str) -> Move:
        return Move(self.node.name, to, because)

    def quarantine(self, because: str, cause: Cause = Cause.CHECK) -> Move:
        return Move(self.node.name, NodeState.QUARANTINED, because, str(cause))

    def look_again(self, action: Action, because: str, **args: Any) -> Decision:
        """The same look once more, not sooner than a poll interval after the last one."""
        due_s = self.record.fact_at_s(action) + self.policy.poll_s
        return self.step(action, because, **args) if self.now_s >= due_s else Hold(self.node.name, due_s, because)

    def another_system(self, seen: Mapping[str, Any]) -> Move | None:
        """Why the system that answered SSH as `seen` is not the one that must run here, or None."""
        wanted = (self.record.fact(Action.IMAGE_REPORT) or {}).get("wanted_digest")
        if seen["serial"] != self.serial:
            address = self.site.computes[self.node.name].address
            because = f"the machine at {address} says serial {seen['serial']!r}, the spec {self.serial!r}"
            return self.quarantine(because, Cause.IDENTITY)
        if wanted and seen["image_digest"] != wanted:
            return self.quarantine(f"it runs image {seen['image_digest']!r}, the image service publishes {wanted!r}")
        return None
