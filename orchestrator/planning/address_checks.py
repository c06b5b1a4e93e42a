"""Are a spec's addresses written in their one canonical form, inside their subnets, and each given to one thing only? Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from orchestrator.domain.spec import ClusterSpec, Finding, SpecPath

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class _Use:
    """One place where a spec gives an address to something."""

    path: SpecPath
    owner: str
    """As it is said in a sentence: `the BMC of nodes[2] (r02-n1)`."""
    text: str


def check_subnets(spec: ClusterSpec) -> Iterator[Finding]:
    """Every subnet is a network in canonical CIDR form."""
    for field, text in (("bmc", spec.subnets.bmc), ("management", spec.subnets.management)):
        wrong = _network_trouble(text)
        if wrong:
            yield Finding(("subnets", field), f"subnets.{field} is {text}, {wrong[0]}", wrong[1])


def check_addresses(spec: ClusterSpec) -> Iterator[Finding]:
    """Every address is canonical, usable, inside its subnet, and used once."""
    subnets = {"bmc": _network(spec.subnets.bmc), "address": _network(spec.subnets.management)}
    named = {"bmc": "bmc", "address": "management"}
    holders: dict[str, _Use] = {}
    for index, node in enumerate(spec.nodes):
        label = f"nodes[{index}] ({node.name})"
        for field, owner, text in (("bmc", f"the BMC of {label}", node.bmc), ("address", label, node.address)):
            use = _Use(("nodes", index, field), owner, text)
            address = _parsed(text)
            wrong = _address_trouble(text, address)
            if wrong:
                yield Finding(use.path, f"{owner} has the address {text}, {wrong[0]}", wrong[1])
            network = subnets[field]
            if address is not None and network is not None:
                yield from _outside(use, _plain(address), network, named[field])
            if address is not None:
                yield from _given_twice(use, holders.setdefault(str(_plain(address)), use))
    for index, item in enumerate(spec.equipment):
        if item.bmc is not None:
            use = _Use(("equipment", index, "bmc"), f"the BMC of equipment[{index}] ({item.name})", item.bmc)
            address = _parsed(item.bmc)
            wrong = _address_trouble(item.bmc, address)
            if wrong:
                yield Finding(use.path, f"{use.owner} has the address {item.bmc}, {wrong[0]}", wrong[1])
            if address is not None:
                if subnets["bmc"] is not None:
                    yield from _outside(use, _plain(address), subnets["bmc"], "bmc")
                yield from _given_twice(use, holders.setdefault(str(_plain(address)), use))


def check_heads(spec: ClusterSpec) -> Iterator[Finding]:
    """The Ray heads have canonical addresses, none of them a node's or a BMC's, and never share address and port."""
    holders = {
        node.bmc: _Use(("nodes", i, "bmc"), f"the BMC of nodes[{i}] ({node.name})", node.bmc) for i, node in enumerate(spec.nodes)
    }
    holders |= {
        node.address: _Use(("nodes", i, "address"), f"nodes[{i}] ({node.name})", node.address)
        for i, node in enumerate(spec.nodes)
    }
    for name, head in (("cell", spec.cell), ("management", spec.management)):
        path: SpecPath = (name, "address")
        wrong = _address_trouble(head.address, _parsed(head.address))
        if wrong:
            yield Finding(path, f"the {name} head has the address {head.address}, {wrong[0]}", wrong[1])
        elif head.address in holders:
            holder = holders[head.address]
            message = f"the {name} head has the address {head.address}, also that of {holder.owner}"
            yield Finding(path, message, "a head runs on a controller host: name that host's address", other=holder.path)
    if (spec.cell.address, spec.cell.port) == (spec.management.address, spec.management.port):
        message = f"the management head listens on {spec.management.address} port {spec.management.port}, as does the cell's"
        rests_on: tuple[SpecPath, ...] = (("management", "address"), ("cell", "address"), ("cell", "port"))
        yield Finding(
            ("management", "port"),
            message,
            "the two Ray clusters are kept apart: give one another port",
            other=("cell",),
            rests_on=rests_on,
        )


def _given_twice(use: _Use, holder: _Use) -> Iterator[Finding]:
    if holder is use:
        return
    if holder.path[:2] == use.path[:2]:
        message = f"{use.owner} has the address {use.text}, also that of its BMC"
        hint = "a BMC and its machine are two hosts: read the BMC's address from the machine's console or the DHCP leases"
    else:
        message = f"{use.owner} has the address {use.text}, also that of {holder.owner}"
        hint = "give one of the two another address"
    yield Finding(use.path, message, hint, other=holder.path)


def _outside(use: _Use, address: Ip, network: Network, name: str) -> Iterator[Finding]:
    rests_on: tuple[SpecPath, ...] = (("subnets", name),)
    if address not in network:
        message = f"{use.owner} has the address {use.text}, outside subnets.{name} {network}"
        hint = f"use one from {_first(network)} to {_last(network)}, or correct the subnet"
        yield Finding(use.path, message, hint, rests_on=rests_on)
    elif address == network.network_address and _has_reserved(network):
        message = f"{use.owner} has the address {use.text}, the network address of subnets.{name} {network}"
        yield Finding(use.path, message, f"use one from {_first(network)} to {_last(network)}", rests_on=rests_on)
    elif address == network.broadcast_address and _has_reserved(network) and network.version == 4:
        message = f"{use.owner} has the address {use.text}, the broadcast address of subnets.{name} {network}"
        yield Finding(use.path, message, f"use one from {_first(network)} to {_last(network)}", rests_on=rests_on)


def _has_reserved(network: Network) -> bool:
    """Point-to-point and single-host networks reserve no address (RFC 3021, RFC 6164)."""
    return network.max_prefixlen - network.prefixlen >= 2


def _first(network: Network) -> Ip:
    return network.network_address + 1 if _has_reserved(network) else network.network_address


def _last(network: Network) -> Ip:
    return network.broadcast_address - 1 if _has_reserved(network) and network.version == 4 else network.broadcast_address


def _address_trouble(text: str, address: Ip | None) -> tuple[str, str] | None:
    """What is wrong with an address by itself, and the way out."""
    if address is None:
        return _unreadable(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4 address dressed as IPv6", f"write {address.ipv4_mapped}"
    if str(address) != text:
        return "not in its canonical form", f"write {address}"
    if address.is_unspecified or address.is_multicast or text == "255.255.255.255":
        return "which is no single host's", "write the address of the host itself"
    return None


def _unreadable(text: str) -> tuple[str, str]:
    parts = text.split(".")
    bare = ".".join(part.lstrip("0") or "0" for part in parts)
    if len(parts) == 4 and text.isascii() and bare != text and _parsed(bare) is not None:
        return "with a leading zero, which some systems read as octal", f"write {bare}"
    if "/" in text:
        return "which has a prefix length", f"write {text.partition('/')[0]} alone"
    if text.count(".") == 3 and text.count(":") == 1:
        return "which has a port", f"write {text.partition(':')[0]} alone"
    return "which is no IPv4 or IPv6 address", "write one such as 10.1.2.3 or fd00::1; host names are not resolved"


def _network_trouble(text: str) -> tuple[str, str] | None:
    if "/" not in text:
        return "without a prefix length", f"write {text}/16, or whatever its length is"
    try:
        loose = ip_network(text, strict=False)
    except ValueError:
        return "which is no network", "write one in CIDR form such as 10.1.0.0/16"
    if str(loose) != text:
        return "not the canonical form of a network", f"write {loose}"
    return None


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _parsed(text: str) -> Ip | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _plain(address: Ip) -> Ip:
    """The host itself, however its address is dressed."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
