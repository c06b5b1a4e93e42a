"""Batches by step from prepared tokens (`model/corpus.py`): a function of (seed, step), the same in every layout.

Nothing is remembered from step to step, so that resuming at any step costs what any other step costs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from model.contract import RunSpec
from model.corpus import Corpus, DataError
from model.tokens import Tokens

_ROUNDS: Final = 6
"""Of the Feistel network; three make a pseudo-random permutation of a good round function (Luby & Rackoff 1988)."""


class MicroBatch(Protocol):
    """What an engine is given for one forward pass."""

    @property
    def inputs(self) -> tuple[NDArray[Any], ...]:
        """What the first layer reads."""

    @property
    def labels(self) -> tuple[NDArray[Any], ...]:
        """What the loss reads beside the last layer's output."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids of some sequences, and the same shifted by one; int64, each (B, T)."""

    tokens_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]

    @property
    def inputs(self) -> tuple[NDArray[Any], ...]:
        return (self.tokens_BT,)

    @property
    def labels(self) -> tuple[NDArray[Any], ...]:
        return (self.targets_BT,)


class Batches:
    """Batches by step for one replica of a run.

    One epoch is every non-overlapping window of the training tokens, in an order drawn from (seed, epoch); the window
    grid is shifted anew in every epoch.  The global batch of step s is windows [(s-1)·G, s·G) of that endless order;
    it is cut into micro-batches, and replica r of d takes micro-batches r, r+d, r+2d …
    """

    def __init__(self, corpus: Corpus, spec: RunSpec, replica: int) -> None:
        self._corpus, self._spec, self._replica = corpus, spec, replica
        tokens = spec.batch.sequence_tokens
        # A window needs one token more than its length, and the grid is shifted by up to one window.
        self._windows = (len(corpus.train) - tokens - 1) // tokens
        self._heldout_windows = (len(corpus.heldout) - 1) // tokens
        self._heldout_wanted = spec.evaluate_batches * spec.batch.global_sequences
        if self._windows < 1:
            raise DataError(f"the corpus has {len(corpus.train)} training tokens; one sequence needs {2 * tokens + 1}")
        if self._heldout_windows < self._heldout_wanted:
            raise DataError(
                f"the held-out text has {self._heldout_windows} sequences of {tokens} tokens, an evaluation needs "
                f"{self._heldout_wanted} (evaluate_batches x batch.global_sequences); raise data.heldout_fraction "
                f"above {spec.data.heldout_fraction} or lower evaluate_batches"
            )

    def of_step(self, step: int) -> list[Batch]:
        """This replica's micro-batches of step 1, 2, … in the order they are to be run."""
        size = self._spec.batch.global_sequences
        windows = np.arange((step - 1) * size, step * size)
        epochs, indices = np.divmod(windows, self._windows)
        starts = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = f"{self._spec.seed}/{epoch}"
            order = shuffled(indices[here], self._windows, key)
            starts[here] = order * self._spec.batch.sequence_tokens + self._shift(key)
        return self._mine(self._corpus.train, starts)

    def heldout(self) -> list[Batch]:
        """This replica's micro-batches of the held-out text: the same windows always, spread evenly over it."""
        spread = np.linspace(0, self._heldout_windows - 1, self._heldout_wanted).astype(np.int64)
        return self._mine(self._corpus.heldout, spread * self._spec.batch.sequence_tokens)

    def _shift(self, key: str) -> int:
        return _number(f"{key}/shift") % self._spec.batch.sequence_tokens

    def _mine(self, source: Tokens, starts: NDArray[np.int64]) -> list[Batch]:
        micro, tokens = self._spec.batch.micro_sequences, self._spec.batch.sequence_tokens
        chunks = [starts[i : i + micro] for i in range(0, len(starts), micro)]
        batches = []
        for chunk in chunks[self._replica :: self._spec.layout.data]:
            rows = np.stack([source.read(int(start), tokens + 1) for start in chunk])
            batches.append(Batch(rows[:, :-1], rows[:, 1:]))
        return batches


def shuffled(indices: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """Where a shuffle of range(`size`) puts each of `indices`, without making the other places.

    A Feistel network permutes the next larger square power of two; what falls outside is sent through again (cycle
    walking, Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, (max(1, size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64(_number(f"{key}/{number}")) for number in range(_ROUNDS)]
    places = indices.astype(np.uint64)
    outside = np.ones(len(places), dtype=bool)
    while outside.any():
        left, right = places[outside] >> half, places[outside] & mask
        for one_key in keys:
            left, right = right, left ^ (_mixed(right ^ one_key) & mask)
        places[outside] = left << half | right
        outside = places >= size
    return places.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the value (the last step of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
