"""Are the cables possible: ports that exist, each once; rails complete; lengths that reach and that exist. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from itertools import islice

from orchestrator.domain.pattern import Pattern, PatternError
from orchestrator.domain.spec import ClusterSpec, Finding, SpecPath
from orchestrator.domain.spec_network import Link
from orchestrator.planning.rack_checks import Machine, machines

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
        self._machines: dict[str, Machine] = {machine.name: machine for _, machine in machines(spec)}
        self._used: dict[str, int] = {}
        """Port → index of the link that takes it."""
        self._wrong = False
        self._far: dict[tuple[str, str], float | None] = {}

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
        yield from self._ports(path, index, near, far)
        yield from self._lengths(path, link, near, far)

    def _ports(self, path: SpecPath, index: int, near: list[str], far: list[str]) -> Iterator[Finding]:
        """Each port takes one cable, and is there."""
        for key, ports in (("ends", near), ("to", far)):
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
            for port, what, way in islice(self._unknown(ports), MOST_SAID):
                self._wrong = True
                yield Finding((*path, key), f"{port}: {what}", way, rests_on=_MACHINES)

    def _unknown(self, ports: list[str]) -> Iterator[tuple[str, str, str]]:
        """Ports that are not there."""
        spec, found = self._spec, self._machines
        for port in ports:
            name, _, which = port.partition("/")
            machine = found.get(name)
            if machine is None:
                yield port, f"there is no machine {name}", "correct the pattern, or add the machine"
                continue
            sku = spec.skus.get(machine.sku)
            if sku is None or not (sku.ports or (sku.rails and which.startswith("rail"))):
                continue
            if sku.ports:
                if not which.isdecimal() or not 1 <= int(which) <= sku.ports:
                    yield port, f"{name} is of SKU {machine.sku}, with ports 1 to {sku.ports}", "correct the port"
            elif not which[4:].isdecimal() or not 1 <= int(which[4:]) <= sku.rails:
                yield port, f"{name} is of SKU {machine.sku}, with ports rail1 to rail{sku.rails}", "correct the port"

    def _lengths(self, path: SpecPath, link: Link, near: list[str], far: list[str]) -> Iterator[Finding]:
        reach_m = link.reach_m if link.reach_m is not None else REACH_M[link.cable]
        at: SpecPath = (*path, "length_m")
        if link.length_m > reach_m:
            message = f"a cable of kind {link.cable} and {link.length_m:g} m is longer than such cables reach, {reach_m:g} m"
            hint = "take another kind, or move the switch nearer"
            yield Finding(at, message, hint, rests_on=((*path, "cable"), (*path, "reach_m")))
        worst_m, worst = 0.0, ""
        # Machines repeat for every port; each pair is measured once.
        nears, fars = ((port.partition("/")[0] for port in ports) for ports in (near, far))
        for one, other in dict.fromkeys(zip(nears, fars, strict=True)):
            needed_m = self._needed_m(one, other)
            if needed_m is not None and needed_m > worst_m:
                worst_m, worst = needed_m, f"{one} to {other}"
        if worst_m > link.length_m + 1e-9:
            short = f"{worst_m - link.length_m:.1f} m more than length_m"
            message = f"the way from {worst} takes {worst_m:.1f} m of cable, {short}"
            hint = "use longer cables or a nearer switch; the way follows x_m and y_m of the racks, their height, and 1 m more"
            yield Finding(at, message, hint, rests_on=_PLACES)

    def _needed_m(self, one: str, other: str) -> float | None:
        """Metres of cable from one machine to another, up, along and across the room, and down; None where nobody can tell."""
        a, b = self._machines.get(one), self._machines.get(other)
        if a is None or b is None:
            return None
        if a.rack == b.rack:
            return abs(a.unit - b.unit) * UNIT_M + OVERHEAD_M / 2
        key = (a.rack, b.rack)
        if key not in self._far:
            self._far[key] = self._between_m(*key)
        level = self._far[key]
        if level is None:
            return None
        racks = self._spec.racks
        return level + (racks[a.rack].units - a.unit + racks[b.rack].units - b.unit) * UNIT_M + OVERHEAD_M

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
