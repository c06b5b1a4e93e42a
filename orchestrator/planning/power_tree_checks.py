"""Is the power tree one that can be reckoned with, does it carry its machines, and what is left after any one loss? Pure."""

import math
from collections.abc import Iterator

from orchestrator.domain.spec import ClusterSpec, Equipment, Finding, Node, SpecPath
from orchestrator.planning.power_checks import kilowatts
from orchestrator.planning.power_loss import Overload, PowerReport, Short, power_report
from orchestrator.planning.power_outlet_checks import check_outlets
from orchestrator.planning.power_racks import cords_of
from orchestrator.planning.power_tree import NOTHING, Part, Watts3, loops

TREE: tuple[SpecPath, ...] = (("power",), ("feeds",), ("racks",), ("skus",), ("nodes",), ("equipment",))
"""What loads rest on: with a part of it missing, nothing is said about loads."""
EVERYWHERE: tuple[SpecPath, ...] = (
    *TREE,
    *(("power", "elements", "*", key) for key in ("fed_by", "backup", "limit_w", "breaker_a", "voltage_v", "phases", "derating")),
    *(("skus", "*", key) for key in ("max_w", "idle_w", "supplies")),
    *((("skus", "*", "supplies", key)) for key in ("count", "capacity_w", "least", "cords", "phases")),
    *((section, "*", key) for section in ("nodes", "equipment") for key in ("cords", "phases", "outlets")),
    ("power", "elements", "*", "outlets"),
    ("racks", "*", "pdus"),
    ("nodes", "*", "sku"),
    ("nodes", "*", "rack"),
    ("equipment", "*", "sku"),
    ("equipment", "*", "rack"),
    ("feeds", "*", "limit_w"),
)


def check_power_tree(spec: ClusterSpec) -> Iterator[Finding]:
    """The tree's references and limits; if they are right, its loads with everything alive and after each single loss."""
    if spec.power is None:
        return
    troubles = [*_structure(spec), *_supplies(spec)]
    troubles += [] if troubles else check_outlets(spec)
    yield from troubles
    machines: list[Node | Equipment] = [*spec.nodes, *spec.equipment]
    # Machines that stand nowhere or are of no known kind have been named; loads without them would be wrong.
    if not troubles and all(machine.sku in spec.skus and machine.rack in spec.racks for machine in machines):
        yield from _loads(spec, power_report(spec))


def _structure(spec: ClusterSpec) -> Iterator[Finding]:
    assert spec.power is not None, "asked only about specs with a tree"  # noqa: S101 - tells the type checker
    elements = spec.power.elements
    known = {*spec.feeds, *elements}
    for name, element in elements.items():
        path: SpecPath = ("power", "elements", name)
        if name in spec.feeds:
            yield Finding(
                path, f"{name} is an element of the power tree and a feed", "rename one of the two", other=("feeds", name)
            )
        for key, above in (("fed_by", element.fed_by), ("backup", element.backup)):
            if above is not None and above not in known:
                message = f"{name} hangs on {above}, which neither `power.elements` nor `feeds` has"
                yield Finding((*path, key), message, "correct the name, or add it", rests_on=(("power", "elements"), ("feeds",)))
        if element.breaker_a is None and element.limit_w is None:
            yield Finding(
                path,
                f"nothing says what {name} may carry",
                "add limit_w, or breaker_a and voltage_v",
                rests_on=((*path, "limit_w"), (*path, "breaker_a")),
            )
        elif element.breaker_a is not None and element.voltage_v is None:
            message = f"{name} has a breaker of {element.breaker_a:g} A and no voltage"
            yield Finding(
                (*path, "breaker_a"),
                message,
                "add voltage_v: between two phases where phases is 3",
                rests_on=((*path, "voltage_v"),),
            )
    circle = loops(
        {
            name: tuple(above for above in (element.fed_by, element.backup) if above in elements)
            for name, element in elements.items()
        }
    )
    if circle:
        message = f"the power tree runs in a circle: {' is fed by '.join(circle)}"
        yield Finding(("power", "elements", circle[0], "fed_by"), message, "every element must lead up to one of `feeds`")
    for name, rack in spec.racks.items():
        for index, pdu in enumerate(rack.pdus):
            if pdu not in elements:
                message = f"rack {name} has the PDU {pdu}, which `power.elements` does not have"
                yield Finding(
                    ("racks", name, "pdus", index), message, "correct the name, or add it", rests_on=(("power", "elements"),)
                )


def _supplies(spec: ClusterSpec) -> Iterator[Finding]:
    for name, sku in spec.skus.items():
        supplies = sku.supplies
        if supplies is None:
            continue
        path: SpecPath = ("skus", name, "supplies")
        if supplies.cords and len(supplies.cords) != supplies.count:
            yield Finding(
                (*path, "cords"),
                f"SKU {name} has {supplies.count} supplies and {len(supplies.cords)} cords",
                "give one PDU for each supply",
            )
        if supplies.least > supplies.count:
            yield Finding(
                (*path, "least"), f"SKU {name} needs {supplies.least} of {supplies.count} supplies", "least is at most count"
            )
        if supplies.count * supplies.capacity_w < sku.max_w and sku.kind != "power-shelf":
            deliver = kilowatts(supplies.count * supplies.capacity_w)
            message = f"SKU {name} draws up to {kilowatts(sku.max_w)} kW, and its {supplies.count} supplies deliver {deliver} kW"
            yield Finding(
                (*path, "capacity_w"),
                message,
                "correct count, capacity_w or max_w",
                rests_on=(("skus", name, "max_w"), (*path, "count")),
            )
    shelves = {item.rack for item in spec.equipment if item.sku in spec.skus and spec.skus[item.sku].kind == "power-shelf"}
    groups: list[tuple[str, tuple[Node | Equipment, ...]]] = [("nodes", spec.nodes), ("equipment", spec.equipment)]
    for section, machines in groups:
        for index, machine in enumerate(machines):
            if machine.sku in spec.skus and machine.rack in spec.racks:
                yield from _plugged(spec, (section, index), machine, machine.rack in shelves)


def _plugged(spec: ClusterSpec, path: SpecPath, machine: Node | Equipment, has_busbar: bool) -> Iterator[Finding]:
    supplies, rack = spec.skus[machine.sku].supplies, spec.racks[machine.rack]
    rests_on: tuple[SpecPath, ...] = (
        ("skus", machine.sku, "supplies"),
        ("racks", machine.rack, "pdus"),
        (*path, "rack"),
        (*path, "sku"),
        ("equipment",),
    )
    if not rack.pdus:
        message = f"{machine.name} stands in rack {machine.rack}, which has no PDUs to plug it into"
        yield Finding((*path, "rack"), message, f"add `pdus` to rack {machine.rack}", rests_on=rests_on)
    elif supplies is None:
        if not has_busbar:
            message = f"{machine.name} has no supplies, and rack {machine.rack} no power shelf that feeds a busbar"
            yield Finding(
                (*path, "sku"),
                message,
                f"add `supplies` to SKU {machine.sku}, or the rack's power shelves to `equipment`",
                rests_on=rests_on,
            )
    else:
        cords = cords_of(spec, machine, len(rack.pdus))
        if machine.cords and len(machine.cords) != supplies.count:
            yield Finding(
                (*path, "cords"),
                f"{machine.name} has {supplies.count} supplies and {len(cords)} cords",
                "give one PDU for each supply",
                rests_on=rests_on,
            )
        elif max(cords) > len(rack.pdus):
            message = f"{machine.name} has a supply on PDU {max(cords)} of rack {machine.rack}, which has {len(rack.pdus)}"
            yield Finding(
                (*path, "cords") if machine.cords else (*path, "rack"),
                message,
                "correct `cords`, or add the PDU",
                rests_on=rests_on,
            )


def _loads(spec: ClusterSpec, report: PowerReport) -> Iterator[Finding]:
    for name, part in report.tree.parts.items():
        load = report.normal[name]
        if part.limit_w is not None and part.ratio(load) > 1 + 1e-9:
            over = kilowatts(part.effective_w(load) - part.limit_w)
            message = f"{part.kind} {name} carries {_carried(part, load)}, {over} kW over, with everything alive"
            hint = "move machines to another part of the tree, or correct its limit" + _phase_voltage(spec, part)
            yield Finding(part.path, message, hint, rests_on=EVERYWHERE)
        yield from _imbalance(spec, part, load)
    for overload in report.overloads:
        if overload.part.ratio(report.normal[overload.part.name]) <= 1 + 1e-9:
            yield _overloaded(spec, report, overload)
    by_loss: dict[tuple[str, bool], list[Short]] = {}
    for short in report.short:
        by_loss.setdefault((short.lost, short.is_off), []).append(short)
    for shorts in by_loss.values():
        yield _too_short(report, shorts)


def _imbalance(spec: ClusterSpec, part: Part, load: Watts3) -> Iterator[Finding]:
    most = spec.power.imbalance_max if spec.power is not None else None
    if most is None or part.is_single or part.kind == "feed" or load == NOTHING:
        return
    apart = imbalance(load)
    if apart > most + 1e-9:
        phases = ", ".join(kilowatts(watts) for watts in load)
        message = f"the phases of {part.kind} {part.name} carry {phases} kW: {apart:.0%} off their mean, more than {most:.0%}"
        yield Finding(
            part.path,
            message,
            "move supplies to other phases (`outlets`, `phases`) or PDUs (`cords`), or raise power.imbalance_max",
            rests_on=EVERYWHERE,
        )


def imbalance(load: Watts3) -> float:
    """Largest distance of a phase from the mean of the three, as a share of the mean; 0 without load."""
    mean = sum(load) / 3
    return max(abs(watts - mean) for watts in load) / mean if mean else 0.0


def _carried(part: Part, load: Watts3) -> str:
    limit = kilowatts(part.limit_w or 0.0)
    effective_w = part.effective_w(load)
    if effective_w <= sum(load) * 1.001:
        return f"{kilowatts(sum(load))} of {limit} kW"
    return f"{kilowatts(sum(load))} kW, on its fullest phase as much as {kilowatts(effective_w)} of {limit} kW"


def _overloaded(spec: ClusterSpec, report: PowerReport, overload: Overload) -> Finding:
    part = overload.part
    over = kilowatts(part.effective_w(overload.load) - (part.limit_w or 0.0))
    normal = kilowatts(sum(report.normal[part.name]))
    carried = _carried(part, overload.load)
    message = (
        f"after the loss of {overload.lost}, {part.kind} {part.name} carries {carried}, {over} kW over (normally {normal} kW)"
    )
    policies = {rack.on_feed_loss or (spec.power.on_feed_loss if spec.power else "survive") for rack in spec.racks.values()}
    hint = "move machines, raise the limit, or set on_feed_loss: throttle to have power caps computed"
    if "throttle" in policies:
        hint = "what may be throttled does not suffice, even at its idle draw: move machines, or let more racks throttle"
    return Finding(part.path, message, hint + _phase_voltage(spec, part), rests_on=EVERYWHERE)


def _phase_voltage(spec: ClusterSpec, part: Part) -> str:
    """A doubt about the voltage of a three-phase breaker that is given as that of one phase: √3 is lost then."""
    element = spec.power.elements.get(part.name) if spec.power is not None else None
    volts = element.voltage_v if element is not None and element.phases == 3 and element.connection == "wye" else None
    if not part.is_breaker or volts is None or not 100 <= volts <= 277 or volts in (200, 208):
        return ""
    return f"; voltage_v is that between two phases: {volts * math.sqrt(3):.0f} where a phase has {volts:g} V"


def _too_short(report: PowerReport, shorts: list[Short]) -> Finding:
    """What one loss leaves too little for: the first machine in full, the others counted."""
    short = shorts[0]
    consumer, names = short.consumer, report.racks.machines[short.rack]
    who = names[consumer.names[0]] if len(consumer.names) == 1 else f"the busbar of rack {short.rack}"
    left = f"{short.working} of {len(consumer.supplies)} supplies"
    more = f"; so do {len(shorts) - 1:,} more" if len(shorts) > 1 else ""
    if short.is_off:
        message = f"after the loss of {short.lost}, {who} goes off: {left} are left, and it needs {consumer.least}{more}"
        hint = "spread its supplies over more PDUs with `cords`, or set on_feed_loss: lose"
    else:
        over, cap = kilowatts(consumer.max_w - short.left_w), kilowatts(short.left_w)
        message = (
            f"after the loss of {short.lost}, {who} gets {cap} of {kilowatts(consumer.max_w)} kW ({left}), {over} kW short{more}"
        )
        hint = f"set on_feed_loss: throttle (a cap of {cap} kW must then hold), or spread its supplies differently"
    return Finding(("racks", short.rack, "pdus"), message, hint, rests_on=EVERYWHERE)
