"""What every part of the power tree carries: with everything alive, and after the loss of any one part. Pure.

After a loss each machine draws through the supplies that still have power; a transfer switch takes a subtree over to its backup.
Only what the loss touches is worked out again, so that 100,000 GPUs take a second and not an hour.
"""

import heapq
import math
from dataclasses import dataclass, field

from orchestrator.domain.spec import ClusterSpec, Equipment, Node
from orchestrator.domain.spec_power import OnFeedLoss
from orchestrator.planning.power_racks import Consumer, Racks, racks_of
from orchestrator.planning.power_tree import NOTHING, Part, PowerTree, Watts3, added

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Worst:
    """The heaviest load a part sees after one loss."""

    lost: str
    load: Watts3


@dataclass(frozen=True, slots=True)
class Short:
    """A consumer that a loss leaves without its largest draw, where that is not allowed or not even its idle draw is left."""

    rack: str
    lost: str
    consumer: Consumer
    left_w: float
    working: int
    is_off: bool


@dataclass(frozen=True, slots=True)
class Overload:
    """A part that a loss overloads, and that no allowed power cap can save."""

    part: Part
    lost: str
    load: Watts3


@dataclass
class PowerReport:
    """Everything that is to be said about a spec's power."""

    tree: PowerTree
    racks: Racks
    normal: dict[str, Watts3]
    """Part → load with everything alive and every machine at its largest draw."""
    worst: dict[str, Worst] = field(default_factory=dict)
    """Part → its heaviest load after one loss, before any machine is throttled; parts that no loss makes heavier are not here."""
    short: list[Short] = field(default_factory=list)
    overloads: list[Overload] = field(default_factory=list)
    caps_w: dict[str, float] = field(default_factory=dict)
    """Machine → the power cap in watts that must hold after some loss; machines that never need one are not here."""


def power_report(spec: ClusterSpec) -> PowerReport:
    """The loads of `spec`, whose references and tree are right."""
    tree, racks = PowerTree(spec), racks_of(spec)
    report = PowerReport(tree, racks, _normal(spec, tree, racks))
    study = _Study(spec, report)
    for name in tree.parts:
        study.lose(name)
    report.overloads.extend(study.overloads.values())
    return report


def feed_loads(spec: ClusterSpec) -> dict[str, Watts3]:
    """What every feed of `spec` carries with everything alive and every machine at its largest draw."""
    loads = _normal(spec, PowerTree(spec), racks_of(spec))
    return {name: loads[name] for name in spec.feeds}


def _normal(spec: ClusterSpec, tree: PowerTree, racks: Racks) -> dict[str, Watts3]:
    loads: dict[str, Watts3] = dict.fromkeys(tree.parts, NOTHING)
    for name, contents in racks.contents.items():
        for pdu, load in zip(spec.racks[name].pdus, contents.loads(frozenset()), strict=True):
            loads[pdu] = added((loads[pdu], load))
    for name in tree.upwards():
        part = tree.parts[name]
        if part.fed_by is not None:
            loads[part.fed_by] = added((loads[part.fed_by], part.seen_above(loads[name])))
    return loads


class _Study:
    """Loses one part after the other, and keeps the worst."""

    def __init__(self, spec: ClusterSpec, report: PowerReport) -> None:
        self._spec, self._report, self._tree = spec, report, report.tree
        self.overloads: dict[str, Overload] = {}
        self._gone: dict[str, frozenset[int]] = {}
        """Rack → the PDUs (from 0) that the present loss takes from it."""
        self._settled: set[tuple[str, frozenset[int]]] = set()
        """Racks and the PDUs they lost, where everything has been said about it."""
        self._shares: dict[tuple[str, tuple[int, ...]], float] = {}
        """Consumer → the smallest share of its largest draw that a loss has left it so far."""
        everything: list[Node | Equipment] = [*spec.nodes, *spec.equipment]
        self._skus = {machine.name: machine.sku for machine in everything}
        self._racks_at: dict[str, list[str]] = {}
        for rack in report.racks.contents:
            for pdu in dict.fromkeys(spec.racks[rack].pdus):
                self._racks_at.setdefault(pdu, []).append(rack)

    def lose(self, lost: str) -> None:
        """What happens when the part `lost` is gone."""
        parts, alive = self._tree.parts, {lost: False}
        self._gone.clear()
        for name in self._tree.subtree(lost):
            self._is_alive(name, alive)
        changed = self._racks_without([name for name, lives in alive.items() if not lives], lost)
        switched = {name for name, lives in alive.items() if lives}
        loads = dict(changed)
        # Everything whose load changes, from the bottom up: its load is final when its turn comes.
        queue = [(-self._tree.rank[name], name) for name in set(changed) | switched]
        heapq.heapify(queue)
        queued = {name for _, name in queue}
        while queue:
            name = heapq.heappop(queue)[1]
            part = parts[name]
            above = part.fed_by
            if above is None:
                continue
            before = self._report.normal[name]
            moves = [(above, -1.0, before)]
            if alive.get(name, True):
                feeder = part.backup if part.backup is not None and not alive.get(above, True) else above
                moves.append((feeder, 1.0, loads.get(name, before)))
            for other, sign, load in moves:
                seen, old = part.seen_above(load), loads.get(other, self._report.normal[other])
                loads[other] = (old[0] + sign * seen[0], old[1] + sign * seen[1], old[2] + sign * seen[2])
                if other not in queued:
                    queued.add(other)
                    heapq.heappush(queue, (-self._tree.rank[other], other))
        self._judge(lost, {name: load for name, load in loads.items() if alive.get(name, True)}, switched)

    def _is_alive(self, name: str, alive: dict[str, bool]) -> bool:
        if name not in alive:
            part = self._tree.parts[name]
            alive_above = part.fed_by is None or self._above_lives(part.fed_by, alive)
            alive[name] = alive_above or (part.backup is not None and self._above_lives(part.backup, alive))
        return alive[name]

    def _above_lives(self, name: str, alive: dict[str, bool]) -> bool:
        """What stands above a part lives unless the loss reached it: the walk goes from the top down."""
        while name not in alive:
            part = self._tree.parts[name]
            if part.fed_by is None:
                return True
            if part.backup is not None:
                return self._is_alive(name, alive)
            name = part.fed_by
        return alive[name]

    def _racks_without(self, dead: list[str], lost: str) -> dict[str, Watts3]:
        """New loads of the PDUs of every rack that lost one, and what its machines lack."""
        loads: dict[str, Watts3] = {}
        racks = dict.fromkeys(rack for pdu in dead for rack in self._racks_at.get(pdu, ()))
        normal, lives_not = self._report.normal, set(dead)
        for rack in racks:
            pdus = self._spec.racks[rack].pdus
            gone = self._gone[rack] = frozenset(index for index, pdu in enumerate(pdus) if pdu in lives_not)
            contents = self._report.racks.contents[rack]
            for pdu, old, new in zip(pdus, contents.loads(frozenset()), contents.loads(gone), strict=True):
                have = loads.get(pdu, normal[pdu])
                loads[pdu] = (have[0] + new[0] - old[0], have[1] + new[1] - old[1], have[2] + new[2] - old[2])
            if (rack, gone) not in self._settled:
                capped = [self._note_short(rack, lost, consumer, gone) for consumer in contents.short(gone)]
                if all(capped):
                    self._settled.add((rack, gone))
        return loads

    def _note_short(self, rack: str, lost: str, consumer: Consumer, gone: frozenset[int]) -> bool:
        """Whether that says all there is to say whenever the rack loses these PDUs, whatever it was that took them."""
        left_w, policy = consumer.available_w(gone), self.policy(rack)
        if policy == "throttle" and left_w >= consumer.idle_w:
            self._cap(rack, consumer, left_w / consumer.max_w)
        elif policy != "lose":
            working = sum(plug.pdu not in gone for plug in consumer.supplies)
            self._report.short.append(Short(rack, lost, consumer, left_w, working, left_w <= 0))
            return False
        return True

    def policy(self, rack: str) -> OnFeedLoss:
        """What may happen to the machines of `rack`."""
        default: OnFeedLoss = self._spec.power.on_feed_loss if self._spec.power is not None else "survive"
        return self._spec.racks[rack].on_feed_loss or default

    def _cap(self, rack: str, consumer: Consumer, share: float) -> None:
        if share >= self._shares.get((rack, consumer.names), math.inf):
            return
        self._shares[(rack, consumer.names)] = share
        names = self._report.racks.machines[rack]
        for index in consumer.names:
            cap_w = share * self._spec.skus[self._skus[names[index]]].max_w
            self._report.caps_w[names[index]] = min(cap_w, self._report.caps_w.get(names[index], cap_w))

    def _judge(self, lost: str, loads: dict[str, Watts3], switched: set[str]) -> None:
        for name, load in loads.items():
            part = self._tree.parts[name]
            effective_w = part.effective_w(load)
            heaviest = self._report.worst.get(name)
            if (
                effective_w
                > max(part.effective_w(self._report.normal[name]), part.effective_w(heaviest.load) if heaviest else 0.0) + 1e-6
            ):
                self._report.worst[name] = Worst(lost, load)
            if part.limit_w is not None and part.ratio(load) > 1 + TOLERANCE and not self._throttled(part, lost, load, switched):
                known = self.overloads.get(name)
                if known is None or part.effective_w(known.load) < effective_w:
                    self.overloads[name] = Overload(part, lost, load)

    def _throttled(self, part: Part, lost: str, load: Watts3, switched: set[str]) -> bool:
        """Whether power caps of the machines that may be throttled bring `part` back under its limit; then they are noted."""
        pdus = self._pdus_below(part.name, switched)
        racks = dict.fromkeys(rack for pdu in pdus for rack in self._racks_at.get(pdu, ()))
        willing = [rack for rack in racks if self.policy(rack) == "throttle"]
        if not willing or part.ratio(self._report.normal[part.name]) > 1 + TOLERANCE:
            return False
        theirs_w = sum(self._through(rack, pdus) for rack in willing)
        over_w = sum(load) * (1 - 1 / part.ratio(load))
        share = 1 - over_w / theirs_w if theirs_w else 0.0
        consumers = [(rack, consumer) for rack in willing for consumer in self._report.racks.contents[rack].consumers]
        if any(share * consumer.max_w < consumer.idle_w for _, consumer in consumers):
            return False
        for rack, consumer in consumers:
            self._cap(rack, consumer, share)
        return True

    def _pdus_below(self, name: str, switched: set[str]) -> set[str]:
        """PDUs of racks that draw through the part `name`, those that came over to it included."""
        tops = [name, *(each for each in switched if self._tree.parts[each].backup == name)]
        return {each for top in tops for each in self._tree.subtree(top) if each in self._racks_at}

    def _through(self, rack: str, pdus: set[str]) -> float:
        """Watts that `rack` draws through `pdus` now."""
        loads = self._report.racks.contents[rack].loads(self._gone.get(rack, frozenset()))
        return sum(sum(load) for pdu, load in zip(self._spec.racks[rack].pdus, loads, strict=True) if pdu in pdus)
