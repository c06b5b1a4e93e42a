"""Somebody sets the clock, ten years ahead and right again: nothing waits for it, nobody is condemned for it, nothing is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.state import ClusterState
from orchestrator.execution.controller import Controller, everything_settled
from orchestrator.execution.journal import LEASE_S, TAKEOVER_GRACE_S, Journal
from orchestrator.execution.journal_clock import JournalClock
from orchestrator.execution.views import Views
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.lab.simulation import SimulatedSite
from orchestrator.planning.takeover import clock_was_set
from tests.execution.site import apply_request, lab_4
from tests.simulation.story import ShiftedClock

TEN_YEARS_S = 3652.5 * 86_400


class World:
    """A lab of four nodes, one journal, and a clock to set."""

    def __init__(self, home: Path) -> None:
        self.home, self.spec = home, lab_4()
        self.site = SimulatedSite(self.spec, 1)
        self.clock = ShiftedClock(self.site)
        self.journal = Journal(f"sqlite:///{home}/state.db", lambda holder: True)
        self.journal.request(apply_request(self.spec))

    def decide(
        self, until: Callable[[ClusterState], bool], on_tick: Callable[[Controller], None] = lambda each: None
    ) -> ClusterState:
        """A controller of its own, until `until`. Its fence asks the journal, as every exchange does."""
        gate = JournalClock(self.journal, self.clock)
        epoch = self.journal.take_lease("host:1:1:a", gate.now_s())
        controller = Controller(self.journal, SimulatedHands(self.site, gate.holds), self.clock, epoch, self.home)
        began_s = self.site.now_s
        while not until(controller.state):
            on_tick(controller)
            if not controller.tick():
                self.clock.wait_s(controller._idle_s())
            assert self.site.now_s < began_s + 3600, "it waits for a time that never comes"
        controller.close()
        return controller.state

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.journal.events() if event.kind == kind]


def undisturbed(folder: Path) -> tuple[dict[str, NodeState], float]:
    folder.mkdir()
    world = World(folder)
    state = world.decide(everything_settled)
    return {name: record.state for name, record in state.nodes.items()}, world.site.now_s


def check_it_was_as_usual(world: World, state: ClusterState, usual: dict[str, NodeState]) -> None:
    assert {name: record.state for name, record in state.nodes.items()} == usual
    times = [event.at_s for event in world.journal.events() if event.epoch]
    assert times == sorted(times) and times[-1] <= world.site.now_s + 1.0, "its times are those of the timer"
    assert not state.requests and not world.events("controller.slept")


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S, 3600.0])
def test_a_clock_set_and_set_right_while_a_controller_runs_changes_nothing(tmp_path: Path, jump_s: float) -> None:
    usual, usual_end_s = undisturbed(tmp_path / "usual")
    world = World(tmp_path)
    begin_s = world.site.now_s

    def set_the_clock(controller: Controller) -> None:
        world.clock.shift_s = jump_s if 10.0 < world.site.now_s - begin_s < 40.0 else 0.0

    state = world.decide(everything_settled, set_the_clock)
    check_it_was_as_usual(world, state, usual)
    assert world.site.now_s == pytest.approx(usual_end_s, abs=5.0), "nothing waited for the clock"
    said = [event.data["because"] for event in world.events("controller.clock")]
    there, back = ("forward", "back") if jump_s > 0 else ("back", "forward")
    assert len(said) == 2 and f"was set {there} by" in said[0] and f"was set {back} by" in said[1]


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S, -1800.0])
def test_a_clock_set_between_two_runs_changes_nothing(tmp_path: Path, jump_s: float) -> None:
    usual, _ = undisturbed(tmp_path / "usual")
    world = World(tmp_path)
    begin_s = world.site.now_s
    world.decide(lambda state: world.site.now_s > begin_s + 12.0)
    world.clock.shift_s = jump_s
    world.decide(lambda state: world.site.now_s > begin_s + 25.0)
    world.clock.shift_s = 0.0
    check_it_was_as_usual(world, world.decide(everything_settled), usual)
    assert len(world.events("controller.clock")) == 2


def test_a_reboot_with_a_wrong_clock_and_another_with_the_right_one_cost_a_pause_at_most(tmp_path: Path) -> None:
    usual, _ = undisturbed(tmp_path / "usual")
    world = World(tmp_path)
    begin_s = world.site.now_s
    world.decide(lambda state: world.site.now_s > begin_s + 12.0)
    world.clock.boot, world.clock.shift_s = "second", TEN_YEARS_S
    world.decide(lambda state: world.site.now_s > begin_s + 25.0)
    world.clock.boot, world.clock.shift_s = "third", 0.0
    state = world.decide(everything_settled)
    assert {name: record.state for name, record in state.nodes.items()} == usual
    times = [event.at_s for event in world.journal.events() if event.epoch]
    assert times == sorted(times)
    (said,) = [event.data["because"] for event in world.events("controller.clock")]
    assert "was set back by 365" in said


def test_a_request_by_a_clock_ten_years_ahead_moves_no_decision(tmp_path: Path) -> None:
    usual, _ = undisturbed(tmp_path / "usual")
    world = World(tmp_path)
    begin_s = world.site.now_s
    world.decide(lambda state: world.site.now_s > begin_s + 12.0)
    world.journal.request(
        Event("request.rollout_pause", "cluster", {"by": "a", "host": "h", "reason": "r"}, begin_s + TEN_YEARS_S)
    )
    world.journal.request(
        Event("request.rollout_resume", "cluster", {"by": "a", "host": "h", "reason": "r"}, begin_s - TEN_YEARS_S)
    )
    check_it_was_as_usual_but_for_requests(world, world.decide(everything_settled), usual)


def check_it_was_as_usual_but_for_requests(world: World, state: ClusterState, usual: dict[str, NodeState]) -> None:
    assert {name: record.state for name, record in state.nodes.items()} == usual
    assert max(event.at_s for event in world.journal.events() if event.epoch) <= world.site.now_s + 1.0


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S])
def test_the_lease_of_a_dead_holder_whose_clock_was_wrong_is_free_after_the_usual_wait(tmp_path: Path, jump_s: float) -> None:
    timer = [0.0]
    journal = Journal(f"sqlite:///{tmp_path}/state.db", steady_s=lambda: timer[0])
    journal.take_lease("far:1:1:a", 1e9 + jump_s)
    assert not journal.is_free(journal.lease(), 1e9), "it may live: its clock is another one"
    timer[0] += LEASE_S + TAKEOVER_GRACE_S + 1.0
    assert journal.is_free(journal.lease(), 1e9 + 46.0)
    assert journal.take_lease("near:1:1:b", 1e9 + 46.0) == 2


def test_a_holder_that_renews_is_alive_whatever_the_clock_here_says(tmp_path: Path) -> None:
    timer = [0.0]
    journal = Journal(f"sqlite:///{tmp_path}/state.db", steady_s=lambda: timer[0])
    epoch = journal.take_lease("far:1:1:a", 1e9)
    for second in range(100):
        timer[0] = float(second)
        journal.renew(epoch, 1e9 + second)
        assert not journal.is_free(journal.lease(), 1e9 + TEN_YEARS_S)


def test_drift_is_no_news() -> None:
    assert clock_was_set(0.0, 4.9) == [] and clock_was_set(100.0, 96.0) == []
    (event,) = clock_was_set(0.0, -7200.0)
    assert event.data["ahead_s"] == -7200.0 and "was set back by 2.0 h" in event.data["because"]


def test_people_read_times_by_the_clock_as_it_is_now_and_the_same_ones_each_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    begin_s = world.site.now_s
    world.decide(lambda state: world.site.now_s > begin_s + 12.0)
    views = Views(world.journal, tmp_path, world.clock)
    since_s = views.state.nodes["r01-n1"].since_s
    assert views.on_the_wall_s(since_s) == since_s and views.now_s() == pytest.approx(world.site.now_s)
    world.clock.shift_s = TEN_YEARS_S
    assert views.on_the_wall_s(since_s) == since_s + TEN_YEARS_S, "as if it had happened by today's clock"
    assert views.now_s() - since_s == pytest.approx(world.site.now_s - since_s), "ages are what they are"
