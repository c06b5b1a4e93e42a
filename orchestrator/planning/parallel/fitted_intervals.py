"""Intervals of 2026-11-28, 1337 step times and 157 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.1868, 0.3249),
    "*": (-0.2011, 0.3723),
    "A100|composer": (-0.0790, 0.0996),
    "A100|composer@network": (-0.0890, 0.2905),
    "A100|composer@node": (-0.0812, 0.0988),
    "A100|deepspeed": (-0.2127, 0.3725),
    "A100|megatron-2021": (-0.1455, 0.0518),
    "A100|megatron-2021@network": (-0.1455, 0.0468),
    "A100|megatron-deepspeed": (-0.0641, 0.0555),
    "A100|megatron-deepspeed@network": (-0.1729, 0.1782),
    "A100|megatron-deepspeed@node": (-0.0473, 0.0465),
    "A100|zero-bubble": (-0.2229, 0.0706),
    "A100|zero-bubble@network": (-0.0461, 0.0706),
    "A100|zero-bubble@node": (-0.2516, 0.0819),
    "B200|megatron-bridge": (-0.1627, 0.0859),
    "B200|megatron-bridge@network": (-0.2096, 0.1164),
    "B200|megatron-core": (-0.0970, 0.0970),
    "B200|megatron-core@node": (-0.0970, 0.0970),
    "B200|nemo": (-0.0940, 0.0569),
    "B300|megatron-bridge": (-0.2285, 0.1270),
    "B300|megatron-bridge@network": (-0.2285, 0.1270),
    "H100-500W|torchtitan": (-0.2908, 0.3031),
    "H100|composer": (-0.0556, 0.0732),
    "H100|composer@network": (-0.0776, 0.0760),
    "H100|composer@node": (-0.0556, 0.2086),
    "H100|megatron-bridge": (-0.1564, 0.1029),
    "H100|nemo": (-0.0756, 0.0606),
    "H100|nemo@network": (-0.0657, 0.0569),
    "H100|paxml": (-0.0445, 0.1928),
    "H100|xla": (-0.1918, 0.1536),
    "H100|xla@network": (-0.1918, 0.1536),
    "V100|megatron-2021": (-0.1081, 0.0468),
}
"""Key → ends of ln(measured / predicted)."""

MEMORY_INTERVALS: Quantiles = {
    "": (-0.2624, 0.2877),
    "*": (-0.2624, 0.2877),
    "A100|megatron-deepspeed": (-0.0555, 0.0692),
    "A100|megatron-deepspeed@network": (-0.0593, 0.0830),
    "A100|zero-bubble": (-0.0332, 0.0824),
    "A100|zero-bubble@network": (-0.0332, 0.0266),
    "A100|zero-bubble@node": (-0.0248, 0.1235),
    "B200|megatron-core": (-0.0587, 0.0654),
    "B200|megatron-core@node": (-0.0587, 0.0654),
    "H100-500W|torchtitan": (-0.0499, 0.0621),
}
"""Key → ends of ln(measured / predicted)."""
