"""The WMT recipes made small enough for this machine, trained, and translated with: every step a user takes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from parallel_world import translated, write_lines, write_parallel_text
from training_launch import PROJECT, Launcher, tiny_spec

from model import translate
from model.contract import CheckpointSpec, ContractError, ExitCode, RunSpec
from model.encoder_decoder import model_of
from model.shape import PRESETS
from model.state import StateReader
from model.transformer import Recipe
from model.translation.attention import attention_of
from model.translation.corpus import prepared_parallel_folder
from model.translation.special_tokens import BEGIN, END
from model.translation.translator import TranslationError, load_translator
from orchestrator.domain.run import RunRecord
from orchestrator.drivers.job_reader import read_job
from orchestrator.planning.job_check import job_problems
from orchestrator.planning.run_launch import RunPaths, run_spec

RECIPES = {name: PROJECT / "cluster_specs" / "jobs" / f"wmt14-en-de-{name}.yaml" for name in ("base", "big")}


def spec_of(recipe: Path) -> RunSpec:
    """RUN.json as the controller writes it for the job."""
    job = read_job(recipe, job_problems).job
    run = RunRecord(f"{job.name}-1", job.name, {}, steps=job.steps, attempt=1, directory="/run")
    return RunSpec.from_json(run_spec(run, job, RunPaths("/shared")).to_json())


@pytest.mark.parametrize(("name", "steps", "dropout", "averaged"), [("base", 100_000, 0.1, 5), ("big", 300_000, 0.3, 20)])
def test_a_recipe_is_the_papers_run_on_eight_ranks(name: str, steps: int, dropout: float, averaged: int) -> None:
    spec = spec_of(RECIPES[name])
    spec.check_world(8)
    assert spec.model.shape() == PRESETS[f"transformer-{name}"]
    assert (spec.steps, spec.model.dropout, spec.model.label_smoothing) == (steps, dropout, 0.1)
    assert (spec.optimizer.betas, spec.optimizer.eps, spec.optimizer.warmup_steps) == ((0.9, 0.98), 1e-9, 4000)
    assert spec.lr_at(4000) == pytest.approx(spec.model.d_model**-0.5 * 4000**-0.5)
    assert spec.micro_batches == 1
    assert spec.checkpoint.keep == averaged
    with torch.device("meta"):
        model = model_of(Recipe(spec.model.shape(), spec.seed))
    assert sum(p.numel() for p in model.parameters()) == spec.model.shape().parameters().total


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_of_a_recipe_parse(name: str) -> None:
    text = RECIPES[name].read_text()
    (line,) = re.findall(r"python -m model\.translate (.*)", text)
    given = translate._parser().parse_args(line.split())
    assert (given.average, given.beams, given.alpha, given.test) == (spec_of(RECIPES[name]).checkpoint.keep, 4, 0.6, True)
    assert f"cluster_specs/jobs/{RECIPES[name].name}" in text


@pytest.fixture(scope="module")
def trained(start: Launcher, runs: Path) -> Path:
    """RUN.json of the base recipe, narrow, on two ranks and a small text in the three files that the recipe asks for."""
    text = write_parallel_text(runs / "wmt" / "text")
    write_lines(text, "dev", {"en": ["fan node", "rack"], "xx": ["NODE FAN", "RACK"]})
    write_lines(text, "test", {"en": ["power feed", "leaf spine cable"], "xx": ["FEED POWER", "CABLE SPINE LEAF"]})
    spec = spec_of(RECIPES["base"])
    folder = runs / "wmt"
    small = replace(
        spec,
        run_id="wmt-small",
        model=replace(spec.model, layers=2, encoder_layers=2, d_model=32, heads=4, d_ff=64, vocabulary=340, positions=64),
        data=replace(spec.data, corpus=str(text), directory=str(folder / "data"), target_language="xx"),
        layout=replace(spec.layout, data=2),
        batch=replace(spec.batch, sequence_tokens=60, global_tokens=1024, micro_tokens=512),
        optimizer=replace(spec.optimizer, warmup_steps=40),
        steps=12,
        evaluate_every_steps=6,
        checkpoint=CheckpointSpec(directory=str(folder / "checkpoints"), every_steps=4, keep=3, background=False),
        output_directory=str(folder / "out"),
    )
    launch = start(RunSpec.from_json(small.to_json()))
    assert launch.wait() == [ExitCode.DONE] * 2, launch.say()
    assert launch.steps()[-1].heldout_loss < 6.0
    (folder / "RUN.json").write_text(small.to_json())
    return folder / "RUN.json"


def test_test_sentences_are_translated_and_scored_with_a_signature(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained.parent / "test.xx"
    assert translate.main([str(trained), "--average", "3", "--test", "-o", str(out), "--json"]) == ExitCode.DONE
    said = capsys.readouterr()
    assert said.out == ""
    assert "checkpoints of steps 12, 8, 4" in said.err
    scores = json.loads(said.err.splitlines()[-1])
    assert scores["BLEU"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert scores["chrF2"]["value"] >= 0
    assert len(out.read_text().splitlines()) == 2


def test_lines_in_are_lines_out_whatever_the_batches(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = trained.parent / "some.en"
    text.write_text("rack node\n\nfan\n" + "batch layer " * 4 + "\n")
    translate.main([str(trained), "-i", str(text)])
    whole = capsys.readouterr().out
    translate.main([str(trained), "-i", str(text), "--batch-tokens", "1"])
    assert capsys.readouterr().out == whole
    assert whole.count("\n") == 4


def test_averaged_weights_are_the_mean_of_the_checkpoints(trained: Path) -> None:
    spec = RunSpec.from_json(trained.read_text())
    readers = [StateReader(Path(spec.checkpoint.directory) / f"step-{step:06d}") for step in (12, 8)]
    model = load_translator(spec, average=2).model
    for name, parameter in model.named_parameters():
        mean = (readers[0].whole(name) + readers[1].whole(name)) / 2
        torch.testing.assert_close(parameter.detach(), mean, msg=name)
    assert load_translator(spec, step=8).steps == (8,)


def changed(trained: Path, **changes: Any) -> Path:
    """The run with other values in its parts, beside the trained one."""
    value = json.loads(trained.read_text())
    for part, values in changes.items():
        value[part] = {**value[part], **values} if isinstance(values, dict) else values
    path = trained.parent / "other.json"
    path.write_text(json.dumps(value))
    return path


BAD: dict[str, tuple[list[str], str]] = {
    "a pair that is not in the model": (["--pair", "en-fr"], "the pair en-fr is not in this model, which translates en-xx"),
    "more checkpoints than there are": (["--average", "9"], "9 whole checkpoints wanted, there: step-000012, step-000008"),
    "a step that is not there": (["--step", "5"], "a whole checkpoint up to step 5 wanted, there: step-000012"),
    "no vocabulary": (["--vocabulary", "nowhere.json"], "nowhere.json is missing"),
    "no text": (["-i", "nowhere.en"], "nowhere.en"),
    "text over the limit": (["-i", "LONG"], "line 2: 81 tokens with its end, the model reads at most 64; split it"),
    "references that are too few": (["-i", "LONG", "--reference", "SHORT"], "has 1 lines and the text has 2"),
    "two sentences to draw": (["-i", "LONG", "--attention", "heads.png"], "--attention draws one sentence, and 2 were given"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments: list[str], says: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LONG").write_text("rack\n" + "%" * 79 + "\n")
    (tmp_path / "SHORT").write_text("RACK\n")
    assert translate.main([str(trained), "-o", "out.xx", *arguments]) == ExitCode.BAD_RUN
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"LONG", "SHORT"}


def test_a_vocabulary_from_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    spec = RunSpec.from_json(trained.read_text())
    vocabulary = json.loads((prepared_parallel_folder(spec) / "tokenizer.json").read_text())
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(TranslationError, match="was trained with another vocabulary"):
        load_translator(spec, vocabulary=tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TranslationError, match=r"is not a tokenizer\.json"):
        load_translator(spec, vocabulary=tmp_path / "tokenizer.json")


def test_another_model_another_language_and_a_decoder_alone_are_refused(trained: Path, tmp_path: Path) -> None:
    other = RunSpec.from_json(changed(trained, model={"d_ff": 128, "heads": 8}).read_text())
    with pytest.raises(TranslationError, match="holds another model than the run's: heads, d_ff differ"):
        load_translator(other)
    spec = RunSpec.from_json(trained.read_text())
    vocabulary = prepared_parallel_folder(spec) / "tokenizer.json"
    other = RunSpec.from_json(changed(trained, data={"target_language": "yy"}).read_text())
    with pytest.raises(TranslationError, match="was trained with another language pair"):
        load_translator(other, vocabulary=vocabulary)
    with pytest.raises(TranslationError, match="a decoder alone does not translate"):
        load_translator(tiny_spec(tmp_path / "lm"))
    with pytest.raises(ContractError):
        RunSpec.from_json(json.dumps({**asdict(spec), "model": {}}))


def test_a_damaged_checkpoint_is_passed_over_and_told(trained: Path, tmp_path: Path) -> None:
    spec = RunSpec.from_json(trained.read_text())
    copy = tmp_path / "checkpoints"
    shutil.copytree(spec.checkpoint.directory, copy)
    (file,) = (copy / "step-000012").glob("rank-00000*")
    file.write_bytes(file.read_bytes()[:-1])
    damaged = replace(spec, checkpoint=replace(spec.checkpoint, directory=str(copy)))
    assert load_translator(damaged).steps == (8,)
    with pytest.raises(TranslationError, match="passed over: step-000012: rank-00000"):
        load_translator(damaged, average=3)


# ---------------------------------------------------------------------- attention
def test_attention_weights_are_those_that_the_model_used(trained: Path) -> None:
    model = load_translator(RunSpec.from_json(trained.read_text())).model
    source, target = [5, 9, 30, 41, END], [BEGIN, 7, 8]
    attention = attention_of(model, source, target)
    sizes = {"encoder": (4, 5, 5), "decoder": (4, 3, 3), "cross": (4, 3, 5)}
    for kind, size in sizes.items():
        layers = getattr(attention, kind)
        assert [tuple(weights.shape) for weights in layers] == [size] * 2
        for weights_HTS in layers:
            torch.testing.assert_close(weights_HTS.sum(-1), torch.ones(size[:2]))
    assert all(weights.triu(1).abs().max() == 0 for weights in attention.decoder)
    block = next(model.decoder())
    seen: list[torch.Tensor] = []
    handle = block.cross.output.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    memory_BSD = model.encode(torch.tensor([source]))
    model.logits(torch.tensor([source]), torch.tensor([target]))
    handle.remove()
    _, v_BHSK = block.cross.keys_and_values(memory_BSD)
    mixed_HTK = attention.cross[0] @ v_BHSK[0]
    torch.testing.assert_close(mixed_HTK.transpose(0, 1).flatten(1), seen[0][0], rtol=1e-4, atol=1e-5)


def test_the_picture_has_a_map_for_every_head_of_every_layer(trained: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "one.en").write_text("power feed of the rack node\n")  # too little learnt to end: every position is filled
    picture = tmp_path / "heads.png"
    assert translate.main([str(trained), "-i", str(tmp_path / "one.en"), "--attention", str(picture)]) == ExitCode.DONE
    assert capsys.readouterr().out.count("\n") == 1
    assert min(imread(picture).shape[:2]) > 300
    assert [path.name for path in tmp_path.iterdir() if "draft" in path.name] == []


def test_the_text_of_these_tests_is_its_own_translation_twice() -> None:
    assert translated(translated("rack node")).lower() == "rack node"
