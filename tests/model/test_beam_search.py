"""The search beside an exhaustive one, over models that are tables drawn from a seed."""

from __future__ import annotations

import itertools
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.translation.beam_search import beam_search, length_penalty
from model.translation.special_tokens import BEGIN, END

VOCABULARY = 6
WORDS = range(3, VOCABULARY)


def log_probabilities(seed: int, sentence: int, prefix: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, sentence, prefix)).encode()))
    return (2.0 * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)).log_softmax(-1)


class TableModel:
    """What follows a prefix is drawn from (seed, sentence, prefix); keeps rows and sentences as a real decoder does."""

    def __init__(self, seed: int, sentences: int, beams: int) -> None:
        self.seed, self.beams = seed, beams
        self.sentences = list(range(sentences))
        self.prefixes: list[tuple[int, ...]] = [()] * (sentences * beams)
        self.rows_run = 0

    def next_log_probabilities(self, tokens_R: Tensor) -> Tensor:
        self.prefixes = [(*prefix, int(token)) for prefix, token in zip(self.prefixes, tokens_R, strict=True)]
        self.rows_run += len(self.prefixes)
        return torch.stack(
            [log_probabilities(self.seed, self.sentences[i // self.beams], p) for i, p in enumerate(self.prefixes)]
        )

    def keep(self, rows_R: Tensor, sentences_B: Tensor) -> None:
        self.prefixes = [self.prefixes[int(row)] for row in rows_R]
        self.sentences = [self.sentences[int(sentence)] for sentence in sentences_B]
        assert len(self.prefixes) == self.beams * len(self.sentences)


def score_of(seed: int, sentence: int, tokens: tuple[int, ...], alpha: float) -> float:
    steps = [float(log_probabilities(seed, sentence, (BEGIN, *tokens[:i]))[token]) for i, token in enumerate(tokens)]
    return sum(steps) / length_penalty(len(tokens), alpha)


def exhaustive(seed: int, sentence: int, limit: int, alpha: float) -> tuple[tuple[int, ...], float]:
    """The best of all outputs that end within the limit."""
    every = [(*words, END) for length in range(limit) for words in itertools.product(WORDS, repeat=length)]
    best = max(every, key=lambda tokens: score_of(seed, sentence, tokens, alpha))
    return best, score_of(seed, sentence, best, alpha)


def greedy(seed: int, sentence: int, limit: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while len(tokens) < limit and END not in tokens:
        allowed = log_probabilities(seed, sentence, (BEGIN, *tokens))[END:]
        tokens.append(END + int(allowed.argmax()))
    return tuple(tokens)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from([0.0, 0.6, 1.0, 2.0]))
def test_a_beam_that_holds_every_prefix_finds_what_an_exhaustive_search_finds(seed: int, limits: list[int], alpha: float) -> None:
    beams = sum(len(WORDS) ** length for length in range(5))
    found = beam_search(TableModel(seed, len(limits), beams), limits, beams=beams, alpha=alpha)
    for sentence, (hypothesis, limit) in enumerate(zip(found, limits, strict=True)):
        tokens, score = exhaustive(seed, sentence, limit, alpha)
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_one_beam_is_greedy_decoding(seed: int, limits: list[int]) -> None:
    found = beam_search(TableModel(seed, len(limits), 1), limits, beams=1, alpha=0.6)
    assert [each.tokens for each in found] == [greedy(seed, i, limit) for i, limit in enumerate(limits)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_a_sentence_is_translated_alike_alone_and_in_company(seed: int, beams: int, limits: list[int]) -> None:
    together = beam_search(TableModel(seed, len(limits), beams), limits, beams=beams, alpha=0.6)
    alone = TableModel(seed, 1, beams)
    alone.sentences = [len(limits) - 1]
    (last,) = beam_search(alone, limits[-1:], beams=beams, alpha=0.6)
    assert last == together[-1]


def test_scores_are_those_of_the_tokens_and_limits_hold() -> None:
    for seed in range(30):
        for sentence, found in enumerate(beam_search(TableModel(seed, 3, 4), [2, 5, 7], beams=4, alpha=0.6)):
            assert len(found.tokens) <= [2, 5, 7][sentence]
            assert (
                found.tokens.index(END) == len(found.tokens) - 1
                if END in found.tokens
                else len(found.tokens) == [2, 5, 7][sentence]
            )
            assert found.score == pytest.approx(score_of(seed, sentence, found.tokens, 0.6), rel=1e-5)
            assert found.score == pytest.approx(found.log_probability / length_penalty(len(found.tokens), 0.6))


def test_a_sentence_that_is_done_costs_nothing_more() -> None:
    both, long = TableModel(5, 2, 2), TableModel(5, 2, 2)
    beam_search(both, [1, 9], beams=2, alpha=0.6)
    beam_search(long, [9, 9], beams=2, alpha=0.6)
    assert both.rows_run < long.rows_run


def test_the_penalty_is_that_of_the_paper() -> None:
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(19, 0.5) == pytest.approx(2.0)
