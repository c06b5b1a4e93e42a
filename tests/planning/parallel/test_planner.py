"""The planner's answers: terms that add up, layouts that divide, and one sentence when nothing does."""

from dataclasses import replace

import pytest

from model.shape import PRESETS, EncoderDecoderShape, TransformerShape, state_bytes_per_rank
from orchestrator.domain.errors import BadInput
from orchestrator.domain.layout import Fits, Layout, Recompute
from orchestrator.planning.parallel.cluster import PlanJob, cluster_by_hand
from orchestrator.planning.parallel.evaluate import evaluate
from orchestrator.planning.parallel.memory import memory_of
from orchestrator.planning.parallel.planner import other_fleets, plan, predict
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


def test_the_energy_of_small_and_half_empty_machines_never_falls_with_work() -> None:
    """A node of one small GPU idles below what it draws at most; a spec's machine may idle above three quarters of its rating."""
    for name in ("CPU", "L4", "H100", "B100"):
        for each in (1, 2, 8):
            cluster = cluster_by_hand(name, 2, each)
            assert 0.0 < cluster.node_idle_w < 0.76 * cluster.node_max_w
    lazy = replace(cluster_by_hand("H100", 2), node_idle_w=9000.0)
    assert predict(a_job(), lazy, Layout(data=16)).node_power_w == 9000.0


def test_mfu_is_of_the_data_sheets_peak_whatever_the_power_cap() -> None:
    free, layout = cluster_by_hand("H100", 2), Layout(data=16)
    plain, slow = (predict(a_job(), on, layout) for on in (free, replace(free, gpu_power_cap_w=350.0)))
    assert slow.mfu / plain.mfu == pytest.approx(plain.step_s / slow.step_s)


def test_parts_of_memory_add_up_to_all_of_it() -> None:
    for found in plan(a_job(framework="rackray"), cluster_by_hand("H100", 4), keep=8).ranked:
        assert sum(found.memory_parts_bytes.values()) == pytest.approx(found.memory_bytes)


def test_a_plan_for_energy_takes_the_layout_of_least_energy_not_the_fastest() -> None:
    job, cluster = a_job("llama-70b", framework="nemo"), replace(cluster_by_hand("H100", 16), gpu_power_cap_w=490.0)
    by_time, by_energy = plan(job, cluster, keep=100), plan(job, cluster, keep=5, objective="energy")
    assert by_energy.best.run_kwh == pytest.approx(min(found.run_kwh for found in by_time.ranked), rel=1e-3)
    assert by_energy.best.run_kwh < by_time.best.run_kwh
    assert [f.run_kwh for f in by_energy.ranked] == sorted(f.run_kwh for f in by_energy.ranked)
    assert all(o.run_kwh >= by_energy.best.run_kwh * (1 - 1e-3) for _, o in by_energy.alternatives if o.fits is Fits.YES)


def test_fleets_of_other_sizes_are_planned_within_the_same_limits() -> None:
    """Only with the optimizer on the host does this model fit half the nodes."""
    job, cluster = a_job("llama-70b", framework="rackray", batch=64, tokens=1024), cluster_by_hand("V100-16G", 8)
    sizes = dict(other_fleets(plan(job, cluster, Limits(offload=(False, True)))))
    assert sizes[4].layout.offload
    with pytest.raises(BadInput, match="no layout of this model fits"):
        plan(job, replace(cluster, nodes=4))


def test_where_layouts_are_tight_the_others_are_of_the_same_kind() -> None:
    job = a_job("llama-70b", framework="rackray", batch=64, tokens=1024)
    found = plan(job, cluster_by_hand("A100-80G", 2))
    assert found.best.fits is Fits.TIGHT
    assert any(other.fits is Fits.TIGHT and other.run_s > found.best.run_s for _, other in found.alternatives)
    assert all(other.run_s >= found.best.run_s * (1 - 1e-3) for _, other in found.alternatives if other.fits is Fits.TIGHT)


def test_what_bf16_adds_to_a_frameworks_gradients_counts_in_a_plan() -> None:
    layout, cluster = Layout(data=16, recompute=Recompute.FULL), cluster_by_hand("A100", 2)
    bf16, fp16 = (
        predict(replace(a_job("gpt2-1.5b", framework="megatron-deepspeed", tokens=1024), precision=word), cluster, layout)
        for word in ("bf16", "fp16")
    )
    more = bf16.memory_parts_bytes["state"] - fp16.memory_parts_bytes["state"]
    assert more == pytest.approx(4.0 * PRESETS["gpt2-1.5b"].parameters().total, rel=1e-3)


def test_a_zero_bubble_framework_is_planned_with_its_own_schedule() -> None:
    cluster, layout = cluster_by_hand("A100", 4), Layout(data=4, pipeline=8)
    shape = replace(PRESETS["gpt3-175b"], layers=24, d_model=2304, heads=24, d_ff=9216)
    job = PlanJob(shape=shape, global_sequences=128, sequence_tokens=1024, steps=1, framework="Megatron-LM fork 1F1B")
    plain, zero_bubble = (predict(replace(job, framework=name), cluster, layout) for name in (job.framework, "ZB-2p"))
    assert zero_bubble.terms_s["bubble"] < plain.terms_s["bubble"]
    assert zero_bubble.memory_parts_bytes["activations"] > 1.5 * plain.memory_parts_bytes["activations"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"failures_per_node_day": float("nan")}, "nan failures per node and day cannot be"),
        ({"failures_per_node_day": -1.0}, "-1 failures"),
        ({"failures_per_node_day": 1e308}, "1e.308 failures"),
        ({"failures_per_node_day": 5000.0}, "2 nodes that fail every 8.64 s and take 600 s to restart keep less than 0.1%"),
        ({"restart_s": float("inf")}, "inf seconds of a restart"),
        ({"storage_gb_s_per_node": 0.0}, "0 GB/s of storage"),
        ({"network_gbit_s_per_node": float("nan")}, "nan Gbit/s"),
        ({"gpu_power_cap_w": 60.0}, "takes no power cap of 60 W"),
        ({"gpu_power_cap_w": 900.0}, "takes no power cap of 900 W"),
        ({"nodes": 2_000_000}, "16,000,000 GPUs are more than"),
    ],
)
def test_numbers_that_no_cluster_has_are_refused_in_one_sentence(changed: dict[str, float], says: str) -> None:
    cluster = replace(cluster_by_hand("H100", 2), **changed)  # type: ignore[arg-type]
    for ask in (lambda: plan(a_job(), cluster), lambda: predict(a_job(), cluster, Layout(data=cluster.gpus))):
        with pytest.raises(BadInput, match=says) as refused:
            ask()
        assert refused.value.hint


def test_a_fleet_that_never_fails_has_no_checkpoint_interval() -> None:
    found = predict(a_job(), replace(cluster_by_hand("H100", 2), failures_per_node_day=0.0), Layout(data=16))
    assert found.checkpoint_every_s is None


@pytest.mark.parametrize("framework", ["rackray", "megatron-core"])
def test_sequences_longer_than_the_models_positions_are_refused(framework: str) -> None:
    with pytest.raises(BadInput, match="4096 tokens are asked for and the model has 1024 positions"):
        plan(a_job("gpt2-1.5b", framework=framework, tokens=4096), cluster_by_hand("H100", 1))
    longer = a_job("llama-8b", framework=framework, tokens=16_384)
    if framework == "rackray":  # rotary positions could go on; our engine lets them not
        with pytest.raises(BadInput, match="the model has 8192 positions"):
            plan(longer, cluster_by_hand("H100", 4))
    else:
        assert plan(longer, cluster_by_hand("H100", 4)).ranked


@pytest.mark.parametrize(
    ("framework", "layout", "says"),
    [
        ("megatron-core", Layout(data=16, zero=3), "megatron-core has no ZeRO-3"),
        ("rackray", Layout(data=2, pipeline=8, virtual_stages=2), "no interleaved stages"),
        ("megatron-core", Layout(data=16, virtual_stages=2), "one stage has nothing to interleave"),
        ("deepspeed", Layout(data=16, zero=0, offload=True), "ZeRO-0 keeps the optimizer's state"),
        ("torchtitan", Layout(data=16, offload=True), "no optimizer in the host's memory"),
        ("rackray", Layout(data=1, tensor=16), "8 key/value heads and d_ff 14336 do not divide by tensor 16"),
        ("rackray", Layout(data=-4, pipeline=-4), "a degree of -4 is none"),
        ("rackray", Layout(data=16, micro_sequences=0), "a degree of 0 is none"),
    ],
)
def test_what_a_framework_cannot_do_is_refused(framework: str, layout: Layout, says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        predict(a_job(framework=framework), cluster_by_hand("H100", 2), layout)
    assert refused.value.hint


def test_the_nearest_number_of_nodes_is_found_among_millions() -> None:
    with pytest.raises(BadInput) as refused:
        plan(a_job(batch=1024, framework="rackray"), cluster_by_hand("H100", 1_000_003))
    nodes = int(refused.value.hint.split(", or ")[1].split()[0])
    assert plan(a_job(batch=1024, framework="rackray"), cluster_by_hand("H100", nodes)).ranked


def test_recomputation_and_offload_are_among_what_is_told_why_not() -> None:
    found = plan(a_job(framework="rackray", tokens=4096), cluster_by_hand("H100", 4), Limits(offload=(False, True)))
    told = dict(found.alternatives)
    assert found.best.layout.recompute is not Recompute.FULL and not found.best.layout.offload
    neighbour = Recompute.SELECTIVE if found.best.layout.recompute is Recompute.NONE else Recompute.FULL
    assert told[f"recomputation {neighbour}"].layout.recompute is neighbour
    assert told["optimizer on the host"].layout.offload


@pytest.mark.parametrize(("layers", "pipeline"), [(126, 64), (126, 8), (48, 5), (10, 4), (80, 8)])
def test_our_engines_stages_are_cut_as_deepspeed_cuts_them(layers: int, pipeline: int) -> None:
    """`partition_method="type:Block"`: the first stage is a full one, with the embedding, and the last ones hold a block less."""
    shape = replace(PRESETS["llama-8b"], layers=layers)
    job = PlanJob(shape=shape, global_sequences=64, sequence_tokens=4096, steps=1)
    stages = stages_of(cases_of([(1, 1, pipeline, 1, 1, 1, 1, 0, 0)], job, cluster_by_hand("H100", 8)))
    # deepspeed.runtime.utils.partition_balanced gives [2, 2, ..., 1, 1], [16, ..., 15, 15], [10, 10, 10, 9, 9], [3, 3, 2, 2].
    assert (float(stages.first_layers[0]), float(stages.last_layers[0])) == (-(-layers // pipeline), layers // pipeline)
    if layers == 126:
        others = stages_of(
            cases_of([(1, 1, pipeline, 1, 1, 1, 1, 0, 0)], replace(job, framework="nemo"), cluster_by_hand("H100", 8))
        )
        assert float(others.first_layers[0]) == 128 // pipeline - 1
