"""Which parts of the power tree carry a node, and how much of it: as things are, and with any one feed lost.

Working supplies share a machine's draw equally (those of the rack's power shelves where it hangs on a busbar); each goes up its
PDU, busway and UPS to a feed. When a feed is lost, the supplies below it fall silent (unless a transfer switch goes over to
`backup`) and the others carry all. Where a rack may throttle or lose its machines on a feed loss, that loss is no reason to wait:
it is counted as things are. Watts are compared balanced over phases.
"""

from collections.abc import Mapping

from orchestrator.domain.spec import Machine
from orchestrator.planning.power_racks import cords_of
from orchestrator.planning.power_tree import Part, PowerTree
from orchestrator.planning.site import Site

Key = tuple[str, str, str]
"""(the feed that is lost or "", kind of the part, its name)."""


class PowerPaths:
    """Shares of a node's draw per part, worked out once per kind of node and rack."""

    def __init__(self, site: Site) -> None:
        self._site, self._spec = site, site.spec
        self._tree = PowerTree(site.spec) if site.spec.power is not None else None
        self._known: dict[tuple[str, str, tuple[int, ...]], Mapping[Key, float]] = {}
        self._machines: dict[str, Machine] = {**site.nodes, **{item.name: item for item in site.spec.equipment}}
        self._busbars: dict[str, list[int]] = {}
        """Rack → the PDUs (from 1) that its power shelves are plugged into, one for each of their supplies."""
        for item in site.spec.equipment:
            if site.spec.skus[item.sku].kind == "power-shelf":
                cords = cords_of(site.spec, item, len(site.spec.racks[item.rack].pdus))
                self._busbars.setdefault(item.rack, []).extend(cords)

    def shares(self, name: str) -> Mapping[Key, float]:
        """Share of the machine's draw on each part, in each case."""
        machine = self._machines[name]
        key = (machine.rack, machine.sku, machine.cords)
        if key not in self._known:
            self._known[key] = self._shares(machine)
        return self._known[key]

    def limit_w(self, key: Key) -> float:
        """Watts the part may carry; inf where the spec says nothing."""
        _, kind, name = key
        if kind == "rack":
            return self._spec.racks[name].limit_w
        if self._tree is None:
            return self._spec.feeds[name].limit_w
        limit_w = self._tree.parts[name].limit_w
        return float("inf") if limit_w is None else limit_w

    def _shares(self, machine: Machine) -> Mapping[Key, float]:
        rack = self._spec.racks[machine.rack]
        found: dict[Key, float] = {("", "rack", machine.rack): 1.0}
        cords = cords_of(self._spec, machine, len(rack.pdus)) if self._tree is not None and rack.pdus else ()
        if self._spec.skus[machine.sku].supplies is None:
            cords = tuple(self._busbars.get(machine.rack, ()))
        pdus = [rack.pdus[cord - 1] for cord in cords if cord <= len(rack.pdus)]
        if self._tree is None or not pdus:
            found["", "feed", rack.feed] = 1.0
            return found
        default = self._spec.power.on_feed_loss if self._spec.power is not None else "survive"
        must_survive = (rack.on_feed_loss or default) == "survive"
        as_it_is = [path for pdu in pdus if (path := self._path(self._tree, pdu, "")) is not None]
        for lost in ("", *self._spec.feeds):
            paths = [path for pdu in pdus if (path := self._path(self._tree, pdu, lost if must_survive else "")) is not None]
            for path in paths or as_it_is:
                for part in path:
                    key = (lost, part.kind, part.name)
                    found[key] = found.get(key, 0.0) + 1.0 / len(paths or as_it_is)
        return found

    def _path(self, tree: PowerTree, pdu: str, lost: str) -> list[Part] | None:
        """The parts from a PDU up to its feed with the feed `lost` gone; None where no way up is left."""
        part = tree.parts[pdu]
        if part.name == lost:
            return None
        if part.fed_by is None:
            return [part]
        for above in (part.fed_by, part.backup):
            if above is not None and (path := self._path(tree, above, lost)) is not None:
                return [part, *path]
        return None
