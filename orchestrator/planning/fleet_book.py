"""What admission asks about the whole fleet, kept up to date record by record, so that a tick costs what changed in it."""

from collections import Counter
from collections.abc import Mapping

from orchestrator.domain.node import BRING_UP, NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.domain.rollout import RolloutRecord, is_untouched
from orchestrator.planning.power_book import PowerBook
from orchestrator.planning.site import Site

UNHEALTHY = frozenset({NodeState.QUARANTINED, NodeState.SUSPECT, NodeState.DRAINING, NodeState.MAINTENANCE, NodeState.REPAIRING})
"""States of a node that is out of service whatever this rollout does."""
DISRUPTIVE = frozenset({Action.BMC_POWER, Action.BMC_UPDATE})
"""Actions that take a machine down while they last: power and firmware."""
Group = tuple[str, str]
"""What nodes have in common: ("rack" | "feed" | "leaf" | "pair", its name)."""


class FleetBook:
    """The open wave, the nodes being worked on, those that failed, those that are down, and the watts reserved.

    Made from all records once per spec, and turned to another rollout at the cost of that rollout's nodes; after that `follow`
    is told of every record that was replaced.
    """

    def __init__(self, site: Site, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> None:
        self.busy: dict[str, None] = {}
        """Nodes with a journaled intent whose outcome is not journaled, oldest first."""
        self.unhealthy: dict[str, None] = {}
        """Nodes of the spec that are out of service for reasons of their own."""
        self.down_in: Counter[Group] = Counter()
        """Nodes that a power or firmware step has taken down, per rack, feed, leaf and redundancy pair."""
        self.power = PowerBook(site)
        self.site = site
        self._down: set[str] = set()
        for record in nodes.values():
            self._follow_anywhere(record)
        self.turn_to(rollout, nodes)

    def turn_to(self, rollout: RolloutRecord, nodes: Mapping[str, NodeRecord]) -> None:
        """Another rollout, or other words about the same one."""
        self.rollout = rollout
        self.wave_of = {name: index for index, wave in enumerate(rollout.waves) for name in wave}
        """Index of the wave each node of the rollout belongs to."""
        self.failed: dict[str, None] = {}
        """Nodes of the rollout that are in quarantine, for whatever cause, and that nobody has accepted by `resume`."""
        self.failed_in_wave: Counter[int] = Counter()
        self.in_work: dict[str, None] = {}
        """Nodes of the rollout whose proof has begun and is not at its end."""
        self._moving = [dict.fromkeys(wave) for wave in rollout.waves]
        self._open = 0
        for name, wave in self.wave_of.items():
            self._follow_in_wave(nodes[name], wave)

    @property
    def open_wave(self) -> int:
        """Index of the first wave with a node that is not at rest; the number of waves when all are."""
        while self._open < len(self._moving) and not self._moving[self._open]:
            self._open += 1
        return self._open

    def groups(self, name: str) -> tuple[Group, ...]:
        """The rack, the feed and the leaf the node stands on, and the redundancy pair it belongs to."""
        node, rack = self.site.nodes[name], self.site.rack(name)
        places = (("rack", node.rack), ("feed", rack.feed), ("leaf", rack.leaf))
        return (*places, ("pair", node.pair)) if node.pair else places

    def stands_aside(self, record: NodeRecord) -> str:
        """Why nothing is to be decided about the node as the rollout stands, or an empty string. It is no failure to wait."""
        if record.state not in BRING_UP:
            return ""
        if record.name not in self.wave_of:
            left_out = self.rollout.skipped_because.get(record.name)
            return f"no rollout includes it{f' ({left_out})' if left_out else ''}: `rackray apply` starts one"
        if self.rollout.is_resting(record):
            return f"left out: {self.rollout.aborted_because or self.rollout.skipped_because.get(record.name, '')}"
        return self.rollout.why_not_begun(record.name) if is_untouched(record) and record.name not in self.in_work else ""

    def begin(self, name: str) -> None:
        """The node's first step of this proof was admitted; the journal says so only when its answer comes."""
        if name in self.wave_of:
            self.in_work[name] = None

    def take_down(self, name: str) -> None:
        """A step that takes the node down was admitted."""
        if name not in self._down and name in self.site.nodes:
            self._down.add(name)
            self.down_in.update(self.groups(name))

    def is_down(self, name: str) -> bool:
        """Whether a power or firmware step has taken the node down, and it is not back."""
        return name in self._down

    def follow(self, record: NodeRecord) -> None:
        """A record was replaced by this one."""
        self._follow_anywhere(record)
        if (wave := self.wave_of.get(record.name)) is not None:
            self._follow_in_wave(record, wave)

    def _follow_anywhere(self, record: NodeRecord) -> None:
        """What is reckoned of every node, whether a rollout includes it or not."""
        name = record.name
        _keep(self.busy, name, record.open is not None)
        _keep(self.unhealthy, name, record.state in UNHEALTHY and name in self.site.nodes)
        self.power.follow(record)
        if name in self.site.nodes and is_down(record):
            self.take_down(name)
        elif name in self._down:
            self._down.discard(name)
            self.down_in.subtract(self.groups(name))

    def _follow_in_wave(self, record: NodeRecord, wave: int) -> None:
        """What is reckoned of a node of the rollout."""
        name = record.name
        self._count_failed(record, wave)
        resting = self.rollout.is_resting(record) or name not in self.site.nodes
        _keep(self.in_work, name, record.state in BRING_UP and not resting and not is_untouched(record))
        _keep(self._moving[wave], name, not resting)
        if not resting:
            self._open = min(self._open, wave)

    def _count_failed(self, record: NodeRecord, wave: int) -> None:
        failed = record.state is NodeState.QUARANTINED and record.name not in self.rollout.forgiven
        self.failed_in_wave[wave] += int(failed) - int(record.name in self.failed)
        _keep(self.failed, record.name, failed)


def is_down(record: NodeRecord) -> bool:
    """Whether a power or firmware step is under way at the node, or it has not come back from one yet."""
    for operation in (record.open, record.lost):
        if operation is not None and operation.action in DISRUPTIVE:
            return True
    if record.state in (NodeState.CREDENTIALED, NodeState.POWERED, NodeState.IMAGED) and not record.is_equipment:
        return record.fact_at_s(Action.BMC_POWER) > 0
    updated_s, power_s = record.fact_at_s(Action.BMC_UPDATE), record.fact_at_s(Action.BMC_POWER)
    if record.state is NodeState.CONFIGURED and 0 < updated_s < power_s:
        # Its host is being reset for that update: down until its system has answered.
        return record.fact_at_s(Action.SSH_IDENTIFY) <= power_s
    return record.state in (NodeState.CONFIGURED, NodeState.CREDENTIALED) and updated_s > record.fact_at_s(Action.BMC_FIRMWARE)


def _keep(where: dict[str, None], name: str, is_in: bool) -> None:
    if is_in:
        where[name] = None
    else:
        where.pop(name, None)
