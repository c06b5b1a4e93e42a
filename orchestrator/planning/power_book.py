"""Watts reserved per rack and feed, kept up to date record by record: what a power-on is admitted against."""

from collections.abc import Mapping

from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import Action
from orchestrator.planning.site import Site


class PowerBook:
    """Watts reserved per rack and feed: the largest draw of every node that is on, or about to be."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._rack_w: dict[str, float] = {}
        self._feed_w: dict[str, float] = {}
        self._charged: set[str] = set()

    @staticmethod
    def of(nodes: Mapping[str, NodeRecord], site: Site) -> "PowerBook":
        """The book as the records stand."""
        book = PowerBook(site)
        for record in nodes.values():
            book.follow(record)
        return book

    def follow(self, record: NodeRecord) -> None:
        """The node's record has changed: reserve its watts, or give them back."""
        if record.name not in self._site.nodes:
            return
        if draws(record):
            self.charge(record.name)
        else:
            self.release(record.name)

    def charge(self, name: str) -> None:
        """Reserve the node's largest draw, once."""
        if name in self._charged:
            return
        self._charged.add(name)
        watts, rack, feed = self._site.sku(name).max_w, self._site.nodes[name].rack, self._site.rack(name).feed
        self._rack_w[rack] = self._rack_w.get(rack, 0.0) + watts
        self._feed_w[feed] = self._feed_w.get(feed, 0.0) + watts

    def release(self, name: str) -> None:
        """Give the node's reservation back, if it has one."""
        if name not in self._charged:
            return
        self._charged.discard(name)
        watts, rack = self._site.sku(name).max_w, self._site.nodes[name].rack
        self._rack_w[rack] -= watts
        self._feed_w[self._site.rack(name).feed] -= watts

    def short_for(self, name: str) -> str:
        """Why the node may not be powered on now, or an empty string."""
        if name in self._charged:
            return ""
        watts, rack_name = self._site.sku(name).max_w, self._site.nodes[name].rack
        rack = self._site.rack(name)
        feed = self._site.spec.feeds[rack.feed]
        for kind, key, used_w, limit_w in (
            ("rack", rack_name, self._rack_w.get(rack_name, 0.0), rack.limit_w),
            ("feed", rack.feed, self._feed_w.get(rack.feed, 0.0), feed.limit_w),
        ):
            if used_w + watts > limit_w:
                return f"{kind} {key} would carry {used_w + watts:.0f} W of {limit_w:.0f} W"
        return ""


def draws(record: NodeRecord) -> bool:
    """Whether the node must be reckoned as drawing power: unless its BMC said Off after the last power command, it is."""
    if record.fact_at_s(Action.BMC_POWER) > 0 or (record.open is not None and record.open.action is Action.BMC_POWER):
        return True
    seen = record.fact(Action.BMC_OBSERVE)
    if seen is not None:
        return bool(seen["power"] != "Off")
    return record.state not in (NodeState.ENROLLED, NodeState.IDENTIFIED, NodeState.CREDENTIALED, NodeState.RETIRED)
