"""Pause, resume, skip, retry, abort, replace, retire: asked while the simulated site is being brought up."""

from collections.abc import Callable
from pathlib import Path

from orchestrator.domain.event import Event
from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import MUTATING, Action
from orchestrator.domain.spec import ClusterSpec
from orchestrator.domain.state import ClusterState
from orchestrator.execution.controller import Controller, everything_settled
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.planning.fleet_book import FleetBook
from orchestrator.planning.site import Site
from tests.execution.site import Rehearsal, a_controller, apply_request, lab_4

READY, QUARANTINED, ENROLLED, RETIRED = NodeState.READY, NodeState.QUARANTINED, NodeState.ENROLLED, NodeState.RETIRED


class Story(Rehearsal):
    """A site with a controller that goes on while things are asked of it."""

    controller: Controller

    def begin(self) -> None:
        """Ask for the spec, with a controller that is there already or a first one."""
        self.journal.request(apply_request(self.spec))
        if not hasattr(self, "controller"):
            self.controller = a_controller(self.journal, SimulatedHands(self.site), self.clock, self.home)

    def ask(self, kind: str, **data: object) -> str:
        asked = self.journal.request(Event(kind, "cluster", {"by": "ann", "host": "h", "reason": "why not", **data}))
        self.controller.run(lambda state: asked.seq in state.answers)
        return self.controller.state.answers[asked.seq]

    def until(self, condition: Callable[[ClusterState], bool]) -> ClusterState:
        self.controller.run(condition)
        return self.controller.state

    def for_s(self, seconds: float) -> ClusterState:
        """Let virtual time pass."""
        end_s = self.clock.now_s() + seconds
        return self.until(lambda state: self.clock.now_s() >= end_s)


def all_at_once(**policy: object) -> ClusterSpec:
    """The lab without planted faults, in one wave; `policy` replaces fields of `rollout`."""
    spec = lab_4()
    rollout = spec.rollout.model_copy(update={"canary": 4, **policy})
    lab = spec.lab.model_copy(update={"plant": ()}) if spec.lab else None
    return spec.model_copy(update={"rollout": rollout, "lab": lab})


def is_in(name: str, state: NodeState) -> Callable[[ClusterState], bool]:
    return lambda cluster: name in cluster.nodes and cluster.nodes[name].state is state


def test_a_pause_lets_begun_nodes_end_and_starts_no_other(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=1, growth=1))
    story.begin()
    story.until(lambda state: bool(state.rollout.waves) and is_in(state.rollout.waves[0][0], NodeState.POWERED)(state))
    canary = story.controller.state.rollout.waves[0][0]
    assert story.ask("request.rollout_pause").startswith("paused")
    state = story.for_s(600)
    assert state.nodes[canary].state is READY
    assert {deed.node for deed in story.site.deeds} == {canary}
    assert "ann: why not" in state.rollout.paused_because
    assert story.ask("request.rollout_resume") == "resumed"
    assert set(story.until(everything_settled).nodes[name].state for name in state.nodes) == {READY}


def test_a_pause_survives_another_controller(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=1, growth=1))
    story.begin()
    story.ask("request.rollout_pause")
    story.controller.close()
    story.controller = a_controller(story.journal, SimulatedHands(story.site), story.clock, story.home, "host:2:2:b")
    before = len(story.site.deeds)
    state = story.for_s(300)
    assert state.rollout.paused_because and len({deed.node for deed in story.site.deeds[before:]}) <= 1


def test_a_skipped_node_ends_its_stage_and_is_then_left_alone(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    story.begin()
    story.until(is_in("r01-n1", NodeState.REACHABLE))
    story.ask("request.rollout_skip", nodes=["r01-n1"])
    skipped_s = story.clock.now_s()
    state = story.until(everything_settled)
    assert state.nodes["r01-n1"].state is NodeState.CONFIGURED
    assert {record.state for name, record in state.nodes.items() if name != "r01-n1"} == {READY}
    later = {deed.action for deed in story.site.deeds if deed.node == "r01-n1" and deed.at_s > skipped_s}
    assert later <= {Action.PLAYBOOK}
    story.begin()
    assert story.until(is_in("r01-n1", READY)), "another apply takes it up again"


def test_why_a_node_was_left_out_is_still_said_when_a_rollout_of_others_has_begun(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    story.begin()
    story.until(is_in("r01-n1", NodeState.REACHABLE))
    story.ask("request.rollout_skip", nodes=["r01-n1"])
    before = story.until(everything_settled).rollout
    story.ask("request.drain", nodes=["r02-n1"])
    story.ask("request.requalify", nodes=["r02-n1"])
    state = story.until(everything_settled)
    assert state.rollout.number == before.number + 1 and state.rollout.waves == (("r02-n1",),)
    assert state.rollout.is_resting(state.nodes["r01-n1"])
    site = Site.of(story.spec)
    said = FleetBook(site, state.rollout, state.nodes).stands_aside(state.nodes["r01-n1"])
    assert "ann: why not" in said and "`rackray apply` starts one" in said
    story.begin()
    rollout = story.until(is_in("r01-n1", READY)).rollout
    assert not rollout.skipped and not rollout.skipped_because, "a rollout that takes it up forgets it"


def test_abort_starts_no_node_and_lets_each_end_its_stage(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=2, growth=1))
    story.begin()
    story.until(lambda state: any(record.state is NodeState.REACHABLE for record in state.nodes.values()))
    before = {name: record.state for name, record in story.controller.state.nodes.items()}
    answer = story.ask("request.rollout_abort")
    assert answer == "aborted: 2 nodes under way end their stages; 2 never begin"
    state = story.until(everything_settled)
    order = list(NodeState)
    for name, record in state.nodes.items():
        assert order.index(record.state) <= order.index(before[name]) + 1
    deeds = len(story.site.deeds)
    story.for_s(600)
    assert len(story.site.deeds) == deeds, "nothing is done after the abort"
    assert story.ask("request.rollout_resume").startswith("refused: the rollout was aborted")
    story.begin()
    assert {record.state for record in story.until(everything_settled).nodes.values()} == {READY}


def test_resume_after_the_breaker_forgives_what_failed_so_far_and_no_more(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=1, growth=1, failure_budget=0))
    for name in story.site.nodes:
        story.site.nodes[name].machine.fault("wrong_serial", story.site.now_s, serial="STRANGER")
    story.begin()
    state = story.until(everything_settled)
    assert list(story.states().values()).count(QUARANTINED) == 1 and "budget is 0" in state.rollout.stopped_because
    assert "1 failed nodes are accepted" in story.ask("request.rollout_resume")
    state = story.until(everything_settled)
    assert list(story.states().values()).count(QUARANTINED) == 2, "the next failure stops it again"
    assert state.rollout.stopped_because


def test_retry_proves_the_failed_nodes_again_within_the_rollout(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=1, growth=3, failure_budget=4))
    story.site.nodes["r01-n1"].machine.fault("wrong_serial", story.site.now_s, serial="STRANGER")
    story.begin()
    story.until(is_in("r01-n1", QUARANTINED))
    story.site.nodes["r01-n1"].machine.heal("wrong_serial", story.site.now_s)
    number = story.controller.state.rollout.number
    assert story.ask("request.rollout_retry", nodes=[]) == "1 node proves itself again"
    state = story.until(everything_settled)
    assert set(story.states().values()) == {READY} and state.rollout.number == number


def test_requalifying_one_node_leaves_the_rollout_that_is_going_on_in_force(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=1, growth=1, failure_budget=4))
    canary = "r01-n1"
    story.site.nodes[canary].machine.fault("wrong_serial", story.site.now_s, serial="STRANGER")
    story.begin()
    story.until(is_in(canary, QUARANTINED))
    waves = story.controller.state.rollout.waves
    story.site.nodes[canary].machine.heal("wrong_serial", story.site.now_s)
    story.ask("request.requalify", nodes=[canary])
    rollout = story.controller.state.rollout
    assert rollout.number == 1 and sorted(sum(rollout.waves, ())) == sorted(sum(waves, ()))
    assert {r.state for r in story.until(everything_settled).nodes.values()} == {READY}


def test_requalifying_a_node_of_a_stopped_rollout_works_on_it_alone_and_leaves_the_rollout_stopped(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=1, growth=1, failure_budget=0))
    canary = "r01-n1"
    story.site.nodes[canary].machine.fault("wrong_serial", story.site.now_s, serial="STRANGER")
    story.begin()
    story.until(everything_settled)
    story.site.nodes[canary].machine.heal("wrong_serial", story.site.now_s)
    story.ask("request.requalify", nodes=[canary])
    state = story.until(everything_settled)
    assert state.nodes[canary].state is READY
    assert state.rollout.number == 1 and "budget is 0" in state.rollout.stopped_because
    assert {deed.node for deed in story.site.deeds} == {canary}, "nobody else begins before somebody says so"
    story.ask("request.rollout_resume")
    assert {record.state for record in story.until(everything_settled).nodes.values()} == {READY}


def test_nodes_sent_into_a_stopped_rollout_have_a_budget_of_their_own(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=4, failure_budget=1, max_in_flight=1, attempts=2))
    for node in story.site.nodes.values():
        node.machine.fault("reset_ignored", story.site.now_s)
    story.begin()
    first = story.until(everything_settled)
    failed = [name for name, record in first.nodes.items() if record.state is QUARANTINED]
    assert len(failed) >= 2 and first.rollout.stopped_because
    story.ask("request.rollout_retry", nodes=[])
    state = story.until(everything_settled)
    assert "were sent in again failed again" in state.rollout.stopped_because and not state.rollout.called


def test_a_machine_that_failed_its_identity_is_not_written_to_when_it_is_requalified(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(failure_budget=4))
    story.site.nodes["r01-n1"].machine.fault("wrong_serial", story.site.now_s, serial="STRANGER")
    story.begin()
    story.until(everything_settled)
    story.ask("request.requalify", nodes=["r01-n1"])
    state = story.until(everything_settled)
    assert state.nodes["r01-n1"].state is QUARANTINED and "STRANGER" in state.nodes["r01-n1"].because
    assert [deed for deed in story.site.deeds if deed.node == "r01-n1"] == []


def test_a_swapped_board_is_refused_until_a_person_names_its_serial(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    story.begin()
    story.until(everything_settled)
    story.ask("request.drain", nodes=["r01-n1"])
    old_pins = dict(story.controller.state.nodes["r01-n1"].pins)
    board = story.site.nodes["r01-n1"]
    board.machine.fault("wrong_serial", story.site.now_s, serial="BOARD-2")
    board.certificate_sha256, board.ours = "another certificate", False
    began = len(story.site.deeds)
    assert story.ask("request.replace", node="r01-n1", serial="LAB00002").startswith("refused: serial LAB00002 belongs to r01-n2")
    story.ask("request.replace", node="r01-n1", serial="BOARD-2")
    state = story.until(everything_settled)
    record = state.nodes["r01-n1"]
    assert record.state is READY and record.serial == "BOARD-2"
    assert record.pins["bmc_certificate_sha256"] == "another certificate" != old_pins["bmc_certificate_sha256"]
    assert {deed.node for deed in story.site.deeds[began:]} == {"r01-n1"}
    said = [event for event in story.journal.events() if event.kind == "node.replaced"]
    assert said[0].data["old_serial"] == "LAB00001" and "ann" in said[0].data["because"]


def test_replacing_a_node_in_service_is_refused(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    story.begin()
    story.until(everything_settled)
    assert "take it out of service first" in story.ask("request.replace", node="r01-n1", serial="BOARD-2")
    assert story.controller.state.nodes["r01-n1"].state is READY


def test_leaving_the_spec_sends_nothing_to_a_node_and_is_said(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    story.begin()
    story.until(everything_settled)
    deeds = len(story.site.deeds)
    smaller = story.spec.model_copy(update={"nodes": story.spec.nodes[1:]})
    asked = story.journal.request(apply_request(smaller, "a smaller one"))
    state = story.until(lambda s: asked.seq in s.answers and everything_settled(s))
    assert "1 node is no longer in the spec (r01-n1): nothing is sent there" in state.answers[asked.seq]
    story.for_s(300)
    assert len(story.site.deeds) == deeds and story.site.nodes["r01-n1"].is_on


def test_a_node_removed_from_the_spec_in_the_middle_of_its_bring_up_does_not_hold_up_the_others(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once(canary=2, growth=1))
    story.begin()
    story.until(lambda state: any(record.state is NodeState.REACHABLE for record in state.nodes.values()))
    gone = next(name for name, record in story.controller.state.nodes.items() if record.state is NodeState.REACHABLE)
    smaller = story.spec.model_copy(update={"nodes": tuple(node for node in story.spec.nodes if node.name != gone)})
    asked = story.journal.request(apply_request(smaller, "a smaller one"))
    removed_s = story.clock.now_s()
    state = story.until(lambda s: asked.seq in s.answers and everything_settled(s))
    assert {state.nodes[node.name].state for node in smaller.nodes} == {READY}
    later = [deed for deed in story.site.deeds if deed.node == gone and deed.at_s > removed_s and deed.action in MUTATING]
    assert {deed.action for deed in later} <= {Action.PLAYBOOK}, "at most what was in flight"


def test_retiring_sends_nothing_and_is_final(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    story.begin()
    story.until(everything_settled)
    assert "take it out of service first" in story.ask("request.retire", nodes=["r01-n1"])
    story.ask("request.drain", nodes=["r01-n1"])
    deeds = len(story.site.deeds)
    assert "nothing was sent" in story.ask("request.retire", nodes=["r01-n1"])
    assert story.controller.state.nodes["r01-n1"].state is RETIRED
    assert "can be requalified" in story.ask("request.requalify", nodes=["r01-n1"])
    story.begin()
    story.until(everything_settled)
    assert len(story.site.deeds) == deeds


def test_apply_with_a_limit_touches_those_nodes_alone(tmp_path: Path) -> None:
    story = Story(tmp_path, all_at_once())
    request = apply_request(story.spec)
    story.journal.request(Event(request.kind, request.subject, {**request.data, "limit": ["r02-n1"]}))
    story.controller = a_controller(story.journal, SimulatedHands(story.site), story.clock, story.home)
    state = story.until(everything_settled)
    assert state.nodes["r02-n1"].state is READY
    assert {deed.node for deed in story.site.deeds} == {"r02-n1"}
    story.for_s(60)
    assert {deed.node for deed in story.site.deeds} == {"r02-n1"}
