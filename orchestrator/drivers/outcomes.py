"""Outcomes that come from no neighbour: what Hands say about operations that failed on our own side of the wire."""

from orchestrator.domain.operation import Operation, Outcome, Status


def ended(operation: Operation, status: Status, reason: str, *, retryable: bool = True, seconds: float = 0.0) -> Outcome:
    """The outcome of `operation` without facts."""
    return Outcome(operation.id, operation.node, operation.action, status, reason=reason, retryable=retryable, seconds=seconds)


def lost(operation: Operation, reason: str, seconds: float = 0.0) -> Outcome:
    """It was handed over and nobody can say what became of it: whoever decides must look."""
    return ended(operation, Status.UNKNOWN, reason, seconds=seconds)


def never_sent(operation: Operation, reason: str) -> Outcome:
    """It was not handed over to anybody."""
    return ended(operation, Status.UNREACHABLE, reason)


def held(operation: Operation, reason: str) -> Outcome:
    """It was not handed over to anybody, for a reason of our own."""
    return ended(operation, Status.HELD, reason)


def fenced(operation: Operation) -> Outcome:
    """Its lease epoch had passed before the exchange began."""
    return ended(operation, Status.FENCED, f"epoch {operation.epoch} no longer decides; nothing was sent", retryable=False)
