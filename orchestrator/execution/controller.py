"""The controller: observe → decide → admit → journal → submit, again and again, never waiting inside.

One tick: collect outcomes and requests → one commit → `next_step` for nodes that changed or came due → admit → all intents in
one commit → submit. Everything it knows is in the journal; killing it at any point loses nothing but the exchanges in flight,
and those are looked at again before anything is repeated.
"""

import heapq
import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.event import CLUSTER, Event, ended_event
from orchestrator.domain.node import SETTLED, NodeState
from orchestrator.domain.operation import MUTATING, Action, Operation, Outcome, Status
from orchestrator.domain.plan import Hold, Move, Settle, Step
from orchestrator.domain.rollout import is_untouched
from orchestrator.domain.state import ClusterState
from orchestrator.drivers.interfaces import Clock, Hands
from orchestrator.execution.journal import Journal, LeaseLost, Observation
from orchestrator.execution.journal_clock import JournalClock
from orchestrator.execution.run_keeper import RunKeeper
from orchestrator.planning.common_cause import common_causes, spare_the_silent
from orchestrator.planning.fleet_book import FleetBook
from orchestrator.planning.lifecycle_guard import keep_legal
from orchestrator.planning.next_step import next_step
from orchestrator.planning.requests import answer_request
from orchestrator.planning.rollout import admit, why_stop, why_stop_again
from orchestrator.planning.site import Site
from orchestrator.planning.takeover import ASLEEP_S, clock_was_set, disowned, slept

log = logging.getLogger(__name__)

RENEW_EVERY_S = 4.0
TICK_S = 1e-6
"""Smallest step between two times the controller writes down."""
HELD_BACK_S = 1.0
"""How soon steps that were not admitted are offered again, where nothing else happens."""
SNAPSHOT_EVERY = 200_000
"""Events between two snapshots: folding so many takes a restart about two seconds."""
BARRED_S = 600.0
"""How long a node is left alone after a decision about it that the lifecycle does not allow."""
NEXT_ROLLOUT = sys.maxsize
"""The wave of nodes about which nothing is decided until something is said about the rollout."""
OFFERED_AT_ONCE = 256
"""How many held-back nodes are offered again in one go; the next ones follow only if one of these was admitted."""


@dataclass(frozen=True, slots=True)
class Flying:
    """A node's operation that has been submitted and has not come back."""

    operation: Operation
    since_s: float


class Controller:
    """The one who decides, for as long as it holds the lease."""

    def __init__(
        self,
        journal: Journal,
        hands: Hands,
        clock: Clock,
        epoch: int,
        home: Path,
        state: ClusterState | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Begin deciding under `epoch`, which `journal.take_lease` gave, and disown what an earlier controller left open.

        `state` is a fold that somebody has made already; it is taken over and brought up to date. `on_event` hears of every
        event after that.
        """
        self.journal, self.hands, self.epoch = journal, hands, epoch
        self.clock = clock = JournalClock(journal, clock)
        self._flying: dict[str, Flying] = {}
        self._changed: set[str] = set()
        self._busy: set[str] = set()
        self._due: list[tuple[float, str]] = []
        self._held: dict[str, None] = {}
        self._offer_at_s = 0.0
        self._later: dict[int, dict[str, None]] = {}
        self._book: FleetBook | None = None
        self._unfollowed: dict[str, None] = {}
        self._numbers = itertools.count(1)
        self._stamped_s = self._said_until_s = 0.0
        clock.settle(epoch)
        self._renewed_at_s = clock.now_s()
        self._site: Site | None = None
        self.waiting: dict[str, str] = {}
        """Per node, why it is not being worked on at the moment; for progress displays, never for decisions."""
        self._snapshot_seq = journal.snapshot_seq()
        self._unsaved: set[str] = set()
        """Nodes whose records the snapshot does not have as they are."""
        self.state = journal.load() if state is None else state
        self._on_event = on_event
        self._catch_up()
        last_s = self._stamped_s = journal.newest_s()
        if self.state.seq > self._snapshot_seq:
            self._unsaved.update(self.state.nodes)
        self._recall_looks()
        self.runs = RunKeeper(journal, hands, clock, epoch, home, self._commit, self._operation_id)
        self._disown_open_intents()
        self._commit(slept(self.state.nodes, last_s, clock.now_s()), clock.now_s())
        self._changed.update(self.state.nodes)

    def run(self, until: Callable[[ClusterState], bool], on_tick: Callable[[ClusterState], None] | None = None) -> None:
        """Tick until `until(state)`. Raises LeaseLost when another controller has taken over."""
        while True:
            moved = self.tick()
            if on_tick:
                on_tick(self.state)
            if until(self.state):
                return
            if not moved:
                self.clock.wait_s(self._idle_s())

    @property
    def book(self) -> FleetBook | None:
        """What admission reckons with; None before a spec is applied. For displays."""
        return self._book

    def answer(self) -> None:
        """Answer what people have asked, and begin nothing."""
        self._catch_up()
        self._answer_requests()

    def close(self) -> None:
        """Give the lease back and let the hands end."""
        self.hands.close()
        self.journal.release(self.epoch)

    def tick(self) -> bool:
        """One round; returns whether anything happened. Raises LeaseLost."""
        now_s = self.clock.now_s()
        self._note_the_clock(now_s)
        self._commit(slept(self.state.nodes, self._renewed_at_s, now_s) if now_s > self._renewed_at_s + ASLEEP_S else [], now_s)
        if now_s - self._renewed_at_s > RENEW_EVERY_S:
            self.journal.renew(self.epoch, now_s)
            self._renewed_at_s = now_s
        outcomes = self.hands.poll()
        self._catch_up()
        moved = self._take_in([each for each in outcomes if each.operation in self._flying], now_s)
        moved |= self._answer_requests()
        moved |= self.runs.take_in(self.state, outcomes)
        moved |= self._advance(now_s)
        moved |= self.runs.advance(self.state, self._site)
        return moved

    def _note_the_clock(self, now_s: float) -> None:
        """Somebody set this host's clock: nothing is decided by it, and people are told, who read times by it."""
        for event in clock_was_set(self.state.ahead_s, self.clock.ahead_s()):
            log.warning("%s", event.data["because"])
            self._commit([event], now_s)

    # ------------------------------------------------------------------ phase 1: what came back
    def _take_in(self, outcomes: list[Outcome], now_s: float) -> bool:
        events: list[Event] = []
        looks: list[Observation] = []
        for outcome in outcomes:
            flying = self._flying.pop(outcome.operation)
            self._busy.discard(outcome.node)
            self._changed.add(outcome.node)
            if outcome.status is Status.HELD:
                self._say_what_holds_us(outcome.reason, now_s)
            if outcome.status is Status.FENCED:
                raise LeaseLost(f"epoch {self.epoch} was fenced before {outcome.action} on {outcome.node}")
            if self._says_nothing_new(outcome):
                seen_s = self._stamp(now_s)
                looks.append(Observation(outcome.node, str(outcome.action), seen_s, dict(outcome.facts)))
                self.state.observe(outcome.node, outcome.action, outcome.facts, seen_s)
                self._follow(outcome.node)
            else:
                events.append(ended_event(outcome, flying.operation.node))
        self._commit(events, now_s, looks)
        return bool(outcomes)

    def _say_what_holds_us(self, reason: str, now_s: float) -> None:
        """Once a minute: every node that is due tells the same."""
        if now_s >= self._said_until_s:
            self._said_until_s = now_s + 60.0
            log.warning("nothing goes on where this is needed, and no node is blamed for it: %s", reason)

    def _says_nothing_new(self, outcome: Outcome) -> bool:
        """A look with the same answer as before changes only the age of the evidence, and that is no event."""
        record = self.state.nodes.get(outcome.node)
        return (
            record is not None
            and outcome.action not in MUTATING
            and outcome.status is Status.DONE
            and record.fact(outcome.action) == dict(outcome.facts)
        )

    def _answer_requests(self) -> bool:
        pending = sorted(self.state.requests.items())
        for seq, request in pending:
            events, answer = answer_request(request, self.state, self.clock.now_s())
            events, refused = keep_legal(events, self.state.nodes)
            answer = "; ".join([answer, *(f"refused, and a mistake of rackray's: {why}" for why in refused.values())])
            handled = Event("request.handled", CLUSTER, {"request": seq, "answer": answer})
            self._commit([*events, handled], self.clock.now_s())
        return bool(pending)

    # ------------------------------------------------------------------ phase 2: what to do next
    def _advance(self, now_s: float) -> bool:
        if self.state.spec is None:
            return False
        site, book = self._bring_books_up_to_date()
        self._open_waves(book)
        while self._due and self._due[0][0] <= now_s:
            self._changed.add(heapq.heappop(self._due)[1])
        names = sorted(self._changed - self._busy)
        self._changed.clear()
        steps: list[Step] = []
        events: list[Event] = []
        for name in names:
            self._held.pop(name, None)
            self._consider(name, site, book, now_s, steps, events)
        events = spare_the_silent(events, site, self.state.rollout, self.state.nodes)
        self._commit(events, now_s)
        return self._start(steps, now_s) | self._offer_held(now_s) | self._close_rollout(now_s) | bool(events)

    def _bring_books_up_to_date(self) -> tuple[Site, FleetBook]:
        """The site's index and the fleet's book; made anew when another spec is applied or another rollout starts."""
        spec, rollout = self.state.spec, self.state.rollout
        assert spec is not None  # noqa: S101 - for the type checker: the caller has looked
        if self._site is None or self._site.spec is not spec:
            self._site, self._book = Site.of(spec), None
        if self._book is None:
            self._book = FleetBook(self._site, rollout, self.state.nodes)
            self._unfollowed.clear()
            self._offer_all()
        self._follow_all(self._book)
        if self._book.rollout is not rollout:
            self._book.turn_to(rollout, self.state.nodes)
            self._offer_all()
        return self._site, self._book

    def _offer_all(self) -> None:
        """Consider again whoever waits for a wave, for another word about the rollout, or for room."""
        self._changed.update(*self._later.values(), self._held)
        self._later.clear()
        self._held.clear()

    def _open_waves(self, book: FleetBook) -> None:
        """Consider the nodes of waves that have opened since the last tick."""
        for wave in [wave for wave in self._later if wave <= book.open_wave]:
            self._changed.update(self._later.pop(wave))

    def _offer_held(self, now_s: float) -> bool:
        """Offer what was held back again, the longest waiting first, as long as some of it is admitted."""
        if not self._held or self._site is None or self._book is None or now_s < self._offer_at_s:
            return False
        self._offer_at_s = now_s + HELD_BACK_S
        moved = False
        for _ in range(-(-len(self._held) // OFFERED_AT_ONCE)):
            steps: list[Step] = []
            events: list[Event] = []
            for name in list(itertools.islice(self._held, OFFERED_AT_ONCE)):
                del self._held[name]
                self._consider(name, self._site, self._book, now_s, steps, events)
            self._commit(events, now_s)
            if not self._start(steps, now_s):
                break
            moved = True
        return moved

    def _consider(self, name: str, site: Site, book: FleetBook, now_s: float, steps: list[Step], events: list[Event]) -> None:
        if aside := book.stands_aside(self.state.nodes[name]):
            self._later.setdefault(NEXT_ROLLOUT, {})[name] = None
            self.waiting[name] = aside
            return
        wave = book.wave_of.get(name, -1)
        if wave > book.open_wave and is_untouched(self.state.nodes[name]):
            self._later.setdefault(wave, {})[name] = None
            self.waiting[name] = f"wave {wave + 1} waits for wave {book.open_wave + 1}"
            return
        twin = self.state.identities.twin_of(name, site.nodes)
        decision = next_step(self.state.nodes[name], site, now_s, twin)
        match decision:
            case Step():
                steps.append(decision)
            case Move():
                moved = {"from": str(self.state.nodes[name].state), "to": str(decision.to), "because": decision.because}
                moved |= {"cause": decision.cause} if decision.cause else {}
                events.append(Event("node.moved", name, moved))
                self._changed.add(name)
            case Settle():
                lost = self.state.nodes[name].lost
                settled = {"done": decision.done, "facts": dict(decision.facts), "because": decision.because}
                named = {"operation": lost.id, "action": str(lost.action)} if lost else {}
                events.append(Event("node.settled", name, {**named, **settled}))
                self._changed.add(name)
            case Hold():
                heapq.heappush(self._due, (decision.until_s, name))
                self.waiting[name] = decision.because
            case _:
                self.waiting.pop(name, None)

    def _start(self, steps: list[Step], now_s: float) -> bool:
        if not steps or self._site is None:
            return False
        if self._book is not None:
            self._follow_all(self._book)
        admitted, refused = admit(steps, self.state.rollout, self.state.nodes, self._site, self._book, now_s)
        for refusal in refused:
            self.waiting[refusal.step.node] = refusal.because
            self._held[refusal.step.node] = None
        operations = []
        intents = []
        for step in admitted:
            target = self._site.target(self.state.nodes[step.node])
            operation = Operation(self._operation_id(step.node), step.node, step.action, self.epoch, target, step.args)
            operations.append(operation)
            self.waiting[step.node] = step.because
            if step.action in MUTATING:
                data = {"operation": operation.id, "action": str(step.action), "args": dict(step.args), "because": step.because}
                intents.append(Event("node.intended", step.node, data))
        self._commit(intents, now_s)
        for operation in operations:
            self._flying[operation.id] = Flying(operation, now_s)
            self._busy.add(operation.node)
        self.hands.submit(operations)
        return bool(operations)

    def _close_rollout(self, now_s: float) -> bool:
        rollout, nodes = self.state.rollout, self.state.nodes
        if rollout.finished or self.state.spec is None or self._book is None or self._book.rollout is not rollout:
            return False
        self._follow_all(self._book)
        if self._book.open_wave == len(rollout.waves):
            states = [nodes[name].state for wave in rollout.waves for name in wave]
            ready, quarantined = states.count(NodeState.READY), states.count(NodeState.QUARANTINED)
            data = {"ready": ready, "quarantined": quarantined, "left": sum(state not in SETTLED for state in states)}
            self._commit([Event("rollout.finished", CLUSTER, data)], now_s)
            return True
        stops = why_stop_again if rollout.stopped_because else why_stop
        if because := stops(self._book, self.state.spec.rollout):
            causes = common_causes(self._book.site, rollout, nodes)
            because += f"; in common: {causes[0]}" if causes else ""
            self._commit([Event("rollout.stopped", CLUSTER, {"because": because})], now_s)
            return True
        return False

    # ------------------------------------------------------------------ helpers
    def _disown_open_intents(self) -> None:
        """What the last controller had begun and never heard of is looked at again."""
        self._commit(disowned(self.state.nodes), self.clock.now_s())

    def _operation_id(self, subject: str) -> str:
        return f"{self.epoch}.{next(self._numbers)}.{subject}"

    def _recall_looks(self) -> None:
        """Looks that an earlier controller took and that were no events; only where nothing newer is known."""
        for seen in self.journal.observations():
            record = self.state.nodes.get(seen.subject)
            if record is None or seen.key not in Action.__members__.values():
                continue
            if seen.at_s > max(record.fact_at_s(Action(seen.key)), record.failed_at_s):
                self.state.observe(seen.subject, Action(seen.key), seen.data, seen.at_s)

    def _commit(self, events: list[Event], now_s: float, looks: Sequence[Observation] = ()) -> None:
        if not events and not looks:
            return
        legal, refused = keep_legal(events, self.state.nodes)
        for name, why in refused.items():
            log.error("nothing is done with %s for %.0f s, and this is a mistake of rackray's: %s", name, BARRED_S, why)
            self.waiting[name] = why
            self._changed.discard(name)
            heapq.heappush(self._due, (now_s + BARRED_S, name))
        stamped = [Event(event.kind, event.subject, event.data, self._stamp(now_s)) for event in legal]
        written = self.journal.commit(stamped, self.epoch, now_s, looks=looks)
        self._renewed_at_s = now_s
        if written and written[0].seq == self.state.seq + 1:
            for event in written:
                self._fold(event)
        else:
            self._catch_up()
        if self.state.seq - self._snapshot_seq >= SNAPSHOT_EVERY:
            self.journal.keep_snapshot([self.state.nodes[name] for name in sorted(self._unsaved)], self.state.seq, self.epoch)
            self._snapshot_seq = self.state.seq
            self._unsaved.clear()

    def _stamp(self, now_s: float) -> float:
        """A time no earlier than `now_s`, later than any given out before: planning asks which of two facts came first."""
        self._stamped_s = max(now_s, self._stamped_s + TICK_S)
        return self._stamped_s

    def _catch_up(self) -> None:
        for event in self.journal.events(self.state.seq):
            self._fold(event)

    def _fold(self, event: Event) -> None:
        self.state.apply(event)
        if event.epoch:
            # Requests bear the time of whoever asks, by a clock that may be anything.
            self._stamped_s = max(self._stamped_s, event.at_s)
        if event.subject in self.state.nodes:
            self._changed.add(event.subject)
            self._follow(event.subject)
        elif event.kind == "spec.applied":
            self._unsaved.update(self.state.nodes)
            self._changed.update(self.state.nodes)
        elif event.kind.startswith("rollout.") or event.kind == "controller.slept":
            # Their clocks may have been set anew.
            self._unsaved.update(*self.state.rollout.waves)
        self._on_event(event)

    def _follow(self, name: str) -> None:
        self._unsaved.add(name)
        self._unfollowed[name] = None

    def _follow_all(self, book: FleetBook) -> None:
        """Tell the book of every record that was replaced since the last time: once per node, however often it was."""
        for name in self._unfollowed:
            book.follow(self.state.nodes[name])
        self._unfollowed.clear()

    def _idle_s(self) -> float:
        """How long nothing can come due; the clock returns earlier when an outcome may have come."""
        offer_s = self._offer_at_s if self._held else float("inf")
        due_s = min(self._due[0][0] if self._due else float("inf"), offer_s, self.runs.due_s)
        return min(max(due_s - self.clock.now_s(), 0.001), RENEW_EVERY_S)


def everything_settled(state: ClusterState) -> bool:
    """Whether every node of the applied spec has come to rest, and no request waits."""
    if state.spec is None or state.requests:
        return False
    rollout = state.rollout
    if rollout.stopped_because:
        records = [state.nodes[machine.name] for machine in state.spec.managed()]
        return all(
            rollout.is_resting(record) or (is_untouched(record) and rollout.why_not_begun(record.name)) for record in records
        )
    return rollout.finished
