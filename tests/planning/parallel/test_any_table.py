"""Tables from elsewhere: any CSV with these columns is read, and every row is predicted or counted with a reason."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.drivers.run_rows import read_run_rows
from orchestrator.planning.parallel.gpus import GPUS, find_gpu
from orchestrator.planning.parallel.rows import RowCase, case_of
from orchestrator.planning.parallel.software import software_of
from orchestrator.planning.parallel.spellings import is_dense, precision_code, recompute_word
from orchestrator.planning.parallel.study import study_of
from orchestrator.planning.parallel.validation import predict_rows, validate
from tests.planning.parallel.test_rows_and_scores import a_row

COLUMNS = (
    *("id", "source", "gpu", "framework", "model", "workload", "arch", "precision", "act_ckpt", "mem_kind", "gated_mlp"),
    *("model_params_b", "layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "seq_len", "n_gpus", "gpus_per_node"),
    *("internode_bw_gbps_per_node", "dp", "tp", "pp", "vpp", "cp", "ep", "zero_stage", "micro_batch", "global_batch"),
    *("step_time_s", "tokens_per_s_per_gpu", "mem_gb_per_gpu"),
)
NUMBERS = st.one_of(
    st.integers(-3, 600).map(str), st.sampled_from(["1e400", "-1", "0", "nan", "inf", "1e300", "12,288", "4.5", "~8"])
)
WORDS = st.one_of(
    st.sampled_from([*GPUS, "H100 SXM", "bf16", "fp8", "full", "none", "NeMo", "FSDP", "dense", "moe", "pretrain", "oom", ""]),
    st.text(max_size=12),
)
CELLS = st.one_of(NUMBERS, WORDS)
PLAIN = {
    **{"gpu": "H100-80G", "framework": "NeMo", "layers": "32", "hidden": "4096", "heads": "32", "seq_len": "4096", "n_gpus": "8"},
    **{"tp": "1", "pp": "1", "global_batch": "64", "step_time_s": "5"},
}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=12), min_size=1, max_size=6))
def test_any_cells_are_predicted_or_counted(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**PLAIN, **row} for row in rows)
    read = read_run_rows(path)
    study = study_of(read)
    assert len(study) + len(study.left_out) == len(read) == len(rows)
    assert all(reason for _, reason in study.left_out)
    if len(study):
        found = predict_rows(study)
        for values in (found.step_s, found.device_bytes, found.low, found.high):
            assert np.all(np.isfinite(values)) and np.all(values > 0)
        assert np.all(found.low < 1.0) and np.all(found.high > 1.0)
    assert validate(read).scores[-1].rows == len(rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=300))
def test_any_text_below_the_right_head_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",".join(COLUMNS) + "\n" + text, encoding="utf-8", errors="replace", newline="")
    rows = read_run_rows(path)
    study = study_of(rows)
    assert len(study) + len(study.left_out) == len(rows)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80G"),
        ("H100 SXM5", "H100-80G"),
        ("A100-SXM4-40GB", "A100-40G"),
        ("a100 (80gb)", "A100-80G"),
        ("A100 80GB PCIe", "A100-80G-PCIe"),
        ("A800", "A800-80G"),
        ("H800", "H800-80G"),
        ("H20", "H20-96G"),
        ("H200-141GB", "H200"),
        ("GB200 NVL72", "GB200"),
        ("DGX B200", "B200"),
        ("HGX B300", "B300"),
        ("AMD Instinct MI300X", "MI300X"),
        ("MI250", "MI250X"),
        ("Tesla V100-SXM2-16GB", "V100-16G"),
        ("8x H100", "H100-80G"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090-24G"),
        ("L40S", "L40S-48G"),
        ("H100 NVL", "H100-NVL-94G"),
    ],
)
def test_gpus_are_known_by_other_spellings(said: str, meant: str) -> None:
    gpu = find_gpu(said)
    assert gpu is not None and gpu.name == meant


def test_a_memory_that_no_board_has_is_taken_from_the_name() -> None:
    gpu = find_gpu("A100-64G")
    assert gpu is not None and 60 < gpu.memory_gib < 64
    assert find_gpu("TPU v4") is None and find_gpu("") is None and find_gpu("H9000") is None
    assert all((found := find_gpu(name)) is not None and found.name == name for name in GPUS)


def test_words_are_understood_in_their_many_spellings() -> None:
    codes = {
        "BF16": 0,
        "bfloat16": 0,
        "fp16-amp": 0,
        "": 0,
        "mixed": 0,
        "FP8-E4M3": 1,
        "mxfp8": 1,
        "NVFP4": 2,
        "tf32": -1,
        "float32": -1,
    }
    assert {word: precision_code(word) for word in codes} == codes
    assert precision_code("int3") is None
    kept = {"True": "full", "full": "full", "block": "full", "selective": "selective", "SAC": "selective", "op": "selective"}
    kept |= {"no": "none", "False": "none", "none": "none", "off": "none", "": "", "n/a": ""}
    assert {word: recompute_word(word) for word in kept} == kept
    assert recompute_word("perhaps") is None
    assert (
        is_dense("dense")
        and is_dense("Llama decoder")
        and is_dense("")
        and not is_dense("MoE transformer")
        and not is_dense("mamba")
    )
    families = {
        "PyTorch FSDP2": "fsdp",
        "torchtitan main": "torchtitan",
        "DeepSpeed ZeRO-3": "deepspeed",
        "NeMo/Megatron": "nemo",
    }
    families |= {
        "Megatron-LM 2022 (Korthikanti)": "megatron-2022",
        "MaxText": "xla",
        "nanotron": "nanotron",
        "Colossal-AI": "colossal",
    }
    assert {name: software_of(name).name for name in families} == families


def test_what_is_guessed_is_said_and_widens_the_interval() -> None:
    plain, guessed = (
        case_of(row.inputs) for row in (a_row(), a_row(layers=None, hidden=None, heads=None, parameters_b=7.0, global_batch=None))
    )
    assert isinstance(plain, RowCase) and plain.guessed == ()
    assert isinstance(guessed, RowCase) and guessed.guessed == ("shape", "heads", "batch")
    assert guessed.case.layers == 33 and guessed.case.hidden == pytest.approx(4224, rel=0.02)
    found = predict_rows(study_of([a_row(), a_row(layers=None, hidden=None, heads=None, parameters_b=7.0)]))
    assert math.log(found.high[1] / found.low[1]) > math.log(found.high[0] / found.low[0])


def test_a_rate_alone_is_compared_without_the_batch() -> None:
    row = a_row(None, global_batch=None)
    study = study_of([type(row)(row.id, row.source, row.inputs, type(row.measured)(tokens_per_s_per_gpu=9000.0))])
    assert study.guessed[0] and study.step_s[0] == pytest.approx(study.cases.global_batch[0] * 8192 / (9000 * 8))
