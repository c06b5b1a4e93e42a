"""Do the machines of a rack fit into it: units, weight, heat into the air and into the liquid. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.domain.spec import NO_GPUS, ClusterSpec, Equipment, Finding, Node, SpecPath
from orchestrator.domain.words import counted
from orchestrator.planning.power_checks import kilowatts

Machine = Node | Equipment


def machines(spec: ClusterSpec) -> list[tuple[SpecPath, Machine]]:
    """Everything that stands in a rack, with its path."""
    found: list[tuple[SpecPath, Machine]] = [(("nodes", index), node) for index, node in enumerate(spec.nodes)]
    found += [(("equipment", index), item) for index, item in enumerate(spec.equipment)]
    return found


def label(path: SpecPath, machine: Machine) -> str:
    """As a machine is called in a sentence."""
    return f"{path[0]}[{path[1]}] ({machine.name})"


def check_racks(spec: ClusterSpec) -> Iterator[Finding]:
    """Kinds where they belong; units, weight and heat of every rack."""
    yield from _kinds(spec)
    yield from _units(spec)
    yield from _weight_and_heat(spec)


def _kinds(spec: ClusterSpec) -> Iterator[Finding]:
    for path, machine in machines(spec):
        kind = spec.skus[machine.sku].kind if machine.sku in spec.skus else None
        if kind is not None and (kind == "compute") != (path[0] == "nodes"):
            home = "nodes" if kind == "compute" else "equipment"
            message = f"{label(path, machine)} is of SKU {machine.sku}, whose kind is {kind}"
            yield Finding((*path, "sku"), message, f"list it under `{home}`", rests_on=(("skus", machine.sku, "kind"),))
    for name, sku in spec.skus.items():
        if sku.kind == "compute" and sku.gpus == NO_GPUS:
            message = f"SKU {name} computes, and nothing says which GPUs it has"
            hint = "add gpus: {model: ..., count: ...}; count: 0 for none"
            yield Finding(("skus", name), message, hint, rests_on=(("skus", name, "gpus"),))
        if sku.liquid_w > sku.max_w:
            message = f"SKU {name} gives {sku.liquid_w:g} W to the liquid, more than its largest draw of {sku.max_w:g} W"
            yield Finding(("skus", name, "liquid_w"), message, "liquid_w is a part of max_w", rests_on=(("skus", name, "max_w"),))


def _weight_and_heat(spec: ClusterSpec) -> Iterator[Finding]:
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for _, machine in machines(spec):
        if machine.sku in spec.skus:
            inside[machine.rack].append(machine.sku)
    for name in spec.racks:
        yield from _weight(spec, name, inside.get(name, []))
        yield from _heat(spec, name, inside.get(name, []))


def _weight(spec: ClusterSpec, name: str, inside: list[str]) -> Iterator[Finding]:
    limit_kg, path = spec.racks[name].weight_limit_kg, ("racks", name, "weight_limit_kg")
    if limit_kg is None:
        return
    used = sorted(set(inside))
    for sku in used:
        if spec.skus[sku].weight_kg is None:
            message = f"rack {name} has a weight limit, and SKU {sku} in it no weight"
            yield Finding(path, message, f"add weight_kg to SKU {sku}", rests_on=_of(used, "weight_kg"))
    total_kg = sum(spec.skus[sku].weight_kg or 0.0 for sku in inside)
    if total_kg > limit_kg + 1e-6:
        message = f"rack {name} holds {total_kg:g} of {limit_kg:g} kg, {total_kg - limit_kg:g} kg over"
        yield Finding(path, message, "move machines to another rack", rests_on=_of(used, "weight_kg"))


def _heat(spec: ClusterSpec, name: str, inside: list[str]) -> Iterator[Finding]:
    rack, used = spec.racks[name], sorted(set(inside))
    liquid_w = sum(spec.skus[sku].liquid_w for sku in inside)
    air_w = sum(spec.skus[sku].max_w for sku in inside) - liquid_w
    rests_on = (*_of(used, "max_w"), *_of(used, "liquid_w"))
    for what, heat_w, limit_w in (("air", air_w, rack.air_limit_w), ("liquid", liquid_w, rack.liquid_limit_w)):
        path: SpecPath = ("racks", name, f"{what}_limit_w")
        if limit_w is not None and heat_w > limit_w + 1e-4:
            over = kilowatts(heat_w - limit_w)
            message = f"rack {name} gives {kilowatts(heat_w)} of {kilowatts(limit_w)} kW to the {what}, {over} kW over"
            yield Finding(path, message, "move machines to another rack, or cool it better", rests_on=rests_on)
        elif limit_w is None and what == "liquid" and heat_w > 0:
            message = f"rack {name} gives {kilowatts(heat_w)} kW to the liquid, and nothing says what its loop can take"
            yield Finding(("racks", name), message, "add liquid_limit_w to the rack", rests_on=(*rests_on, path))


def _of(skus: list[str], field: str) -> tuple[SpecPath, ...]:
    return tuple(("skus", sku, field) for sku in skus)


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What stands in one rack."""

    name: str
    height: int
    places: list[tuple[int, int, SpecPath, Machine]]
    """Lowest unit, highest unit and machine; from the bottom up."""
    holders: Counter[int]
    """How many machines claim each unit."""

    def place_for(self, bottom: int, top: int) -> str:
        """Where the machine that claims `bottom` to `top` could stand instead."""
        tall, others = top - bottom + 1, self.holders - Counter(range(bottom, top + 1))
        for lowest in range(1, self.height - tall + 2):
            if not any(unit in others for unit in range(lowest, lowest + tall)):
                return f"unit {lowest} is the lowest with room for it"
        return f"rack {self.name} has no room for {counted(tall, 'unit')}: move it to another rack"


def _units(spec: ClusterSpec) -> Iterator[Finding]:
    """Nothing above its rack, no two machines in one unit."""
    shelves = {name: _Shelf(name, rack.units, [], Counter()) for name, rack in spec.racks.items()}
    for path, machine in machines(spec):
        if machine.rack in shelves and machine.sku in spec.skus:
            top = machine.unit + spec.skus[machine.sku].units - 1
            shelves[machine.rack].places.append((machine.unit, top, path, machine))
    for shelf in shelves.values():
        shelf.places.sort(key=lambda place: place[:2])
        if any(top > shelf.height for _, top, _, _ in shelf.places) or any(
            low <= before for (_, before, _, _), (low, _, _, _) in pairwise(shelf.places)
        ):
            for bottom, top, _, _ in shelf.places:
                shelf.holders.update(range(bottom, top + 1))
            yield from _above(shelf)
            yield from _overlaps(spec, shelf)


def _above(shelf: _Shelf) -> Iterator[Finding]:
    for bottom, top, path, machine in shelf.places:
        if top > shelf.height:
            message = (
                f"{label(path, machine)} is {counted(top - bottom + 1, 'unit')} high and would take units {bottom}-{top} of rack"
                f" {shelf.name}, {top - shelf.height} above its {shelf.height}"
            )
            yield Finding((*path, "unit"), message, shelf.place_for(bottom, top), rests_on=_room(path, machine))


def _overlaps(spec: ClusterSpec, shelf: _Shelf) -> Iterator[Finding]:
    highest, holder, holder_path = 0, shelf.places[0][3], shelf.places[0][2]
    for bottom, top, path, machine in shelf.places:
        if bottom <= highest:
            message = (
                f"{label(path, machine)} takes units {bottom}-{top} of rack {shelf.name}, {min(top, highest) - bottom + 1}"
                " of them"
                f" shared with {label(holder_path, holder)} in {holder.unit}-{highest}"
            )
            rests_on = (*_room(path, machine), (*holder_path, "rack"), ("skus", holder.sku, "units"))
            hint = shelf.place_for(bottom, top)
            yield Finding((*path, "unit"), message, hint, other=(*holder_path, "unit"), rests_on=rests_on)
        if top > highest:
            highest, holder, holder_path = top, machine, path


def _room(path: SpecPath, machine: Machine) -> tuple[SpecPath, ...]:
    return (("racks", machine.rack, "units"), ("skus", machine.sku, "units"), (*path, "rack"), (*path, "sku"))
