"""The journal's time: it passes as the machine's own timer does, whatever anybody sets the clock to.

Per boot of a host the journal keeps one number, what to add to the timer; so every process of that boot has the same time, across
restarts too. It is the clock's time when the number is chosen, and never earlier than what the journal holds already. How far the
clock is ahead of it later is an event, for people to read the journal's times by; nothing is ever decided from it.
"""

from orchestrator.drivers.interfaces import Clock
from orchestrator.execution.journal import Journal


class JournalClock:
    """A Clock that nobody can set. `look` before a question that has to agree with other processes."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal, self._clock = journal, clock
        self.boot = clock.boot
        """Which run of the machine's timer this is."""
        self._is_kept, self._offset_s = False, 0.0
        self.look()
        if not self._is_kept:
            begin_s = max(clock.now_s() - journal.clock_ahead_s(), journal.newest_s())
            self._offset_s = begin_s - clock.steady_s()

    def now_s(self) -> float:
        """Seconds since the epoch, as the journal counts them."""
        return self._clock.steady_s() + self._offset_s

    def steady_s(self) -> float:
        """The machine's timer."""
        return self._clock.steady_s()

    def wait_s(self, seconds: float) -> None:
        """As the clock does."""
        self._clock.wait_s(seconds)

    def ahead_s(self) -> float:
        """How far the clock on the wall is ahead of the journal's time, in seconds; negative where it is behind."""
        return self._clock.now_s() - self.now_s()

    def holds(self, epoch: int) -> bool:
        """Whether `epoch` still decides: the question before every exchange."""
        self.look()
        return self._journal.holds(epoch, self.now_s())

    def look(self) -> None:
        """Take over what another process of this boot has settled."""
        kept_s = self._journal.clock_offset_s(self.boot)
        if kept_s is not None:
            self._is_kept, self._offset_s = True, kept_s

    def settle(self, epoch: int) -> None:
        """Keep this boot's number, for whoever holds the lease. Raises LeaseLost when `epoch` no longer decides."""
        self.look()
        behind_s = self._journal.newest_s() - self.now_s()
        if behind_s > 0:
            # A host whose clock was ahead has decided before: its time goes on here, or its evidence would lie in the future.
            self._offset_s += behind_s
        if behind_s > 0 or not self._is_kept:
            self._journal.keep_clock(self.boot, self._offset_s, epoch)
            self._is_kept = True
