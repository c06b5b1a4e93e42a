"""Whether a step's update may be applied: finite numbers, and a loss that did not jump.  Standard library only.

A jump is measured as an outlier from the recent past by median and median absolute deviation (Leys et al. 2013,
doi:10.1016/j.jesp.2013.03.013), which the jumps themselves hardly move.  Skipping the batches around a spike is what PaLM's
training did (Chowdhery et al. 2022, arXiv 2204.02311, section 5.1).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from model.contract import GuardSpec

_LEAST_HISTORY: Final = 20
"""Steps that must have been seen before anything is called a jump."""
_MAD_TO_DEVIATION: Final = 1.4826
"""Of a normal distribution."""
_LEAST_DEVIATION: Final = 0.005
"""Share of the median: a loss that hardly moves would else make a jump of nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one step."""

    trouble: str = ""
    """`nan` or `spike`; empty where there is none."""
    because: str = ""
    is_applied: bool = True
    is_end: bool = False
    """Whether the run is to stop."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    name: str
    because: str
    policy: str


class Guard:
    """Judges every step of a run; its memory travels in checkpoints."""

    def __init__(self, spec: GuardSpec) -> None:
        self._spec = spec
        self._losses: deque[float] = deque(maxlen=spec.window_steps)
        self._skipped_in_row = 0

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """The verdict on a step whose update is about to be applied."""
        trouble = self._trouble(loss, grad_norm)
        if trouble is None or trouble.policy == "ignore":
            self._skipped_in_row = 0
            self._losses.append(loss)
            return Verdict(trouble.name, trouble.because) if trouble else Verdict()
        return self._refuse(trouble)

    def overruled(self, loss: float, grad_norm: float) -> Verdict:
        """For a rank that let the step pass while another did not."""
        if self._losses and self._losses[-1] == loss:
            self._losses.pop()
        policy = self._spec.on_spike if self._spec.on_spike != "ignore" else self._spec.on_nan
        return self._refuse(_Trouble("spike", f"another rank found the loss {loss:.4g} too high", policy))

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs to judge as this one would have."""
        return {"losses": list(self._losses), "skipped_in_row": self._skipped_in_row}

    def restore(self, value: dict[str, Any]) -> None:
        """Takes `to_json`'s memory; the newest of it where the window has become shorter."""
        self._losses.clear()
        self._losses.extend(value.get("losses", ()))
        self._skipped_in_row = value.get("skipped_in_row", 0)

    def _refuse(self, trouble: _Trouble) -> Verdict:
        self._skipped_in_row += 1
        if trouble.policy == "skip" and self._skipped_in_row > self._spec.most_skips_in_row:
            because = f"{trouble.because}; {self._spec.most_skips_in_row} steps before it were skipped already"
            return Verdict(trouble.name, because, is_applied=False, is_end=True)
        return Verdict(trouble.name, trouble.because, is_applied=False, is_end=trouble.policy == "stop")

    def _trouble(self, loss: float, grad_norm: float) -> _Trouble | None:
        # DeepSpeed tells a norm that is no number as -1 in places.
        if not math.isfinite(loss) or not math.isfinite(grad_norm) or grad_norm < 0:
            return _Trouble("nan", f"loss {loss}, gradient norm {grad_norm}", self._spec.on_nan)
        if len(self._losses) < min(_LEAST_HISTORY, self._spec.window_steps):
            return None
        median = statistics.median(self._losses)
        spread = _MAD_TO_DEVIATION * statistics.median(abs(past - median) for past in self._losses)
        deviation = max(spread, _LEAST_DEVIATION * abs(median))
        limit = median + self._spec.spike_deviations * deviation
        if loss <= limit:
            return None
        because = (
            f"loss {loss:.4g} is above {limit:.4g}: median {median:.4g} of the last {len(self._losses)} steps "
            f"and {self._spec.spike_deviations:g} deviations of {deviation:.2g}"
        )
        return _Trouble("spike", because, self._spec.on_spike)
