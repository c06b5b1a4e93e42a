"""What the machines of one rack draw from each of its PDUs, with all PDUs alive or some of them lost. Pure.

A machine's draw spreads over its working supplies, each by its capacity. Power shelves feed a busbar, from which every machine of
the rack without supplies of its own draws. Each supply is on the phase that the machine, its SKU or the outlet says; where nobody
says, outlets go 1, 2, 3 in turn, from the bottom of the rack up. Racks with equal contents are worked out once.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from orchestrator.domain.spec import ClusterSpec, Equipment, Node, Rack
from orchestrator.domain.spec_power import Phases, SupplyPhase
from orchestrator.planning.power_tree import Watts3

ALL_PHASES = -1


@dataclass(frozen=True, slots=True)
class Plug:
    """One supply of a machine."""

    pdu: int
    """PDU of the rack, from 0."""
    capacity_w: float
    phase: int
    """Phase of the PDU (or pair of phases, in a delta), from 0; `ALL_PHASES` where it draws from all evenly."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One machine, or a busbar with all that hangs on it."""

    names: tuple[int, ...]
    """Which of the rack's machines it is, counted from the bottom."""
    max_w: float
    idle_w: float
    least: int
    """Working supplies below which it is off."""
    supplies: tuple["Plug", ...]
    """Where each of its supplies is plugged in."""

    def available_w(self, dead: frozenset[int]) -> float:
        """What its supplies can deliver with the PDUs `dead` lost; 0 where it goes off."""
        working = [plug.capacity_w for plug in self.supplies if plug.pdu not in dead]
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
    for consumer in contents.consumers:
        available_w, drawn_w = consumer.available_w(dead), consumer.drawn_w(dead)
        for plug in consumer.supplies if available_w else ():
            if plug.pdu in dead:
                continue
            share_w = drawn_w * plug.capacity_w / available_w
            for phase in range(3) if plug.phase == ALL_PHASES else (plug.phase,):
                watts[plug.pdu][phase] += share_w / 3 if plug.phase == ALL_PHASES else share_w
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
        outlets = outlets_of(spec, rack)
        key = (outlets, *((machine.sku, machine.cords, machine.phases, machine.outlets) for machine in inside))
        if key not in known:
            known[key] = RackContents(_consumers(spec, inside, outlets), len(rack.pdus))
        contents[name] = known[key]
        machines[name] = [machine.name for machine in inside]
    return Racks(contents, machines)


def cords_of(spec: ClusterSpec, machine: Node | Equipment, pdus: int) -> tuple[int, ...]:
    """The PDU (from 1) of each supply: as the machine or its SKU says, or dealt out in turn. None in a rack without PDUs."""
    supplies = spec.skus[machine.sku].supplies
    if supplies is None or not pdus:
        return ()
    return machine.cords or supplies.cords or tuple(turn % pdus + 1 for turn in range(supplies.count))


def outlets_of(spec: ClusterSpec, rack: Rack) -> tuple[Phases, ...]:
    """Per PDU of the rack, the phases of its outlets; empty where nothing is said."""
    elements = spec.power.elements if spec.power is not None else {}
    return tuple(elements[pdu].outlets if pdu in elements else () for pdu in rack.pdus)


class _Outlets:
    """Hands out the outlets of a rack's PDUs: those that machines name, and the next free ones to the others."""

    def __init__(self, spec: ClusterSpec, inside: list[Node | Equipment], phases: tuple[Phases, ...]) -> None:
        self._phases = phases
        self._taken: list[set[int]] = [set() for _ in phases]
        self._next = [1] * len(phases)
        for machine in inside:
            for cord, outlet in zip(cords_of(spec, machine, len(phases)), machine.outlets, strict=False):
                if cord <= len(phases):
                    self._taken[cord - 1].add(outlet)

    def phase(self, pdu: int, outlet: int | None) -> SupplyPhase:
        """The phase behind the outlet; without one, behind the next that is free."""
        if outlet is None:
            while self._next[pdu] in self._taken[pdu]:
                self._next[pdu] += 1
            outlet = self._next[pdu]
            self._next[pdu] += 1
        said = self._phases[pdu]
        return said[(outlet - 1) % len(said)] if said else IN_TURN[(outlet - 1) % 3]


IN_TURN: tuple[SupplyPhase, ...] = (1, 2, 3)


def _plugs(spec: ClusterSpec, machine: Node | Equipment, outlets: _Outlets, pdus: int) -> tuple[Plug, ...]:
    supplies = spec.skus[machine.sku].supplies
    if supplies is None:
        return ()
    phases, plugs = machine.phases or supplies.phases, []
    for index, cord in enumerate(cords_of(spec, machine, pdus)):
        if cord <= pdus:
            said = phases[index] if index < len(phases) else None
            outlet = machine.outlets[index] if index < len(machine.outlets) else None
            behind = outlets.phase(cord - 1, outlet)
            phase = said or behind
            plugs.append(Plug(cord - 1, supplies.capacity_w, ALL_PHASES if phase == "all" else phase - 1))
    return tuple(plugs)


def _consumers(spec: ClusterSpec, inside: list[Node | Equipment], phases: tuple[Phases, ...]) -> tuple[Consumer, ...]:
    consumers: list[Consumer] = []
    on_bar: list[int] = []
    bar_max_w = bar_idle_w = 0.0
    outlets = _Outlets(spec, inside, phases)
    # Machines take their outlets first, then the shelves, as they always were dealt out.
    behind = {
        machine.name: _plugs(spec, machine, outlets, len(phases))
        for machine in sorted(inside, key=lambda machine: spec.skus[machine.sku].kind == "power-shelf")
    }
    for index, machine in enumerate(inside):
        sku = spec.skus[machine.sku]
        if sku.supplies is None or sku.kind == "power-shelf":
            on_bar.append(index)
            bar_max_w, bar_idle_w = bar_max_w + sku.max_w, bar_idle_w + sku.idle_w
        else:
            consumers.append(Consumer((index,), sku.max_w, sku.idle_w, sku.supplies.least, behind[machine.name]))
    shelf_plugs = tuple(plug for index in on_bar for plug in behind[inside[index].name])
    if shelf_plugs:
        consumers.append(Consumer(tuple(on_bar), bar_max_w, bar_idle_w, 1, shelf_plugs))
    return tuple(consumers)
