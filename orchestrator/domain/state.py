"""State is a fold over events: `ClusterState.apply` is the only way anything here changes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.event import Event
from orchestrator.domain.identities import GIVEN_UP, SAID_BY, IdentityBook
from orchestrator.domain.node import BRING_UP, Fact, NodeRecord, NodeState, OpenOperation, changed
from orchestrator.domain.operation import Action, Status
from orchestrator.domain.rollout import RolloutRecord, fold_rollout
from orchestrator.domain.run import RunRecord, fold_run
from orchestrator.domain.spec import ClusterSpec

__all__ = ["ClusterState", "RolloutRecord"]

PIN_SOURCES: Mapping[Action, Mapping[str, str]] = {
    Action.BMC_CREDENTIAL: {"certificate_sha256": "bmc_certificate_sha256", "account": "bmc_account"},
    Action.IMAGE_REPORT: {"ssh_host_key": "ssh_host_key"},
}
"""Which facts become pins when their stage is passed."""

# Looking up is several times cheaper than making an enum member, and a fold does it twice per event.
ACTIONS: Mapping[str, Action] = {str(action): action for action in Action}
STATES: Mapping[str, NodeState] = {str(state): state for state in NodeState}
STATUSES: Mapping[str, Status] = {str(status): status for status in Status}
NEVER_S = float("-inf")
_NOTHING: Mapping[str, Any] = {}

STAGES_WITH_A_CLOCK = frozenset(BRING_UP) - {NodeState.ENROLLED}

PINNED_ON: Mapping[NodeState, Action] = {
    NodeState.CREDENTIALED: Action.BMC_CREDENTIAL,
    NodeState.IMAGED: Action.IMAGE_REPORT,
}


@dataclass
class ClusterState:
    """Everything the journal says. The records inside are frozen; only `apply` and `observe` replace them."""

    spec: ClusterSpec | None = None
    spec_sha256: str = ""
    spec_file: str = ""
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    rollout: RolloutRecord = field(default_factory=RolloutRecord)
    identities: IdentityBook = field(default_factory=IdentityBook, compare=False)
    """Which nodes say that they have which GPU and which host key: who says it second is another's twin."""
    requests: dict[int, Event] = field(default_factory=dict)
    """Requests nobody has handled yet, by seq."""
    answers: dict[int, str] = field(default_factory=dict)
    """What became of handled requests, by seq."""
    ahead_s: float = 0.0
    """How far the clock was last seen ahead of the journal's time, in seconds: somebody has set it."""
    epoch: int = 0
    holder: str = ""
    seq: int = 0

    def apply(self, event: Event) -> None:
        """Fold one event. Raises KeyError or ValueError when the journal contradicts itself."""
        family, _, verb = event.kind.partition(".")
        if family == "node":
            name, before = event.subject, self.nodes[event.subject]
            self.nodes[name] = record = _fold_node(before, verb, event)
            if _may_say_other(before, record, verb, event):
                self.identities.follow(record)
        elif family == "run":
            self.runs[event.subject] = fold_run(self.runs.get(event.subject), event)
        elif family == "request":
            self._apply_request(verb, event)
        elif family == "rollout":
            self.rollout = fold_rollout(self.rollout, verb, event)
            self._restart_clocks(verb, event)
        elif event.kind == "spec.applied":
            self._apply_spec(event)
        elif event.kind == "controller.slept":
            self._give_whole_time(self.nodes, event.at_s)
        elif event.kind == "controller.clock":
            self.ahead_s = float(event.data["ahead_s"])
        elif event.kind == "controller.took":
            self.epoch, self.holder = event.epoch, event.data["holder"]
        else:
            raise ValueError(f"event {event.seq} has the unknown kind {event.kind!r}; it was written by a newer rackray")
        if event.seq > self.seq:
            self.seq = event.seq

    def observe(self, node: str, action: Action, facts: Mapping[str, Any], at_s: float) -> None:
        """A look that changed nothing but the age of the evidence; it is no event."""
        record = self.nodes.get(node)
        if record is not None and at_s >= record.proving_since_s:
            self.nodes[node] = changed(
                record, facts={**record.facts, action: Fact(at_s, facts)}, failures=0, silences=0, last_problem=""
            )

    def _apply_spec(self, event: Event) -> None:
        before = {machine.name: machine.serial for machine in self.spec.managed()} if self.spec else {}
        self.spec = ClusterSpec.model_validate(event.data["spec"])
        self.spec_sha256, self.spec_file = event.data["sha256"], event.data["file"]
        for machine in self.spec.managed():
            name, kind = machine.name, self.spec.sku_of(machine).kind
            if name not in self.nodes:
                self.nodes[name] = NodeRecord(name, since_s=event.at_s, proving_since_s=event.at_s, kind=kind)
            elif before.get(name) != machine.serial and self.nodes[name].serial:
                # The spec has caught up with the swapped board, or names yet another one: its word counts.
                self.nodes[name] = changed(self.nodes[name], serial="")

    def _restart_clocks(self, verb: str, event: Event) -> None:
        """A node that was left in the middle of its bring-up has its whole time again when a rollout takes it up."""
        if verb in ("started", "extended", "resumed"):
            everybody = (name for wave in self.rollout.waves for name in wave)
            self._give_whole_time(event.data["nodes"] if verb == "extended" else everybody, event.at_s)

    def _give_whole_time(self, names: Iterable[str], at_s: float) -> None:
        for name in list(names):
            if self.nodes[name].state in STAGES_WITH_A_CLOCK:
                self.nodes[name] = changed(self.nodes[name], clock_s=at_s)

    def _apply_request(self, verb: str, event: Event) -> None:
        if verb == "handled":
            self.requests.pop(event.data["request"], None)
            self.answers[event.data["request"]] = event.data["answer"]
        else:
            self.requests[event.seq] = event


def _may_say_other(before: NodeRecord, record: NodeRecord, verb: str, event: Event) -> bool:
    """Whether what the node says of itself may have changed: asked for every event, so cheap and generous."""
    if verb == "ended":
        return ACTIONS[event.data["action"]] in SAID_BY
    if verb == "moved":
        return record.state in GIVEN_UP or before.state in GIVEN_UP
    return verb in ("replaced", "host_key")


def _fold_node(record: NodeRecord, verb: str, event: Event) -> NodeRecord:
    data = event.data
    if verb == "moved":
        return _moved(record, STATES[data["to"]], event)
    if verb == "intended":
        opened = OpenOperation(data["operation"], ACTIONS[data["action"]], event.at_s, event.epoch, data["args"])
        return changed(record, open=opened)
    if verb == "ended":
        return _ended(record, event)
    if verb == "settled":
        lost = record.lost
        if data["done"] and lost is not None:
            fact = Fact(lost.at_s, {**lost.args, **data["facts"]})
            return changed(record, lost=None, facts={**record.facts, lost.action: fact})
        return changed(record, lost=None)
    if verb == "replaced":
        # Another board: nothing that was pinned or proven of the old one holds for it.
        return changed(record, pins={}, facts={}, serial=data["serial"], proving_since_s=event.at_s, open=None, lost=None)
    if verb == "host_key":
        return changed(record, pins={**record.pins, "ssh_host_key": data["ssh_host_key"]})
    raise ValueError(f"unknown node event {event.kind!r}")


def _moved(record: NodeRecord, to: NodeState, event: Event) -> NodeRecord:
    data, more = event.data, _NOTHING
    if to is NodeState.REPAIRING or to is NodeState.MAINTENANCE:
        # Everything has to be proven again; identities stay pinned, so a swapped board is noticed.
        more = {"proving_since_s": event.at_s, "facts": {}, "open": None, "lost": None}
    elif (source := PINNED_ON.get(to)) is not None and source in record.facts:
        found = record.facts[source].values
        more = {"pins": {**record.pins, **{pin: str(found[key]) for key, pin in PIN_SOURCES[source].items() if found.get(key)}}}
    return changed(
        record,
        state=to,
        since_s=event.at_s,
        because=data["because"],
        cause=data.get("cause", ""),
        failures=0,
        silences=0,
        failed_at_s=NEVER_S,
        retry_after_s=0.0,
        last_problem="",
        last_status="",
        fatal="",
        run=data.get("run", ""),
        **more,
    )


def _ended(record: NodeRecord, event: Event) -> NodeRecord:
    data = event.data
    action, status = ACTIONS[data["action"]], STATUSES[data["status"]]
    was_open = record.open if record.open is not None and record.open.id == data["operation"] else None
    opened = None if was_open else record.open
    if status is Status.DONE:
        values = {**was_open.args, **data["facts"]} if was_open is not None else data["facts"]
        facts = {**record.facts, action: Fact(event.at_s, values)}
        healed = {"failures": 0, "silences": 0, "failed_at_s": NEVER_S, "retry_after_s": 0.0, "last_problem": ""}
        return changed(record, open=opened, facts=facts, **healed)
    if status is Status.HELD:
        # Nothing was sent, and the time until it can be is none of the node's.
        said = {"last_problem": data["reason"], "last_status": str(status), "failed_at_s": event.at_s, "retry_after_s": 0.0}
        return changed(record, open=opened, clock_s=event.at_s, **said)
    lost = was_open if status is Status.UNKNOWN and was_open else record.lost
    hopeless = status is Status.MISMATCH or (status is Status.REFUSED and not data.get("retryable", True))
    quiet = status in (Status.UNREACHABLE, Status.FENCED)
    return changed(
        record,
        open=opened,
        lost=lost,
        failures=record.failures + (0 if quiet or data.get("takeover") else 1),
        silences=record.silences + (1 if quiet else 0),
        failed_at_s=event.at_s,
        retry_after_s=float(data.get("retry_after_s", 0.0)),
        last_problem=data["reason"],
        last_status=str(status),
        fatal=data["reason"] if hopeless else record.fatal,
    )
