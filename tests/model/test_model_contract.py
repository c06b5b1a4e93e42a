from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from parallel_world import tiny_translation
from training_launch import PROJECT, tiny_run

from model.contract import (
    ContractError,
    EventLine,
    ExitCode,
    OptimizerSpec,
    ProgressLine,
    RunSpec,
    model_of_shape,
    read_progress,
)
from model.ranks import RankEnvironment
from model.shape import PRESETS, Activation, Norm, Position
from model.train import main


def problems_of(run: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ContractError) as caught:
        RunSpec.from_json(json.dumps(run))
    return caught.value.problems


def test_a_run_survives_its_own_text() -> None:
    spec = RunSpec.from_json(json.dumps(tiny_run(Path("x"), layout={"pipeline": 2, "data": 2})))
    assert RunSpec.from_json(spec.to_json()) == spec
    assert spec.optimizer.betas == (0.9, 0.95)
    assert (spec.micro_batches, spec.tokens_per_step) == (2, 128)


PROBLEMS = [
    ({"layout": {"pipeline": 2, "zero": 3}}, "layout.zero: ZeRO-3 with 2 pipeline stages", "choose 1, or layout.pipeline 1"),
    ({"layout": {"pipeline": 2, "zero": 2}}, "whole gradients", "choose 1"),
    ({"layout": {"pipeline": 2, "zero": 0}}, "out of the gradient norm", "choose 1"),
    ({"layout": {"pipeline": 3}}, "3 stages, but the model has 2 layers", "at most 2"),
    ({"layout": {"tensor": 3}}, "4 heads, 4 key/value heads, d_ff 64 and 512 tokens", "over 3 tensor ranks; nearest: 2 or 4"),
    ({"layout": {"tensor": 4}, "model": {"kv_heads": 2}}, "2 key/value heads", "nearest: 2"),
    ({"model": {"kv_heads": 3}}, "4 heads cannot share 3 key/value heads", "nearest: 2 or 4"),
    ({"model": {"family": "lama"}}, "model.family: is 'lama'", "gpt or llama or vaswani"),
    ({"model": {"position": "rotary", "d_model": 36}}, "a head has 9", "nearest heads: 3 or 6"),
    ({"model": {"family": "vaswani", "d_model": 33, "heads": 3}}, "d_model 33 is odd", "nearest: 34"),
    ({"model": {"norm": "batch"}}, "model.norm: is 'batch'", "layer or rms"),
    ({"model": {"label_smoothing": 1.0}}, "model.label_smoothing: is 1.0", "below 1"),
    ({"activation_checkpointing": "some"}, "activation_checkpointing: is 'some'", "none or selective or full"),
    ({"optimizer": {"schedule": "noam", "warmup_steps": 0}}, "noam is defined by its warm-up", "at least 1"),
    ({"layout": {"zero": 0}, "optimizer": {"offload": True}}, "optimizer.offload: ZeRO-0", "1, 2 or 3"),
    ({"optimizer": {"offload": True, "fused": True}}, "the fused Adam runs on the GPU", "choose one"),
    ({"layout": {"zero": 0}, "precision": "fp16"}, "ZeRO-0 with fp16", "choose 1"),
    ({"layout": {"zero": 4}}, "layout.zero: is 4", "0 or 1 or 2 or 3"),
    ({"layout": {"data": 3}}, "8 sequences do not divide into micro-batches of 2 on 3", "nearest: 6 or 12"),
    ({"batch": {"global_sequences": 1}}, "1 sequences do not divide", "nearest: 2"),
    ({"batch": {"sequence_tokens": 64}}, "64 tokens, but the model has 32 positions", "at most 32"),
    ({"model": {"heads": 5}}, "5 heads do not divide d_model 32", "nearest: 4 or 8"),
    ({"model": {"vocabulary": 256}}, "model.vocabulary: is 256", "at least 257"),
    ({"model": {"dropout": 1.0}}, "model.dropout: is 1.0", "below 1"),
    ({"optimizer": {"warmup_steps": 9}}, "is 9, more than the run's 5 steps", "at most 5"),
    ({"optimizer": {"schedule": "cosin"}}, "optimizer.schedule: is 'cosin'", "cosine or linear or constant or noam"),
    ({"guard": {"on_nan": "ignore"}}, "guard.on_nan: is 'ignore'", "stop or skip"),
    ({"guard": {"spike_deviations": 0.5}}, "guard.spike_deviations: is 0.5", "at least 1"),
    ({"data": {"corpus": "texts"}}, "data.corpus: is texts", "with a slash in it: ./texts"),
    ({"optimizer": {"lr": 0}}, "optimizer.lr: is 0.0", "above 0"),
    ({"optimizer": {"betas": [0.9]}}, "optimizer.betas: must be a list of 2 numbers", ""),
    ({"optimizer": {"betas": [0.9, "x"]}}, "optimizer.betas[1]: must be a number, not a text", ""),
    ({"layout": {"zero": 0}, "precision": "bf16"}, "without an fp32 copy", "choose 1"),
    ({"precision": "fp8"}, "precision: is 'fp8'", "fp32 or bf16 or fp16"),
    ({"steps": True}, "steps: must be a whole number, not true or false", ""),
    ({"steps": 5.0}, "steps: must be a whole number, not a number", ""),
    ({"model": None}, "model: must be an object, not null", ""),
    ({"output_directory": " "}, "output_directory: is empty", ""),
    ({"step": 5}, "step: unknown key", "did you mean steps?"),
]


@pytest.mark.parametrize(("changes", "what", "way_out"), PROBLEMS, ids=[what for _, what, _ in PROBLEMS])
def test_a_run_that_cannot_be_is_refused_with_its_numbers_and_a_way_out(changes: dict[str, Any], what: str, way_out: str) -> None:
    run = {"step": None, **tiny_run(Path("x"))} if "step" in changes else tiny_run(Path("x"))
    run.update({k: {**run.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()})
    (problem,) = problems_of(run)
    assert what in problem
    assert way_out in problem


def test_every_problem_is_told_at_once_even_beside_missing_and_unknown_keys() -> None:
    run = tiny_run(Path("x"), layout={"pipeline": 4, "zero": 3}, batch={"global_sequences": 7}, model={"heads": 5})
    del run["seed"]
    run["optimizer"]["learning_rate"] = 1
    problems = problems_of(run)
    starts = ["optimizer.learning_rate", "seed: missing", "model.heads", "batch.global", "layout.pipeline", "layout.zero"]
    assert len(problems) == len(starts)
    for start in starts:
        assert any(problem.startswith(start) for problem in problems), (start, problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"steps": 1, "steps": 2}', "steps: the key is written twice"),
        ('{"steps": NaN}', "NaN is not a JSON number"),
        ("{", "line 1, column 2: not JSON"),
        ("[]", "must be one JSON object, not a list"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_text_that_is_no_plain_json_object_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ContractError) as caught:
        RunSpec.from_json(text)
    assert any(problem in told for told in caught.value.problems)


def test_degrees_that_do_not_multiply_to_the_ranks_name_the_nearest_choice() -> None:
    spec = RunSpec.from_json(json.dumps(tiny_run(Path("x"), layout={"pipeline": 2, "data": 2})))
    spec.check_world(4)
    with pytest.raises(ContractError, match=r"pipeline 2 x tensor 1 x data 2 = 4 ranks, but 8 .* layout.data to 4"):
        spec.check_world(8)
    with pytest.raises(ContractError, match=r"but 5 were started; start 4 ranks, or 6 with layout.data 3"):
        spec.check_world(5)


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    def rates(optimizer: OptimizerSpec, steps: int, at: tuple[int, ...]) -> list[float]:
        return [optimizer.lr_at(step, steps, d_model=512) for step in at]

    cosine = OptimizerSpec(lr=1.0, warmup_steps=10, schedule="cosine")
    linear = OptimizerSpec(lr=1.0, warmup_steps=10, schedule="linear")
    constant = OptimizerSpec(lr=1.0, warmup_steps=0, schedule="constant")
    to_nothing = OptimizerSpec(lr=1.0, schedule="linear", final_share=0.0)
    assert rates(cosine, 110, (1, 10, 60, 110)) == pytest.approx([0.1, 1.0, 0.55, 0.1])
    assert rates(linear, 110, (10, 35, 110)) == pytest.approx([1.0, 0.775, 0.1])
    assert rates(constant, 4, (1, 4)) == [1.0, 1.0]
    assert rates(to_nothing, 4, (1, 4)) == [0.75, 0.0]
    # Equation 3 of the paper for its base model: the peak is at the end of the warm-up.
    paper = OptimizerSpec(lr=1.0, warmup_steps=4000, schedule="noam")
    assert rates(paper, 100_000, (1, 4000, 100_000)) == pytest.approx([1.747e-7, 6.988e-4, 1.398e-4], rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_shape_is_a_model_section(name: str) -> None:
    model = model_of_shape(PRESETS[name])
    assert model.shape() == PRESETS[name]
    tiny = tiny_translation(Path("x"), "gettext").to_json() if model.encoder_layers else json.dumps(tiny_run(Path("x")))
    run = {**json.loads(tiny), "model": asdict(model)}
    assert RunSpec.from_json(json.dumps(run)).model == model


def test_a_family_settles_the_options_that_are_not_given() -> None:
    run = tiny_run(Path("x"), model={"family": "llama", "kv_heads": 2, "activation": "relu", "tied": True})
    shape = RunSpec.from_json(json.dumps(run)).model.shape()
    assert (shape.norm, shape.position, shape.biases) == (Norm.RMS, Position.ROTARY, False)
    assert (shape.activation, shape.tied, shape.key_value_heads) == (Activation.RELU, True, 2)


def test_progress_is_read_up_to_a_line_its_writer_died_in() -> None:
    step = ProgressLine(
        step=3,
        loss=2.5,
        lr=0.1,
        grad_norm=1.0,
        step_s=0.5,
        tokens_per_s=10.0,
        tflops_per_s=0.1,
        time_left_s=1.0,
        memory_bytes=7,
        at=1.0,
    )
    event = EventLine(event="checkpoint", step=3, at=2.0, detail={"size_bytes": 9})
    later = json.dumps({**json.loads(step.to_json()), "step": 4, "not_known_yet": 1})
    text = f"{step.to_json()}\n{event.to_json()}\nnoise\n{later}\n" + step.to_json()[:40]
    read = read_progress(text)
    assert read[:2] == [step, event]
    assert [line.step for line in read] == [3, 3, 4]


def test_the_rank_environment_names_everything_that_is_missing_or_wrong() -> None:
    with pytest.raises(ContractError) as caught:
        RankEnvironment.from_environment({"RANK": "4", "WORLD_SIZE": "4", "MASTER_PORT": "x"})
    told = "\n".join(caught.value.problems)
    for words in ("LOCAL_RANK is not set", "MASTER_ADDR is not set", "MASTER_PORT is 'x'", "RANK is 4 with WORLD_SIZE 4"):
        assert words in told
    alone = RankEnvironment.from_environment({"HOME": "/"})
    assert (alone.rank, alone.world_size) == (0, 1)
    assert RankEnvironment.from_environment({**alone.as_environment(), "RANK": "0"}) == alone


def test_a_bad_run_ends_with_code_2_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "RUN.json"
    path.write_text(json.dumps(tiny_run(tmp_path / "r", steps=0, layout={"pipeline": 9})))
    assert main([str(path)]) == ExitCode.BAD_RUN
    told = capsys.readouterr().err
    assert "steps: is 0" in told
    assert "9 stages" in told
    assert not (tmp_path / "r").exists()


def test_the_contract_and_the_counts_need_the_standard_library_only() -> None:
    program = "import sys; before = set(sys.modules); import model.contract, model.shape, model.progress, model.ranks;"
    program += "print({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    result = subprocess.run([sys.executable, "-S", "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'model'}"


def test_a_rank_that_is_done_cannot_be_aborted_by_what_outlives_it(tmp_path: Path) -> None:
    command = "import atexit, os, runpy; atexit.register(os.abort); runpy.run_module('model.train', run_name='__main__')"
    ended = subprocess.run(
        (sys.executable, "-c", command, str(tmp_path / "RUN.json")), cwd=PROJECT, capture_output=True, text=True
    )
    assert ended.returncode == ExitCode.BAD_RUN
    assert "RUN.json" in ended.stderr
