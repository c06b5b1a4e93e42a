"""A measured training run as one row: what was set (inputs) and what was measured, kept apart.

The two halves are two types, so that a predictor that takes `RunInputs` cannot look at what it is to predict.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """What was chosen before the run began. None: the source does not state it."""

    gpu: str
    framework: str = ""
    model: str = ""
    workload: str = "pretrain"
    """pretrain, proxy (fewer layers), sft, lora, ablation, oom (did not fit), memory-only."""
    arch: str = "dense"
    parameters_b: float | None = None
    """Parameters in billions (10^9), as the source names the model."""
    ep: int | None = None
    """Expert-parallel ranks; more than 1 only where there are experts."""
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn_hidden: int | None = None
    vocab: int | None = None
    seq_len: int | None = None
    gated_mlp: bool | None = None
    n_gpus: int | None = None
    gpus_per_node: int | None = None
    internode_gbit_s_per_node: float | None = None
    dp: int | None = None
    tp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    cp: int | None = None
    zero_stage: int | None = None
    micro_batch: int | None = None
    global_batch: int | None = None
    act_ckpt: str | None = None
    precision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMeasured:
    """What the run was seen to do. None: not measured."""

    step_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    memory_gb: float | None = None
    """Per GPU, in the unit that `memory_kind` names."""
    memory_kind: str = ""
    out_of_memory: bool = False

    @property
    def memory_bytes(self) -> float | None:
        """Bytes per GPU: GiB where the kind says so, else GB as nvidia-smi style tools mean it (2^30 too)."""
        return None if self.memory_gb is None else self.memory_gb * 2.0**30


@dataclass(frozen=True, slots=True)
class RunRow:
    """One row of a table of runs."""

    id: str
    source: str
    inputs: RunInputs
    measured: RunMeasured
