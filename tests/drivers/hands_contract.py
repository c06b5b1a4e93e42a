"""What every kind of Hands promises, as one class of tests: subclass it and give `hands`.

The neighbours behind the hands must be those of `scripted_neighbours.py`: they do what the node's name says.
"""

import itertools
import time
from collections.abc import Callable

from orchestrator.domain.operation import Action, Operation, Outcome, Status, Target
from orchestrator.drivers.interfaces import Hands
from tests.drivers.scripted_neighbours import EPOCH, SLOW_S

_numbers = itertools.count()


def an_operation(node: str, action: Action = Action.BMC_OBSERVE, *, epoch: int = EPOCH, **args: object) -> Operation:
    """An operation with an id of its own."""
    target = Target(bmc_host=f"bmc-of-{node}", ssh_host=node)
    return Operation(f"op-{next(_numbers)}", node, action, epoch, target, args)


class HandsContract:
    """Subclass this, with a fixture `hands` that gives the Hands; and `pass_time_s` where time is simulated."""

    patience_s = 10.0
    """Real seconds the hands may take to answer a quick operation."""
    blocking_s = 0.2
    """Longest that submit or poll may take for a few operations."""

    def pass_time_s(self, seconds: float) -> None:
        """Lets time pass for the hands; simulated hands move their clock here."""
        time.sleep(seconds)

    def collect(self, hands: Hands, count: int) -> list[Outcome]:
        """Polls until `count` outcomes have come."""
        outcomes: list[Outcome] = []
        end = time.monotonic() + self.patience_s
        while len(outcomes) < count:
            assert time.monotonic() < end, f"{len(outcomes)} of {count} outcomes came: {outcomes}"
            outcomes += hands.poll()
            if len(outcomes) < count:
                self.pass_time_s(0.02)
        return outcomes

    def test_every_operation_yields_exactly_one_outcome_and_it_is_its_own(self, hands: Hands) -> None:
        operations = [an_operation(f"n{number}") for number in range(50)]
        hands.submit(operations[:20])
        hands.submit(operations[20:])
        outcomes = self.collect(hands, 50)
        self.pass_time_s(0.1)
        assert hands.poll() == []
        assert {outcome.operation: outcome.node for outcome in outcomes} == {op.id: op.node for op in operations}
        assert {outcome.status for outcome in outcomes} == {Status.DONE}

    def test_submit_and_poll_do_not_wait_for_a_slow_neighbour(self, hands: Hands) -> None:
        self.collect_nothing_yet(hands)
        slow = an_operation("slow")
        assert self.timed(lambda: hands.submit([slow])) < self.blocking_s
        assert self.timed(hands.poll) < self.blocking_s
        assert [outcome.operation for outcome in self.collect(hands, 1)] == [slow.id]

    def test_a_slow_neighbour_does_not_delay_the_others(self, hands: Hands) -> None:
        slow = an_operation("slow")
        hands.submit([slow, *(an_operation(f"n{number}") for number in range(10))])
        order = [outcome.operation for outcome in self.collect(hands, 11)]
        assert order[-1] == slow.id

    def test_an_executor_that_breaks_leaves_the_outcome_unknown_and_says_why(self, hands: Hands) -> None:
        broken = an_operation("breaks", Action.BMC_POWER, reset="On")
        hands.submit([broken, an_operation("n1")])
        by_node = {outcome.node: outcome for outcome in self.collect(hands, 2)}
        assert by_node["breaks"].status is Status.UNKNOWN
        assert "this executor is broken" in by_node["breaks"].reason
        assert by_node["n1"].status is Status.DONE

    def test_a_refusal_arrives_as_the_neighbour_gave_it(self, hands: Hands) -> None:
        hands.submit([an_operation("refuses")])
        (outcome,) = self.collect(hands, 1)
        assert (outcome.status, outcome.reason, outcome.retryable) == (Status.REFUSED, "the neighbour says no", False)

    def test_an_operation_of_a_past_epoch_is_fenced(self, hands: Hands) -> None:
        old = [an_operation("n1", epoch=EPOCH - 1), an_operation("n2", Action.PLAYBOOK, epoch=EPOCH - 1, playbook="bring_up.yml")]
        hands.submit([*old, an_operation("n3")])
        by_node = {outcome.node: outcome.status for outcome in self.collect(hands, 3)}
        assert by_node == {"n1": Status.FENCED, "n2": Status.FENCED, "n3": Status.DONE}

    def test_a_playbook_on_several_nodes_is_one_run_with_an_outcome_each(self, hands: Hands) -> None:
        nodes = ["n1", "n2", "refuses", "forgotten"]
        hands.submit([an_operation(node, Action.PLAYBOOK, playbook="bring_up.yml", variables={"rack": node}) for node in nodes])
        by_node = {outcome.node: outcome for outcome in self.collect(hands, 4)}
        assert by_node["n1"].facts["together"] == 4
        assert {node: outcome.status for node, outcome in by_node.items()} == {
            "n1": Status.DONE,
            "n2": Status.DONE,
            "refuses": Status.REFUSED,
            "forgotten": Status.UNKNOWN,
        }

    def test_closed_hands_end_at_once_though_something_is_under_way(self, hands: Hands) -> None:
        hands.submit([an_operation("slow")])
        assert self.timed(hands.close) < self.closing_s
        assert hands.poll() == []

    closing_s = SLOW_S / 2
    """Longest that close may take with an exchange under way."""

    def collect_nothing_yet(self, hands: Hands) -> None:
        assert hands.poll() == []

    @staticmethod
    def timed(action: Callable[[], object]) -> float:
        """Real seconds that `action` takes."""
        began = time.monotonic()
        action()
        return time.monotonic() - began
