"""A rollout: which nodes go in which wave, and what people and the failure budget have said since. A fold over its events."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.domain.event import Event
from orchestrator.domain.node import SETTLED, NodeRecord, NodeState


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """The rollout that is going on, or the last one."""

    number: int = 0
    waves: tuple[tuple[str, ...], ...] = ()
    because: str = ""
    started_at_s: float = 0.0
    stopped_because: str = ""
    """Why the breaker lets no new node start; empty while it goes on."""
    paused_because: str = ""
    """Who paused it and why; empty while it goes on."""
    aborted_because: str = ""
    aborted_at_s: float = float("inf")
    """When it was aborted: nodes that reach their next state after this are left there."""
    skipped: Mapping[str, float] = field(default_factory=dict)
    """Nodes left out of it, and since when (seconds since the epoch)."""
    skipped_because: Mapping[str, str] = field(default_factory=dict)
    """Why each node was left out."""
    spared: frozenset[str] = frozenset()
    """Nodes left out as they are, in the middle of a stage, because all that shares something with them is silent."""
    forgiven: frozenset[str] = frozenset()
    """Failed nodes that somebody has seen and accepted by `resume`: they no longer count against the failure budget."""
    called: frozenset[str] = frozenset()
    """Nodes that a person sent into it while the breaker had stopped it: they alone begin, and it stays stopped. None is left of
    them when too many of them failed again."""
    finished: bool = True

    def left_alone_at_s(self, name: str) -> float:
        """Since when the node is left out (skipped, or everything aborted); inf while it takes part."""
        return min(self.aborted_at_s, self.skipped.get(name, float("inf")))

    def is_resting(self, record: NodeRecord) -> bool:
        """Whether nothing more will be done with the node: settled, or left out and not in the middle of a stage."""
        if record.state in SETTLED:
            return True
        left_s = self.left_alone_at_s(record.name)
        if left_s == float("inf"):
            return False
        at_once = record.since_s >= left_s or record.name in self.spared
        return is_untouched(record) or (at_once and record.open is None and record.lost is None)

    @property
    def why_nothing_starts(self) -> str:
        """Why no node that has not begun may begin, or an empty string."""
        return self.why_not_begun("")

    def why_not_begun(self, name: str) -> str:
        """Why the node, if it has not begun, may not begin, or an empty string."""
        stopped = "" if name in self.called else self.stopped_because
        said = (("aborted", self.aborted_because), ("stopped", stopped), ("paused", self.paused_because))
        return "; ".join(f"the rollout is {word}: {because}" for word, because in said if because)


def is_untouched(record: NodeRecord) -> bool:
    """Whether the present proof has not begun: no answer, no failure and nothing on its way, as far as the journal knows."""
    quiet = not record.facts and not record.failures and not record.silences
    return quiet and record.open is None and record.lost is None and record.state in (NodeState.ENROLLED, NodeState.IDENTIFIED)


def fold_rollout(rollout: RolloutRecord, verb: str, event: Event) -> RolloutRecord:
    """The rollout after `rollout.<verb>`. Raises ValueError for a verb of a newer rackray."""
    data = event.data
    if verb == "started":
        waves = tuple(tuple(wave) for wave in data["waves"])
        begun = RolloutRecord(rollout.number + 1, waves, data.get("because", ""), event.at_s, finished=False)
        return _still_left_out(rollout, begun, {name for wave in waves for name in wave})
    if verb == "extended":
        extended = _extended(rollout, int(data["wave"]), tuple(data["nodes"]))
        return replace(extended, called=rollout.called | frozenset(data["nodes"])) if data.get("called") else extended
    if verb == "stopped":
        return replace(rollout, stopped_because=data["because"], called=frozenset())
    if verb == "paused":
        return replace(rollout, paused_because=data["because"])
    if verb == "resumed":
        forgiven = rollout.forgiven | frozenset(data["forgiven"])
        return replace(rollout, paused_because="", stopped_because="", forgiven=forgiven)
    if verb == "skipped":
        names, because = data["nodes"], data["because"]
        return replace(
            rollout,
            skipped={**dict.fromkeys(names, event.at_s), **rollout.skipped},
            skipped_because={**rollout.skipped_because, **dict.fromkeys(names, because)},
            spared=rollout.spared | frozenset(names if data.get("at_once") else ()),
        )
    if verb == "aborted":
        return replace(rollout, aborted_because=data["because"], aborted_at_s=event.at_s, paused_because="")
    if verb == "finished":
        return replace(rollout, finished=True)
    raise ValueError(f"unknown rollout event {event.kind!r}")


def _still_left_out(before: RolloutRecord, begun: RolloutRecord, taken: set[str]) -> RolloutRecord:
    """`begun`, with what was said of nodes that the one before left out and that it does not take up either."""
    skipped = {name: at_s for name, at_s in before.skipped.items() if name not in taken}
    because = {name: before.skipped_because[name] for name in skipped if name in before.skipped_because}
    return replace(begun, skipped=skipped, skipped_because=because, spared=before.spared & skipped.keys())


def _extended(rollout: RolloutRecord, wave: int, names: tuple[str, ...]) -> RolloutRecord:
    """`names` join the wave with index `wave` (a new last one if there is none), and count against the budget again."""
    new = frozenset(names)
    waves = [tuple(name for name in each if name not in new) for each in rollout.waves]
    waves += [()] * (wave + 1 - len(waves))
    waves[wave] = (*waves[wave], *names)
    skipped = {name: at_s for name, at_s in rollout.skipped.items() if name not in new}
    forgiven, spared = rollout.forgiven - new, rollout.spared - new
    return replace(rollout, waves=tuple(waves), skipped=skipped, spared=spared, forgiven=forgiven, finished=False)
