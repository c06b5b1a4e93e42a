"""A node's life: its states, the legal moves between them, and what each state has proven.

The table `LEGAL_MOVES` is the one place where the lifecycle stands; the map in `orchestrator/README.md` is drawn from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from orchestrator.domain.operation import Action


class NodeState(StrEnum):
    """Where a node stands. The text under each member says what has been proven when it is reached."""

    ENROLLED = "enrolled"
    """Named in the applied spec; nothing has answered yet."""
    IDENTIFIED = "identified"
    """Its BMC answers, and its serial and model (or its delivered certificate) match the spec."""
    CREDENTIALED = "credentialed"
    """The factory password is replaced by ours, and the BMC's certificate is pinned."""
    POWERED = "powered"
    """Main power is on, read back from the BMC."""
    IMAGED = "imaged"
    """The site's image was laid down by a one-time network boot; its digest was read back."""
    REACHABLE = "reachable"
    """SSH answers with the pinned host key, and the machine behind it has the spec's serial and image."""
    CONFIGURED = "configured"
    """The bring-up playbooks ran to the end without a failed task."""
    FIRMWARE_OK = "firmware_ok"
    """Every audited component reads back a version the baseline approves."""
    ACCEPTED = "accepted"
    """The GPU probe and the compute check passed, on evidence newer than the last boot and firmware change."""
    READY = "ready"
    """Joined the cell with its rack, leaf and feed labels; may receive work. Equipment: it is on and its BMC calls it sound."""
    ALLOCATED = "allocated"
    """A training run holds it."""
    SUSPECT = "suspect"
    """Something it said (or its silence) contradicts what was proven; it gets no new work until that is settled."""
    DRAINING = "draining"
    """Somebody asked for it back; running work is allowed to end."""
    MAINTENANCE = "maintenance"
    """Empty and in a person's hands."""
    QUARANTINED = "quarantined"
    """A check failed or a stage ran out of time; only a cleared cause or a person's word moves it."""
    REPAIRING = "repairing"
    """A person says the cause is cleared; it must prove everything again."""
    RETIRED = "retired"
    """Left the fleet for good."""


S = NodeState
BRING_UP = (
    S.ENROLLED,
    S.IDENTIFIED,
    S.CREDENTIALED,
    S.POWERED,
    S.IMAGED,
    S.REACHABLE,
    S.CONFIGURED,
    S.FIRMWARE_OK,
    S.ACCEPTED,
)
"""The states a node passes on its way to `ready`, in order."""

EQUIPMENT_BRING_UP = (S.ENROLLED, S.IDENTIFIED, S.CREDENTIALED, S.FIRMWARE_OK)
"""The same for equipment with a BMC (switches, switch trays, power shelves): nothing to image, log in to or compute with."""

IN_SERVICE = frozenset({S.READY, S.ALLOCATED})
SETTLED = frozenset({S.READY, S.ALLOCATED, S.SUSPECT, S.QUARANTINED, S.MAINTENANCE, S.RETIRED})
"""States in which a rollout has nothing more to do with a node by itself."""

LEGAL_MOVES: Mapping[NodeState, frozenset[NodeState]] = {
    S.ENROLLED: frozenset({S.IDENTIFIED, S.QUARANTINED, S.RETIRED}),
    S.IDENTIFIED: frozenset({S.CREDENTIALED, S.QUARANTINED}),
    S.CREDENTIALED: frozenset({S.POWERED, S.QUARANTINED}),
    S.POWERED: frozenset({S.IMAGED, S.QUARANTINED}),
    S.IMAGED: frozenset({S.REACHABLE, S.QUARANTINED}),
    S.REACHABLE: frozenset({S.CONFIGURED, S.QUARANTINED}),
    S.CONFIGURED: frozenset({S.FIRMWARE_OK, S.QUARANTINED}),
    S.FIRMWARE_OK: frozenset({S.ACCEPTED, S.QUARANTINED}),
    S.ACCEPTED: frozenset({S.READY, S.QUARANTINED}),
    S.READY: frozenset({S.ALLOCATED, S.SUSPECT, S.DRAINING}),
    S.ALLOCATED: frozenset({S.READY, S.SUSPECT, S.DRAINING}),
    S.SUSPECT: frozenset({S.READY, S.ALLOCATED, S.QUARANTINED}),
    S.DRAINING: frozenset({S.MAINTENANCE}),
    S.MAINTENANCE: frozenset({S.IDENTIFIED, S.RETIRED}),
    S.QUARANTINED: frozenset({S.REPAIRING}),
    S.REPAIRING: frozenset({S.IDENTIFIED, S.RETIRED}),
    S.RETIRED: frozenset(),
}

EQUIPMENT_MOVES: Mapping[NodeState, frozenset[NodeState]] = {
    S.ENROLLED: frozenset({S.IDENTIFIED, S.QUARANTINED, S.RETIRED}),
    S.IDENTIFIED: frozenset({S.CREDENTIALED, S.QUARANTINED}),
    S.CREDENTIALED: frozenset({S.FIRMWARE_OK, S.QUARANTINED}),
    S.FIRMWARE_OK: frozenset({S.READY, S.QUARANTINED}),
    S.READY: frozenset({S.SUSPECT, S.DRAINING}),
    S.SUSPECT: frozenset({S.READY, S.QUARANTINED}),
    S.DRAINING: frozenset({S.MAINTENANCE}),
    S.MAINTENANCE: frozenset({S.IDENTIFIED, S.RETIRED}),
    S.QUARANTINED: frozenset({S.REPAIRING}),
    S.REPAIRING: frozenset({S.IDENTIFIED, S.RETIRED}),
    S.RETIRED: frozenset(),
}
"""The table for equipment; states that it never reaches are not in it."""

COMPUTE = "compute"
"""Kind of the machines that train; every other kind of a SKU is equipment."""


class Cause(StrEnum):
    """Kinds of failure that end in quarantine; every one of them counts against the failure budget."""

    CHECK = "check failed"
    """What it said about itself is not as it must be."""
    REFUSED = "refused"
    """It answered no, again and again or once for all."""
    UNREACHABLE = "unreachable"
    """It did not answer at all."""
    TIMED_OUT = "timed out"
    """It stayed too long in one stage."""
    UNKNOWN = "unknown"
    """Answers were lost, and looking did not settle them."""
    IDENTITY = "another machine"
    """The machine at its address is not the one the spec names."""


def can_move(old: NodeState, new: NodeState, kind: str = COMPUTE) -> bool:
    """Whether the lifecycle of machines of this kind allows going from `old` to `new` in one move."""
    return new in (LEGAL_MOVES if kind == COMPUTE else EQUIPMENT_MOVES).get(old, frozenset())


def bring_up_of(kind: str) -> tuple[NodeState, ...]:
    """The states that a machine of this kind passes on its way to `ready`, in order."""
    return BRING_UP if kind == COMPUTE else EQUIPMENT_BRING_UP


@dataclass(frozen=True, slots=True)
class Fact:
    """What one exchange established, and when (controller clock, seconds since the epoch)."""

    at_s: float
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OpenOperation:
    """A journaled intent whose outcome is not journaled yet."""

    id: str
    action: Action
    at_s: float
    epoch: int
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeRecord:
    """Everything the journal says about one node: the fold over its events, never edited in place.

    Without slots: see `changed`.
    """

    name: str
    state: NodeState = NodeState.ENROLLED
    since_s: float = 0.0
    because: str = "named in the spec"
    clock_s: float = 0.0
    """When a rollout last took it up or was resumed, or somebody decided again after a pause: time before that does not count
    against the limit of its stage."""
    proving_since_s: float = 0.0
    """Start of the present proof: evidence older than this does not count for `ready`."""
    facts: Mapping[Action, Fact] = field(default_factory=dict)
    """Latest DONE outcome per action within the present proof."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Identities that survive a re-proof: `bmc_certificate_sha256`, `ssh_host_key`, `bmc_account`."""
    open: OpenOperation | None = None
    lost: OpenOperation | None = None
    """A mutating exchange that ended without an answer: observe before anything is repeated."""
    failures: int = 0
    """Consecutive refused or unanswered exchanges in the present state."""
    silences: int = 0
    """Consecutive times nothing could be reached in the present state (a booting node is silent, not failed)."""
    failed_at_s: float = float("-inf")
    retry_after_s: float = 0.0
    """The pause that the last exchange that failed was told to make, in seconds after `failed_at_s`; 0 if none."""
    last_problem: str = ""
    last_status: str = ""
    """How the last exchange that failed ended: a `Status`, or empty."""
    fatal: str = ""
    """A refusal that no repetition can cure (another machine answers, a request is not possible)."""
    cause: str = ""
    """Kind of failure that led to quarantine: a `Cause`, or empty."""
    serial: str = ""
    """Serial of the board that was put in by `node replace`; empty: the spec's own."""
    run: str = ""
    """The training run that holds it, when `allocated`."""
    kind: str = COMPUTE
    """Kind of its SKU: "compute", or that of a piece of equipment."""

    @property
    def is_equipment(self) -> bool:
        """Whether it is a switch, a power shelf or the like, which carries no work."""
        return self.kind != COMPUTE

    def fact(self, action: Action) -> Mapping[str, Any] | None:
        """Latest values of `action` in the present proof, or None."""
        found = self.facts.get(action)
        return found.values if found else None

    def fact_at_s(self, action: Action) -> float:
        """When `action` last succeeded in the present proof; -inf if never."""
        found = self.facts.get(action)
        return found.at_s if found else float("-inf")


def changed(record: NodeRecord, **changes: Any) -> NodeRecord:
    """`dataclasses.replace` for records, at a fraction of its cost: a fold over a million events does little else.

    Raises KeyError for a field that records do not have.
    """
    # One merge of two dicts instead of a call per field; the record is frozen for everybody else.
    values = record.__dict__ | changes
    if len(values) != _FIELD_COUNT:
        raise KeyError(f"records have no {', '.join(sorted(changes.keys() - record.__dict__.keys()))}")
    new = object.__new__(NodeRecord)
    object.__setattr__(new, "__dict__", values)
    return new


_FIELD_COUNT = len(fields(NodeRecord))
