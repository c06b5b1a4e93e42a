"""Length-bucketed micro-batches of pairs, counted in tokens; a function of (seed, step), whatever the layout.

A micro-batch holds pairs of like length and at most `batch.micro_tokens` tokens of source and target, padding included; a
step holds `batch.global_tokens / batch.micro_tokens` micro-batches.  Pairs are shuffled anew within their bucket in every
epoch, and the micro-batches with them; how many an epoch has depends on the lengths alone, so that a resumed run finds its
place without reading what came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.contract import RunSpec
from model.corpus import DataError
from model.translation.corpus import PairTokens, ParallelCorpus
from model.translation.special_tokens import BEGIN, END, PAD

_FINEST_BUCKET: Final = 8
_BUCKET_GROWTH: Final = 1.1


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Token ids of some pairs, each side padded to its longest; int64."""

    source_BS: NDArray[np.int64]
    """Source, then END."""
    target_in_BT: NDArray[np.int64]
    """BEGIN, then the target: what the decoder reads."""
    target_out_BT: NDArray[np.int64]
    """The target, then END: what it should say next.  PAD counts for nothing."""
    tokens_per_micro_batch: float
    """Target tokens of the whole step by its number of micro-batches.  The sum of losses divided by this number, averaged over
    the step's micro-batches, is the step's mean loss per token, however many tokens each of them has."""

    @property
    def inputs(self) -> tuple[NDArray[Any], ...]:
        return self.source_BS, self.target_in_BT

    @property
    def labels(self) -> tuple[NDArray[Any], ...]:
        return self.target_out_BT, np.array(self.tokens_per_micro_batch, dtype=np.float32)


def bucket_limits(longest: int) -> list[int]:
    """Longest length of each bucket: every length up to 8, then growing by a tenth, up to `longest`."""
    limits = [min(_FINEST_BUCKET, longest)]
    while limits[-1] < longest:
        limits.append(min(longest, max(limits[-1] + 1, int(limits[-1] * _BUCKET_GROWTH))))
    return limits


class PairBatches:
    """Micro-batches by step for one replica of a run.

    The endless order of micro-batches is cut into steps of M; replica r of d takes micro-batches r, r+d, r+2d … of a step.
    """

    def __init__(self, corpus: ParallelCorpus, spec: RunSpec, replica: int) -> None:
        self._spec, self._replica = spec, replica
        self._train, self._dev = corpus.parts["train"], corpus.parts["dev"]
        self._per_step = spec.micro_batches * spec.layout.data
        self._buckets = self._pairs_by_bucket(self._train)
        self._per_epoch = sum(self._counts([len(bucket) for bucket in self._buckets.values()]))
        self.pairs_too_long = len(self._train.lengths_P2) - sum(map(len, self._buckets.values()))
        """Training pairs with a side longer than `batch.sequence_tokens`, END included; they are left out."""
        if not self._per_epoch:
            raise DataError(
                f"no pair of the training text fits batch.sequence_tokens {spec.batch.sequence_tokens}; "
                f"the shortest has {int(self._train.lengths_P2.max(axis=1).min()) + 1} tokens with its end"
            )
        if not len(self._dev.lengths_P2):
            raise DataError("no pair was held out for evaluation; raise data.heldout_fraction, or give dev files")
        self._epoch, self._order = -1, list[NDArray[np.int64]]()

    @property
    def micro_batches_per_epoch(self) -> int:
        return self._per_epoch

    def of_step(self, step: int) -> list[PairBatch]:
        """This replica's micro-batches of step 1, 2, … in the order they are to be run."""
        chosen = [self._micro_batch(index) for index in range((step - 1) * self._per_step, step * self._per_step)]
        return self._mine(self._train, chosen)

    def heldout(self) -> list[PairBatch]:
        """This replica's micro-batches of dev: every pair that fits, shortest first, once."""
        buckets = self._pairs_by_bucket(self._dev)
        chosen = _fill(list(buckets.values()), self._rows(), None)
        # Every replica runs as many; a batch of no pair is padding through and through and adds no loss.
        chosen += [chosen[0][:0]] * (-len(chosen) % self._spec.layout.data)
        return self._mine(self._dev, chosen)

    def _pairs_by_bucket(self, part: PairTokens) -> dict[int, NDArray[np.int64]]:
        longest_P = part.lengths_P2.max(axis=1) + 1
        limits = bucket_limits(self._spec.batch.sequence_tokens)
        bucket_P = np.searchsorted(limits, longest_P)
        return {limit: np.flatnonzero(bucket_P == index) for index, limit in enumerate(limits)}

    def _rows(self) -> list[int]:
        """Pairs in a micro-batch, by bucket."""
        return [self._spec.batch.micro_tokens // (2 * limit) for limit in bucket_limits(self._spec.batch.sequence_tokens)]

    def _counts(self, sizes: list[int]) -> list[int]:
        counts, left = [], 0
        for size, rows in zip(sizes, self._rows(), strict=True):
            whole, left = divmod(size + left, rows)
            counts.append(whole)
        return [*counts, int(left > 0)]

    def _micro_batch(self, index: int) -> NDArray[np.int64]:
        epoch, place = divmod(index, self._per_epoch)
        if epoch != self._epoch:
            draw = np.random.Generator(np.random.Philox(key=[self._spec.seed, epoch]))
            filled = _fill(list(self._buckets.values()), self._rows(), draw)
            self._order, self._epoch = [filled[i] for i in draw.permutation(len(filled))], epoch
        return self._order[place]

    def _mine(self, part: PairTokens, chosen: list[NDArray[np.int64]]) -> list[PairBatch]:
        # What every rank must agree on is reckoned from lengths, without reading the others' tokens.
        target_tokens = sum(int((part.lengths_P2[pairs, 1] + 1).sum()) for pairs in chosen)
        per_micro_batch = target_tokens / len(chosen)
        return [_batch(part, pairs, per_micro_batch) for pairs in chosen[self._replica :: self._spec.layout.data]]


def _fill(buckets: list[NDArray[np.int64]], rows: list[int], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
    """Cuts each bucket into micro-batches; what does not fill one goes up to the next bucket, and the last may be short."""
    filled: list[NDArray[np.int64]] = []
    left = np.empty(0, dtype=np.int64)
    for bucket, size in zip(buckets, rows, strict=True):
        pool = np.concatenate((left, bucket))
        if draw is not None:
            draw.shuffle(pool)
        whole = len(pool) // size
        filled.extend(pool[: whole * size].reshape(whole, size))
        left = pool[whole * size :]
    return [*filled, left] if len(left) else filled


def _batch(part: PairTokens, pairs: NDArray[np.int64], tokens_per_micro_batch: float) -> PairBatch:
    rows = max(1, len(pairs))
    lengths_B2 = part.lengths_P2[pairs] if len(pairs) else np.zeros((1, 2), dtype=np.int32)
    longest_source, longest_target = (int(longest) + 1 for longest in lengths_B2.max(axis=0))
    source_BS = np.full((rows, longest_source), PAD, dtype=np.int64)
    target_in_BT = np.full((rows, longest_target), PAD, dtype=np.int64)
    target_out_BT = np.full((rows, longest_target), PAD, dtype=np.int64)
    # A row always has something to attend to, the row of an empty batch too.
    source_BS[:, 0], target_in_BT[:, 0] = END, BEGIN
    for row, pair in enumerate(pairs):
        source, target = part.source(int(pair)), part.target(int(pair))
        source_BS[row, : len(source) + 1] = [*source, END]
        target_in_BT[row, 1 : len(target) + 1] = target
        target_out_BT[row, : len(target) + 1] = [*target, END]
    return PairBatch(source_BS, target_in_BT, target_out_BT, tokens_per_micro_batch)
