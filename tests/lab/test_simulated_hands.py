"""The contract of all hands, kept by simulated ones in virtual time."""

import pytest

from orchestrator.domain.operation import Action, Operation, Outcome, Status
from orchestrator.drivers.interfaces import Hands
from orchestrator.lab.simulated_hands import SimulatedHands
from orchestrator.lab.simulation import SimulatedNode, SimulatedSite
from tests.drivers.hands_contract import HandsContract, an_operation
from tests.drivers.scripted_neighbours import SLOW_S, ScriptedExchange, ScriptedPlaybooks, may_act
from tests.planning.fleet import a_fleet

NAMES = ("slow", "breaks", "refuses", "forgotten", *(f"n{number}" for number in range(50)))


class ScriptedSite(SimulatedSite):
    """A simulated site whose nodes do what their names say, as the neighbours of the other hands do."""

    def __init__(self) -> None:
        spec = a_fleet(racks=1, per_rack=len(NAMES))
        nodes = tuple(node.model_copy(update={"name": name}) for node, name in zip(spec.nodes, NAMES, strict=True))
        super().__init__(spec.model_copy(update={"nodes": nodes}), seed=1)
        for node in self.nodes.values():
            node.perform = self.as_its_name_says  # type: ignore[method-assign]

    def duration_s(self, node: SimulatedNode, operation: Operation) -> float:
        return SLOW_S if node.node.name == "slow" else super().duration_s(node, operation)

    def as_its_name_says(self, operation: Operation) -> Outcome:
        if operation.action is not Action.PLAYBOOK:
            answering = ScriptedExchange()
            return answering.perform(operation, may_act) if operation.node != "slow" else self._done(operation)
        (together,) = [play for play in self.plays if operation.node in play]
        said = list(ScriptedPlaybooks().run(operation.args["playbook"], [operation]))
        if not said:
            return Outcome(operation.id, operation.node, operation.action, Status.UNKNOWN, reason="the run said nothing of it")
        (outcome,) = said
        facts = {**outcome.facts, "together": len(together)}
        return Outcome(operation.id, operation.node, operation.action, outcome.status, facts, outcome.reason, outcome.retryable)

    def _done(self, operation: Operation) -> Outcome:
        return Outcome(operation.id, operation.node, operation.action, Status.DONE)


class TestSimulatedHands(HandsContract):
    @pytest.fixture
    def hands(self) -> Hands:
        self.site = ScriptedSite()
        return SimulatedHands(self.site, may_act)

    def pass_time_s(self, seconds: float) -> None:
        self.site.pass_to(self.site.now_s + seconds)


def test_what_a_site_answers_after_the_hands_are_closed_is_lost() -> None:
    site = ScriptedSite()
    hands = SimulatedHands(site, may_act)
    hands.submit([an_operation("n1", Action.BMC_POWER, reset="On")])
    hands.close()
    site.pass_to(site.now_s + 60)
    assert hands.poll() == []
    assert [deed.node for deed in site.deeds] == ["n1"], "and yet it happened"
