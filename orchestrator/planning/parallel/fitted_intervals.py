"""Intervals of 2026-11-28, 1337 step times and 157 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.2937, 0.4502),
    "*": (-0.2646, 0.4339),
    "A100|composer": (-0.0724, 0.0988),
    "A100|composer@network": (-0.0819, 0.2778),
    "A100|composer@node": (-0.0726, 0.0938),
    "A100|deepspeed": (-0.2045, 0.2920),
    "A100|megatron-2021": (-0.3356, 0.0828),
    "A100|megatron-2021@network": (-0.3356, 0.0828),
    "A100|megatron-deepspeed": (-0.0653, 0.0576),
    "A100|megatron-deepspeed@network": (-0.2007, 0.1815),
    "A100|megatron-deepspeed@node": (-0.0476, 0.0479),
    "A100|zero-bubble": (-0.1362, 0.0708),
    "A100|zero-bubble@network": (-0.0342, 0.0602),
    "A100|zero-bubble@node": (-0.1462, 0.0902),
    "B200|megatron-bridge": (-0.1980, 0.0927),
    "B200|megatron-bridge@network": (-0.2411, 0.1154),
    "B200|megatron-core": (-0.1179, 0.1150),
    "B200|megatron-core@node": (-0.1179, 0.1150),
    "B200|nemo": (-0.0932, 0.0742),
    "B300|megatron-bridge": (-0.2464, 0.1450),
    "B300|megatron-bridge@network": (-0.2464, 0.1450),
    "H100-500W|torchtitan": (-0.4962, 0.5106),
    "H100|composer": (-0.0566, 0.0584),
    "H100|composer@network": (-0.0617, 0.0584),
    "H100|composer@node": (-0.0576, 0.2067),
    "H100|megatron-bridge": (-0.1892, 0.1154),
    "H100|nemo": (-0.0942, 0.0764),
    "H100|nemo@network": (-0.0870, 0.0742),
    "H100|xla": (-0.2327, 0.2433),
    "H100|xla@network": (-0.2327, 0.2433),
    "V100|megatron-2021": (-0.2467, 0.0778),
}
"""Key → ends of ln(measured / predicted)."""

MEMORY_INTERVALS: Quantiles = {
    "": (-0.2624, 0.2877),
    "*": (-0.2624, 0.2877),
    "A100|megatron-deepspeed": (-0.0704, 0.1091),
    "A100|megatron-deepspeed@network": (-0.0875, 0.0875),
    "A100|zero-bubble": (-0.0332, 0.0824),
    "A100|zero-bubble@network": (-0.0332, 0.0266),
    "A100|zero-bubble@node": (-0.0248, 0.1235),
    "B200|megatron-core": (-0.0322, 0.0645),
    "B200|megatron-core@node": (-0.0322, 0.0645),
    "H100-500W|torchtitan": (-0.0459, 0.2902),
}
"""Key → ends of ln(measured / predicted)."""
