"""Watts reserved per rack and part of the power tree, record by record: what power-on, firmware and burn-in are admitted against.

A node that draws is reckoned with its largest draw; one that is being powered on with `inrush_factor` times that, until
`inrush_s` after its BMC accepted the command. Equipment always counts. So the sum on every rack and feed holds at each instant,
whatever the node does.
"""

import heapq
from collections import Counter
from collections.abc import Mapping

from orchestrator.domain.node import NodeRecord, NodeState
from orchestrator.domain.operation import TIMEOUT_S, Action
from orchestrator.planning.power_paths import Key, PowerPaths
from orchestrator.planning.site import Site

FOREVER = float("inf")
Part = tuple[str, str]
"""What carries load: its kind ("rack", "feed", "pdu", ...) and its name."""


class PowerBook:
    """Watts reserved per rack, feed and element, as things are and with any one feed lost."""

    def __init__(self, site: Site) -> None:
        self._site, self._policy = site, site.spec.rollout
        self._paths = PowerPaths(site)
        self._used_w: dict[Key, float] = {}
        self._charged: set[str] = set()
        self._inrush_until_s: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []
        self._now_s = -FOREVER
        """When `expire` was last asked: inrush that had ended by then is over."""
        self._rushing: Counter[Key] = Counter()
        """Nodes that are powering on, per part and case."""
        for item in site.spec.equipment:
            # Nobody powers it on: it draws from the moment its rack has power.
            self._charged.add(item.name)
            self._add(item.name, site.spec.skus[item.sku].max_w)

    @staticmethod
    def of(nodes: Mapping[str, NodeRecord], site: Site) -> "PowerBook":
        """The book as the records stand."""
        book = PowerBook(site)
        for record in nodes.values():
            book.follow(record)
        return book

    def follow(self, record: NodeRecord) -> None:
        """The node's record has changed: reserve its watts, or give them back."""
        if record.name not in self._site.computes:
            return
        if draws(record):
            self.charge(record.name)
        else:
            self.release(record.name)
        until_s = inrush_until_s(record, self._policy.inrush_s)
        self._inrush(record.name, until_s if until_s > self._now_s else -FOREVER)

    def charge(self, name: str) -> None:
        """Reserve the node's largest draw, once."""
        if name not in self._charged:
            self._charged.add(name)
            self._add(name, self._site.sku(name).max_w)

    def release(self, name: str) -> None:
        """Give the node's reservation back, if it has one."""
        if name in self._charged:
            self._charged.discard(name)
            self._add(name, -self._site.sku(name).max_w)

    def power_on(self, name: str) -> None:
        """The node is about to be powered on: its largest draw, and its inrush until the answer says when that ends."""
        self.charge(name)
        self._inrush(name, FOREVER)

    def expire(self, now_s: float) -> None:
        """Give back the inrush of nodes that have been on long enough."""
        self._now_s = now_s
        while self._ends and self._ends[0][0] <= now_s:
            until_s, name = heapq.heappop(self._ends)
            if self._inrush_until_s.get(name) == until_s:
                self._inrush(name, -FOREVER)

    def load_w(self, part: Part, lost: str = "") -> float:
        """Watts reserved on a part; those it would carry with the feed `lost` gone, where one is named."""
        return self._used_w.get((lost, *part), 0.0)

    def limit_w(self, part: Part) -> float:
        """Watts a part may carry."""
        return self._paths.limit_w(("", *part))

    def short_for(self, name: str) -> str:
        """Why the node may not be powered on now, or an empty string."""
        largest_w = self._site.sku(name).max_w
        more_w = 0.0 if name in self._charged else largest_w
        if name not in self._inrush_until_s:
            more_w += self._inrush_w(name)
        return self._overload(name, more_w) if more_w else ""

    def over_for(self, name: str) -> str:
        """Why a node that is on may not be put under full load now (firmware, burn-in), or an empty string."""
        return self._overload(name, 0.0 if name in self._charged else self._site.sku(name).max_w)

    def _overload(self, name: str, more_w: float) -> str:
        for key, share in self._paths.shares(name).items():
            load_w, limit_w = self._used_w.get(key, 0.0) + share * more_w, self._paths.limit_w(key)
            if load_w > limit_w + 1e-6:
                lost, kind, part = key
                rushing = self._rushing[key]
                because = f", {rushing} nodes are powering on" if rushing else ""
                without = f" with feed {lost} lost" if lost else ""
                return f"{kind} {part} would carry {load_w:.0f} W of {limit_w:.0f} W{without}{because}"
        return ""

    def _inrush_w(self, name: str) -> float:
        return self._site.sku(name).max_w * (self._policy.inrush_factor - 1.0)

    def _inrush(self, name: str, until_s: float) -> None:
        rushing, rushes = name in self._inrush_until_s, until_s > -FOREVER
        if rushes != rushing:
            self._add(name, self._inrush_w(name) if rushes else -self._inrush_w(name))
            self._rushing.update(dict.fromkeys(self._paths.shares(name), 1 if rushes else -1))
        if rushes:
            is_news = self._inrush_until_s.get(name) != until_s
            self._inrush_until_s[name] = until_s
            if is_news and until_s < FOREVER:
                heapq.heappush(self._ends, (until_s, name))
        else:
            self._inrush_until_s.pop(name, None)

    def _add(self, name: str, watts: float) -> None:
        for key, share in self._paths.shares(name).items():
            self._used_w[key] = self._used_w.get(key, 0.0) + share * watts


def inrush_until_s(record: NodeRecord, inrush_s: float) -> float:
    """Until when the node counts as powering on: inf while the command is under way, -inf when it is not."""
    opened = record.open
    if opened is not None and opened.action is Action.BMC_POWER and opened.args.get("reset") == "On":
        return FOREVER
    lost = record.lost
    if lost is not None and lost.action is Action.BMC_POWER and lost.args.get("reset") == "On":
        return lost.at_s + TIMEOUT_S[Action.BMC_POWER] + inrush_s
    if (record.fact(Action.BMC_POWER) or {}).get("reset") == "On":
        return record.fact_at_s(Action.BMC_POWER) + inrush_s
    return -FOREVER


def draws(record: NodeRecord) -> bool:
    """Whether the node must be reckoned as drawing power: unless its BMC said Off after the last power command, it is."""
    if record.fact_at_s(Action.BMC_POWER) > 0:
        return True
    if any(operation is not None and operation.action is Action.BMC_POWER for operation in (record.open, record.lost)):
        return True
    looks = [record.facts[action] for action in (Action.BMC_IDENTIFY, Action.BMC_OBSERVE) if action in record.facts]
    said = [(look.at_s, look.values["power"]) for look in looks if look.values.get("power")]
    if said:
        return bool(max(said)[1] != "Off")
    if record.state is NodeState.IDENTIFIED:
        # Proving again, and nothing has been read yet: it has been on before.
        return bool(record.pins)
    return record.state not in (NodeState.ENROLLED, NodeState.CREDENTIALED, NodeState.RETIRED)
