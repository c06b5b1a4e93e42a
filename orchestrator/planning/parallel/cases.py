"""What is to be predicted, as columns: one array per quantity, one element per layout, so that thousands are evaluated at
once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RECOMPUTE = {"none": 0, "selective": 1, "full": 2}
SELECTS = {"half": 0, "core": 1, "activation": 2}
SCHEDULES = {"1f1b": 0, "zb-1p": 1, "zb-2p": 2, "zb-v": 3, "zb-v-half": 4, "zb-v-min": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One layout of one model on one cluster, complete: nothing is left to guess."""

    layers: float
    hidden: float
    heads: float
    kv_heads: float
    ffn: float
    vocab: float
    seq: float
    """Tokens."""
    attended: float
    """Of causal attention's work, the share that is done: less than 1 where short samples are packed into one sequence, or tokens
    see a window."""
    gated: float
    """1: three feed-forward matrices, 0: two."""
    tied: float
    global_batch: float
    """Sequences."""
    dp: float
    tp: float
    pp: float
    vpp: float
    cp: float
    zero: float
    shard: float
    """Data ranks that ZeRO's state is spread over, replicas of each other beyond that (MiCS, hybrid sharding); 0: all."""
    micro: float
    """Sequences per micro-batch and replica; 0: as many as memory allows."""
    recompute: float
    """Code of RECOMPUTE; -1: whatever memory forces to."""
    selects: float
    """Code of SELECTS: what selective recomputation drops and repeats."""
    schedule: float
    """Code of SCHEDULES."""
    offload: float
    """1: optimizer state in the host's memory."""
    sequence_parallel: float
    whole_blocks: float
    """1: stages get equal shares of the layers, the first ones what is left over; 0: embedding and head may count as layers."""
    by_heads: float
    """1: context ranks divide attention by heads, 0: by tokens."""
    flash: float
    fused_loss: float
    low: float
    """Precision of the matrix products: 0 is 16 bit, 1 is 8 bit, 2 is 4 bit, -1 is 32 bit."""
    state_p: float
    state_g: float
    state_o: float
    """Bytes per parameter of parameters, gradients, optimizer."""
    peak: float
    """FLOP/s at the precision of the matrix products."""
    peak16: float
    memory_bw: float
    """Bytes/s."""
    memory: float
    """Bytes."""
    multiprocessors: float
    nvlink: float
    """Bytes/s in one direction."""
    domain: float
    """GPUs that reach each other by NVLink."""
    per_node: float
    network: float
    """Bytes/s of one GPU's share of its node's network, one direction."""
    leaf_gpus: float
    """GPUs that reach each other without a spine: under one leaf switch, or one set of rail switches."""
    spine_share: float
    """Of the network's rate, what is left above the leaf: 1 for a fabric without oversubscription."""
    gpu_power_w: float


@dataclass(frozen=True, slots=True)
class Cases:
    """Columns of `Case`s, by the same names, and the keys under which their constants are looked up.

    Every array broadcasts against the others: what is the same for all layouts may have length 1.
    """

    columns: dict[str, Floats]
    families: tuple[str, ...]
    """GPU families, one per case, or one for all."""
    softwares: tuple[str, ...]

    def __getattr__(self, name: str) -> Floats:
        try:
            return self.columns[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def shard_ranks(self) -> Floats:
        """Ranks that ZeRO's state is spread over."""
        every = self.dp * self.cp
        return np.where(self.shard > 0, np.minimum(self.shard, every), every)

    def with_columns(self, **changed: Floats) -> "Cases":
        """The same cases with some columns replaced."""
        return Cases({**self.columns, **changed}, self.families, self.softwares)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> "Cases":
        """The chosen cases, in that order."""
        size = len(self)
        columns = {name: np.broadcast_to(column, (size,))[chosen] for name, column in self.columns.items()}
        indices = np.arange(size)[chosen]
        pick = [tuple(keys[i] for i in indices) if len(keys) > 1 else keys for keys in (self.families, self.softwares)]
        return Cases(columns, pick[0], pick[1])

    def __len__(self) -> int:
        return max(column.size for column in self.columns.values())


def stack(cases: Sequence[Case], families: Sequence[str], softwares: Sequence[str]) -> Cases:
    """Columns of the given cases."""
    columns = {field.name: np.array([getattr(case, field.name) for case in cases], dtype=np.float64) for field in fields(Case)}
    return Cases(columns, tuple(families), tuple(softwares))
