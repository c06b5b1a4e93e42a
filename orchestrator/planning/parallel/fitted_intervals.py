"""Intervals of 2026-11-28, 1337 step times and 157 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.2302, 0.3528),
    "*": (-0.2417, 0.3703),
    "A100|composer": (-0.0774, 0.1017),
    "A100|composer@network": (-0.0867, 0.2684),
    "A100|composer@node": (-0.0808, 0.0986),
    "A100|deepspeed": (-0.2123, 0.5074),
    "A100|megatron-2021": (-0.1647, 0.0519),
    "A100|megatron-2021@network": (-0.1647, 0.0401),
    "A100|megatron-deepspeed": (-0.0642, 0.0573),
    "A100|megatron-deepspeed@network": (-0.1856, 0.1797),
    "A100|megatron-deepspeed@node": (-0.0489, 0.0493),
    "A100|zero-bubble": (-0.1457, 0.0655),
    "A100|zero-bubble@network": (-0.0450, 0.0653),
    "A100|zero-bubble@node": (-0.1551, 0.0843),
    "B200|megatron-bridge": (-0.1807, 0.0866),
    "B200|megatron-bridge@network": (-0.2185, 0.1137),
    "B200|megatron-core": (-0.1094, 0.1081),
    "B200|megatron-core@node": (-0.1094, 0.1081),
    "B200|nemo": (-0.0958, 0.0711),
    "B300|megatron-bridge": (-0.2357, 0.1458),
    "B300|megatron-bridge@network": (-0.2357, 0.1458),
    "H100-500W|torchtitan": (-0.2995, 0.2993),
    "H100|composer": (-0.0583, 0.0756),
    "H100|composer@network": (-0.0646, 0.0756),
    "H100|composer@node": (-0.0610, 0.2094),
    "H100|megatron-bridge": (-0.1747, 0.1183),
    "H100|nemo": (-0.0959, 0.0728),
    "H100|nemo@network": (-0.0886, 0.0711),
    "H100|paxml": (-0.1077, 0.1395),
    "H100|xla": (-0.2051, 0.1472),
    "H100|xla@network": (-0.2051, 0.1472),
    "V100|megatron-2021": (-0.1207, 0.0507),
}
"""Key → ends of ln(measured / predicted)."""

MEMORY_INTERVALS: Quantiles = {
    "": (-0.2624, 0.2877),
    "*": (-0.2624, 0.2877),
    "A100|megatron-deepspeed": (-0.0649, 0.0675),
    "A100|megatron-deepspeed@network": (-0.0771, 0.0823),
    "A100|zero-bubble": (-0.0332, 0.0824),
    "A100|zero-bubble@network": (-0.0332, 0.0266),
    "A100|zero-bubble@node": (-0.0248, 0.1235),
    "B200|megatron-core": (-0.0575, 0.0657),
    "B200|megatron-core@node": (-0.0575, 0.0657),
    "H100-500W|torchtitan": (-0.1160, 0.1547),
}
"""Key → ends of ln(measured / predicted)."""
