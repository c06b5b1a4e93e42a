"""Scores are sacrebleu's, and a difference is judged on the same sentences."""

from __future__ import annotations

import random

import pytest
import sacrebleu

from model.translation.scores import bleu_difference_interval, compare, score

REFERENCES = [f"the {a} node of rack {b} is powered and joins the cell" for a in ("first", "last", "other") for b in range(20)]


def spoiled(share: float) -> list[str]:
    draw = random.Random(8)
    return [" ".join(word if draw.random() > share else "x" for word in line.split()) for line in REFERENCES]


def test_scores_and_signatures_are_those_of_sacrebleu() -> None:
    bleu, chrf = score(spoiled(0.2), REFERENCES)
    assert bleu.value == pytest.approx(sacrebleu.corpus_bleu(spoiled(0.2), [REFERENCES]).score)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(spoiled(0.2), [REFERENCES]).score)
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_a_worse_system_is_told_apart_and_one_that_differs_in_a_sentence_is_not() -> None:
    good, bad = spoiled(0.1), spoiled(0.4)
    rows = {
        (row.system, row.metric): row
        for row in compare({"good": good, "bad": bad, "alike": [*good[:-1], bad[-1]]}, REFERENCES, samples=200)
    }
    assert rows["good", "BLEU"].p_value is None
    assert rows["bad", "BLEU"].p_value < 0.05 < rows["alike", "BLEU"].p_value
    assert rows["good", "chrF2"].value > rows["bad", "chrF2"].value
    assert 0 < rows["good", "BLEU"].interval < 10


def test_the_interval_of_a_difference_holds_it_and_is_nothing_for_equal_systems() -> None:
    good, bad = spoiled(0.1), spoiled(0.4)
    low, high = bleu_difference_interval(good, bad, REFERENCES, samples=200)
    difference = score(good, REFERENCES)[0].value - score(bad, REFERENCES)[0].value
    assert 0 < low < difference < high
    assert bleu_difference_interval(good, good, REFERENCES, samples=50) == (0.0, 0.0)


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 translations and 60 references"):
        score(["a"], REFERENCES)
