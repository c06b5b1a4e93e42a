"""Which constants a fit may change, for which keys, and how far: one table each for step time and memory.

A spread is the standard deviation of a constant's logarithm before any row is seen. Data-sheet-like numbers have small spreads.
Only GPU families, framework families and "all on one node or a network between" are keys: no source, no row, no model.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.parallel.cases import Cases
from orchestrator.planning.parallel.communication import SLOW_BYTES_S
from orchestrator.planning.parallel.fitting import Free
from orchestrator.planning.parallel.software import KIN

EVERYWHERE: Mapping[str, float] = {
    **{"wave_power": 0.5, "inner_half": 0.7, "column_half": 0.7, "row_half": 0.7, "odd_cost": 0.7, "backward_matmul": 0.05},
    **{"selective_share": 0.5, "head_half": 0.5, "odd_head": 0.5, "odd_head_64": 0.7},
    **{"straggle": 0.7, "end_fixed_s": 1.0, "backward_passes": 0.2, "gemm_4bit": 0.3},
}
PER_GPU: Mapping[str, float] = {"gemm": 0.1, "nvlink_reach": 0.1, "flash_reach": 0.15}
PER_SOFTWARE: Mapping[str, float] = {
    **{"whole_passes": 0.4, "split_passes": 0.4, "launch_s": 0.8, "launch_jitter": 1.0, "step_fixed_s": 1.0, "loss_passes": 0.4},
    **{"nvlink_alpha_s": 0.7, "gradient_wire_bytes": 0.3},
}
OF_KIN: Mapping[str, float] = {**{name: spread for name, spread in PER_SOFTWARE.items() if name != "loss_passes"}, "pace": 0.1}
"""Of frameworks that share kernels: what is learned from one of them holds for the others until they say otherwise. Not the loss,
which each has written for itself."""
IN_COMMON: Mapping[str, float] = {
    **{"whole_passes": 0.3, "split_passes": 0.3, "loss_passes": 0.3, "step_fixed_s": 0.7, "optimizer_bytes": 0.2, "pace": 0.1},
    **{"boundary_exposed": 0.5, "imbalance_share": 0.4, "context_exposed": 0.4, "shard_overlap": 0.1, "data_overlap": 0.4},
    **{"network_reach": 0.3, "gradient_wire_bytes": 0.2},
}
"""The general value of what each framework may also have a factor of its own on: what frameworks have in common."""
OWN_KERNELS = ("megatron-deepspeed", "composer")
"""Families whose matrix products are shaped by enough rows for ramps of their own."""
OVERLAPS_TENSOR = ("nemo", "megatron-bridge", "xla")
ACROSS_NODES = 0.05
"""Spread of Megatron-DeepSpeed's pace on clusters over its pace on one node: hundreds of runs on one, and those of two
clusters. Were more free to differ between the two, it would learn one model's oddities: models held back are predicted worse."""


def free_constants(cases: Cases) -> tuple[Free, ...]:
    """The constants of step time that the given cases can say something about."""
    size = len(cases)
    families = np.broadcast_to(np.array(cases.families), (size,))
    softwares = np.broadcast_to(np.array(cases.softwares), (size,))
    free = [Free(name, "", spread) for name, spread in {**EVERYWHERE, **IN_COMMON}.items()]
    for family in sorted(set(families.tolist())):
        free += [Free(name, family, spread) for name, spread in PER_GPU.items()]
        if np.any((families == family) & (cases.low >= 1)):
            free.append(Free("gemm_low", family, 0.15))
    for kin in sorted({KIN[software] for software in softwares.tolist()} - {""}):
        free += [Free(name, kin, spread) for name, spread in OF_KIN.items()]
    for software in sorted(set(softwares.tolist())):
        free += [
            Free(name, software, spread) for name, spread in _of_software(cases.take(softwares == software), software).items()
        ]
    for family, software in sorted(set(zip(families.tolist(), softwares.tolist(), strict=True))):
        free += [Free("pace", f"{family}|{software}" if software != "megatron-deepspeed" else software, 0.15)]
        free.append(Free("flash_reach", f"{family}|{software}", 0.25))
    if "megatron-deepspeed" in softwares:
        free.append(Free("pace", "megatron-deepspeed@network", ACROSS_NODES))
    return tuple({(item.name, item.key): item for item in free}.values())


def _of_software(cases: Cases, software: str) -> dict[str, float]:
    """Name and spread of the constants that this family's rows exercise."""
    wanted = dict(PER_SOFTWARE)
    rules = (
        (cases.dp * cases.tp * cases.pp * cases.cp > cases.per_node, {"network_reach": 0.4, "network_alpha_s": 0.7}),
        (crosses_slow_network(cases), {"slow_network": 0.3}),
        (cases.pp > 1, {"boundary_exposed": 0.7, "imbalance_share": 0.5}),
        (cases.cp > 1, {"context_exposed": 0.5}),
        (cases.zero >= 3, {"shard_overlap": 0.15}),
        (cases.zero < 3, {"data_overlap": 0.5}),
        (cases.low >= 1, {"cast_passes": 0.7}),
        ((cases.tp > 1) & (software in OVERLAPS_TENSOR), {"tensor_exposed": 0.4}),
        (np.array(KIN[software] == "~eager"), {"score_passes": 0.5, "scores_reach": 0.3}),
        (np.array(software in OWN_KERNELS), {"row_half": 0.7, "column_half": 0.7, "inner_half": 0.7}),
    )
    for holds, names in rules:
        if np.any(holds):
            wanted.update(names)
    return wanted


def crosses_slow_network(cases: Cases) -> NDArray[np.bool_]:
    """Cases with a slow network between nodes. One site's is measured; other frameworks do not learn from what it leaves."""
    crosses = cases.dp * cases.tp * cases.pp * cases.cp > cases.per_node
    return np.asarray(crosses & (cases.network * cases.per_node <= SLOW_BYTES_S))


MEMORY_SPREADS: Mapping[str, float] = {
    **{"activation_share": 0.3, "logits_bytes": 0.5, "work_share": 0.5, "selective_kept": 0.3, "gathered_layers": 0.5},
    **{"reserve": 0.05, "state_reserve": 0.03, "context_bytes": 0.5, "extra_state_bytes": 1.5},
}


def free_memory_constants(softwares: Sequence[str]) -> tuple[Free, ...]:
    """The constants of memory, for each family of frameworks with measured memory."""
    return tuple(Free(name, software, spread) for software in sorted(set(softwares)) for name, spread in MEMORY_SPREADS.items())
