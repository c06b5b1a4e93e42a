"""The contract over threads, and what only threads can do wrong."""

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.domain.operation import Action, Operation, Outcome, Status, Target
from orchestrator.drivers.interfaces import Hands
from orchestrator.drivers.local_hands import GRACE_S, PER_BMC, LocalHands
from orchestrator.drivers.routed_hands import RoutedHands
from tests.drivers.hands_contract import HandsContract, an_operation
from tests.drivers.scripted_neighbours import ScriptedExchange, ScriptedPlaybooks, may_act


def scripted_hands() -> LocalHands:
    exchange = ScriptedExchange()
    return LocalHands(lambda op: exchange.perform(op, may_act), ScriptedPlaybooks(), may_act=may_act, gather_s=0.05)


class TestLocalHands(HandsContract):
    @pytest.fixture
    def hands(self) -> Iterator[Hands]:
        hands = scripted_hands()
        yield hands
        hands.close()


class TestRoutedHands(HandsContract):
    @pytest.fixture
    def hands(self) -> Iterator[Hands]:
        hands = RoutedHands({Action.PLAYBOOK: scripted_hands()}, scripted_hands())
        yield hands
        hands.close()


class Gate:
    """A neighbour that answers when told to; counts who is inside."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside: list[str] = []

    def perform(self, operation: Operation) -> Outcome:
        self.inside.append(operation.node)
        if operation.node.startswith("gated"):
            self.opened.wait(30)
        return Outcome(operation.id, operation.node, operation.action, Status.DONE)


def wait_for(hands: LocalHands, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    end = time.monotonic() + 10
    while len(outcomes) < count and time.monotonic() < end:
        outcomes += hands.poll()
        time.sleep(0.005)
    return outcomes


def test_at_most_two_exchanges_at_once_with_one_bmc_and_the_third_follows() -> None:
    gate = Gate()
    hands = LocalHands(gate.perform)
    hands.submit([an_operation("gated") for _ in range(4)])
    hands.submit([an_operation("free")])
    assert [outcome.node for outcome in wait_for(hands, 1)] == ["free"]
    assert gate.inside.count("gated") == PER_BMC
    gate.opened.set()
    assert len(wait_for(hands, 4)) == 4


def test_ssh_exchanges_are_not_held_back_by_the_limit_of_bmcs() -> None:
    gate = Gate()
    hands = LocalHands(gate.perform)
    hands.submit([an_operation("gated", Action.SSH_IDENTIFY) for _ in range(4)])
    gate_full = time.monotonic() + 10
    while len(gate.inside) < 4 and time.monotonic() < gate_full:
        time.sleep(0.005)
    assert len(gate.inside) == 4
    gate.opened.set()
    assert len(wait_for(hands, 4)) == 4


def test_a_hung_exchange_becomes_unknown_and_gives_its_place_to_the_next() -> None:
    gate, now_s = Gate(), [0.0]
    hands = LocalHands(gate.perform, threads=1, monotonic_s=lambda: now_s[0])
    hung, waiting = an_operation("gated", Action.BMC_POWER), an_operation("n1")
    hands.submit([hung, waiting])
    now_s[0] = hung.timeout_s + GRACE_S - 1
    assert hands.poll() == []
    now_s[0] = hung.timeout_s + GRACE_S + 1
    outcomes = {outcome.operation: outcome.status for outcome in wait_for(hands, 2)}
    assert outcomes == {hung.id: Status.UNKNOWN, waiting.id: Status.DONE}
    gate.opened.set()
    time.sleep(0.1)
    assert hands.poll() == [], "the late answer must not become a second outcome"


def test_a_playbook_that_breaks_in_the_middle_leaves_the_rest_unknown() -> None:
    hands = scripted_hands()
    hands.submit([an_operation(node, Action.PLAYBOOK, playbook="bring_up.yml") for node in ("n1", "breaks", "n2")])
    outcomes = {outcome.node: outcome for outcome in wait_for(hands, 3)}
    assert {node: outcome.status for node, outcome in outcomes.items()} == {
        "n1": Status.DONE,
        "breaks": Status.UNKNOWN,
        "n2": Status.UNKNOWN,
    }
    assert "this executor is broken" in outcomes["n2"].reason


def test_playbooks_submitted_a_moment_apart_share_a_run_and_later_ones_do_not() -> None:
    hands = scripted_hands()
    hands.submit([an_operation("n1", Action.PLAYBOOK, playbook="bring_up.yml")])
    hands.submit(
        [an_operation("n2", Action.PLAYBOOK, playbook="bring_up.yml"), an_operation("n3", Action.PLAYBOOK, playbook="other.yml")]
    )
    assert {outcome.node: outcome.facts["together"] for outcome in wait_for(hands, 3)} == {"n1": 2, "n2": 2, "n3": 1}
    hands.submit([an_operation("n4", Action.PLAYBOOK, playbook="bring_up.yml")])
    assert wait_for(hands, 1)[0].facts["together"] == 1


def test_playbooks_without_fencing_are_not_accepted() -> None:
    with pytest.raises(ValueError, match="may_act"):
        LocalHands(lambda op: Outcome(op.id, op.node, op.action, Status.DONE), ScriptedPlaybooks())


def test_neighbours_known_to_be_silent_leave_places_for_those_that_answer() -> None:
    gate = Gate()

    def perform(operation: Operation) -> Outcome:
        done = gate.perform(operation)
        if not operation.node.startswith(("dead", "gated")):
            return done
        return Outcome(operation.id, operation.node, operation.action, Status.UNREACHABLE, seconds=20.0)

    hands = LocalHands(perform, threads=4)
    rack = [f"{kind}{number}" for kind in ("dead", "gated") for number in range(6)]

    def ask(name: str) -> Operation:
        return dataclasses.replace(an_operation(name), target=Target(bmc_host=name.removeprefix("dead").removeprefix("gated")))

    hands.submit([ask(name) for name in rack[:6]])
    assert {outcome.status for outcome in wait_for(hands, 6)} == {Status.UNREACHABLE}
    # The same six again, and now they hang: they get half of the threads, and a sound one gets through.
    hands.submit([ask(name) for name in rack[6:]])
    hands.submit([ask("sound")])
    assert [outcome.node for outcome in wait_for(hands, 1)] == ["sound"]
    assert len([name for name in gate.inside if name.startswith("gated")]) == 2
    gate.opened.set()
    assert len(wait_for(hands, 6)) == 6


def test_a_silent_neighbour_that_answers_again_is_no_longer_held_back() -> None:
    seconds = iter([20.0, 0.1, 0.1, 0.1])

    def perform(operation: Operation) -> Outcome:
        took_s = next(seconds)
        status = Status.UNREACHABLE if took_s > 1 else Status.DONE
        return Outcome(operation.id, operation.node, operation.action, status, seconds=took_s)

    hands = LocalHands(perform, threads=2)
    for wanted in (Status.UNREACHABLE, Status.DONE, Status.DONE):
        hands.submit([an_operation("n1")])
        assert wait_for(hands, 1)[0].status is wanted
    assert hands._silent == set() and hands._with_silent == set()
