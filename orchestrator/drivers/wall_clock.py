"""This host's clock, which anybody may set, and its timer, which nobody sets."""

import os
import time
from pathlib import Path

LISTEN_EVERY_S = 0.1
_TIME_SPACE = "/proc/self/ns/time"
"""Not on kernels before 5.6."""


class WallClock:
    """Real time. The timer counts sleep too, as the clock does (CLOCK_BOOTTIME); a time namespace has one of its own."""

    def __init__(self) -> None:
        space = os.readlink(_TIME_SPACE) if os.path.lexists(_TIME_SPACE) else ""
        self.boot = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {space}"

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def steady_s(self) -> float:
        """Seconds since the machine booted."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait_s(self, seconds: float) -> None:
        """Sleep, but not so long that an outcome or a request has to wait."""
        time.sleep(min(seconds, LISTEN_EVERY_S))
