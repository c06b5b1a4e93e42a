"""How much time is left for what is being done now, known to everything below without passing it through every call.

One exchange has one deadline, however many requests and reads it takes; a peer that drips one byte a second cannot stretch it.
The deadline belongs to the thread (or task) that entered `within`.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END_S: ContextVar[float] = ContextVar("end_s", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Everything inside shares `seconds`; an inner deadline can only shorten the outer one."""
    token = _END_S.set(min(_END_S.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _END_S.reset(token)


def remaining_s(at_most_s: float = math.inf) -> float:
    """Seconds left, never negative and never more than `at_most_s`."""
    return max(0.0, min(at_most_s, _END_S.get() - time.monotonic()))
