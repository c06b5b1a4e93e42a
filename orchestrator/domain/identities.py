"""What a machine says of itself that no second machine may say, and which nodes say it: an index, kept up by the fold.

One GPU UUID on two nodes means that two addresses lead to one machine, or that a board was moved without a word; one SSH host key
on two nodes, that the image carries a key, so that pinning it proves nothing. Either is noticed at the cost of the report itself.
"""

import itertools
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.domain.node import IN_SERVICE, NodeRecord, NodeState
from orchestrator.domain.operation import Action

SAID_BY = frozenset({Action.NODE_PROBE, Action.IMAGE_REPORT})
"""The looks that identities come from."""
GIVEN_UP = frozenset({NodeState.QUARANTINED, NodeState.REPAIRING, NodeState.MAINTENANCE, NodeState.RETIRED})
"""A node in these states may be opened and its parts carried elsewhere: what it said before claims nothing."""
GPU_UUID, GPU_SERIAL, HOST_KEY = "GPU UUID", "GPU serial", "SSH host key"
_ONE_GPU = "one GPU cannot be in two nodes: do two addresses lead to one machine, or was a board moved from one to the other?"
WAYS_OUT: Mapping[str, str] = {
    GPU_UUID: _ONE_GPU,
    GPU_SERIAL: _ONE_GPU,
    HOST_KEY: "every node needs a key of its own: does the image bring one along, or do two addresses lead to one machine?",
}
NO_SERIAL = frozenset(
    {"n/a", "[n/a]", "na", "none", "null", "unknown", "not specified", "default string", "123456789", "0123456789"}
)
FILLERS = frozenset("- .:_")


@dataclass(frozen=True, slots=True)
class Twin:
    """Something that `other` has said before `name`."""

    kind: str
    value: str
    name: str
    other: str

    def __str__(self) -> str:
        shown = self.value if len(self.value) <= 60 else f"{self.value[:57]}..."
        return f"{self.name} and {self.other} both say {self.kind} {shown}, {self.other} first; {WAYS_OUT[self.kind]}"


Identity = tuple[str, str]
"""Its kind and its value."""


@dataclass
class IdentityBook:
    """Per identity, the node that said it first and those that said it later.

    `follow` is told of every record that may say something else than before. Its cost is that of what the record says, however
    many nodes say the same.
    """

    _first: dict[Identity, str] = field(default_factory=dict)
    _later: dict[Identity, dict[str, None]] = field(default_factory=dict)
    """Only of identities that several nodes say; in the order in which they said it."""
    _said: dict[str, tuple[Identity, ...]] = field(default_factory=dict)

    def follow(self, record: NodeRecord) -> None:
        """The node's record was replaced by this one."""
        said = () if record.state in GIVEN_UP else tuple(identities_of(record))
        before = self._said.get(record.name, ())
        if said != before:
            self._said[record.name] = said
            for identity in set(before) - set(said):
                self._take_back(identity, record.name)
            for identity in said:
                if self._first.setdefault(identity, record.name) != record.name:
                    self._later.setdefault(identity, {})[record.name] = None

    def follow_all(self, records: Iterable[NodeRecord]) -> None:
        """Records of a snapshot: who is in service said it first, then whoever was asked first."""

        def order(record: NodeRecord) -> tuple[bool, float, str]:
            return record.state not in IN_SERVICE, record.fact_at_s(Action.NODE_PROBE), record.name

        for record in sorted(records, key=order):
            self.follow(record)

    def twin_of(self, name: str, present: Container[str]) -> Twin | None:
        """What another node among `present` said before this one, or None."""
        if not self._later:
            return None
        for identity in self._said.get(name, ()):
            if name in self._later.get(identity, ()) and is_one(identity[1].removeprefix("GPU-")):
                holders = itertools.chain((self._first[identity],), self._later[identity])
                first = next((each for each in holders if each in present), name)
                if first != name:
                    return Twin(*identity, name, first)
        return None

    def _take_back(self, identity: Identity, name: str) -> None:
        later = self._later.get(identity, {})
        if self._first[identity] != name:
            del later[name]
        elif later:
            self._first[identity] = heir = next(iter(later))
            del later[heir]
        else:
            del self._first[identity]
        if not later:
            self._later.pop(identity, None)


def identities_of(record: NodeRecord) -> list[Identity]:
    """Everything the node has said of itself in the present proof, placeholders too: see `is_one`."""
    found: list[Identity] = []
    for gpu in (record.fact(Action.NODE_PROBE) or {}).get("gpus") or ():
        if uuid := gpu.get("uuid"):
            found.append((GPU_UUID, uuid))
        if serial := gpu.get("serial"):
            found.append((GPU_SERIAL, serial))
    key = (record.fact(Action.IMAGE_REPORT) or {}).get("ssh_host_key") or record.pins.get("ssh_host_key")
    if key:
        found.append((HOST_KEY, key))
    return found


def is_one(value: str) -> bool:
    """Whether it can name one thing: makers leave words for nothing behind, or one character again and again."""
    return len(set(value).difference(FILLERS)) > 1 and value.lower() not in NO_SERIAL
