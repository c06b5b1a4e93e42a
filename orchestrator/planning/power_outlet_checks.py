"""Which outlet and phase each supply is on: as many as there are supplies, outlets that exist, and one supply in each. Pure."""

from collections.abc import Iterator

from orchestrator.domain.spec import ClusterSpec, Finding, Machine, SpecPath
from orchestrator.domain.words import counted
from orchestrator.planning.power_racks import cords_of
from orchestrator.planning.rack_checks import label, machines


def check_outlets(spec: ClusterSpec) -> Iterator[Finding]:
    """Asked of specs whose cords are right."""
    for name, sku in spec.skus.items():
        if sku.supplies is not None and sku.supplies.phases and len(sku.supplies.phases) != sku.supplies.count:
            path: SpecPath = ("skus", name, "supplies", "phases")
            message = f"SKU {name} has {sku.supplies.count} supplies and {len(sku.supplies.phases)} phases"
            yield Finding(path, message, "give one phase for each supply", rests_on=(("skus", name, "supplies", "count"),))
    if spec.power is None:
        return
    for name, element in spec.power.elements.items():
        if element.outlets and (element.kind != "pdu" or element.phases == 1):
            what = "has one phase" if element.phases == 1 else f"is no PDU but a {element.kind}"
            yield Finding(
                ("power", "elements", name, "outlets"), f"{name} lists its outlets' phases and {what}", "leave `outlets` out"
            )
    are_listed = any(element.outlets for element in spec.power.elements.values())
    used: dict[tuple[str, int], tuple[SpecPath, Machine]] = {}
    fed: dict[str, int] = {}
    for path, machine in machines(spec):
        if are_listed or machine.outlets or machine.phases:
            yield from _of_machine(spec, path, machine, used, fed)
    for name, supplies in fed.items():
        outlets = spec.power.elements[name].outlets
        if outlets and supplies > len(outlets):
            message = f"{supplies} supplies are plugged into {name}, which has {counted(len(outlets), 'outlet')}"
            rests_on: tuple[SpecPath, ...] = (("nodes",), ("equipment",), ("skus",), ("racks", "*", "pdus"))
            yield Finding(
                ("power", "elements", name, "outlets"), message, "list all its outlets, or use more PDUs", rests_on=rests_on
            )


def _of_machine(
    spec: ClusterSpec,
    path: SpecPath,
    machine: Machine,
    used: dict[tuple[str, int], tuple[SpecPath, Machine]],
    fed: dict[str, int],
) -> Iterator[Finding]:
    if machine.sku not in spec.skus or machine.rack not in spec.racks or spec.power is None:
        return
    supplies, pdus = spec.skus[machine.sku].supplies, spec.racks[machine.rack].pdus
    number = supplies.count if supplies is not None else 0
    for key, given in (("phases", machine.phases), ("outlets", machine.outlets)):
        if given and len(given) != number:
            message = f"{label(path, machine)} has {number} supplies and {len(given)} {key}"
            yield Finding((*path, key), message, f"give one of `{key}` for each supply", rests_on=((*path, "sku"), ("skus",)))
            return
    for index, cord in enumerate(cords_of(spec, machine, len(pdus))):
        pdu = pdus[cord - 1]
        fed[pdu] = fed.get(pdu, 0) + 1
        if index >= len(machine.outlets):
            continue
        outlet, known, at = machine.outlets[index], spec.power.elements[pdu].outlets, (*path, "outlets", index)
        rests_on: tuple[SpecPath, ...] = (
            ("power", "elements", pdu, "outlets"),
            ("racks", machine.rack, "pdus"),
            (*path, "cords"),
        )
        before, other = used.setdefault((pdu, outlet), (at, machine))
        if not known:
            message = f"{label(path, machine)} is plugged into outlet {outlet} of {pdu}, which does not say what its outlets are"
            hint = f"add `outlets` to {pdu}: the phase of each, such as [1, 2, 3, 1, 2, 3]"
            yield Finding(at, message, hint, rests_on=rests_on)
        elif outlet > len(known):
            has = counted(len(known), "outlet")
            message = f"{label(path, machine)} is plugged into outlet {outlet} of {pdu}, which has {has}"
            yield Finding(at, message, "correct the number, or list all outlets of the PDU", rests_on=rests_on)
        elif before is not at:
            message = f"{label(path, machine)} is plugged into outlet {outlet} of {pdu}, as {other.name} is"
            yield Finding(at, message, "give every supply an outlet of its own", other=before, rests_on=rests_on)
