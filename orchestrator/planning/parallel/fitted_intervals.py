"""Intervals of 2026-11-28, 1337 step times and 157 memories, by `rackray planner fit`. Do not edit by hand.

Method: `intervals.py`.
"""

from orchestrator.planning.parallel.intervals import Quantiles

STEP_TIME_INTERVALS: Quantiles = {
    "": (-0.1930, 0.3248),
    "*": (-0.2066, 0.3684),
    "A100|composer": (-0.0772, 0.0985),
    "A100|composer@network": (-0.0854, 0.2893),
    "A100|composer@node": (-0.0797, 0.0976),
    "A100|deepspeed": (-0.2109, 0.3340),
    "A100|megatron-2021": (-0.1457, 0.0535),
    "A100|megatron-2021@network": (-0.1457, 0.0535),
    "A100|megatron-deepspeed": (-0.0651, 0.0563),
    "A100|megatron-deepspeed@network": (-0.1612, 0.1828),
    "A100|megatron-deepspeed@node": (-0.0480, 0.0463),
    "A100|zero-bubble": (-0.1369, 0.0668),
    "A100|zero-bubble@network": (-0.0452, 0.0668),
    "A100|zero-bubble@node": (-0.1503, 0.0770),
    "B200|megatron-bridge": (-0.1730, 0.0867),
    "B200|megatron-bridge@network": (-0.2197, 0.1148),
    "B200|megatron-core": (-0.0971, 0.0977),
    "B200|megatron-core@node": (-0.0971, 0.0977),
    "B200|nemo": (-0.0922, 0.0583),
    "B300|megatron-bridge": (-0.2281, 0.1253),
    "B300|megatron-bridge@network": (-0.2281, 0.1253),
    "H100-500W|torchtitan": (-0.2911, 0.3032),
    "H100|composer": (-0.0553, 0.0733),
    "H100|composer@network": (-0.0775, 0.0757),
    "H100|composer@node": (-0.0553, 0.2087),
    "H100|megatron-bridge": (-0.1648, 0.1028),
    "H100|nemo": (-0.0777, 0.0587),
    "H100|nemo@network": (-0.0653, 0.0583),
    "H100|paxml": (-0.0631, 0.1770),
    "H100|xla": (-0.1690, 0.1537),
    "H100|xla@network": (-0.1690, 0.1537),
    "V100|megatron-2021": (-0.1119, 0.0532),
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
