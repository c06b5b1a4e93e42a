"""A pipeline played out event by event: every forward and backward of every micro-batch on every rank, with the sends between
them.

The closed form in `step_time.py` assumes a steady beat; with unequal first and last stages and few micro-batches the beat is not
steady. The order of work is Megatron's 1F1B, plain or interleaved (Narayanan et al. 2021, section 2.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_MICRO_BATCHES_PER_STAGE = 3
"""Beyond this many micro-batches per stage the beat is steady: the rest is extrapolated from the last whole round."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One virtual stage: seconds of one micro-batch."""

    forward_s: float
    backward_s: float


@dataclass(frozen=True, slots=True)
class Played:
    """What happened."""

    makespan_s: float
    busy_s: tuple[float, ...]
    """Per rank."""


def pipeline_s(chunks: Sequence[Sequence[Chunk]], micro_batches: int, send_s: float) -> float:
    """Seconds from the first forward to the last backward; long runs are extrapolated from shorter ones.

    `chunks[v][rank]` is the v-th virtual stage of a rank. Interleaving wants `micro_batches` divisible by the ranks.
    """
    ranks = len(chunks[0])
    most = MOST_MICRO_BATCHES_PER_STAGE * ranks
    if micro_batches <= most:
        return play(chunks, micro_batches, send_s).makespan_s
    played = most - ranks + (micro_batches - most) % ranks
    short, longer = (play(chunks, count, send_s).makespan_s for count in (played, played + ranks))
    return short + (longer - short) / ranks * (micro_batches - played)


def steady_s(chunks: Sequence[Sequence[Chunk]], micro_batches: int) -> float:
    """What the closed form takes for the same pipeline, sends left out: the slowest rank's beat, and once the others' share of a
    virtual stage."""
    ranks = [sum(row[rank].forward_s + row[rank].backward_s for row in chunks) for rank in range(len(chunks[0]))]
    return micro_batches * max(ranks) + (sum(ranks) - max(ranks)) / len(chunks)


def play(chunks: Sequence[Sequence[Chunk]], micro_batches: int, send_s: float) -> Played:
    """Play one step. Raises ValueError for an interleaved pipeline whose micro-batches do not divide."""
    ranks, virtual = len(chunks[0]), len(chunks)
    if virtual > 1 and micro_batches % ranks:
        raise ValueError(f"{micro_batches} micro-batches cannot be interleaved over {ranks} ranks; they must divide")
    orders = [_order(rank, ranks, virtual, micro_batches) for rank in range(ranks)]
    ended: dict[tuple[bool, int, int], float] = {}
    clocks, busy, positions = [0.0] * ranks, [0.0] * ranks, [0] * ranks
    left = sum(len(order) for order in orders)
    while left:
        before = left
        for rank in range(ranks):
            while positions[rank] < len(orders[rank]):
                forward, chunk, micro = orders[rank][positions[rank]]
                ready = _ready(ended, forward, chunk * ranks + rank, micro, ranks * virtual, send_s)
                if ready is None:
                    break
                spent = chunks[chunk][rank].forward_s if forward else chunks[chunk][rank].backward_s
                clocks[rank] = max(clocks[rank], ready) + spent
                busy[rank] += spent
                ended[forward, chunk * ranks + rank, micro] = clocks[rank]
                positions[rank] += 1
                left -= 1
        if left == before:
            raise ValueError("the schedule waits for itself")
    return Played(max(clocks), tuple(busy))


def _ready(
    ended: dict[tuple[bool, int, int], float], forward: bool, stage: int, micro: int, stages: int, send_s: float
) -> float | None:
    """When what a piece of work needs has arrived; None while that is not known."""
    if forward:
        if stage == 0:
            return 0.0
        before = ended.get((True, stage - 1, micro))
        return None if before is None else before + send_s
    own = ended.get((True, stage, micro))
    if stage == stages - 1 or own is None:
        return own
    after = ended.get((False, stage + 1, micro))
    return None if after is None else max(own, after + send_s)


def _order(rank: int, ranks: int, virtual: int, micro_batches: int) -> list[tuple[bool, int, int]]:
    """The work of one rank in order: (forward?, chunk, micro-batch)."""
    total = micro_batches * virtual
    warm = ranks - rank - 1 if virtual == 1 else (ranks - rank - 1) * 2 + (virtual - 1) * ranks
    warm = min(warm, total)
    forwards = [_nth(i, ranks, virtual, backward=False) for i in range(total)]
    backwards = [_nth(i, ranks, virtual, backward=True) for i in range(total)]
    order = [(True, *forwards[i]) for i in range(warm)]
    for i in range(total - warm):
        order += [(True, *forwards[warm + i]), (False, *backwards[i])]
    return order + [(False, *backwards[i]) for i in range(total - warm, total)]


def _nth(index: int, ranks: int, virtual: int, backward: bool) -> tuple[int, int]:
    """Chunk and micro-batch of the index-th piece: rounds of `ranks` micro-batches through each chunk in turn."""
    if virtual == 1:
        return 0, index
    round_, inside = divmod(index, ranks * virtual)
    chunk, offset = divmod(inside, ranks)
    return virtual - 1 - chunk if backward else chunk, round_ * ranks + offset
