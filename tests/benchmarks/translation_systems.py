"""Three translators of one size that are trained and searched alike: ours, torch.nn.Transformer, and an LSTM with attention."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoder_decoder import EncoderDecoder
from model.layers import Recipe
from model.shape import EncoderDecoderShape
from model.transformer import sinusoids
from model.translation.decoding import CachedDecoder, UncachedDecoder
from model.translation.special_tokens import PAD


class System(nn.Module, ABC):
    """What the benchmark asks of each: logits to learn from, and a decoder for the beam search."""

    @abstractmethod
    def logits(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        """Of the next target token after each, (B, T, V)."""

    @abstractmethod
    def decoder(self, source_BS: Tensor, beams: int, tokens: int) -> Any:
        """What `beam_search` asks, for hypotheses of at most `tokens`."""

    def at_step(self, step: int) -> None:
        """Called before a training step."""


class Ours(System):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = EncoderDecoder(recipe)

    def logits(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        return self.model.logits(source_BS, target_BT)

    def decoder(self, source_BS: Tensor, beams: int, tokens: int) -> CachedDecoder:
        return CachedDecoder(self.model, source_BS, beams=beams, tokens=tokens)

    def at_step(self, step: int) -> None:
        self.model.recipe.clock.now = type(self.model.recipe.clock.now)(step, 0)


class TorchTransformer(System):
    """torch.nn.Transformer as its documentation uses it, with the same embeddings, positions and shared matrix."""

    def __init__(self, shape: EncoderDecoderShape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.d_model)
        nn.init.normal_(self.embedding.weight, std=shape.d_model**-0.5)
        self.transformer = nn.Transformer(
            shape.d_model, shape.heads, shape.encoder_layers, shape.layers, shape.d_ff, dropout, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)

    def logits(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        length = target_BT.size(1)
        hidden_BTD = self.transformer(
            self._embedded(source_BS),
            self._embedded(target_BT),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            src_key_padding_mask=source_BS == PAD,
            memory_key_padding_mask=source_BS == PAD,
            tgt_is_causal=True,
        )
        return functional.linear(hidden_BTD, self.embedding.weight)

    def _embedded(self, ids: Tensor) -> Tensor:
        table_PD = sinusoids(self.shape.positions, self.shape.d_model, ids.device)
        return self.dropout(self.embedding(ids) * math.sqrt(self.shape.d_model) + table_PD[: ids.size(1)])

    def decoder(self, source_BS: Tensor, beams: int, tokens: int) -> UncachedDecoder:
        plain: Any = self
        return UncachedDecoder(plain, source_BS, beams=beams)


class LstmSeq2Seq(System):
    """Two-directional LSTM encoder, LSTM decoder with multiplicative attention and input feeding left out (Luong et al. 2015,
    arXiv 1508.04025), one matrix for embeddings and output."""

    def __init__(self, vocabulary: int, d_embedding: int, d_hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_embedding)
        nn.init.normal_(self.embedding.weight, std=d_embedding**-0.5)
        self.encoder = nn.LSTM(d_embedding, d_hidden // 2, batch_first=True, bidirectional=True)
        self.cell = nn.LSTM(d_embedding, d_hidden, batch_first=True)
        self.query = nn.Linear(d_hidden, d_hidden, bias=False)
        self.combine = nn.Linear(2 * d_hidden, d_embedding)
        self.dropout = nn.Dropout(dropout)

    def encode(self, source_BS: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        lengths_B = (source_BS != PAD).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.embedding(source_BS)), lengths_B, batch_first=True, enforce_sorted=False
        )
        out, state = self.encoder(packed)
        memory_BSD, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=source_BS.size(1))
        hidden, cell = (torch.cat([part[0], part[1]], dim=-1).unsqueeze(0) for part in state)
        return memory_BSD, (hidden, cell)

    def step(
        self, target_BT: Tensor, state: tuple[Tensor, Tensor], memory_BSD: Tensor, source_BS: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out_BTD, state = self.cell(self.dropout(self.embedding(target_BT)), state)
        scores_BTS = self.query(out_BTD) @ memory_BSD.mT
        weights_BTS = scores_BTS.masked_fill((source_BS == PAD).unsqueeze(1), -math.inf).softmax(-1)
        both_BTE = self.combine(torch.cat([out_BTD, weights_BTS @ memory_BSD], dim=-1)).tanh()
        return functional.linear(self.dropout(both_BTE), self.embedding.weight), state

    def logits(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        memory_BSD, state = self.encode(source_BS)
        return self.step(target_BT, state, memory_BSD, source_BS)[0]

    def decoder(self, source_BS: Tensor, beams: int, tokens: int) -> _LstmDecoder:
        return _LstmDecoder(self, source_BS, beams)


class _LstmDecoder:
    def __init__(self, model: LstmSeq2Seq, source_BS: Tensor, beams: int) -> None:
        self._model, self._source_RS = model, source_BS.repeat_interleave(beams, dim=0)
        memory_BSD, state = model.encode(source_BS)
        self._memory_RSD = memory_BSD.repeat_interleave(beams, dim=0)
        self._state = tuple(part.repeat_interleave(beams, dim=1) for part in state)

    def next_log_probabilities(self, tokens_R: Tensor) -> Tensor:
        state: Any = self._state
        logits_R1V, self._state = self._model.step(tokens_R.unsqueeze(1), state, self._memory_RSD, self._source_RS)
        return logits_R1V[:, -1].log_softmax(-1)

    def keep(self, rows_R: Tensor, sentences_B: Tensor) -> None:
        self._source_RS, self._memory_RSD = self._source_RS[rows_R], self._memory_RSD[rows_R]
        self._state = tuple(part[:, rows_R].contiguous() for part in self._state)


def lstm_of_size(vocabulary: int, parameters: int, dropout: float) -> LstmSeq2Seq:
    """The LSTM whose parameters come nearest to that number; embedding and hidden are equally wide."""
    widths = range(16, 1024, 4)
    with torch.device("meta"):
        sizes = {w: sum(p.numel() for p in LstmSeq2Seq(vocabulary, w, w, dropout).parameters()) for w in widths}
    width = min(widths, key=lambda w: abs(sizes[w] - parameters))
    return LstmSeq2Seq(vocabulary, width, width, dropout)
