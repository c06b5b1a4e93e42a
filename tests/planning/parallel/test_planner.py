"""The planner's answers: terms that add up, layouts that divide, and one sentence when nothing does."""

from dataclasses import replace

import pytest

from model.shape import PRESETS, EncoderDecoderShape, TransformerShape, state_bytes_per_rank
from orchestrator.domain.errors import BadInput
from orchestrator.domain.layout import Fits, Layout, Recompute
from orchestrator.planning.parallel.cluster import PlanJob, cluster_by_hand
from orchestrator.planning.parallel.evaluate import evaluate
from orchestrator.planning.parallel.memory import memory_of
from orchestrator.planning.parallel.planner import plan, predict
from orchestrator.planning.parallel.power import clock_share
from orchestrator.planning.parallel.search import Limits, cases_of, layouts_of
from orchestrator.planning.parallel.sizes import model_parameters, stages_of
from orchestrator.planning.parallel.validation import FITTED


def a_job(preset: str = "llama-8b", batch: int = 512, framework: str = "megatron-core", tokens: int = 8192) -> PlanJob:
    return PlanJob(shape=PRESETS[preset], global_sequences=batch, sequence_tokens=tokens, steps=1000, framework=framework)


@pytest.mark.parametrize(
    ("preset", "nodes", "framework"),
    [
        ("llama-8b", 8, "megatron-core"),
        ("llama-70b", 64, "megatron-core"),
        ("gpt3-175b", 64, "nemo"),
        ("llama-70b", 64, "torchtitan"),
    ],
)
def test_what_a_plan_says_of_a_layout_a_prediction_of_it_says_too(preset: str, nodes: int, framework: str) -> None:
    job, cluster = a_job(preset, framework=framework, tokens=2048), cluster_by_hand("H100", nodes)
    for found in plan(job, cluster, keep=4).ranked:
        alone = predict(job, cluster, found.layout)
        assert alone.step_s == pytest.approx(found.step_s, rel=1e-9)
        assert alone.terms_s == pytest.approx(found.terms_s)


@pytest.mark.parametrize("virtual", [1, 2, 4])
@pytest.mark.parametrize("framework", ["megatron-core", "nemo"])
def test_played_a_pipeline_of_equal_stages_takes_what_the_closed_form_says(virtual: int, framework: str) -> None:
    shape = replace(PRESETS["llama-8b"], vocabulary=64)
    job = replace(a_job(batch=512, framework=framework), shape=shape)
    layout = Layout(data=4, tensor=2, pipeline=8, virtual_stages=virtual)
    cluster = cluster_by_hand("H100", 8)
    found = evaluate(job, cluster, Limits(fixed=layout))
    assert predict(job, cluster, layout).step_s == pytest.approx(float(found.total_s[0]), rel=3e-3)


def test_playing_never_makes_the_first_choice_a_worse_one_than_another_shown() -> None:
    found = plan(a_job("llama-405b", batch=1024), cluster_by_hand("H100", 256), keep=16)
    assert [p.run_s for p in found.ranked] == sorted(p.run_s for p in found.ranked)
    best, cluster = found.ranked[0], found.cluster
    assert all(predict(found.job, cluster, p.layout).run_s >= best.run_s * (1 - 1e-9) for p in found.ranked)


def test_terms_add_up_to_the_step_and_the_interval_holds_it() -> None:
    for found in plan(a_job(), cluster_by_hand("H100", 4), keep=10).ranked:
        assert sum(found.terms_s.values()) == pytest.approx(found.step_s, rel=1e-9)
        assert found.step_low_s < found.step_s < found.step_high_s
        assert found.memory_low_bytes < found.memory_bytes < found.memory_high_bytes


def test_every_ranked_layout_divides_the_cluster_and_the_batch_and_the_best_comes_first() -> None:
    job, cluster = a_job(), cluster_by_hand("H100", 4)
    ranked = plan(job, cluster, keep=20).ranked
    for found in ranked:
        layout = found.layout
        assert layout.gpus == cluster.gpus
        assert job.global_sequences % (layout.data * layout.micro_sequences) == 0
        assert job.shape.heads % layout.tensor == 0
        assert found.fits is Fits.YES
    assert ranked[0].step_s == min(found.step_s for found in ranked[:4])


def test_the_same_question_has_the_same_answer() -> None:
    assert plan(a_job(), cluster_by_hand("H100", 2)) == plan(a_job(), cluster_by_hand("H100", 2))


def test_deepspeed_pipelines_with_zero_0_and_1_only() -> None:
    job, cluster = a_job(framework="rackray"), cluster_by_hand("H100", 2)
    stages = {(pipeline > 1, zero) for _, _, pipeline, _, _, zero, *_ in layouts_of(job, cluster, Limits())}
    assert {zero for piped, zero in stages if piped} == {1}
    assert {zero for piped, zero in stages if not piped} == {1, 2, 3}
    plain = replace(job, framework="deepspeed")
    stages = {(pipeline > 1, zero) for _, _, pipeline, _, _, zero, *_ in layouts_of(plain, cluster, Limits())}
    assert {zero for piped, zero in stages if piped} == {0, 1}
    with pytest.raises(BadInput, match="no fp32 copy"):
        predict(job, cluster, Layout(data=16, zero=0))
    with pytest.raises(BadInput, match="a pipeline excludes ZeRO-3"):
        predict(job, cluster, Layout(data=8, pipeline=2, zero=3))


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (Layout(data=3, tensor=2), "6 GPUs and the cluster has 16"),
        (Layout(data=16, micro_sequences=3), "do not divide by data 16 x micro-batch 3"),
        (Layout(data=16, pipeline=1, micro_sequences=64), "do not divide"),
        (Layout(data=4, pipeline=4, virtual_stages=16), "cannot fill 16 virtual stages on each of 4 ranks"),
        (Layout(data=4, pipeline=4, virtual_stages=2, micro_sequences=64), "2 micro-batches cannot be interleaved over 4 stages"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused_in_one_sentence(layout: Layout, says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        predict(a_job(), cluster_by_hand("H100", 2), layout)
    assert refused.value.hint


def test_a_model_that_fits_nowhere_names_the_smallest_change() -> None:
    with pytest.raises(BadInput, match="no layout of this model fits 1 x 8") as refused:
        plan(a_job("gpt3-175b", batch=64, tokens=2048), cluster_by_hand("A100-80G", 1))
    more = int(refused.value.hint.split()[1])
    assert 1 <= more <= 63
    assert plan(a_job("gpt3-175b", batch=64 * (more + 1), tokens=2048), cluster_by_hand("A100-80G", 1 + more)).ranked


def test_an_unknown_gpu_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="unknown GPU 'H9000'") as refused:
        cluster_by_hand("H9000", 1)
    assert "H100-80G" in refused.value.hint


def test_parameters_are_those_of_the_one_home() -> None:
    for name, shape in PRESETS.items():
        if isinstance(shape, EncoderDecoderShape):
            with pytest.raises(BadInput, match="encoder layers cannot be planned"):
                plan(PlanJob(shape=shape, global_sequences=8, sequence_tokens=128, steps=1), cluster_by_hand("H100", 1))
            continue
        job = PlanJob(shape=shape, global_sequences=8, sequence_tokens=shape.positions, steps=1)
        cases = cases_of([(8, 1, 1, 1, 1, 0, 1, 0, 0)], job, cluster_by_hand("H100", 1))
        assert float(model_parameters(cases)[0]) == shape.parameters().total, name


def test_the_fullest_stage_is_never_below_the_even_share() -> None:
    shape = PRESETS["llama-70b"]
    job = PlanJob(shape=shape, global_sequences=64, sequence_tokens=4096, steps=1)
    for pipeline in (2, 4, 8):
        cases = cases_of([(1, 1, pipeline, 1, 1, 0, 1, 0, 0)], job, cluster_by_hand("H100", 1))
        fullest = float(stages_of(cases).parameters[0])
        assert shape.parameters().total / pipeline <= fullest
        assert fullest == pytest.approx(shape.largest_stage_parameters(pipeline), rel=0.01)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_state_bytes_of_our_engine_are_those_of_the_one_home(zero: int) -> None:
    shape = PRESETS["gpt2-1.5b"]
    job = PlanJob(shape=shape, global_sequences=8, sequence_tokens=1024, steps=1)
    cases = cases_of([(8, 1, 1, 1, 1, zero, 1, 0, 0)], job, cluster_by_hand("H100", 1))
    tables = {**FITTED.memory, "extra_state_bytes": {"": 0.0}}
    expected = state_bytes_per_rank(shape.parameters().total, zero_stage=zero, data_ranks=8).total_bytes
    assert float(memory_of(cases, tables).state_bytes[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_fp32_state_is_what_deepspeed_keeps_of_it(zero: int) -> None:
    shape = PRESETS["gpt2-1.5b"]
    job = PlanJob(shape=shape, global_sequences=8, sequence_tokens=1024, steps=1, precision="fp32")
    cases = cases_of([(8, 1, 1, 1, 1, zero, 1, 0, 0)], job, cluster_by_hand("H100", 1))
    tables = {**FITTED.memory, "extra_state_bytes": {"": 0.0}}
    kept = state_bytes_per_rank(shape.parameters().total, zero_stage=zero, data_ranks=8, precision="fp32")
    assert kept.optimizer_bytes == pytest.approx(shape.parameters().total * {0: 8.0, 1: 1.5, 2: 1.5, 3: 1.0}[zero])
    assert float(memory_of(cases, tables).state_bytes[0]) == pytest.approx(kept.total_bytes, rel=1e-6)


def test_recomputation_trades_memory_for_time() -> None:
    job, cluster = a_job(), cluster_by_hand("H100", 2)
    kept, again = (predict(job, cluster, Layout(data=16, recompute=word)) for word in (Recompute.NONE, Recompute.FULL))
    assert again.memory_bytes < kept.memory_bytes
    assert again.step_s > kept.step_s


def test_more_micro_batches_shrink_the_bubble() -> None:
    cluster = cluster_by_hand("H100", 4)
    shares = [
        (found := predict(a_job("llama-70b", batch=batch), cluster, Layout(data=1, tensor=4, pipeline=8))).terms_s["bubble"]
        / found.step_s
        for batch in (8, 32, 128)
    ]
    assert shares == sorted(shares, reverse=True)


def test_a_power_cap_costs_time_and_saves_power() -> None:
    free, layout = cluster_by_hand("H100", 2), Layout(data=16)
    capped = replace(free, gpu_power_cap_w=400.0)
    assert clock_share(free) == 1.0
    assert 0.5 < clock_share(capped) < 1.0
    plain, slow = predict(a_job(), free, layout), predict(a_job(), capped, layout)
    assert slow.step_s > plain.step_s
    assert slow.node_power_w < plain.node_power_w < free.node_max_w


def test_offload_is_the_way_out_for_one_node() -> None:
    shape = TransformerShape(layers=40, d_model=5120, heads=40, d_ff=20480, vocabulary=50_304, positions=2048)
    job = PlanJob(shape=shape, global_sequences=16, sequence_tokens=2048, steps=1, framework="deepspeed")
    cases = [
        predict(
            job, cluster_by_hand("A100-40G", 1), Layout(data=8, zero=3, recompute=Recompute.FULL, offload=offload)
        ).memory_bytes
        for offload in (False, True)
    ]
    assert cases[1] < cases[0]


@pytest.mark.slow
def test_a_question_about_sixteen_thousand_gpus_considers_every_layout_that_divides() -> None:
    found = plan(a_job("llama-405b", batch=16_384, tokens=8192), cluster_by_hand("H100", 2048))
    assert found.considered > 1000
    assert all(row.layout.gpus == 16_384 for row in found.ranked)
