"""The power tree: what hangs below what, and how much each part may carry. Pure.

Loads are three numbers, the watts on each phase: on phase-to-neutral legs where supplies hang in wye, on the pairs 1-2, 2-3, 3-1
where they hang in delta. A three-phase breaker of A amperes at V volts between phases carries √3·V·A·derating watts when its
phases are equal; what trips it is the current of its fullest line, so that is what is compared. Feeds are the roots.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.domain.spec import ClusterSpec, SpecPath
from orchestrator.domain.spec_power import Power, PowerElement

Watts3 = tuple[float, float, float]
"""Watts on each of three phases (or pairs of phases)."""
NOTHING: Watts3 = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Part:
    """A feed, or an element of the tree, with its limits worked out."""

    name: str
    kind: str
    fed_by: str | None
    """None for a feed."""
    backup: str | None
    limit_w: float | None
    """Balanced continuous load it may carry, in watts; None where nothing is said."""
    is_delta: bool = False
    is_single: bool = False
    phase: int | None = None
    is_breaker: bool = False
    """Whether the limit comes from a breaker, whose fullest phase counts."""

    @property
    def path(self) -> SpecPath:
        """Where the spec says its limit."""
        if self.fed_by is None:
            return ("feeds", self.name, "limit_w")
        return ("power", "elements", self.name, "breaker_a" if self.is_breaker else "limit_w")

    def effective_w(self, load: Watts3) -> float:
        """The balanced load, in watts, that is as hard on this part as `load`: three times its fullest phase."""
        if self.is_single or not self.is_breaker:
            return sum(load)
        if not self.is_delta:
            return 3 * max(load)
        pair_12, pair_23, pair_31 = load
        lines = ((pair_12, pair_31), (pair_23, pair_12), (pair_31, pair_23))
        # Two pair currents meet in a line at 60 degrees; with equal pairs this is √3 times one of them.
        return math.sqrt(3) * max(math.sqrt(a * a + b * b + a * b) for a, b in lines)

    def ratio(self, load: Watts3) -> float:
        """Load as a share of the limit; 0 where there is none."""
        return self.effective_w(load) / self.limit_w if self.limit_w else 0.0

    def seen_above(self, load: Watts3) -> Watts3:
        """`load` as the legs of what feeds this part carry it."""
        total = sum(load)
        if self.is_single:
            if self.phase is None:
                return (total / 3,) * 3
            return (total if self.phase == 1 else 0.0, total if self.phase == 2 else 0.0, total if self.phase == 3 else 0.0)
        if self.is_delta:
            pair_12, pair_23, pair_31 = load
            return ((pair_12 + pair_31) / 2, (pair_12 + pair_23) / 2, (pair_23 + pair_31) / 2)
        return load


def breaker_limit_w(voltage_v: float, breaker_a: float, phases: int, derating: float, power_factor: float = 1.0) -> float:
    """Continuous watts behind a breaker: √3·V·A·derating·pf for three phases (V between two phases), V·A·derating·pf for one."""
    return (math.sqrt(3) if phases == 3 else 1.0) * voltage_v * breaker_a * derating * power_factor


def part_of(name: str, element: PowerElement, power: Power) -> Part:
    """The element called `name`, with its limit in watts."""
    limits: list[float] = [] if element.limit_w is None else [element.limit_w]
    from_breaker = None
    if element.breaker_a is not None and element.voltage_v is not None:
        derating = element.derating if element.derating is not None else power.derating
        from_breaker = breaker_limit_w(element.voltage_v, element.breaker_a, element.phases, derating, power.power_factor)
        limits.append(from_breaker)
    limit_w = min(limits) if limits else None
    return Part(
        name,
        element.kind,
        element.fed_by,
        element.backup,
        limit_w,
        is_delta=element.connection == "delta" and element.phases == 3,
        is_single=element.phases == 1,
        phase=element.phase,
        is_breaker=from_breaker is not None and from_breaker == limit_w,
    )


class PowerTree:
    """The parts of one spec, and who feeds whom. Only for a tree without `tree_troubles`."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.parts: dict[str, Part] = {name: Part(name, "feed", None, None, feed.limit_w) for name, feed in spec.feeds.items()}
        if spec.power is not None:
            self.parts |= {name: part_of(name, element, spec.power) for name, element in spec.power.elements.items()}
        self.below: dict[str, list[str]] = {name: [] for name in self.parts}
        for part in self.parts.values():
            if part.fed_by is not None:
                self.below[part.fed_by].append(part.name)
        self.rank = _ranks(self.parts)

    def upwards(self) -> list[str]:
        """Every part, each before what feeds it."""
        return sorted(self.parts, key=lambda name: -self.rank[name])

    def subtree(self, name: str) -> Iterator[str]:
        """`name` and everything fed by it, from the top down."""
        stack = [name]
        while stack:
            one = stack.pop()
            yield one
            stack.extend(reversed(self.below[one]))


def loops(edges: dict[str, tuple[str, ...]]) -> list[str]:
    """The names of one circle in `edges` (name → the names above it), first name last again; empty where there is none."""
    done: set[str] = set()
    for start in edges:
        trail: dict[str, Iterator[str]] = {}
        name: str | None = None if start in done else start
        while name is not None:
            if name not in trail:
                trail[name] = iter(edges.get(name, ()))
            following = next((each for each in trail[name] if each not in done), None)
            if following is None:
                done.add(name)
                trail.pop(name)
                name = next(reversed(trail), None)
            elif following in trail:
                names = list(trail)
                return [*names[names.index(following) :], following]
            else:
                name = following
    return []


def _ranks(parts: dict[str, Part]) -> dict[str, int]:
    """How many steps each part stands below the furthest feed, whichever way it is fed."""
    rank: dict[str, int] = {}
    for start in parts:
        stack = [start]
        while stack:
            part = parts[stack[-1]]
            above = [name for name in (part.fed_by, part.backup) if name is not None]
            missing = [name for name in above if name not in rank]
            if missing:
                stack.extend(missing)
                continue
            rank[stack.pop()] = 1 + max((rank[name] for name in above), default=-1)
    return rank


def added(loads: Iterable[Watts3]) -> Watts3:
    """The sum of several loads."""
    first = second = third = 0.0
    for load in loads:
        first, second, third = first + load[0], second + load[1], third + load[2]
    return (first, second, third)
