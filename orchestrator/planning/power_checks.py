"""What racks and feeds draw with every node at its largest sustained draw, and whether they may. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from orchestrator.domain.spec import ClusterSpec, Equipment, Finding, Node, SpecPath

FAR_OFF = 50
"""A load so many times its limit is a slip of the unit rather than too many machines."""
TOLERANCE_W = 1e-4
"""A sum of floats in another order differs in its last digits; that is no overload."""


def check_power(spec: ClusterSpec) -> Iterator[Finding]:
    """No rack and no feed over its limit with every node at its `max_w`; no SKU that draws more idle than busy."""
    rack_skus = _skus_by_rack(spec)
    for name, rack in spec.racks.items():
        hint = "move {moved} to another rack, or raise `limit_w` if the rack is fed with more"
        yield from _over(spec, ("racks", name, "limit_w"), f"rack {name}", rack.limit_w, rack_skus[name], hint)
    feed_skus: defaultdict[str, list[str]] = defaultdict(list)
    for name, rack in spec.racks.items():
        feed_skus[rack.feed].extend(rack_skus[name])
    for name, feed in spec.feeds.items():
        hint = "move {moved} to racks of another feed, or raise `limit_w` if the feed carries more"
        rests_on: tuple[SpecPath, ...] = (("racks", "*", "feed"), ("racks",))
        yield from _over(spec, ("feeds", name, "limit_w"), f"feed {name}", feed.limit_w, feed_skus[name], hint, rests_on)
    for name, sku in spec.skus.items():
        if sku.idle_w > sku.max_w:
            message = f"SKU {name} draws {sku.idle_w:g} W idle, more than its largest draw of {sku.max_w:g} W"
            yield Finding(
                ("skus", name, "idle_w"),
                message,
                "idle_w is the smaller one: swap or correct them",
                rests_on=(("skus", name, "max_w"),),
            )


def draw_by_rack_w(spec: ClusterSpec) -> dict[str, float]:
    """Watts per rack with every node at its `max_w`; racks without nodes draw 0."""
    skus = _skus_by_rack(spec)
    return {rack: sum(spec.skus[sku].max_w for sku in skus[rack]) for rack in spec.racks}


def draw_by_feed_w(spec: ClusterSpec) -> dict[str, float]:
    """Watts per feed with every node at its `max_w`."""
    total = dict.fromkeys(spec.feeds, 0.0)
    for rack, watts in draw_by_rack_w(spec).items():
        if spec.racks[rack].feed in total:
            total[spec.racks[rack].feed] += watts
    return total


def kilowatts(watts: float) -> str:
    """At least one decimal, and as many as a watt needs: `13.0`, `12.04`, `5.199`."""
    text = f"{watts / 1000:.3f}" if watts >= 0.5 or not watts else f"{watts / 1000:.7f}"
    text = text.rstrip("0")
    return text + "0" if text.endswith(".") else text


def _skus_by_rack(spec: ClusterSpec) -> Mapping[str, list[str]]:
    """The SKU of everything in a rack, per rack; machines of an unknown SKU draw nothing that could be reckoned with."""
    skus: defaultdict[str, list[str]] = defaultdict(list)
    everything: list[Node | Equipment] = [*spec.nodes, *spec.equipment]
    for machine in everything:
        if machine.sku in spec.skus:
            skus[machine.rack].append(machine.sku)
    return skus


def _over(
    spec: ClusterSpec, path: SpecPath, what: str, limit_w: float, skus: list[str], hint: str, rests_on: tuple[SpecPath, ...] = ()
) -> Iterator[Finding]:
    heaviest_first = sorted((spec.skus[sku].max_w for sku in skus), reverse=True)
    draw_w = sum(heaviest_first)
    over_w = draw_w - limit_w
    if over_w <= TOLERANCE_W:
        return
    moved_w, count = 0.0, 0
    while moved_w < over_w - TOLERANCE_W:
        moved_w += heaviest_first[count]
        count += 1
    if draw_w > FAR_OFF * limit_w:
        hint = f"is the limit meant in kW? Write `limit: {limit_w:g} kW`; otherwise {hint}"
    message = f"{what} draws {kilowatts(draw_w)} of {kilowatts(limit_w)} kW, {kilowatts(over_w)} kW over"
    nodes = "its only node" if len(skus) == 1 else f"{count} of its {len(skus)} nodes"
    used: tuple[SpecPath, ...] = tuple(("skus", sku, "max_w") for sku in sorted(set(skus)))
    yield Finding(path, message, hint.format(moved=nodes), rests_on=(*used, *rests_on))
