"""A simulated site with a journal and a controller, for tests that tick by hand or let it run."""

from collections.abc import Callable
from pathlib import Path

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.drivers.interfaces import Clock, Hands
from orchestrator.drivers.yaml_file import load_model
from orchestrator.execution.controller import Controller, everything_settled
from orchestrator.execution.journal import Journal
from orchestrator.lab.simulated_hands import SimulatedHands, VirtualClock
from orchestrator.lab.simulation import SimulatedSite

SPECS = Path(__file__).parents[2] / "cluster_specs"


def lab_4() -> ClusterSpec:
    """The four-node lab as it ships: one stale NIC, one GPU with a pending row remap."""
    return load_model(SPECS / "lab-4.yaml", ClusterSpec).model


def apply_request(spec: ClusterSpec, sha256: str = "sha") -> Event:
    """What `rackray apply` asks."""
    data = {"spec": spec.model_dump(mode="json"), "text": "", "sha256": sha256, "file": "lab.yaml", "by": "a test"}
    return Event("request.apply", "cluster", data)


def a_controller(journal: Journal, hands: Hands, clock: Clock, home: Path, holder: str = "host:1:1:a") -> Controller:
    """A controller that has just taken the lease."""
    return Controller(journal, hands, clock, journal.take_lease(holder, clock.now_s()), home)


class Rehearsal:
    """One simulated site from an empty journal to rest."""

    def __init__(self, home: Path, spec: ClusterSpec | None = None, seed: int = 1) -> None:
        self.home = home
        self.spec = spec or lab_4()
        self.site = SimulatedSite(self.spec, seed)
        self.clock = VirtualClock(self.site)
        self.journal = Journal(f"sqlite:///{home}/state.db")

    def apply(self, spec: ClusterSpec | None = None, sha256: str = "sha") -> ClusterState:
        """Ask for a spec and run until everything is at rest."""
        self.journal.request(apply_request(spec or self.spec, sha256))
        return self.run(everything_settled)

    def request(self, kind: str, **data: object) -> ClusterState:
        """Ask for something else and run until everything is at rest."""
        self.journal.request(Event(kind, "cluster", {"by": "a test", **data}))
        return self.run(everything_settled)

    def run(self, until: Callable[[ClusterState], bool]) -> ClusterState:
        """A controller of its own, until `until`."""
        controller = a_controller(self.journal, SimulatedHands(self.site), self.clock, self.home)
        controller.run(until)
        controller.close()
        return controller.state

    def states(self) -> dict[str, NodeState]:
        """Where the journal says every node stands."""
        return {name: record.state for name, record in self.journal.load().nodes.items()}
