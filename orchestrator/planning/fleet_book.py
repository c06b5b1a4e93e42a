"""What admission asks about the whole fleet, kept up to date record by record, so that a tick costs what changed in it."""

from collections.abc import Mapping

from orchestrator.domain.node import SETTLED, NodeRecord, NodeState
from orchestrator.domain.state import RolloutRecord
from orchestrator.planning.power_book import PowerBook
from orchestrator.planning.site import Site


class FleetBook:
    """The open wave, the nodes being worked on, those that failed, and the watts reserved.

    Made from all records once per rollout and spec; after that `follow` is told of every record that was replaced.
    """

    def __init__(self, site: Site, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> None:
        self.waves = rollout.waves
        self.wave_of = {name: index for index, wave in enumerate(rollout.waves) for name in wave}
        """Index of the wave each node of the rollout belongs to."""
        self.busy: dict[str, None] = {}
        """Nodes with a journaled intent whose outcome is not journaled, oldest first."""
        self.failed: dict[str, None] = {}
        """Nodes of the rollout that are in quarantine, for whatever cause: refused, unreachable, timed out or unknown."""
        self.power = PowerBook(site)
        self._moving = [dict.fromkeys(wave) for wave in rollout.waves]
        self._open = 0
        for record in nodes.values():
            self.follow(record)

    @property
    def open_wave(self) -> int:
        """Index of the first wave with a node that is not settled; the number of waves when all are."""
        while self._open < len(self._moving) and not self._moving[self._open]:
            self._open += 1
        return self._open

    def follow(self, record: NodeRecord) -> None:
        """A record was replaced by this one."""
        name = record.name
        if record.open is None:
            self.busy.pop(name, None)
        else:
            self.busy[name] = None
        self.power.follow(record)
        wave = self.wave_of.get(name)
        if wave is None:
            return
        if record.state is NodeState.QUARANTINED:
            self.failed[name] = None
        else:
            self.failed.pop(name, None)
        if record.state in SETTLED:
            self._moving[wave].pop(name, None)
        else:
            self._moving[wave][name] = None
            self._open = min(self._open, wave)
