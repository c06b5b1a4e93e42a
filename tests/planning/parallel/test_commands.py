"""The planner on the command line: data on stdout, one sentence and a way out for bad input."""

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import run

JOB = Path(__file__).parents[3] / "cluster_specs" / "jobs" / "lm-pipeline.yaml"
SPEC = Path(__file__).parents[3] / "cluster_specs" / "example-32-dgx.yaml"
HEADER = (
    "id,source,gpu,framework,layers,hidden,heads,ffn_hidden,vocab,seq_len,n_gpus,gpus_per_node,dp,tp,pp,cp,"
    "zero_stage,micro_batch,global_batch,precision,step_time_s\n"
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RACKRAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_plan_is_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "H100", "--nodes", "1", "--preset", "gpt2-1.5b"]
    assert run([*asked, "--explain"]) == 0
    text = capsys.readouterr().out
    assert "why not the others" in text
    assert "fleets of other sizes, failures included" in text
    assert run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = found["ranked"][0]
    assert best["step_s"] == pytest.approx(sum(best["terms_s"].values()))
    assert found["gpus"] == 8


def test_a_plan_for_a_spec_takes_its_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "plan", str(JOB), "--spec", str(SPEC), "--nodes", "2", "--preset", "gpt2-1.5b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu"] == "H100-80G"


def test_the_energy_objective_caps_power(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "H100", "--nodes", "1", "--preset", "gpt2-1.5b", "--json"]
    assert run(asked) == 0
    free = json.loads(capsys.readouterr().out)
    assert run([*asked, "--objective", "energy"]) == 0
    lean = json.loads(capsys.readouterr().out)
    assert lean["ranked"][0]["energy_kwh_per_step"] <= free["ranked"][0]["energy_kwh_per_step"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "H9000"], "unknown GPU"),
        ([], "for which cluster?"),
        (["--gpu", "A100", "--nodes", "1", "--preset", "gpt3-175b"], "no layout of this model fits"),
        (["--gpu", "A100", "--nodes", "3"], "no layout divides"),
        (["--gpu", "A100", "--preset", "gpt9"], "unknown model"),
        (["--gpu", "A100", "--precision", "int3"], "unknown precision"),
        (["--spec", str(SPEC), "--nodes", "99"], "needs 67 more nodes"),
    ],
)
def test_bad_input_is_one_sentence_and_a_way_out(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "plan", str(JOB), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert "way out: " in said.err


def test_calibration_is_used_by_the_next_plan(tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "CPU", "--gpus-per-node", "1", "--json"]
    assert run(asked) == 0
    before = json.loads(capsys.readouterr().out)["ranked"][0]["step_s"]
    rows = tmp_path / "own.csv"
    rows.write_text(HEADER + f"a,own,CPU,rackray,2,320,8,1280,1024,64,4,1,4,1,1,1,1,4,16,fp32,{before * 3}\n", encoding="utf-8")
    assert run(["train", "calibrate", str(rows)]) == 0
    assert (own_home / "planner.json").exists()
    capsys.readouterr()
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["ranked"][0]["step_s"] > 2 * before


def test_validate_counts_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.csv"
    good, bad = "a,one,A100-80G,Megatron-LM,24,1024,16,4096,50257,1024,8,8,8,1,1,1,1,4,32,fp16,0.25\n", "b,two,H9000,x,,,,,,,8\n"
    rows.write_text(HEADER + good + bad, encoding="utf-8")
    assert run(["planner", "validate", str(rows), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["source"], row["rows"], row["out_of_scope"]) for row in found["sources"]] == [
        ("one", 1, 0),
        ("two", 1, 1),
        ("all sources", 2, 1),
    ]
    assert found["out_of_scope"] == {"two": {"unknown GPU H9000": 1}}
