"""Deciding, or following whoever decides: what every command does that has to wait for the cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import LeaseHeld, NotAsRequired
from orchestrator.domain.spec import ClusterSpec
from orchestrator.drivers.interfaces import Clock, Hands
from orchestrator.execution.controller import Controller
from orchestrator.execution.journal import Journal, LeaseLost
from orchestrator.execution.views import Views

FOLLOW_EVERY_S = 0.5
"""How often a follower looks at the journal."""


@dataclass(frozen=True, slots=True)
class Decider:
    """One process that decides if nobody else does, follows who does, and takes over when the other ends."""

    folder: Path
    journal: Journal
    clock: Clock
    holder: str
    """This process, as a lease names it."""
    hands: Callable[[ClusterSpec], Hands]
    """Makes the muscles; called only once the lease is held."""

    def run(self, until: Callable[[Views], bool], on_tick: Callable[[Views], None], spec: ClusterSpec | None) -> None:
        """Until `until(views)`. `on_tick` is called after every look; `spec` names the cluster when none is applied yet.

        Raises NotAsRequired when there is nothing to decide about.
        """
        views = Views(self.journal, self.folder, self.clock)
        while True:
            views.refresh()
            on_tick(views)
            if until(views):
                return
            if self.journal.is_free(self.journal.lease(), views.now_s()) and self._decide(views, until, on_tick, spec):
                return
            self.clock.wait_s(FOLLOW_EVERY_S)

    def _decide(
        self, views: Views, until: Callable[[Views], bool], on_tick: Callable[[Views], None], spec: ClusterSpec | None
    ) -> bool:
        """Hold the lease until `until(views)`; False when somebody was quicker, or took over meanwhile."""
        spec = spec or views.state.spec
        if spec is None:
            raise NotAsRequired("no spec has been applied", "apply one first: `rackray apply SPEC`")
        try:
            epoch = self.journal.take_lease(self.holder, views.now_s())
        except LeaseHeld:
            return False
        with views.shared() as shared:
            controller = Controller(self.journal, self.hands(spec), self.clock, epoch, self.folder, shared.state, shared.tell)

            def tick(_state: object) -> None:
                views.refresh()
                on_tick(views)

            try:
                controller.run(lambda _state: until(views), tick)
            except LeaseLost:
                return False
            finally:
                controller.close()
        return True
