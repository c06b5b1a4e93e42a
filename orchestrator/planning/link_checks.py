"""Are the cables possible: ports that exist, each once; rails complete; lengths that reach and that exist. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from itertools import islice

from orchestrator.domain.pattern import Pattern, PatternError
from orchestrator.domain.spec import ClusterSpec, Finding, Machine, SpecPath
from orchestrator.domain.spec_network import Link

MOST_CABLES = 2_000_000
REACH_M: Mapping[str, float] = {"dac": 3, "acc": 5, "aoc": 100, "mmf": 50, "smf": 2000, "utp": 100}
"""Longest cable of a kind that works at the speeds of a compute fabric, in metres; a link may say its own `reach_m`."""
UNIT_M = 0.04445
"""Height of one rack unit (EIA-310), in metres."""
OVERHEAD_M = 1.0
"""What a cable between two racks needs above the racks and at its ends, in metres."""
MOST_SAID = 3

_MACHINES: tuple[SpecPath, ...] = (
    *(("nodes",), ("nodes", "*", "name"), ("nodes", "*", "sku")),
    *(("equipment",), ("equipment", "*", "name"), ("equipment", "*", "sku")),
    *(("skus",), ("skus", "*", "ports"), ("skus", "*", "rails")),
)
_PLACES: tuple[SpecPath, ...] = (
    *(("racks",), ("racks", "*", "x_m"), ("racks", "*", "y_m"), ("racks", "*", "units")),
    *(("nodes", "*", "unit"), ("nodes", "*", "rack"), ("equipment", "*", "unit"), ("equipment", "*", "rack")),
)


def check_links(spec: ClusterSpec) -> Iterator[Finding]:
    """Every cable of every link; then what the cables of a machine must add up to."""
    if not spec.links:
        yield from _rail_subnets(spec)
        return
    study = _Study(spec)
    for index, link in enumerate(spec.links):
        yield from study.take(index, link)
    yield from study.rails()
    yield from _rail_subnets(spec)


class _Study:
    """Cables so far, by port."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        everything: list[Machine] = [*spec.nodes, *spec.equipment]
        self._sku_of = {machine.name: machine.sku for machine in everything}
        self._place = {machine.name: (machine.rack, machine.unit) for machine in everything}
        self._used: dict[str, int] = {}
        """Port → index of the link that takes it."""
        self._wrong = False
        self._above: dict[tuple[str, str], float] = {}

    def take(self, index: int, link: Link) -> Iterator[Finding]:
        """The cables of one link."""
        path: SpecPath = ("links", index)
        try:
            pattern = Pattern.parse(link.ends, MOST_CABLES)
            near, far = pattern.names(), pattern.fill(link.to)
        except PatternError as error:
            self._wrong = True
            yield Finding((*path, "ends" if str(error).startswith(link.ends) else "to"), str(error), error.hint)
            return
        # A site has hundreds of thousands of ports: each is taken apart once.
        parts = [[port.partition("/") for port in ports] for ports in (near, far)]
        yield from self._ports(path, index, (near, far), parts)
        yield from self._lengths(path, link, *([name for name, _, _ in each] for each in parts))

    def _ports(
        self, path: SpecPath, index: int, ends: tuple[list[str], list[str]], parts: list[list[tuple[str, str, str]]]
    ) -> Iterator[Finding]:
        """Each port takes one cable, and is there."""
        for key, ports, apart in zip(("ends", "to"), ends, parts, strict=True):
            fresh = dict.fromkeys(ports, index)
            twice = [] if len(fresh) == len(ports) else _twice(ports)
            taken = fresh.keys() & self._used.keys()
            if twice or taken:
                self._wrong = True
                port = min([*twice, *taken])
                more = f", as do {len(twice) + len(taken) - 1:,} more" if len(twice) + len(taken) > 1 else ""
                other: SpecPath | None = ("links", self._used[port]) if port in taken else None
                hint = "each port takes one cable: correct the pattern"
                yield Finding((*path, key), f"port {port} gets a second cable{more}", hint, other=other)
            self._used.update(fresh)
            for port, what, way in islice(self._unknown(apart), MOST_SAID):
                self._wrong = True
                yield Finding((*path, key), f"{port}: {what}", way, rests_on=_MACHINES)

    def _unknown(self, apart: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
        """Ports that are not there."""
        sku_of = self._sku_of
        fine: set[tuple[str, str]] = set()
        for name, slash, which in apart:
            sku = sku_of.get(name)
            if sku is None:
                yield name + slash + which, f"there is no machine {name}", "correct the pattern, or add the machine"
            elif (sku, which) not in fine:
                if ports := self._instead_of(sku, which):
                    yield name + slash + which, f"{name} is of SKU {sku}, with ports {ports}", "correct the port"
                else:
                    fine.add((sku, which))

    def _instead_of(self, name: str, which: str) -> str:
        """The ports that machines of the SKU have, where `which` is none of them; else an empty string."""
        sku = self._spec.skus.get(name)
        if sku is None or not (sku.ports or (sku.rails and which.startswith("rail"))):
            return ""
        number, most = (which, sku.ports) if sku.ports else (which[4:], sku.rails)
        if number.isdecimal() and 1 <= int(number) <= most:
            return ""
        return f"1 to {most}" if sku.ports else f"rail1 to rail{most}"

    def _lengths(self, path: SpecPath, link: Link, nears: list[str], fars: list[str]) -> Iterator[Finding]:
        reach_m = link.reach_m if link.reach_m is not None else REACH_M[link.cable]
        at: SpecPath = (*path, "length_m")
        if link.length_m > reach_m:
            message = f"a cable of kind {link.cable} and {link.length_m:g} m is longer than such cables reach, {reach_m:g} m"
            hint = "take another kind, or move the switch nearer"
            yield Finding(at, message, hint, rests_on=((*path, "cable"), (*path, "reach_m")))
        worst_m, worst = self._longest(nears, fars)
        if worst_m > link.length_m + 1e-9:
            short = f"{worst_m - link.length_m:.1f} m more than length_m"
            message = f"the way from {worst} takes {worst_m:.1f} m of cable, {short}"
            hint = "use longer cables or a nearer switch; the way follows x_m and y_m of the racks, their height, and 1 m more"
            yield Finding(at, message, hint, rests_on=_PLACES)

    def _longest(self, nears: list[str], fars: list[str]) -> tuple[float, str]:
        """The most metres that one of the cables needs, up, along, across and down, and from where to where."""
        worst_m, worst = 0.0, ("", "")
        place, above = self._place, self._above
        for one, other in zip(nears, fars, strict=True):
            here, there = place.get(one), place.get(other)
            if here is None or there is None:
                continue
            (a, a_unit), (b, b_unit) = here, there
            if a == b:
                needed_m = abs(a_unit - b_unit) * UNIT_M + OVERHEAD_M / 2
            else:
                if (a, b) not in above:
                    above[a, b] = self._above_m(a, b)
                needed_m = above[a, b] - (a_unit + b_unit) * UNIT_M
            if needed_m > worst_m:
                worst_m, worst = needed_m, (one, other)
        return worst_m, f"{worst[0]} to {worst[1]}"

    def _above_m(self, one: str, other: str) -> float:
        """The way between two racks, with both rises counted from the floor; below 0 where nobody can tell."""
        level_m, racks = self._between_m(one, other), self._spec.racks
        return -math.inf if level_m is None else level_m + (racks[one].units + racks[other].units) * UNIT_M + OVERHEAD_M

    def _between_m(self, one: str, other: str) -> float | None:
        a, b = self._spec.racks.get(one), self._spec.racks.get(other)
        if a is None or b is None or None in (a.x_m, a.y_m, b.x_m, b.y_m):
            return None
        return abs((a.x_m or 0.0) - (b.x_m or 0.0)) + abs((a.y_m or 0.0) - (b.y_m or 0.0))

    def rails(self) -> Iterator[Finding]:
        """Every rail port of every machine has its cable, once links are given at all."""
        if self._wrong:
            return
        missing: defaultdict[str, list[str]] = defaultdict(list)
        first: dict[str, SpecPath] = {}
        for index, node in enumerate(self._spec.nodes):
            rails = self._spec.skus[node.sku].rails if node.sku in self._spec.skus else 0
            for rail in range(1, rails + 1):
                port = f"{node.name}/rail{rail}"
                if port not in self._used:
                    missing[node.sku].append(port)
                    first.setdefault(node.sku, ("nodes", index, "name"))
        for sku, ports in missing.items():
            more = f" and {len(ports) - 1:,} more" if len(ports) > 1 else ""
            message = f"{ports[0]}{more} of SKU {sku} {'have' if more else 'has'} no cable"
            hint = "add them to `links`, or correct `rails` of the SKU"
            yield Finding(first[sku], message, hint, rests_on=(("links",), ("skus", sku, "rails")))


def _twice(ports: list[str]) -> list[str]:
    seen: set[str] = set()
    again = []
    for port in ports:
        if port in seen:
            again.append(port)
        seen.add(port)
    return again


def _rail_subnets(spec: ClusterSpec) -> Iterator[Finding]:
    """As many rail subnets as rails, each with room for every node; no network inside another."""
    subnets, here = spec.subnets, ("subnets",)
    given: list[tuple[SpecPath, str]] = [((*here, "bmc"), subnets.bmc), ((*here, "management"), subnets.management)]
    given += [((*here, "storage"), subnets.storage)] if subnets.storage is not None else []
    given += [((*here, "rails", index), text) for index, text in enumerate(subnets.rails)]
    networks = []
    for path, text in given:
        try:
            networks.append((path, text, ip_network(text)))
        except ValueError as error:
            if path[1] not in ("bmc", "management"):  # those two are checked with the addresses
                yield Finding(path, f"{text} is no network: {error}", "write one in CIDR form such as 10.1.0.0/16")
    for index, (path, text, network) in enumerate(networks):
        for other_path, other_text, other in networks[:index]:
            if network.version == other.version and network.overlaps(other) and path[1] not in ("bmc", "management"):
                yield Finding(path, f"{text} overlaps {other_text}", "give every network its own addresses", other=other_path)
        room = network.num_addresses - 2
        if path[1] == "rails" and room < len(spec.nodes):
            message = f"{text} has room for {max(room, 0):,} of {len(spec.nodes):,} nodes"
            yield Finding(path, message, "use a shorter prefix", rests_on=(("nodes",),))
    most = max((sku.rails for sku in spec.skus.values()), default=0)
    if subnets.rails and len(subnets.rails) != most:
        message = f"there are {len(subnets.rails)} subnets for {most} rails"
        yield Finding((*here, "rails"), message, "give one for each rail", rests_on=(("skus", "*", "rails"),))
