"""What the machines of one rack draw from each of its PDUs, with all PDUs alive or some of them lost. Pure.

A machine's draw spreads over its working supplies, each by its capacity. Power shelves feed a busbar, from which every machine of
the rack without supplies of its own draws. Racks with equal contents are worked out once.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from orchestrator.domain.spec import ClusterSpec, Equipment, Node
from orchestrator.planning.power_tree import Watts3


@dataclass(frozen=True, slots=True)
class Consumer:
    """One machine, or a busbar with all that hangs on it."""

    names: tuple[int, ...]
    """Which of the rack's machines it is, counted from the bottom."""
    max_w: float
    idle_w: float
    least: int
    """Working supplies below which it is off."""
    supplies: tuple[tuple[int, float], ...]
    """PDU of the rack (from 0) and capacity in watts, for each supply."""

    def available_w(self, dead: frozenset[int]) -> float:
        """What its supplies can deliver with the PDUs `dead` lost; 0 where it goes off."""
        working = [capacity for pdu, capacity in self.supplies if pdu not in dead]
        return sum(working) if len(working) >= self.least else 0.0

    def drawn_w(self, dead: frozenset[int]) -> float:
        """What it draws at most with the PDUs `dead` lost: less than its largest draw where its supplies cannot deliver that."""
        return min(self.max_w, self.available_w(dead))


@dataclass(frozen=True)
class RackContents:
    """The consumers of racks that are filled alike."""

    consumers: tuple[Consumer, ...]
    pdus: int
    _known: dict[frozenset[int], tuple[Watts3, ...]] = field(default_factory=dict, compare=False, repr=False)
    _short: dict[frozenset[int], tuple[Consumer, ...]] = field(default_factory=dict, compare=False, repr=False)

    def loads(self, dead: frozenset[int]) -> tuple[Watts3, ...]:
        """Watts on each phase of each PDU with the PDUs `dead` lost."""
        if dead not in self._known:
            self._known[dead] = _loads(self, dead)
        return self._known[dead]

    def short(self, dead: frozenset[int]) -> tuple[Consumer, ...]:
        """Consumers that cannot have their largest draw."""
        if dead not in self._short:
            self._short[dead] = tuple(each for each in self.consumers if each.available_w(dead) < each.max_w - 1e-6)
        return self._short[dead]


def _loads(contents: RackContents, dead: frozenset[int]) -> tuple[Watts3, ...]:
    watts = [[0.0, 0.0, 0.0] for _ in range(contents.pdus)]
    turn = [0] * contents.pdus
    for consumer in contents.consumers:
        available_w, drawn_w = consumer.available_w(dead), consumer.drawn_w(dead)
        for pdu, capacity_w in consumer.supplies:
            phase, turn[pdu] = turn[pdu] % 3, turn[pdu] + 1
            if pdu not in dead and available_w:
                watts[pdu][phase] += drawn_w * capacity_w / available_w
    return tuple((one, two, three) for one, two, three in watts)


@dataclass(frozen=True)
class Racks:
    """What stands in each rack, as far as power goes."""

    contents: dict[str, RackContents]
    machines: dict[str, list[str]]
    """Names of each rack's machines from the bottom up; `Consumer.names` counts them."""


def racks_of(spec: ClusterSpec) -> Racks:
    """The racks of `spec` that have PDUs. Machines of an unknown SKU or rack are left out."""
    standing: dict[str, list[Node | Equipment]] = defaultdict(list)
    everything: list[Node | Equipment] = [*spec.nodes, *spec.equipment]
    for machine in everything:
        if machine.sku in spec.skus and machine.rack in spec.racks:
            standing[machine.rack].append(machine)
    known: dict[tuple[object, ...], RackContents] = {}
    contents: dict[str, RackContents] = {}
    machines: dict[str, list[str]] = {}
    for name, rack in spec.racks.items():
        inside = sorted(standing.get(name, ()), key=lambda machine: machine.unit)
        if not rack.pdus:
            continue
        key = (len(rack.pdus), *((machine.sku, machine.cords) for machine in inside))
        if key not in known:
            known[key] = RackContents(_consumers(spec, inside, len(rack.pdus)), len(rack.pdus))
        contents[name] = known[key]
        machines[name] = [machine.name for machine in inside]
    return Racks(contents, machines)


def cords_of(spec: ClusterSpec, machine: Node | Equipment, pdus: int) -> tuple[int, ...]:
    """The PDU (from 1) of each supply: as the machine or its SKU says, or dealt out in turn. None in a rack without PDUs."""
    supplies = spec.skus[machine.sku].supplies
    if supplies is None or not pdus:
        return ()
    return machine.cords or supplies.cords or tuple(turn % pdus + 1 for turn in range(supplies.count))


def _consumers(spec: ClusterSpec, inside: list[Node | Equipment], pdus: int) -> tuple[Consumer, ...]:
    consumers: list[Consumer] = []
    shelf_supplies: list[tuple[int, float]] = []
    on_bar: list[int] = []
    bar_max_w = bar_idle_w = 0.0
    for index, machine in enumerate(inside):
        sku = spec.skus[machine.sku]
        supplies = sku.supplies
        plugs: tuple[tuple[int, float], ...] = ()
        if supplies is not None:
            cords = cords_of(spec, machine, pdus)
            plugs = tuple((cord - 1, supplies.capacity_w) for cord in cords if cord <= pdus)
        if supplies is None or sku.kind == "power-shelf":
            shelf_supplies.extend(plugs)
            on_bar.append(index)
            bar_max_w, bar_idle_w = bar_max_w + sku.max_w, bar_idle_w + sku.idle_w
        else:
            consumers.append(Consumer((index,), sku.max_w, sku.idle_w, supplies.least, plugs))
    if shelf_supplies:
        consumers.append(Consumer(tuple(on_bar), bar_max_w, bar_idle_w, 1, tuple(shelf_supplies)))
    return tuple(consumers)
