"""Batched beam search with the length penalty of Wu et al. 2016 (arXiv 1609.08144, equation 14), as Vaswani et al. 2017 use it.

Shapes: B sentences, k beams, R = B·k rows (sentence-major), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from model.translation.special_tokens import BEGIN, END, PAD

EXTRA_TOKENS: Final = 50
"""An output may be this much longer than its input (Vaswani et al. 2017, section 6.1)."""


class Decoder(Protocol):
    """What the search asks of a model that has read B sources and holds R rows of prefixes."""

    def next_log_probabilities(self, tokens_R: Tensor) -> Tensor:
        """Adds one token to each row's prefix; log-probabilities (R, V) of the one after it."""

    def keep(self, rows_R: Tensor, sentences_B: Tensor) -> None:
        """From now on row i is what row `rows_R[i]` was, and sentence j what `sentences_B[j]` was; others are gone."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation."""

    tokens: tuple[int, ...]
    """Without BEGIN; END is the last one, unless the limit cut it off."""
    log_probability: float
    score: float
    """log_probability / length_penalty."""


def length_penalty(tokens: int, alpha: float) -> float:
    """((5 + |Y|) / 6)^alpha; |Y| counts END."""
    return float(((5 + tokens) / 6) ** alpha)


def beam_search(decoder: Decoder, limits: list[int], *, beams: int, alpha: float) -> list[Hypothesis]:
    """The best translation found of each sentence, whose output has at most `limits[b]` tokens with its END.

    `alpha` is 0 or more.  A candidate that ends is taken if it is among the k best of its step; a sentence is done when it has
    k finished ones, or when no live one could still beat the best of them.  What the limit cuts off counts only where nothing
    ended before it.  With one beam this is greedy decoding.
    """
    search = _Search(limits, beams, alpha)
    tokens_R = torch.full((len(limits) * beams,), BEGIN)
    while search.sentences:
        log_probabilities_RV = decoder.next_log_probabilities(tokens_R)
        device = log_probabilities_RV.device
        tokens_R, rows_R, sentences_B = search.advance(log_probabilities_RV.float().cpu())
        if search.sentences:
            decoder.keep(rows_R.to(device), sentences_B.to(device))
    return [max(found, key=lambda hypothesis: hypothesis.score) for found in search.finished]


class _Search:
    """Live prefixes and finished hypotheses of the sentences that are not done."""

    def __init__(self, limits: list[int], beams: int, alpha: float) -> None:
        self._limits, self._beams, self._alpha = limits, beams, alpha
        self.sentences = list(range(len(limits)))
        """Numbers of the sentences that are not done, in the order of the rows."""
        self.finished: list[list[Hypothesis]] = [[] for _ in limits]
        # All beams begin alike: only the first of each may be continued in the first step.
        self._live_Bk = torch.full((len(limits), beams), -torch.inf)
        self._live_Bk[:, 0] = 0.0
        self._prefixes_BkT = torch.empty(len(limits), beams, 0, dtype=torch.long)

    def advance(self, log_probabilities_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: the next tokens of the rows that live on, the rows and the sentences they come from."""
        beams, vocabulary = self._beams, log_probabilities_RV.size(1)
        scores_BkV = log_probabilities_RV.view(-1, beams, vocabulary) + self._live_Bk.unsqueeze(2)
        scores_BkV[:, :, PAD] = scores_BkV[:, :, BEGIN] = -torch.inf
        # Each beam has one candidate that ends, so that among 2k there are k that go on.
        wanted = min(2 * beams, beams * vocabulary)
        best_BC, flat_BC = scores_BkV.flatten(1).topk(wanted, dim=1)
        beam_BC, token_BC = flat_BC // vocabulary, flat_BC % vocabulary
        self._finish(best_BC, beam_BC, token_BC)
        order_Bk = (token_BC == END).long().sort(dim=1, stable=True).indices[:, :beams]
        self._live_Bk = best_BC.gather(1, order_Bk).masked_fill(token_BC.gather(1, order_Bk) == END, -torch.inf)
        from_Bk, token_Bk = beam_BC.gather(1, order_Bk), token_BC.gather(1, order_Bk)
        kept_BkT = self._prefixes_BkT.gather(1, from_Bk.unsqueeze(2).expand(-1, -1, self._prefixes_BkT.size(2)))
        self._prefixes_BkT = torch.cat([kept_BkT, token_Bk.unsqueeze(2)], dim=2)
        rows_Bk = from_Bk + beams * torch.arange(len(from_Bk)).unsqueeze(1)
        stay_B = torch.tensor([i for i in range(len(self.sentences)) if not self._is_done(i)], dtype=torch.long)
        self.sentences = [self.sentences[int(i)] for i in stay_B]
        self._live_Bk, self._prefixes_BkT = self._live_Bk[stay_B], self._prefixes_BkT[stay_B]
        return token_Bk[stay_B].flatten(), rows_Bk[stay_B].flatten(), stay_B

    def _finish(self, best_BC: Tensor, beam_BC: Tensor, token_BC: Tensor) -> None:
        ends_Bk = (token_BC[:, : self._beams] == END) & best_BC[:, : self._beams].isfinite()
        for i, candidate in ends_Bk.nonzero().tolist():
            prefix = self._prefixes_BkT[i, beam_BC[i, candidate]].tolist()
            self._add(i, (*prefix, END), float(best_BC[i, candidate]))

    def _is_done(self, i: int) -> bool:
        sentence, length = self.sentences[i], self._prefixes_BkT.size(2)
        finished, limit = self.finished[sentence], self._limits[self.sentences[i]]
        best_live = float(self._live_Bk[i].max())
        if length >= limit or best_live == -torch.inf:
            if not finished:
                beam = int(self._live_Bk[i].argmax())
                self._add(i, tuple(self._prefixes_BkT[i, beam].tolist()), best_live)
            return True
        if len(finished) >= self._beams:
            return True
        # A log-probability only falls, and the penalty divides it by the most at the limit.
        return bool(finished) and max(each.score for each in finished) >= best_live / length_penalty(limit, self._alpha)

    def _add(self, i: int, tokens: tuple[int, ...], log_probability: float) -> None:
        score = log_probability / length_penalty(len(tokens), self._alpha)
        self.finished[self.sentences[i]].append(Hypothesis(tokens, log_probability, score))
