"""A model that has read some sources and writes their translations, token by token, with keys and values kept.

Shapes as in `model/encoder_decoder.py`; R = B·k rows, a sentence's k beams one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.encoder_decoder import DecoderBlock, EncoderDecoder, visible
from model.kv_cache import LayerCache
from model.translation.beam_search import EXTRA_TOKENS, Hypothesis, beam_search
from model.translation.special_tokens import END, PAD


@dataclass(slots=True)
class _LayerState:
    """One decoder layer's keys and values: of the rows' own tokens, and of their sentences' memory."""

    own: LayerCache
    memory: tuple[Tensor, Tensor]


class CachedDecoder:
    """What `beam_search` asks of a model.  The encoder runs once; each call runs one token of each row."""

    def __init__(self, model: EncoderDecoder, source_BS: Tensor, *, beams: int, tokens: int) -> None:
        """`tokens` is the most that any row will be given."""
        self._model, self._moment = model, model.recipe.clock.now
        self._visible_B11S = visible(source_BS)
        self._tokens = 0
        memory_BSD = model.encode(source_BS)
        rows = len(source_BS) * beams
        self._layers = [
            _LayerState(
                LayerCache(model.recipe.shape, rows, tokens, memory_BSD.dtype, memory_BSD.device),
                block.cross.keys_and_values(memory_BSD),
            )
            for block in model.decoder()
        ]

    def next_log_probabilities(self, tokens_R: Tensor) -> Tensor:
        """Adds one token to each row; log-probabilities (R, V) of the one after it."""
        tokens_R1 = tokens_R.to(self._visible_B11S.device).unsqueeze(1)
        logits_R1V = self._model.decode(tokens_R1, self._tokens, self._run)
        self._tokens += 1
        return logits_R1V[:, -1].log_softmax(-1)

    def keep(self, rows_R: Tensor, sentences_B: Tensor) -> None:
        """From now on row i is what row `rows_R[i]` was, and sentence j what `sentences_B[j]` was."""
        some_are_done = len(sentences_B) < len(self._visible_B11S)
        for layer in self._layers:
            layer.own.keep(rows_R)
            if some_are_done:
                layer.memory = (layer.memory[0][sentences_B], layer.memory[1][sentences_B])
        self._visible_B11S = self._visible_B11S[sentences_B]

    def _run(self, block: DecoderBlock, hidden_R1D: Tensor) -> Tensor:
        layer = self._layers[block.index]
        return block.run(hidden_R1D, layer.memory, self._visible_B11S, layer.own, self._moment)


class UncachedDecoder:
    """The same by running every prefix from its beginning: slow, and what the cached one is tested against."""

    def __init__(self, model: EncoderDecoder, source_BS: Tensor, *, beams: int) -> None:
        self._model, self._source_RS = model, source_BS.repeat_interleave(beams, dim=0)
        self._prefixes_RT = torch.empty(len(self._source_RS), 0, dtype=torch.long, device=source_BS.device)

    def next_log_probabilities(self, tokens_R: Tensor) -> Tensor:
        tokens_R1 = tokens_R.to(self._source_RS.device).unsqueeze(1)
        self._prefixes_RT = torch.cat([self._prefixes_RT, tokens_R1], dim=1)
        return self._model.logits(self._source_RS, self._prefixes_RT)[:, -1].log_softmax(-1)

    def keep(self, rows_R: Tensor, sentences_B: Tensor) -> None:
        self._source_RS, self._prefixes_RT = self._source_RS[rows_R], self._prefixes_RT[rows_R]


@torch.inference_mode()
def translate_tokens(
    model: EncoderDecoder,
    sources: Sequence[Sequence[int]],
    *,
    beams: int = 4,
    alpha: float = 0.6,
    batch_tokens: int = 4096,
    extra_tokens: int = EXTRA_TOKENS,
) -> list[Hypothesis]:
    """The best translation found of each source (ids without END), in the order given.

    Sentences of like length are translated together, at most `batch_tokens` source tokens times beams at once.  An output has
    at most its input's tokens plus `extra_tokens`, and never more than the model has positions.  Raises ValueError for a source
    longer than the model's positions.
    """
    shape, device = model.recipe.shape, next(model.parameters()).device
    longest = max((len(source) + 1 for source in sources), default=0)
    if longest > shape.positions:
        raise ValueError(f"a source of {longest} tokens with its end; the model has {shape.positions} positions")
    was_training = model.training
    model.eval()
    found: dict[int, Hypothesis] = {}
    for chosen in _batches(sources, batch_tokens // beams):
        source_BS = padded([[*sources[i], END] for i in chosen]).to(device)
        limits = [min(len(sources[i]) + 1 + extra_tokens, shape.positions) for i in chosen]
        decoder = CachedDecoder(model, source_BS, beams=beams, tokens=max(limits))
        found.update(zip(chosen, beam_search(decoder, limits, beams=beams, alpha=alpha), strict=True))
    model.train(was_training)
    return [found[i] for i in range(len(sources))]


def padded(sentences: Sequence[Sequence[int]]) -> Tensor:
    """Ids of sentences of different lengths, filled up with PAD: (B, S)."""
    width = max(map(len, sentences))
    return torch.tensor([[*sentence, *[PAD] * (width - len(sentence))] for sentence in sentences])


def _batches(sources: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Indices of sources, longest first, in batches of at most `most_tokens` padded tokens and at least one sentence."""
    batches: list[list[int]] = []
    for index in sorted(range(len(sources)), key=lambda i: -len(sources[i])):
        if batches and (len(batches[-1]) + 1) * (len(sources[batches[-1][0]]) + 1) <= most_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
