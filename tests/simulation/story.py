"""One simulated history from one seed: a fleet, faults, controllers that are killed or frozen, people who ask for things.

Replay one: `python -m tests.simulation.story 42`; many: `python -m tests.simulation.story 0 10000 --log soak.log`, which goes on
where it was interrupted. Exit 1 when a check fails.
"""

import argparse
import json
import logging
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import MUTATING, Operation, Outcome
from orchestrator.domain.rehearsal import FaultProfile, FeedLoss, StageTimes
from orchestrator.domain.state import ClusterState
from orchestrator.execution.controller import Controller, everything_settled
from orchestrator.execution.journal import Journal, LeaseLost
from orchestrator.execution.journal_clock import JournalClock
from orchestrator.lab.simulated_hands import SimulatedHands, VirtualClock
from orchestrator.lab.simulation import Deed, SimulatedSite
from tests.execution.site import apply_request, lab_4
from tests.simulation import invariants
from tests.simulation.fleet import a_fleet, with_a_leaf_per_rack
from tests.simulation.invariants import Past

MOST_TICKS = 20_000
LONGEST_S = 24 * 3600.0
TEN_YEARS_S = 3652.5 * 86_400
TMPFS = Path("/dev/shm")


class Killed(BaseException):
    """The controller ends here, as by SIGKILL: nothing may catch it."""


class Breach(AssertionError):
    """A check failed."""


class Watcher:
    """Looks at every commit, exchange and deed."""

    def __init__(self, site: "WatchedSite", past: Past, file: Path) -> None:
        self.site, self.past = site, past
        self._reader = sqlite3.connect(file)
        self.state = ClusterState()
        """The fold over what is on disk."""

    def committed(self) -> None:
        """After every write of any controller."""
        query = "SELECT kind, subject, data, at_s, epoch, seq FROM events WHERE seq > ? ORDER BY seq"
        for kind, subject, data, at_s, epoch, seq in self._reader.execute(query, (self.state.seq,)).fetchall():
            event = Event(kind, subject, json.loads(data), at_s, epoch, seq)
            for name, event_check in invariants.EVERY_EVENT.items():
                self._say(name, event_check(event, self.state, self.site, self.past))
            self.state.apply(event)
            record = self.state.nodes.get(event.subject)
            if record is not None and record.open is not None:
                self.past.intended_at_s.setdefault(record.open.id, self.site.now_s)
            if event.kind == "node.moved" and event.data["to"] in (NodeState.REPAIRING, NodeState.MAINTENANCE):
                self.past.touched.discard(event.subject)
        rollout = self.state.rollout
        failed = {name for wave in rollout.waves for name in wave if self.state.nodes[name].state is NodeState.QUARANTINED}
        over = len(failed - rollout.forgiven) > self.past.spec.rollout.failure_budget
        self.past.over_budget_at_s = min(self.past.over_budget_at_s, self.site.now_s) if over else float("inf")
        for name, check in invariants.AFTER_COMMIT.items():
            self._say(name, check(self.site, self.state, self.past))

    def exchange(self, operation: Operation) -> None:
        """Before every exchange."""
        for name, check in invariants.EVERY_EXCHANGE.items():
            self._say(name, check(operation, self.state, self.site, self.past))
        self.past.touched.add(operation.node)

    def deed(self, deed: Deed) -> None:
        """Before every change at a machine."""
        for name, check in invariants.EVERY_DEED.items():
            self._say(name, check(deed, self.site, self.past))
        self.past.deeds[deed.node, deed.action] = deed.at_s
        if deed.args.get("reset") == "On":
            self.past.powered_on_s[deed.node] = deed.at_s

    def ended(self) -> None:
        """At the end of a history."""
        for check in (invariants.everybody_has_come_to_rest, invariants.untouched_means_stopped):
            self._say(check.__name__, check(self.state))

    def close(self) -> None:
        """Close its connection."""
        self._reader.close()

    def _say(self, name: str, breaches: invariants.Breaches) -> None:
        for breach in breaches:
            raise Breach(f"{name}: {breach}")


class WatchedSite(SimulatedSite):
    """A site that tells a watcher of everything before it happens."""

    watcher: Watcher | None = None

    def submit(self, operation: Operation, answer: Callable[[Outcome], None]) -> None:
        if self.watcher:
            self.watcher.exchange(operation)
        super().submit(operation, answer)


class WatchedDeeds(list[Deed]):
    """The site's list of deeds, which tells a watcher first."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def append(self, deed: Deed) -> None:
        self._watcher.deed(deed)
        super().append(deed)


class Fuse:
    """Ends its controller at the n-th time it is asked at one place."""

    def __init__(self, place: str = "", at: int = 0) -> None:
        self.place, self._left = place, at

    def burn(self, place: str) -> None:
        if place == self.place:
            self._left -= 1
            if self._left == 0:
                raise Killed


class FusedHands(SimulatedHands):
    """Hands whose controller may end just before or just after it hands something over."""

    def __init__(self, site: SimulatedSite, may_act: Callable[[int], bool], fuse: Fuse) -> None:
        super().__init__(site, may_act)
        self._fuse = fuse
        self.held: Sequence[Operation] = ()
        """What was about to be handed over when it was frozen."""

    def submit(self, operations: Sequence[Operation]) -> None:
        self.held = operations
        if any(operation.action in MUTATING for operation in operations):
            self._fuse.burn("before submit")
        super().submit(operations)
        self.held = ()
        if operations:
            self._fuse.burn("after submit")


class ShiftedClock(VirtualClock):
    """A clock that was set by some seconds, and that somebody may set again at any moment; the timer goes on."""

    shift_s = 0.0
    jumps: tuple[float, ...] = ()
    """Where it is set next, each time it is waited on that long: seconds of the shift."""

    def now_s(self) -> float:
        return super().now_s() + self.shift_s

    def wait_s(self, seconds: float) -> None:
        super().wait_s(seconds)
        if self.jumps and self._site.now_s > self.jump_at_s:
            self.shift_s, *left = self.jumps
            self.jumps, self.jump_at_s = tuple(left), self._site.now_s + 60.0

    jump_at_s = 0.0


class Story:
    """See the module."""

    def __init__(self, seed: int, home: Path) -> None:
        self.dice = dice = random.Random(seed)
        self.seed = seed
        self.home = home
        self.spec = a_fleet(dice.choice((20, 20, 24, 36)) if seed % 50 != 49 else 200, headroom=dice.choice((0.6, 1.0, 1.3, 2.0)))
        self.spec = with_a_leaf_per_rack(self.spec) if seed % 3 == 0 else self.spec
        policy = {
            "canary": dice.choice((1, 2, 4)),
            "growth": dice.choice((2.0, 4.0, 10.0)),
            "max_in_flight": dice.choice((3, 16, 256)),
            "failure_budget": dice.choice((0, 2, 5, 60)),
            "down_per_rack": dice.choice((None, 2)),
            "inrush_factor": dice.choice((1.0, 1.5)),
            "inrush_s": 20.0,
            "stage_limit_s": 900.0,
            "poll_s": 4.0,
        }
        rollout, nodes = lab_4().rollout.model_copy(update=policy), list(self.spec.nodes)
        for number in range(dice.choice((0, 0, 1, 4))):
            for index in (number, number + 8):  # the same place in two racks
                nodes[index] = nodes[index].model_copy(update={"pair": f"pair-{number}"})
        self.spec = self.spec.model_copy(update={"rollout": rollout, "nodes": tuple(nodes)})
        self.profile = self._profile()
        self.site = WatchedSite(self.spec, seed, profile=self.profile)
        self.url = f"sqlite:///{home}/state.db"
        self.people = Journal(self.url)
        self.watcher = Watcher(self.site, Past(self.spec), home / "state.db")
        self.site.watcher, self.site.deeds = self.watcher, WatchedDeeds(self.watcher)
        self.clock = ShiftedClock(self.site, quantum_s=dice.choice((0.5, 2.0, 4.0)))
        if seed % 4 == 1:
            # Ten years ahead and right again, or back and forth, while controllers run.
            years = dice.choice((TEN_YEARS_S, -TEN_YEARS_S))
            self.clock.jumps, self.clock.jump_at_s = (years, 0.0, 60.0, 0.0), self.site.now_s + dice.uniform(1.0, 300.0)
        self.asked: list[int] = []
        self._holders = 0

    def _profile(self) -> FaultProfile:
        dice = self.dice
        times = StageTimes(self_test_s=40, image_s=30, system_boot_s=10, playbook_s=30, update_s=40, compute_s=5, slow_share=0.05)
        shares = ("wrong_serial", "dead_bmc", "flaky_bmc", "stale_firmware", "failed_flash", "sick_gpu", "ignored_reset")
        chosen = {share: dice.choice((0.05, 0.3)) for share in shares if dice.random() < 0.4}
        chosen["lost_answer"] = dice.choice((0.0, 0.0, 0.05, 0.3))
        # Dice of their own: faults that came later leave the older histories as they were.
        later = random.Random(f"{self.seed}/later faults")
        chosen |= {share: later.choice((0.05, 0.3)) for share in ("pending_reset", "twin_gpus") if later.random() < 0.3}
        if "pending_reset" in chosen:
            chosen["stale_firmware"] = 0.3
        losses = (FeedLoss(feed=dice.choice("ABCD"), at_s=dice.uniform(5, 300), for_s=60),) if dice.random() < 0.15 else ()
        dead_racks = 1 if dice.random() < 0.1 else 0
        return FaultProfile(times=times, dead_racks=dead_racks, feed_losses=losses, **chosen)

    def play(self) -> None:
        """From the first request to rest. Raises Breach."""
        self._ask(apply_request(self.spec))
        for _ in range(self.dice.choice((0, 1, 2, 4))):
            place = self.dice.choice(("before write", "after write", "before submit", "after submit"))
            self._run(Fuse(place, self.dice.randint(1, 80)))
            self.site.pass_to(self.site.now_s + self.dice.choice((0.1, 5.0, 40.0)))
            self.clock.shift_s = self.dice.choice((0.0, 0.0, -60.0, 60.0, -TEN_YEARS_S, TEN_YEARS_S))
            self._ask_something()
        self._run(Fuse())
        self._ask_something()
        self._run(Fuse())
        self._conclude()

    def close(self) -> None:
        """Close what reads the journal."""
        self.people.close()
        self.watcher.close()

    def _run(self, fuse: Fuse) -> None:
        """A controller of its own, until everything is at rest or its fuse has burnt."""

        def written() -> None:
            self.watcher.committed()
            fuse.burn("after write")

        journal = Journal(self.url, lambda holder: True, lambda: fuse.burn("before write"), written)
        gate = Journal(self.url)
        time = JournalClock(gate, self.clock)
        hands = FusedHands(self.site, time.holds, fuse)
        self._holders += 1
        controller: Controller | None = None
        try:
            epoch = journal.take_lease(f"simulated:{self._holders}:0:0", time.now_s())
            controller = Controller(journal, hands, self.clock, epoch, self.home)
            self._tick(controller)
            self._same_as_on_disk(controller)
            controller.close()
        except Killed:
            if controller is not None and self.dice.random() < 0.5:
                self._thaw(controller, hands)
        finally:
            journal.close()
            gate.close()

    def _tick(self, controller: Controller) -> None:
        end_s = self.site.now_s + LONGEST_S
        for _ in range(MOST_TICKS):
            moved = controller.tick()
            if everything_settled(controller.state):
                return
            if self.site.now_s > end_s:
                break
            if not moved:
                self.clock.wait_s(controller._idle_s())
        invariants_said = list(invariants.everybody_has_come_to_rest(controller.state)) or ["the rollout never ended"]
        raise Breach(f"everybody_has_come_to_rest: {invariants_said[0]}")

    def _thaw(self, frozen: Controller, hands: FusedHands) -> None:
        """The frozen controller goes on after another one has taken over: nothing of it may reach anyone."""
        other = Journal(self.url, lambda holder: True, None, self.watcher.committed)
        self._holders += 1
        epoch = other.take_lease(f"simulated:{self._holders}:0:0", JournalClock(other, self.clock).now_s())
        SimulatedHands.submit(hands, hands.held)
        try:
            for _ in range(3):
                frozen.tick()
                self.site.pass_to(self.site.now_s + 5.0)
        except LeaseLost:
            other.release(epoch)
            other.close()
            return
        raise Breach("only_the_present_epoch_acts: a controller went on after another had taken over")

    def _same_as_on_disk(self, controller: Controller) -> None:
        """What the controller holds in memory is the fold over the file, but for looks that were no events."""
        stored = controller.journal.load()
        for name, record in controller.state.nodes.items():
            on_disk = stored.nodes[name]
            if (record.state, record.open, record.lost, record.pins) != (on_disk.state, on_disk.open, on_disk.lost, on_disk.pins):
                raise Breach(f"memory_is_the_fold_over_the_disk: {name} is {record} in memory and {on_disk} on disk")

    def _ask(self, request: Event) -> None:
        self.asked.append(self.people.request(request).seq)
        self.watcher.committed()

    def _ask_something(self) -> None:
        """What people ask while it runs: prove again, drain, the same spec once more, or nothing."""
        nodes, by = self.watcher.state.nodes, {"by": "someone", "host": "here", "reason": "just so"}
        sick = [name for name, record in nodes.items() if record.state is NodeState.QUARANTINED]
        well = [name for name, record in nodes.items() if record.state is NodeState.READY]
        wish = self.dice.choice(("requalify", "drain", "apply", ""))
        if wish == "requalify" and sick:
            self._ask(Event("request.requalify", "cluster", {**by, "nodes": self.dice.sample(sick, 1)}))
        elif wish == "drain" and well:
            self._ask(Event("request.drain", "cluster", {**by, "nodes": self.dice.sample(well, 1)}))
        elif wish == "apply":
            self._ask(apply_request(self.spec))

    def _conclude(self) -> None:
        self.watcher.ended()
        state = self.people.load()
        lost = [seq for seq in self.asked if seq not in state.answers]
        if lost:
            raise Breach(f"what_was_acknowledged_is_answered: requests {lost}")
        if all(record.state in (NodeState.READY, NodeState.QUARANTINED) for record in state.nodes.values()):
            deeds = len(self.site.deeds)
            self._ask(apply_request(self.spec))
            self._run(Fuse())
            if len(self.site.deeds) != deeds:
                raise Breach(f"a_second_apply_changes_nothing: {self.site.deeds[deeds]}")


def play(seed: int) -> None:
    """Play the history of `seed` in a folder of its own. Raises Breach with the command that replays it."""
    home = Path(tempfile.mkdtemp(prefix="rackray-story-", dir=TMPFS if TMPFS.is_dir() else None))
    story: Story | None = None
    try:
        story = Story(seed, home)
        story.play()
    except (Breach, KeyError, AssertionError, ValueError, RuntimeError) as breach:
        raise Breach(f"{breach!r}; replay it: python -m tests.simulation.story {seed}") from breach
    finally:
        if story is not None:
            story.close()
        shutil.rmtree(home)


def digest(seed: int) -> str:
    """The digest of the journal that the history of `seed` leaves."""
    home = Path(tempfile.mkdtemp(prefix="rackray-story-", dir=TMPFS if TMPFS.is_dir() else None))
    try:
        story = Story(seed, home)
        story.play()
        found = story.people.digest()
        story.close()
        return found
    finally:
        shutil.rmtree(home)


def breach_of(seed: int) -> str:
    """What is wrong with the history of `seed`; empty where nothing is."""
    try:
        play(seed)
    except Breach as breach:
        return str(breach)
    return ""


def main(arguments: Sequence[str]) -> int:
    """Play histories on all processors and say which failed. With a log, go on after the last one that stands in it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.story", description="Play simulated histories.")
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("count", type=int, nargs="?", default=1, help="how many histories")
    parser.add_argument("--log", type=Path, help="a line per history; what stands in it is not played again")
    asked = parser.parse_args(arguments)
    logging.getLogger("orchestrator").setLevel(logging.ERROR)  # faults on purpose are no news
    began_s, failed = time.monotonic(), 0
    seeds = range(asked.first, asked.first + asked.count)
    done = asked.log.read_text().splitlines() if asked.log and asked.log.exists() else []
    left = [seed for seed in seeds if str(seed) not in {line.split()[0] for line in done}]
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        for seed, breach in zip(left, pool.map(breach_of, left, chunksize=5), strict=True):
            failed += bool(breach)
            if breach:
                print(breach, flush=True)
            if asked.log:
                with asked.log.open("a") as log:
                    log.write(f"{seed} {breach or 'well'}\n")
    before = f" ({len(seeds) - len(left)} played before)" if len(left) < len(seeds) else ""
    print(f"{len(left)} histories{before}, {failed} with a breach, {time.monotonic() - began_s:.0f} s")
    return 1 if failed or any(" well" not in line for line in done) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
