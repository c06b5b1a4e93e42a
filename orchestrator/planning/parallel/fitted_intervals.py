"""Intervals of 2026-11-21, 1336 step times and 154 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`, rows held back by configuration in five folds.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.2725, 0.5084),
    "A100|composer": (-0.0574, 0.0752),
    "A100|composer@network": (-0.1743, 0.2816),
    "A100|composer@node": (-0.0529, 0.0752),
    "A100|megatron-2021": (-0.2964, 0.0994),
    "A100|megatron-2021@network": (-0.2964, 0.0994),
    "A100|megatron-deepspeed": (-0.0541, 0.0603),
    "A100|megatron-deepspeed@network": (-0.1244, 0.1789),
    "A100|megatron-deepspeed@node": (-0.0436, 0.0464),
    "A100|zero-bubble": (-0.0334, 0.0337),
    "A100|zero-bubble@network": (-0.0359, 0.0471),
    "A100|zero-bubble@node": (-0.0269, 0.0314),
    "B200|megatron-bridge": (-0.1497, 0.0805),
    "B200|megatron-bridge@network": (-0.1497, 0.0805),
    "B200|megatron-core": (-0.1148, 0.1102),
    "B200|megatron-core@node": (-0.1148, 0.1102),
    "B300|megatron-bridge": (-0.2458, 0.1299),
    "B300|megatron-bridge@network": (-0.2458, 0.1299),
    "H100-500W|torchtitan": (-0.5009, 0.4281),
    "H100|composer": (-0.0634, 0.0794),
    "H100|composer@network": (-0.0515, 0.0794),
    "H100|composer@node": (-0.0678, 0.2043),
    "H100|nemo": (-0.0655, 0.1090),
    "H100|nemo@network": (-0.0624, 0.0896),
    "H100|xla": (-0.1244, 0.2605),
    "H100|xla@network": (-0.1244, 0.2605),
    "composer": (-0.0574, 0.0770),
    "megatron-2021": (-0.2964, 0.0994),
    "megatron-bridge": (-0.0810, 0.1081),
    "megatron-core": (-0.1148, 0.1102),
    "megatron-deepspeed": (-0.0541, 0.0603),
    "nemo": (-0.0655, 0.1090),
    "torchtitan": (-0.5009, 0.4281),
    "xla": (-0.1244, 0.2605),
    "zero-bubble": (-0.0334, 0.0337),
}
"""Key → ends of ln(measured / predicted)."""

MEMORY_INTERVALS: Quantiles = {
    "": (-0.2624, 0.2877),
    "A100|megatron-deepspeed": (-0.0705, 0.1091),
    "A100|megatron-deepspeed@network": (-0.0875, 0.0875),
    "A100|zero-bubble": (-0.0461, 0.1124),
    "A100|zero-bubble@network": (-0.0461, 0.0188),
    "A100|zero-bubble@node": (-0.0372, 0.1124),
    "B200|megatron-core": (-0.0365, 0.0650),
    "B200|megatron-core@node": (-0.0365, 0.0650),
    "H100-500W|torchtitan": (-0.0454, 0.2902),
    "megatron-core": (-0.0365, 0.0650),
    "megatron-deepspeed": (-0.0705, 0.1091),
    "torchtitan": (-0.0454, 0.2902),
    "zero-bubble": (-0.0461, 0.1124),
}
"""Key → ends of ln(measured / predicted)."""
