"""Not fitted yet."""

from orchestrator.planning.parallel.constants import MEMORY_STARTS, STARTS, Table
from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME: Table = STARTS
MEMORY: Table = MEMORY_STARTS
STEP_TIME_INTERVALS: Quantiles = {"": (-0.5, 0.5)}
MEMORY_INTERVALS: Quantiles = {"": (-0.3, 0.3)}
