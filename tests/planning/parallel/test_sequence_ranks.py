"""Sequences over several ranks: what our engine does (by heads), what Megatron does (a ring), and what a job file asks for."""

from dataclasses import replace

import numpy as np
import pytest

from model.shape import PRESETS
from orchestrator.domain.errors import BadInput
from orchestrator.domain.layout import Layout, Recompute
from orchestrator.planning.parallel.cluster import PlanJob, cluster_by_hand
from orchestrator.planning.parallel.communication import collective_s, context_s
from orchestrator.planning.parallel.planner import plan, predict
from orchestrator.planning.parallel.rows import inputs_of_job, layout_of_job
from orchestrator.planning.parallel.search import Limits, cases_of, layouts_of
from orchestrator.planning.parallel.validation import FITTED

LONG = PlanJob(shape=replace(PRESETS["llama-8b"], positions=65_536), global_sequences=32, sequence_tokens=65_536, steps=100)
JOB = {
    "name": "long",
    "model": {"layers": 4, "d_model": 64, "heads": 8, "d_ff": 256, "vocabulary": 512, "positions": 1024},
    "batch": {"global_sequences": 8, "micro_sequences": 1, "sequence_tokens": 1024},
    "layout": {"data": 2, "tensor": 2, "sequence": 4, "zero": 1},
}


def test_a_jobs_sequence_ranks_are_counted() -> None:
    run, layout = inputs_of_job(JOB, "H100"), layout_of_job(JOB)
    assert (run.n_gpus, run.cp) == (16, 4)
    assert (layout.gpus, layout.context) == (16, 4)


def test_long_sequences_of_our_engine_are_shared_by_ranks_that_divide_the_heads_left_by_tensor_ranks() -> None:
    found = {(tensor, context) for _, tensor, _, _, context, *_ in layouts_of(LONG, cluster_by_hand("H100", 8), Limits())}
    # Eight key/value heads.
    assert {context for _, context in found} == {1, 2, 4, 8}
    assert all(8 % (tensor * context) == 0 for tensor, context in found)
    assert plan(LONG, cluster_by_hand("H100", 8)).best.layout.context > 1


def test_a_sequence_that_cannot_be_shared_so_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match="8 heads do not divide by tensor 4 x context 4") as refused:
        predict(LONG, cluster_by_hand("H100", 2), Layout(data=1, tensor=4, context=4))
    assert "context" in refused.value.hint
    ring = replace(LONG, framework="megatron-core")
    assert predict(ring, cluster_by_hand("H100", 2), Layout(data=1, tensor=4, context=4)).step_s > 0.0
    odd = replace(ring, sequence_tokens=65_540)
    with pytest.raises(BadInput, match="65540 tokens do not divide into 8 parts"):
        predict(odd, cluster_by_hand("H100", 2), Layout(data=1, tensor=4, context=4))


@pytest.mark.parametrize("context", [2, 4, 8])
def test_by_heads_each_rank_sends_its_own_tokens_once_each_way(context: int) -> None:
    cluster = cluster_by_hand("H100", 1)
    cases = cases_of([(8 // context, 1, 1, 1, context, 1, 1, 0, 0)], LONG, cluster)
    k = FITTED.constants_of(cases)
    # Query and output of 4096 numbers, key and value of 1024: 2 bytes each, forward and backward.
    own = np.array([65_536 / context * (2 * 4096 + 2 * 1024) * 2.0])
    ranks = np.array([float(context)])
    assert context_s(cases, k)[0] == pytest.approx(2.0 * collective_s(cases, k, own, ranks, np.ones(1), 1.0, 4.0)[0])


@pytest.mark.parametrize("window", [1024, 8192, 65_536])
def test_a_window_leaves_its_share_of_attention(window: int) -> None:
    layout, cluster = Layout(data=1, context=8, recompute=Recompute.FULL), cluster_by_hand("H100", 1)
    whole = predict(LONG, cluster, layout).terms_s
    seen = predict(replace(LONG, shape=replace(LONG.shape, window=window)), cluster, layout).terms_s
    pairs = sum(min(token, window) for token in range(1, 65_537)) / sum(range(1, 65_537))
    assert seen["attention"] / whole["attention"] == pytest.approx(pairs, rel=1e-3)
    assert seen["matmul"] == whole["matmul"]
