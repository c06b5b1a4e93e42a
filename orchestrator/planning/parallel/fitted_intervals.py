"""Intervals of 2026-11-28, 1337 step times and 157 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.2720, 0.4536),
    "*": (-0.2557, 0.4454),
    "A100|composer": (-0.0728, 0.0997),
    "A100|composer@network": (-0.0818, 0.2748),
    "A100|composer@node": (-0.0728, 0.0932),
    "A100|deepspeed": (-0.1904, 0.2300),
    "A100|megatron-2021": (-0.3403, 0.1077),
    "A100|megatron-2021@network": (-0.3403, 0.1077),
    "A100|megatron-deepspeed": (-0.0642, 0.0559),
    "A100|megatron-deepspeed@network": (-0.2137, 0.1841),
    "A100|megatron-deepspeed@node": (-0.0474, 0.0479),
    "A100|zero-bubble": (-0.1355, 0.0703),
    "A100|zero-bubble@network": (-0.0359, 0.0633),
    "A100|zero-bubble@node": (-0.1482, 0.0895),
    "B200|megatron-bridge": (-0.1998, 0.0799),
    "B200|megatron-bridge@network": (-0.2436, 0.0868),
    "B200|megatron-core": (-0.1193, 0.1150),
    "B200|megatron-core@node": (-0.1193, 0.1150),
    "B200|nemo": (-0.1012, 0.0965),
    "B300|megatron-bridge": (-0.2453, 0.1276),
    "B300|megatron-bridge@network": (-0.2453, 0.1276),
    "H100-500W|torchtitan": (-0.4968, 0.5074),
    "H100|composer": (-0.0580, 0.0587),
    "H100|composer@network": (-0.0641, 0.0587),
    "H100|composer@node": (-0.0580, 0.2070),
    "H100|megatron-bridge": (-0.1910, 0.1103),
    "H100|nemo": (-0.1296, 0.0973),
    "H100|nemo@network": (-0.0855, 0.0965),
    "H100|xla": (-0.2445, 0.2577),
    "H100|xla@network": (-0.2445, 0.2577),
    "V100|megatron-2021": (-0.2696, 0.0936),
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
