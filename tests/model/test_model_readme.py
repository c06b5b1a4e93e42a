from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from training_launch import PROJECT, tiny_run

from model import describe
from model.contract import ExitCode, RunSpec

README = (PROJECT / "model" / "README.md").read_text()


def test_the_readmes_run_can_be_run_and_has_millions_of_parameters() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    spec = RunSpec.from_json(block)
    spec.check_world(4)
    assert spec.model.shape().parameters().total > 2_000_000


def test_the_readme_lists_every_file_and_every_exit_code() -> None:
    files = {path.name for path in (PROJECT / "model").glob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"`(\w+\.py)`", README.split("## Equations")[0].split("## Files")[1]))
    codes = README.split("Exit codes")[1].split("\n\n")[0]
    assert [int(number) for number in re.findall(r"(?<=[ ,])\d(?= )", codes)] == [code.value for code in ExitCode]


def test_the_files_the_readme_calls_light_import_nothing_heavy() -> None:
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", README, flags=re.MULTILINE)
    light = [name for names, needs in rows if needs == "standard library" for name in re.findall(r"`(\w+\.py)`", names)]
    assert "contract.py" in light
    for name in light:
        source = (PROJECT / "model" / name).read_text()
        assert not re.search(r"^\s*(import|from) (torch|deepspeed|numpy|tokenizers)", source, flags=re.MULTILINE), name


def test_describe_prints_the_counts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.main(["--preset", "gpt2-125m", "--json", "--data-ranks", "4"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["total"] == 124_439_808
    assert facts["flops_per_token"]["backward"] == 2 * facts["flops_per_token"]["forward"]
    assert facts["state_bytes_per_rank"]["zero_3"] == 4 * facts["parameters"]["total"]


def test_describe_says_every_count_in_words_too(capsys: pytest.CaptureFixture[str]) -> None:
    describe.main(["--preset", "llama-8b"])
    assert re.search(r"parameters\.total +8,030,261,248", capsys.readouterr().out)


def test_describe_counts_what_other_blocks_would_save(capsys: pytest.CaptureFixture[str]) -> None:
    def parameters(*words: str) -> int:
        assert describe.main(["--preset", "gpt3-175b", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["parameters"]["total"]

    # W_V and W_O of 95 layers and W_O of the first, 12,288 squared each.
    assert parameters() - parameters("--block", "sas") == pytest.approx(191 * 12_288**2, rel=1e-4)
    assert parameters("--block", "sas-p", "--norm", "none") < parameters("--block", "sas-p") < parameters("--block", "sas")
    assert describe.main(["--preset", "llama-8b", "--block", "sas"]) == ExitCode.BAD_RUN
    assert "kv_heads must be 0 or 32" in capsys.readouterr().err
    assert describe.main(["--preset", "gpt2-125m", "--norm", "none"]) == ExitCode.BAD_RUN
    assert "layer or rms" in capsys.readouterr().err


def test_describe_counts_the_fullest_rank_of_a_runs_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "RUN.json"
    run.write_text(json.dumps(tiny_run(tmp_path / "r", layout={"pipeline": 2, "tensor": 2, "data": 2})))
    assert describe.main(["--run", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layout"] == {"data_ranks": 2, "pipeline": 2, "tensor": 2}
    fullest = facts["parameters_of_the_fullest_rank"]
    assert fullest == RunSpec.from_json(run.read_text()).model.shape().largest_stage_parameters(2, 2)
    # Two moments and, under ZeRO-1, a copy of the values; shared by two replicas.
    assert facts["state_bytes_per_rank_by_part"]["zero_1"] == {
        **{"parameters_bytes": 4 * fullest, "gradients_bytes": 4 * fullest, "optimizer_bytes": 12 * -(-fullest // 2)}
    }
    assert describe.main(["--preset", "llama-8b", "--tensor", "3"]) == ExitCode.BAD_RUN
    assert "8 key/value heads" in capsys.readouterr().err


def test_every_equation_leads_to_a_function_that_is_there() -> None:
    table = README.partition("## Equations")[2].partition("\n## ")[0]
    rows = [row.rpartition(" | ")[2] for row in table.splitlines() if row.startswith("| ")]
    names = [name for row in rows for name in re.findall(r"`([a-z_]+)\.([\w.]+)`", row)]
    assert len(names) >= 20
    for module, path in names:
        found: object = importlib.import_module(f"model.{module}")
        for part in path.split("."):
            found = getattr(found, part)


def test_no_path_of_a_machine_stands_in_the_package() -> None:
    for path in Path(PROJECT / "model").glob("*"):
        if path.is_file():
            assert not re.search(r"/(root|home|work|tmp)/", path.read_text()), path.name
