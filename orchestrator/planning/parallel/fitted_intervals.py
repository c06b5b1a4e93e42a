"""Intervals of 2026-11-28, 1337 step times and 157 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.1950, 0.3220),
    "*": (-0.2031, 0.3714),
    "A100|composer": (-0.0772, 0.0990),
    "A100|composer@network": (-0.0853, 0.2879),
    "A100|composer@node": (-0.0792, 0.0970),
    "A100|deepspeed": (-0.2100, 0.3552),
    "A100|megatron-2021": (-0.1452, 0.0509),
    "A100|megatron-2021@network": (-0.1452, 0.0492),
    "A100|megatron-deepspeed": (-0.0633, 0.0562),
    "A100|megatron-deepspeed@network": (-0.1741, 0.1788),
    "A100|megatron-deepspeed@node": (-0.0476, 0.0471),
    "A100|zero-bubble": (-0.1408, 0.0657),
    "A100|zero-bubble@network": (-0.0446, 0.0657),
    "A100|zero-bubble@node": (-0.1544, 0.0781),
    "B200|megatron-bridge": (-0.1593, 0.0858),
    "B200|megatron-bridge@network": (-0.2057, 0.1172),
    "B200|megatron-core": (-0.0966, 0.0982),
    "B200|megatron-core@node": (-0.0966, 0.0982),
    "B200|nemo": (-0.0949, 0.0564),
    "B300|megatron-bridge": (-0.2282, 0.1282),
    "B300|megatron-bridge@network": (-0.2282, 0.1282),
    "H100-500W|torchtitan": (-0.2914, 0.3038),
    "H100|composer": (-0.0559, 0.0739),
    "H100|composer@network": (-0.0770, 0.0765),
    "H100|composer@node": (-0.0559, 0.2085),
    "H100|megatron-bridge": (-0.1543, 0.1025),
    "H100|nemo": (-0.0772, 0.0614),
    "H100|nemo@network": (-0.0657, 0.0564),
    "H100|paxml": (-0.0579, 0.1826),
    "H100|xla": (-0.1689, 0.1534),
    "H100|xla@network": (-0.1689, 0.1534),
    "V100|megatron-2021": (-0.1083, 0.0492),
}
"""Key → ends of ln(measured / predicted)."""

MEMORY_INTERVALS: Quantiles = {
    "": (-0.2624, 0.2877),
    "*": (-0.2624, 0.2877),
    "A100|megatron-deepspeed": (-0.0475, 0.0653),
    "A100|megatron-deepspeed@network": (-0.0512, 0.0741),
    "A100|zero-bubble": (-0.0332, 0.0824),
    "A100|zero-bubble@network": (-0.0332, 0.0266),
    "A100|zero-bubble@node": (-0.0248, 0.1235),
    "B200|megatron-core": (-0.0575, 0.0654),
    "B200|megatron-core@node": (-0.0575, 0.0654),
    "H100-500W|torchtitan": (-0.0447, 0.0745),
}
"""Key → ends of ln(measured / predicted)."""
