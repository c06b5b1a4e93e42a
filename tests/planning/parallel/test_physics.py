"""What the terms know of frameworks and hardware: each of these was missing once, and strangers were predicted worse for it."""

import numpy as np
import pytest

from orchestrator.planning.parallel.cases import Cases
from orchestrator.planning.parallel.communication import boundary_s, data_s
from orchestrator.planning.parallel.compute import layer_time
from orchestrator.planning.parallel.constants import STARTS, resolve
from orchestrator.planning.parallel.fitted import MEMORY, STEP_TIME
from orchestrator.planning.parallel.memory import MOST_TOKENS, as_memory_allows, memory_of
from orchestrator.planning.parallel.software import software_of
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.validation import predict_rows, validate
from tests.planning.parallel.test_rows_and_scores import a_row, study_of

KORTHIKANTI = (
    # layers, width, heads, GPUs, pipeline, virtual stages, micro-batch, batch, recomputation, seconds
    (48, 6144, 64, 8, 1, 1, 4, 4, "full", 1.42),
    (48, 6144, 64, 8, 1, 1, 4, 4, "selective", 1.10),
    (96, 12288, 96, 64, 8, 3, 1, 64, "full", 18.13),
    (96, 12288, 96, 64, 8, 3, 1, 64, "selective", 13.75),
    (105, 20480, 128, 280, 35, 3, 1, 280, "full", 49.05),
    (105, 20480, 128, 280, 35, 3, 1, 280, "selective", 37.83),
    (128, 25600, 160, 512, 64, 1, 1, 512, "full", 94.42),
    (128, 25600, 160, 512, 64, 1, 1, 512, "selective", 71.49),
)
"""Korthikanti et al. 2022, table 5; the same numbers stand in Calculon's `validation.py`. They are in no fit."""


def a_case(**changed: object) -> Cases:
    return as_memory_allows(study_of([a_row(**changed)]).cases, MEMORY)


def total_s(case: Cases) -> float:
    return float(np.broadcast_to(step_time(case, resolve(STEP_TIME, case)).total_s, (1,))[0])


def test_step_times_of_korthikanti_are_met_without_having_been_fitted() -> None:
    rows = [
        a_row(
            **{"step_s": step_s, "name": f"{layers}-{recompute}", "gpu": "A100-80G", "framework": "Megatron-LM 2022"},
            **{"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": heads, "ffn_hidden": 4 * hidden, "vocab": 51_200},
            **{"seq_len": 2048, "gated_mlp": False, "n_gpus": gpus, "dp": 1, "tp": 8, "pp": pp, "vpp": vpp},
            **{"micro_batch": micro, "global_batch": batch, "act_ckpt": recompute},
        )
        for layers, hidden, heads, gpus, pp, vpp, micro, batch, recompute, step_s in KORTHIKANTI
    ]
    score = validate(rows).scores[-1]
    assert score.step_rows == len(KORTHIKANTI)
    assert score.step_error_mean is not None and score.step_error_p90 is not None
    assert score.step_error_mean < 0.05
    assert score.step_error_p90 < 0.10


LLAMA_405B = {
    **{"framework": "Megatron-LM", "gpu": "H100-80G", "layers": 126, "hidden": 16_384, "heads": 128, "kv_heads": 8},
    **{"ffn_hidden": 53_248, "vocab": 128_256, "gated_mlp": True, "seq_len": 8192, "zero_stage": 2, "tp": 8, "pp": 16, "cp": 1},
    **{"micro_batch": 1, "vpp": None, "act_ckpt": "none", "global_batch": 2048},
}
"""Grattafiori et al. 2024, table 4. 430 and 400 TFLOP/s per GPU, causal attention counted."""
MT_NLG = {
    **{"framework": "Megatron-DeepSpeed", "gpu": "A100-80G", "layers": 105, "hidden": 20_480, "heads": 128, "kv_heads": 128},
    **{"ffn_hidden": 81_920, "vocab": 50_257, "gated_mlp": False, "seq_len": 2048, "zero_stage": 0, "tp": 8, "pp": 35, "cp": 1},
    **{"micro_batch": 1, "vpp": 1, "act_ckpt": "full", "global_batch": 1920},
}
"""Smith et al. 2022, section 2.4."""


def test_runs_on_thousands_of_gpus_are_met_without_having_been_fitted() -> None:
    flops = 2048 * 8192 * (6 * 405.9e9 + 6 * 126 * 16_384 * 8192)
    llama = [
        a_row(**LLAMA_405B, name=f"{gpus}", step_s=flops / (gpus * reached), n_gpus=gpus, dp=gpus // 128)
        for gpus, reached in ((8192, 430e12), (16_384, 400e12))
    ]
    mt_nlg = [
        a_row(**MT_NLG, name=f"{gpus}", step_s=step_s, n_gpus=gpus, dp=gpus // 280)
        for gpus, step_s in ((2240, 60.1), (2800, 50.2), (3360, 44.4))
    ]
    study = study_of([*llama, *mt_nlg])
    off = predict_rows(study).step_s / study.step_s - 1.0
    assert np.all(np.abs(off[:2]) < 0.08)
    assert np.all(np.abs(off[2:]) < 0.18)


def test_a_micro_batch_that_is_not_said_is_what_memory_allows() -> None:
    alone = {"pp": 1, "micro_batch": None, "framework": "FSDP", "seq_len": 2048, "global_batch": 128}
    roomy, full = a_case(**alone), a_case(**alone, layers=80, hidden=8192, heads=64, ffn_hidden=28_672)
    assert 1 < roomy.micro[0] <= MOST_TOKENS / 2048
    assert full.micro[0] < roomy.micro[0]
    assert memory_of(roomy, MEMORY).device_bytes[0] <= roomy.memory[0]
    # 16 sequences a replica: a micro-batch divides them.
    assert 16 % roomy.micro[0] == 0
    assert a_case(**alone | {"micro_batch": 2}).micro[0] == 2


@pytest.mark.parametrize(("framework", "vpp", "micro"), [("NeMo", 1, 1.0), ("torchtitan", 1, 8.0), ("torchtitan", 2, 4.0)])
def test_with_a_pipeline_it_is_one_sequence_or_what_the_framework_makes_of_the_stages(
    framework: str, vpp: int, micro: float
) -> None:
    piped = a_case(framework=framework, n_gpus=64, pp=4, vpp=vpp, tp=1, global_batch=512, micro_batch=None)
    assert piped.dp[0] == 16
    assert piped.micro[0] == micro


@pytest.mark.parametrize(
    ("framework", "chunks"),
    [("NeMo", 4.0), ("torchtitan", 2.0), ("nanotron", 1.0), ("InternEvo", 1.0), ("Megatron-DeepSpeed", 1.0)],
)
def test_virtual_stages_that_are_not_said_are_what_the_frameworks_recipes_take(framework: str, chunks: float) -> None:
    assert a_case(framework=framework, n_gpus=64, pp=8, vpp=None, global_batch=512).vpp[0] == chunks
    assert a_case(framework=framework, n_gpus=64, pp=8, vpp=4, global_batch=512).vpp[0] == 4.0


def test_a_framework_without_runs_takes_what_its_kin_have_in_common() -> None:
    learned = {**STARTS, "pace": {"": 1.0, "~torch": 1.2, "~te": 0.9, "~eager": 1.1}}
    paces = {name: float(resolve(learned, a_case(framework=name)).pace[0]) for name in ("nanotron", "Megatron-Core", "MaxText")}
    assert paces == {"nanotron": 1.2, "Megatron-Core": 0.9, "MaxText": 1.0}


def test_eight_bit_products_pay_for_casting_what_goes_in_and_the_gradients_of_what_comes_out() -> None:
    def casts_s(**changed: object) -> float:
        case = a_case(tp=1, n_gpus=8, dp=8, precision="fp8", **changed)
        dear, cheap = ({**STARTS, "cast_passes": {"": passes}} for passes in (3.0, 2.0))
        one, other = (float(layer_time(case, resolve(table, case)).memory_bound_s[0]) for table in (dear, cheap))
        return one - other

    same = {"hidden": 4096, "heads": 32, "kv_heads": 32, "seq_len": 4096, "micro_batch": 1}
    gated, plain = casts_s(ffn_hidden=8192, gated_mlp=True, **same), casts_s(ffn_hidden=12288, gated_mlp=False, **same)
    # 4 + 4 widths around attention; a gated feed-forward casts one inner width going in and two coming back.
    assert gated == pytest.approx(plain)
    assert gated == pytest.approx(4096 * (8 * 4096 + 3 * 8192) * 2 / 3.35e12)


def test_jaxs_trainers_are_two_families_that_recompute_all() -> None:
    assert [software_of(name).name for name in ("PaxML (XLA)", "MaxText (XLA)", "JAX")] == ["paxml", "xla", "xla"]
    assert a_case(framework="MaxText").recompute[0] == a_case(framework="PaxML").recompute[0] == 2


def test_flash_attention_2_is_slow_on_hopper_and_as_fast_as_any_on_ampere() -> None:
    def reach(gpu: str, framework: str) -> float:
        case = a_case(gpu=gpu, framework=framework)
        return float(resolve(STARTS, case).flash_reach[0])

    assert reach("H100-80G", "nanotron") == pytest.approx(0.5 * reach("H100-80G", "Megatron-Core"))
    assert reach("A100-80G", "nanotron") == pytest.approx(reach("A100-80G", "Megatron-Core"))


def test_a_step_waits_for_the_slowest_of_all_gpus() -> None:
    waits = []
    for replicas in (1, 16, 256):
        case = a_case(n_gpus=8 * replicas, global_batch=128 * replicas)
        step = step_time(case, resolve(STEP_TIME, case))
        waits.append(float(np.broadcast_to(step.straggler_s, (1,))[0]))
    assert 0 < waits[0] < waits[1] < waits[2] < 3.0 * waits[0]
    alone = a_case(n_gpus=1, global_batch=1)
    assert float(step_time(alone, resolve(STEP_TIME, alone)).straggler_s[0]) == 0


def test_sends_between_stages_feel_a_slow_network_beyond_its_rate() -> None:
    fast = a_case(framework="Megatron-DeepSpeed", n_gpus=64, pp=8, tp=8)
    half = fast.columns["network"] / 2.0
    slow = fast.with_columns(network=np.minimum(half, 50e9 / fast.per_node))
    k = resolve(STEP_TIME, fast)
    assert boundary_s(slow, k)[0] > 2.0 * boundary_s(fast, k)[0]


def test_buckets_of_gradients_grow_with_the_ranks_that_share_them() -> None:
    def latency_s(replicas: int) -> float:
        case = a_case(n_gpus=replicas, tp=1, dp=replicas, zero_stage=1, global_batch=replicas)
        k = resolve(STEP_TIME, case)
        return float(data_s(case, k, np.array([8e9]), np.ones(1))[0])

    # 200 buckets of 40 million, each around a ring of 512 nodes, would take seconds of latency alone.
    assert latency_s(4096) < 1.5 * latency_s(1024)


def test_deepspeed_casts_its_share_of_16_bit_gradients_when_it_steps() -> None:
    def bytes_per_parameter(replicas: int) -> float:
        case = a_case(
            **{"framework": "Megatron-DeepSpeed", "gpu": "A100-80G", "precision": "fp16", "act_ckpt": "full", "zero_stage": 1},
            **{"n_gpus": 8 * replicas, "dp": replicas, "tp": 8, "seq_len": 128, "global_batch": 128 * replicas},
        )
        memory, parameters = memory_of(case, MEMORY), 8.03e9 / 8
        return float(memory.allocated_bytes[0]) / parameters

    # 2 + 2 + 12 of state and 4 of fp32 gradients; of the last two every rank has its share.
    assert bytes_per_parameter(1) == pytest.approx(20.0, rel=0.05)
    assert bytes_per_parameter(1) - bytes_per_parameter(4) > 11.0


def test_the_allocator_keeps_fragments_while_there_is_room_and_frees_them_when_there_is_none() -> None:
    def fragments_gib(memory_gib: float) -> float:
        case = a_case(framework="torchtitan", n_gpus=8, dp=8, tp=1, act_ckpt="none", micro_batch=2, seq_len=8192, global_batch=16)
        memory = memory_of(case.with_columns(memory=np.array([memory_gib * 2.0**30])), MEMORY)
        assert memory.reserved_bytes[0] > memory.allocated_bytes[0]
        return float(memory.reserved_bytes[0] - memory.allocated_bytes[0]) / 2.0**30

    roomy, full = fragments_gib(400.0), fragments_gib(100.0)
    assert full < 0.5 * roomy
    assert roomy < 0.5 * 400.0
