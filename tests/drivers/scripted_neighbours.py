"""Neighbours that do what the node's name says. Stands in for `orchestrator.wiring` where shards build their drivers."""

import time
from collections.abc import Iterable, Sequence

from orchestrator.domain.operation import Action, Operation, Outcome, Status
from orchestrator.drivers.interfaces import MayAct
from orchestrator.drivers.outcomes import fenced

EPOCH = 7
"""The epoch that decides."""
SLOW_S = 0.8


def may_act(epoch: int) -> bool:
    return epoch == EPOCH


def _outcome(operation: Operation, status: Status, **facts: object) -> Outcome:
    reason = "the neighbour says no" if status is Status.REFUSED else ""
    return Outcome(
        operation.id, operation.node, operation.action, status, facts=facts, reason=reason, retryable=status is not Status.REFUSED
    )


class ScriptedExchange:
    def perform(self, operation: Operation, may_act: MayAct) -> Outcome:
        if not may_act(operation.epoch):
            return fenced(operation)
        if operation.node == "breaks":
            raise RuntimeError("this executor is broken")
        if operation.node == "slow":
            time.sleep(SLOW_S)
        if operation.node == "exits":
            import os  # only this neighbour needs it

            os._exit(3)
        return _outcome(operation, Status.REFUSED if operation.node == "refuses" else Status.DONE, echo=operation.node)

    def close(self) -> None:
        """Nothing is open."""


class ScriptedPlaybooks:
    def run(self, playbook: str, operations: Sequence[Operation]) -> Iterable[Outcome]:
        assert {operation.action for operation in operations} == {Action.PLAYBOOK}
        for operation in operations:
            if operation.node == "breaks":
                raise RuntimeError("this executor is broken")
            if operation.node != "forgotten":
                yield _outcome(
                    operation,
                    Status.REFUSED if operation.node == "refuses" else Status.DONE,
                    together=len(operations),
                    playbook=playbook,
                )


def build_exchange(home: object, db_url: str) -> ScriptedExchange:
    return ScriptedExchange()


def build_playbooks(home: object) -> ScriptedPlaybooks:
    return ScriptedPlaybooks()


def build_may_act(db_url: str) -> MayAct:
    return may_act
