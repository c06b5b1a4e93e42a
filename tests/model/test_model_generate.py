"""Continuing text: the draws, the cache, and the command on a run that was really trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_launch import Launch, Launcher, tiny_spec

from model.contract import ExitCode
from model.corpus import prepare_corpus
from model.generate import chooser, continue_tokens, main
from model.layers import Recipe
from model.shape import FAMILY_OPTIONS, Family, TransformerShape
from model.transformer import Transformer


def a_model(family: Family = Family.GPT) -> Transformer:
    numbers = {"layers": 2, "d_model": 24, "heads": 4, "d_ff": 40, "vocabulary": 300, "positions": 32}
    model = Transformer(Recipe(TransformerShape(**{**numbers, **FAMILY_OPTIONS[family]}), seed=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that the next token is not a toss-up
    return model.eval()


PROMPT = [5, 9, 200, 31]


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_with_kept_keys_and_values_are_those_without(family: Family, temperature: float) -> None:
    def run(cached: bool) -> list[list[int]]:
        choose = chooser(temperature, 0.9, seed=1)
        return continue_tokens(a_model(family), PROMPT, limit=20, choose=choose, end=-1, samples=3, cached=cached).tokens

    assert run(True) == run(False)
    assert [len(sample) for sample in run(True)] == [20, 20, 20]


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    model = a_model()
    (found,) = continue_tokens(model, PROMPT, limit=8, choose=chooser(0.0, 1.0, 0), end=-1).tokens
    with torch.no_grad():
        logits_TV = model.logits(torch.tensor([PROMPT + found]))[0]
    assert found == logits_TV.argmax(-1)[len(PROMPT) - 1 : -1].tolist()


def test_a_sample_ends_at_the_end_token_and_the_others_go_on() -> None:
    wanted = iter([[7, 7], [1, 7], [8, 9], [8, 1], [2, 2]])
    found = continue_tokens(a_model(), PROMPT, limit=10, choose=lambda logits_BV: torch.tensor(next(wanted)), end=1, samples=2)
    assert found.tokens == [[7], [7, 7, 9]]
    assert found.passes == 4
    assert found.speed(len(PROMPT))["made_tokens_per_s"] > 0


def test_the_nucleus_holds_the_likeliest_tokens_that_reach_the_share() -> None:
    logits = torch.tensor([0.5, 0.05, 0.3, 0.15]).log().expand(20_000, 4)
    counts = torch.bincount(chooser(1.0, 0.7, seed=0)(logits), minlength=4) / 20_000
    # 0.5 alone does not reach 0.7; with 0.3 it does, and the two share what is drawn.
    assert counts.tolist() == pytest.approx([0.625, 0, 0.375, 0], abs=0.02)
    tiny = torch.bincount(chooser(1.0, 1e-9, seed=0)(logits[:100]), minlength=4)
    assert tiny.tolist() == [100, 0, 0, 0]


def test_a_lower_temperature_sharpens_and_a_seed_repeats() -> None:
    logits = torch.tensor([0.6, 0.4]).log().expand(20_000, 2)
    half = chooser(0.5, 1.0, seed=4)(logits)
    assert half.float().mean().item() == pytest.approx(0.16 / (0.36 + 0.16), abs=0.02)
    assert torch.equal(half, chooser(0.5, 1.0, seed=4)(logits))
    assert not torch.equal(half, chooser(0.5, 1.0, seed=5)(logits))


# ------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def trained(start: Launcher, runs: Path) -> Launch:
    """Twelve steps on two stages of two tensor ranks: what is read is whole again."""
    layout = {"pipeline": 2, "tensor": 2, "zero": 1}
    spec = tiny_spec(runs / "generate", layout=layout, steps=12, model={"family": "llama", "kv_heads": 2})
    prepare_corpus(spec)
    launch = start(spec)
    assert launch.wait() == [ExitCode.DONE] * 4, launch.say()
    return launch


def run_file(launch: Launch, folder: Path, **changes: object) -> str:
    path = folder / "RUN.json"
    path.write_text(json.dumps({**json.loads(launch.spec.to_json()), **changes}))
    return str(path)


def test_a_trained_run_continues_a_prompt(trained: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_file(trained, tmp_path)
    assert main([run, "--prompt", "import ", "--tokens", "6"]) == ExitCode.DONE
    said = capsys.readouterr()
    assert said.out.startswith("import ")
    assert "made_tokens_per_s" in said.err
    asked = [run, "--prompt", "import ", "--tokens", "6", "--samples", "2", "--temperature", "1", "--top-p", "0.9", "--json"]
    answers = []
    for more in ([], [], ["--seed", "1"], ["--uncached"]):
        assert main([*asked, *more]) == ExitCode.DONE
        answers.append(json.loads(capsys.readouterr().out)["continuations"])
    assert len(answers[0]) == 2
    assert answers[0] == answers[1] == answers[3] != answers[2]


def test_a_prompt_that_does_not_fit_is_read_from_its_end(
    trained: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_file(trained, tmp_path)
    assert main([run, "--prompt", "x = 1\n" * 40, "--tokens", "20"]) == ExitCode.DONE
    assert "the last 12 are read: the model has 32 positions" in capsys.readouterr().err
    assert main([run, "--prompt", "x", "--tokens", "32"]) == ExitCode.BAD_RUN
    assert "at most 31" in capsys.readouterr().err


def test_what_cannot_be_continued_is_refused_in_a_sentence(
    trained: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run_file(trained, tmp_path, steps=0)]) == ExitCode.BAD_RUN
    assert "steps: is 0" in capsys.readouterr().err
    elsewhere = {"corpus": "python-stdlib", "directory": str(tmp_path / "nothing")}
    assert main([run_file(trained, tmp_path, data=elsewhere), "--prompt", "x"]) == ExitCode.BAD_RUN
    assert "no prepared corpus" in capsys.readouterr().err
    damaged = tmp_path / "checkpoints"
    shutil.copytree(trained.spec.checkpoint.directory, damaged)
    (file,) = damaged.glob("step-*/rank-00000.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    run = run_file(trained, tmp_path)
    assert main([run, "--checkpoint", str(file.parent), "--prompt", "x"]) == ExitCode.BAD_CHECKPOINT
    assert "damaged" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([run, "--top-p", "0"])


def test_a_tokenizer_of_another_text_is_refused_and_not_used_to_write_nonsense(
    trained: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.spec.data.directory, tmp_path / "data")
    (tokenizer,) = (tmp_path / "data").glob("*bpe512*/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text() + " ")
    path = run_file(trained, tmp_path, data={"corpus": "python-stdlib", "directory": str(tmp_path / "data")})
    assert main([path, "--prompt", "import "]) == ExitCode.BAD_CHECKPOINT
    assert "learnt tokens of another vocabulary" in capsys.readouterr().err
