"""Time of one layer, of the ends of the model and of the optimizer on one GPU: a roofline per operation.

A matrix product of (rows x inner) by (inner x columns) takes flops / (peak * ceiling * tile-and-wave share * inner ramp *
alignment).
Tiles and waves: the output is cut into tiles, the tiles run on the multiprocessors in waves, and the last wave is part empty
(NVIDIA, "Matrix Multiplication Background User's Guide"). Everything that is no matrix product is bytes over memory bandwidth.
"""

from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import SELECTS, Cases, Floats
from orchestrator.planning.parallel.constants import Constants

BYTES_16 = 2.0
TILES = ((256.0, 128.0), (128.0, 128.0), (64.0, 64.0))
"""Rows and columns of an output tile; a smaller tile fills the GPU sooner and reaches less."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds of one layer for one micro-batch on one rank, without communication."""

    matmul_s: Floats
    attention_s: Floats
    memory_bound_s: Floats
    """Norms, activations, dropout, residual sums, casts."""
    recompute_s: Floats
    floor_s: Floats
    """The host cannot launch the layer's kernels faster than this."""

    @property
    def busy_s(self) -> Floats:
        return self.matmul_s + self.attention_s + self.memory_bound_s + self.recompute_s


def layer_time(cases: Cases, k: Constants) -> LayerTime:
    """Forward, backward and recomputation of one layer, seconds."""
    rows = cases.micro * cases.seq / cases.cp
    forward_matmul = _layer_matmuls(cases, k, rows)
    forward_attention, backward_attention = _attention(cases, k)
    passes = _memory_bound(cases, k, rows)
    forward = forward_matmul + forward_attention + passes
    full, selective = cases.recompute >= 2, cases.recompute == 1
    again = np.where(cases.selects == SELECTS["half"], k.selective_share * forward_matmul, 0.0)
    again = again + np.where(cases.selects == SELECTS["core"], 0.0, 0.3 * passes)
    again = again + np.where(cases.selects == SELECTS["activation"], 0.0, forward_attention)
    recompute = np.where(full, forward, np.where(selective, again, 0.0))
    floor = k.launch_s * np.where(full, 4.0, 3.0) / 3.0 * (1.0 + k.launch_jitter * ((cases.tp - 1.0) / 7.0) ** 2)
    return LayerTime(
        matmul_s=3.0 * forward_matmul * k.backward_matmul,
        attention_s=forward_attention + backward_attention,
        memory_bound_s=passes * (1.0 + k.backward_passes) + _casts_s(cases, k, rows),
        recompute_s=recompute,
        floor_s=floor,
    )


def _layer_matmuls(cases: Cases, k: Constants, rows: Floats) -> Floats:
    """The forward products of one layer: QKV, projection, feed-forward in and out."""
    h, t = cases.hidden, cases.tp
    qkv = h * (1.0 + 2.0 * cases.kv_heads / cases.heads) / t
    wide = cases.ffn * (1.0 + cases.gated) / t
    return (
        matmul_s(cases, k, rows, qkv, h)
        + matmul_s(cases, k, rows, h, h / t)
        + matmul_s(cases, k, rows, wide, h)
        + matmul_s(cases, k, rows, h, cases.ffn / t)
    )


def matmul_s(cases: Cases, k: Constants, rows: Floats, columns: Floats, inner: Floats, low: bool = True) -> Floats:
    """Seconds of one matrix product; `low` uses the case's precision, else 16 bit."""
    flops = 2.0 * rows * columns * inner
    reach = np.where(cases.low >= 2, k.gemm_4bit, np.where(cases.low >= 1, k.gemm_low, k.gemm))
    rate = cases.peak * reach if low else cases.peak16 * k.gemm
    best = _wave_share(cases, rows, columns) ** k.wave_power
    ramp = inner / (inner + k.inner_half) * columns / (columns + k.column_half) * rows / (rows + k.row_half)
    odd = (columns % 64 != 0).astype(np.float64) + (inner % 64 != 0)
    return flops / (rate * best * ramp) * (1.0 + k.odd_cost * odd)


def _wave_share(cases: Cases, rows: Floats, columns: Floats) -> Floats:
    """The share of the launched tiles' area that is output, for the best of the tile sizes."""
    best = np.zeros(())
    for (tall, wide), reach in zip(TILES, (1.0, 0.9, 0.6), strict=True):
        tiles = np.ceil(rows / tall) * np.ceil(columns / wide)
        waves = np.ceil(tiles / cases.multiprocessors)
        best = np.maximum(best, reach * rows * columns / (waves * cases.multiprocessors * tall * wide))
    return best


def _attention(cases: Cases, k: Constants) -> tuple[Floats, Floats]:
    """Scores, softmax and weighted sum: forward and backward seconds.

    Flash attention computes the causal half and never writes scores; older kernels compute all and pass over them several times.
    """
    b, s, t, c = cases.micro, cases.seq, cases.tp, cases.cp
    flops = 4.0 * b * s * s * cases.attended * cases.hidden / (t * c)
    d_head = cases.hidden / cases.heads
    flash_forward = 0.5 * flops / (cases.peak16 * k.flash_reach * d_head / (d_head + k.head_half))
    odd = 1.0 + k.odd_head * (d_head % 8 != 0) + k.odd_head_64 * (d_head % 64 != 0)
    score_bytes = BYTES_16 * b * cases.heads / t * s * s / c
    eager_forward = (
        flops / (cases.peak16 * k.scores_reach * d_head / (d_head + 64.0)) * odd + k.score_passes * score_bytes / cases.memory_bw
    )
    forward = np.where(cases.flash > 0, flash_forward, eager_forward)
    return forward, np.where(cases.flash > 0, 2.5, 2.0) * forward


def _memory_bound(cases: Cases, k: Constants, rows: Floats) -> Floats:
    """Forward passes over activations, seconds: some over the whole width, some over the share of a tensor rank."""
    whole = rows * cases.hidden * BYTES_16 / np.where(cases.sequence_parallel > 0, cases.tp, 1.0)
    split = rows * (cases.ffn * (2.0 + cases.gated) / 2.0 + 3.0 * cases.hidden) * BYTES_16 / cases.tp
    return (k.whole_passes * whole + k.split_passes * split) / cases.memory_bw


def _casts_s(cases: Cases, k: Constants, rows: Floats) -> Floats:
    """Casts of a layer's products to 8 or 4 bit, forward and backward, seconds: the inputs of all four, and the gradients of
    their outputs."""
    whole = 4.0 * rows * cases.hidden * BYTES_16 / np.where(cases.sequence_parallel > 0, cases.tp, 1.0)
    split = cases.hidden * (2.0 + 2.0 * cases.kv_heads / cases.heads) + cases.ffn * (2.0 + cases.gated)
    casts = whole + rows * split * BYTES_16 / cases.tp
    return np.where(cases.low >= 1, k.cast_passes, 0.0) * casts / cases.memory_bw


def embedding_s(cases: Cases, k: Constants) -> Floats:
    """Look-up and its gradient, once per micro-batch on the first stage."""
    rows = cases.micro * cases.seq / cases.cp
    return 8.0 * rows * cases.hidden * BYTES_16 / cases.memory_bw + k.end_fixed_s


def loss_s(cases: Cases, k: Constants) -> Floats:
    """Logits forward and backward in 16 bit, softmax and cross entropy in fp32, once per micro-batch on the last stage."""
    rows = cases.micro * cases.seq / cases.cp
    logits = 3.0 * matmul_s(cases, k, rows, np.ceil(cases.vocab / cases.tp / 64) * 64, cases.hidden, low=False)
    return logits + k.loss_passes * rows * cases.vocab / cases.tp * 4.0 / cases.memory_bw + k.end_fixed_s


def optimizer_s(cases: Cases, k: Constants, parameters: Floats) -> Floats:
    """Adam over the rank's share of `parameters`, once per step; over PCIe where the state lies in the host's memory."""
    share = parameters / np.where(cases.zero >= 1, cases.shard_ranks, 1.0)
    on_host = share * 12.0 / 20e9
    return np.where(cases.offload > 0, on_host, share * k.optimizer_bytes / cases.memory_bw) + k.step_fixed_s
