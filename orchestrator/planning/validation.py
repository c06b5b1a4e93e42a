"""What no single field of a spec can show: references, uniqueness, room and power. Pure; `check_spec` finds everything at once.

Addresses have their own file, `address_checks.py`. A check may meet stand-ins for wrong values (see `Finding.rests_on`), so it
looks things up with care and raises nothing.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator

from orchestrator.domain.spec import UNKNOWN_MAC, ClusterSpec, Finding, SpecPath
from orchestrator.domain.words import counted
from orchestrator.planning.address_checks import check_addresses, check_heads, check_subnets
from orchestrator.planning.link_checks import check_links
from orchestrator.planning.power_checks import check_power
from orchestrator.planning.power_tree_checks import check_power_tree
from orchestrator.planning.rack_checks import Machine, check_racks, label, machines

MOST_COMPARED = 8_000
"""Names compared to find the one that was meant. Comparing is slow; where thousands are wrong a few suggestions say it all."""


def check_spec(spec: ClusterSpec) -> list[Finding]:
    """Everything wrong with `spec` beyond its single fields, in the order of the checks below."""
    return [finding for check in _CHECKS for finding in check(spec)]


def _references(spec: ClusterSpec) -> Iterator[Finding]:
    racks, skus, feeds = (
        _Known(section, known) for section, known in (("racks", spec.racks), ("skus", spec.skus), ("feeds", spec.feeds))
    )
    for name, rack in spec.racks.items():
        yield from feeds.lacks(("racks", name, "feed"), f"rack {name} hangs on feed", rack.feed)
    for path, machine in machines(spec):
        yield from racks.lacks((*path, "rack"), f"{label(path, machine)} stands in rack", machine.rack)
        yield from skus.lacks((*path, "sku"), f"{label(path, machine)} is of SKU", machine.sku)
    for sku in spec.firmware:
        yield from skus.lacks(("firmware", sku), "a firmware baseline is given for SKU", sku)


class _Known:
    """The names of one section, and what to say about a name that is not among them."""

    def __init__(self, section: str, names: Iterable[str]) -> None:
        self._section = section
        self._names = dict.fromkeys(names)
        self._hints: dict[str, str] = {}

    def lacks(self, path: SpecPath, what: str, name: str, rests_on: tuple[SpecPath, ...] = ()) -> Iterator[Finding]:
        if name not in self._names:
            message = f"{what} {name}, which `{self._section}` does not have"
            yield Finding(path, message, self._instead(name), rests_on=((self._section,), *rests_on))

    def _instead(self, name: str) -> str:
        if name not in self._hints and len(self._hints) * len(self._names) < MOST_COMPARED:
            self._hints[name] = self._suggest(name)
        return self._hints.get(name, f"add {name} to `{self._section}`")

    def _suggest(self, name: str) -> str:
        names = list(self._names)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        if close:
            return f"did you mean {close[0]}? Otherwise add {name} to `{self._section}`"
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"add {name} to `{self._section}`" + (f", or use one of: {listed}" if names else "")


def _names(spec: ClusterSpec) -> Iterator[Finding]:
    """Names differ by more than upper and lower case: host names and labels do not tell case apart."""
    first: dict[str, tuple[SpecPath, Machine]] = {}
    for path, machine in machines(spec):
        before, other_machine = first.setdefault(machine.name.lower(), (path, machine))
        if before is not path:
            same = other_machine.name == machine.name
            how = "is also that of" if same else "differs only in upper and lower case from that of"
            text = f"the name {machine.name} {how} {label(before, other_machine)}"
            yield _twice((*path, "name"), (*before, "name"), text)
    for section, names in (("skus", spec.skus), ("feeds", spec.feeds), ("racks", spec.racks)):
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.lower(), name)
            if other != name:
                yield _twice((section, name), (section, other), f"{name} differs only in upper and lower case from {other}")


def _serials_and_macs(spec: ClusterSpec) -> Iterator[Finding]:
    for field, what, ignored in (("serial", "the serial", ""), ("mac", "the MAC", UNKNOWN_MAC)):
        first: dict[str, tuple[SpecPath, Machine]] = {}
        for path, machine in machines(spec):
            value = getattr(machine, field)
            before, other = first.setdefault(value, (path, machine))
            if value != ignored and before is not path:
                text = f"{what} {value} is also that of {label(before, other)}"
                hint = "each machine has its own: read it from its plate or BMC"
                yield _twice((*path, field), (*before, field), text, hint)
    for path, machine in machines(spec):
        if machine.mac[1:2] in tuple("13579bdf"):
            message = f"{label(path, machine)} has the MAC {machine.mac}, a group address that no port has"
            yield Finding((*path, "mac"), message, "read it from the port it boots from; its second digit is even")


def _twice(path: SpecPath, other: SpecPath, message: str, hint: str = "rename one of the two") -> Finding:
    return Finding(path, message, hint, other=other)


def _firmware(spec: ClusterSpec) -> Iterator[Finding]:
    for sku, components in spec.firmware.items():
        for name, component in components.items():
            path: SpecPath = ("firmware", sku, name)
            stripped = [version.strip() for version in component.approved]
            for index, version in enumerate(stripped):
                if not version:
                    yield Finding(
                        (*path, "approved", index), f"an approved version of {name} is blank", "write the version, or remove it"
                    )
                elif version in stripped[:index]:
                    yield Finding(
                        (*path, "approved", index), f"version {version} of {name} is approved twice", "remove one of the two"
                    )
            yield from _climbing((*path, "image"), component.image)


def _paths(spec: ClusterSpec) -> Iterator[Finding]:
    yield from _climbing(("runtime", "python"), spec.runtime.python)
    yield from _climbing(("runtime", "shared_directory"), spec.runtime.shared_directory)


def _climbing(path: SpecPath, value: str) -> Iterator[Finding]:
    if {".", ".."} & set(value.split("/")):
        yield Finding(path, f"{path[-1]} is {value}, a path with . or .. in it", "write the path it leads to")


def _access(spec: ClusterSpec) -> Iterator[Finding]:
    if spec.access.ssh_user == "root":
        yield Finding(("access", "ssh_user"), "ssh_user is root", "name an unprivileged user with passwordless sudo")


def _rollout(spec: ClusterSpec) -> Iterator[Finding]:
    canary, most = spec.rollout.canary, spec.rollout.max_in_flight
    if canary > most:
        message = f"the first wave has {counted(canary, 'node')}, but at most {most} are worked on at once"
        yield Finding(("rollout", "canary"), message, f"set canary to {most} or less", rests_on=(("rollout", "max_in_flight"),))


def _pairs(spec: ClusterSpec) -> Iterator[Finding]:
    halves: dict[str, list[tuple[SpecPath, Machine]]] = {}
    for path, machine in machines(spec):
        if machine.pair is not None:
            halves.setdefault(machine.pair, []).append((path, machine))
    for pair, ((path, machine), *others) in halves.items():
        if not others:
            message = f"{machine.name} is the only machine of the redundancy pair {pair}"
            yield Finding((*path, "pair"), message, "name the same pair at what takes over for it, or leave `pair` out")


def _lab(spec: ClusterSpec) -> Iterator[Finding]:
    nodes = {machine.name: machine for machine in spec.managed()}
    known = _Known("nodes", nodes)
    for index, fault in enumerate(spec.lab.plant if spec.lab is not None else ()):
        path: SpecPath = ("lab", "plant", index)
        node = nodes.get(fault.node)
        if node is None:
            yield from known.lacks(
                (*path, "node"), f"the fault {fault.fault} is planted in", fault.node, (("nodes", "*", "name"),)
            )
        elif fault.gpu is not None and node.sku in spec.skus and fault.gpu >= spec.skus[node.sku].gpus.count:
            gpus = spec.skus[node.sku].gpus.count
            message = f"the fault {fault.fault} hits GPU {fault.gpu} of {fault.node}, which has {counted(gpus, 'GPU')}"
            hint = f"GPUs count from 0 to {gpus - 1}" if gpus else "remove the fault, or choose a node with GPUs"
            yield Finding((*path, "gpu"), message, hint, rests_on=(("skus", node.sku, "gpus", "count"), (*path, "node")))


_CHECKS: tuple[Callable[[ClusterSpec], Iterable[Finding]], ...] = (
    _references,
    _names,
    _serials_and_macs,
    check_subnets,
    check_addresses,
    check_heads,
    check_racks,
    check_power,
    check_power_tree,
    check_links,
    _firmware,
    _paths,
    _access,
    _rollout,
    _pairs,
    _lab,
)
