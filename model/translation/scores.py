"""BLEU and chrF by sacrebleu (Post 2018, arXiv 1804.08771), with signatures and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one system."""

    metric: str
    value: float
    signature: str
    """sacrebleu's: everything that the number depends on beside the texts."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of one system beside the first one's."""

    system: str
    metric: str
    value: float
    interval: float
    """Half the width of the 95 % interval, by resampling sentences."""
    p_value: float | None
    """That a difference as large from the first system comes by chance (Koehn 2004); None for the first itself."""
    signature: str


def score(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
    """Corpus BLEU and chrF of detokenised text.  Raises ValueError for unequal numbers of sentences or none."""
    _check(hypotheses, references)
    scores = []
    for metric in (BLEU(), CHRF()):
        found = metric.corpus_score(list(hypotheses), [list(references)])
        scores.append(Score(found.name, float(found.score), str(metric.get_signature())))
    return scores


def compare(systems: dict[str, Sequence[str]], references: Sequence[str], samples: int = 1000) -> list[Compared]:
    """Every system beside the first, on the same resampled sentences (sacrebleu's paired bootstrap, 1,000 samples)."""
    for hypotheses in systems.values():
        _check(hypotheses, references)
    named = [(name, list(hypotheses)) for name, hypotheses in systems.items()]
    test = PairedTest(named, {"BLEU": BLEU(), "chrF": CHRF()}, [list(references)], test_type="bs", n_samples=samples, n_jobs=1)
    signatures, results = test()
    return [
        Compared(system, metric, float(each.score), float(each.ci), each.p_value, str(signatures[metric]))
        for metric in signatures
        for system, each in zip(systems, results[metric], strict=True)
    ]


def bleu_difference_interval(
    one: Sequence[str], other: Sequence[str], references: Sequence[str], *, samples: int = 1000, seed: int = 12345
) -> tuple[float, float]:
    """The 95 % interval of BLEU(one) - BLEU(other), both scored on the same resampled sentences (Koehn 2004)."""
    _check(one, references)
    _check(other, references)
    metric = BLEU(effective_order=True)
    counts = [_sufficient_statistics(metric, hypotheses, references) for hypotheses in (one, other)]
    draw = np.random.default_rng(seed)
    differences = []
    for _ in range(samples):
        chosen = draw.integers(len(references), size=len(references))
        left, right = (_bleu(each[chosen].sum(axis=0)) for each in counts)
        differences.append(left - right)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _sufficient_statistics(metric: BLEU, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Of each sentence: matches and n-grams of length 1 to 4, and both lengths; (sentences, 10)."""
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        found = metric.sentence_score(hypothesis, [reference])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows)


def _bleu(total: np.ndarray) -> float:
    counts, totals = total[:4].tolist(), total[4:8].tolist()
    return float(BLEU.compute_bleu(counts, totals, int(total[8]), int(total[9]), smooth_method="exp").score)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} translations and {len(references)} references; a score needs one for each, and some")
