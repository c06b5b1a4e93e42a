from dataclasses import replace
from pathlib import Path

import pytest

from model.shape import PRESETS
from orchestrator.domain.errors import BadInput
from orchestrator.drivers.job_reader import parse_job, read_job
from orchestrator.planning.job_check import job_problems
from orchestrator.planning.run_launch import model_spec

JOBS = Path(__file__).parents[2] / "cluster_specs" / "jobs"
GOOD = """\
rackray_job: 1
name: lm
nodes: 4
model: {layers: 4, d_model: 192, heads: 6, d_ff: 768, vocabulary: 1024, positions: 128}
layout: {pipeline: 2, data: 2, zero: 1}
batch: {global_sequences: 16, micro_sequences: 4, sequence_tokens: 64}
optimizer: {lr: 0.0015, warmup_steps: 20}
steps: 240
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        parse_job(text.encode(), "job.yaml", job_problems)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_job_that_ships_can_be_run(path: Path) -> None:
    assert read_job(path, job_problems).job.name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("nodes: 4", "nodes: 3", "job.yaml:5:", "pipeline 2 x data 2 = 4 ranks, but 3 nodes x 1 ranks_per_node = 3"),
        ("nodes: 4", "nodes: four", "job.yaml:3:8:", "nodes"),
        ("nodes: 4", "nodes: 4\nnodes: 4", "job.yaml:4:1:", "nodes"),
        ("steps: 240", "stpes: 240", "job.yaml:8:1:", "steps"),
        ("zero: 1", "zero: 3", "job.yaml:5:", "ZeRO-3 with 2 pipeline stages"),
        ("heads: 6", "heads: 5", "job.yaml:4:", "5 heads do not divide d_model 192"),
        ("global_sequences: 16", "global_sequences: 18", "job.yaml:6:", "18 sequences"),
        ("sequence_tokens: 64", "sequence_tokens: 640", "job.yaml:6:", "640"),
        ("pipeline: 2, data: 2", "pipeline: 4, data: 1", None, ""),
        ("pipeline: 2, data: 2", "pipeline: 8, data: 1", "job.yaml:5:", "8 stages"),
        ("name: lm", "name: LM job", "job.yaml:2:", "LM job"),
        ("optimizer: {lr: 0.0015, warmup_steps: 20}\n", "", "job.yaml:", "optimizer is missing"),
        ("layers: 4, ", "", "job.yaml:4:", "model.layers is missing"),
        ("layers: 4, ", "preset: llama-8, layers: 4, ", "job.yaml:4:", "did you mean llama-8b?"),
        ("pipeline: 2, data: 2", "pipeline: 1, tensor: 4, data: 1", "job.yaml:5:", "6 heads, 6 key/value heads, d_ff 768"),
        ("pipeline: 2, data: 2", "pipeline: 2, tensor: 2, data: 2", "job.yaml:5:", "tensor 2 x data 2 = 8 ranks"),
        ("pipeline: 2, data: 2", "pipeline: 1, sequence: 4, data: 1", "job.yaml:5:", "do not divide over 4 sequence ranks"),
        ("d_ff: 768", "d_ff: 768, window: 48, window_block: 32", "job.yaml:4:", "nearest: 32 or 64"),
        ("d_ff: 768", "d_ff: 768, block: sas, kv_heads: 2", "job.yaml:4:", "choose 0 or 6"),
        ("d_ff: 768", "d_ff: 768, position: rotary, heads: 64", "job.yaml:4:", "heads"),
        ("positions: 128", "positions: 128, family: lama", "job.yaml:4:", "gpt or llama or vaswani"),
        ("steps: 240", "steps: 240\nactivation_checkpointing: all", "job.yaml:9:", "activation_checkpointing"),
        ("steps: 240", "steps: 240\ncommand: [python3, x.py]", "job.yaml:", "together with command"),
        ("steps: 240", "steps: 240\nstart_limit_s: 10", "job.yaml:9:", "start_limit_s"),
    ],
)
def test_a_wrong_job_is_refused_at_its_place(old: str, new: str, place: str | None, words: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    if place is None:
        parse_job(text.encode(), "job.yaml", job_problems)
        return
    said = problems_of(text)
    assert any(problem.startswith(place) and words in problem for problem in said), said


def test_a_preset_fills_in_what_is_not_given() -> None:
    text = GOOD.replace(
        "{layers: 4, d_model: 192, heads: 6, d_ff: 768, vocabulary: 1024, positions: 128}", "{preset: llama-8b, layers: 4}"
    )
    job = parse_job(text.encode(), "job.yaml", job_problems).job
    assert job.model is not None
    assert model_spec(job.model).shape() == replace(PRESETS["llama-8b"], layers=4)


def test_problems_between_fields_are_told_all_at_once() -> None:
    said = problems_of(
        GOOD.replace("heads: 6", "heads: 5").replace("zero: 1", "zero: 2").replace("global_sequences: 16", "global_sequences: 17")
    )
    assert len(said) == 3


def test_a_command_needs_no_model() -> None:
    job = parse_job(b"rackray_job: 1\nname: own\nnodes: 2\ncommand: [python3, train.py]\n", "job.yaml", job_problems).job
    assert (job.command, job.ranks) == (("python3", "train.py"), 2)
