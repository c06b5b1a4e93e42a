"""What the model writes: with kept keys and values as without, alone as in company."""

from __future__ import annotations

import pytest
import torch
from test_encoder_decoder import in_double, tiny_shape

from model.encoder_decoder import EncoderDecoder
from model.layers import Recipe
from model.shape import BlockKind, Position
from model.translation.beam_search import beam_search
from model.translation.decoding import CachedDecoder, UncachedDecoder, padded, translate_tokens
from model.translation.special_tokens import BEGIN, END

SOURCES = [[5, 6, 7], [9], [4, 4, 8, 20, 11, 3], [17, 5]]


def model_of(**options: object) -> EncoderDecoder:
    model = in_double(Recipe(tiny_shape(**options), seed=3))
    with torch.no_grad():  # sharper than a model that has not learnt yet, so that searches differ
        model.tied_modules["embedding"].weight.mul_(3.0)
    return model


OPTIONS = {
    "as published": {},
    "pre-norm": {"block": BlockKind.PRE_LN},
    "learned": {"position": Position.LEARNED},
    "grouped": {"kv_heads": 2, "d_key": 6},
    "rotary": {"position": Position.ROTARY},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("beams", [1, 3])
def test_kept_keys_and_values_change_nothing(options: dict[str, object], beams: int) -> None:
    model = model_of(**options)
    source_BS, limits = padded([[*source, END] for source in SOURCES]), [9, 4, 12, 12]
    with torch.inference_mode():
        cached = beam_search(CachedDecoder(model, source_BS, beams=beams, tokens=12), limits, beams=beams, alpha=0.6)
        uncached = beam_search(UncachedDecoder(model, source_BS, beams=beams), limits, beams=beams, alpha=0.6)
    for one, other in zip(cached, uncached, strict=True):
        assert one.tokens == other.tokens
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-6)


def test_one_beam_is_greedy() -> None:
    model = model_of()
    for source, found in zip(SOURCES, translate_tokens(model, SOURCES, beams=1), strict=True):
        tokens = [BEGIN]
        while len(tokens) < 12 + 1 and tokens[-1] != END:
            logits_V = model.logits(torch.tensor([[*source, END]]), torch.tensor([tokens]))[0, -1]
            tokens.append(END + int(logits_V[END:].argmax()))
        assert found.tokens == tuple(tokens[1:])


def test_a_sentence_is_translated_alike_alone_and_in_company() -> None:
    model = model_of()
    together = translate_tokens(model, SOURCES, beams=3)
    alone = [translate_tokens(model, [source], beams=3)[0] for source in SOURCES]
    split = translate_tokens(model, SOURCES, beams=3, batch_tokens=3 * 8)
    assert [each.tokens for each in together] == [each.tokens for each in alone] == [each.tokens for each in split]


def test_an_output_is_at_most_so_much_longer_than_its_input() -> None:
    for source, found in zip(SOURCES, translate_tokens(model_of(), SOURCES, extra_tokens=2), strict=True):
        assert len(found.tokens) <= len(source) + 1 + 2


def test_a_source_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="a source of 13 tokens with its end; the model has 12 positions"):
        translate_tokens(model_of(), [[5] * 12])


def test_no_sentences_are_no_work() -> None:
    assert translate_tokens(model_of(), []) == []
