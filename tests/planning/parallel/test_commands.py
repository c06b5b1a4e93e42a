"""The planner on the command line: data on stdout, one sentence and a way out for bad input."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model.shape import PRESETS
from orchestrator import wiring
from orchestrator.cli import train_plan
from orchestrator.cli.main import run
from orchestrator.cli.train_plan import why_not
from orchestrator.domain.layout import Fits
from orchestrator.planning.parallel.calibration import calibrate
from orchestrator.planning.parallel.cluster import PlanJob, cluster_by_hand
from orchestrator.planning.parallel.intervals import ends
from orchestrator.planning.parallel.planner import plan
from orchestrator.planning.parallel.rows import inputs_of_job
from orchestrator.planning.parallel.study import study_of
from orchestrator.planning.parallel.validation import FITTED
from orchestrator.planning.power_caps import PowerCap

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
        (["--gpu", "A100", "--precision", "fp8"], "rackray does not train in fp8"),
        (["--gpu", "A100", "--precision", "fp8", "--framework", "nemo"], "A100-80G has no fp8 units"),
        (["--gpu", "A100", "--as-written", "--gpus-per-node", "8"], "is 4 GPUs and the cluster has 32"),
        (["--spec", str(SPEC), "--nodes", "99"], "needs 67 more nodes"),
    ],
)
def test_bad_input_is_one_sentence_and_a_way_out(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "plan", str(JOB), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert "way out: " in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--failures", "nan"], "nan failures per node and day cannot be"),
        (["--failures", "1e308"], "failures per node and day cannot be"),
        (["--failures", "20000"], "keep less than 0.1% of their time"),
        (["--storage-gb-s", "nan"], "nan GB/s of storage"),
        (["--restart-min", "inf"], "inf seconds of a restart"),
        (["--power-cap", "60"], "takes no power cap of 60 W"),
        (["--spec", str(SPEC)], "--gpu and --spec name two clusters"),
        (["--nodes", "10000000"], "GPUs are more than any cluster has"),
        (["--as-written", "--offload"], "judges the job's own layout alone"),
        (["-o", "terms.svg"], "terms.svg is not the name of a PNG"),
        (["-o", "/proc/terms.png"], "cannot be written"),
    ],
)
def test_odd_numbers_and_options_are_one_sentence_too(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "H100", "--nodes", "1", "--preset", "gpt2-1.5b"]
    assert run([*asked, *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and says in said.err and "way out: " in said.err


def test_an_answer_without_failures_is_json_that_other_readers_take(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "H100", "--nodes", "1", "--failures", "0"]

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    for more in ([], ["--as-written", "--gpus-per-node", "4"]):
        assert run([*asked, *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out, parse_constant=no_constant)
        assert (found["ranked"][0] if "ranked" in found else found)["checkpoint_every_s"] is None
    assert run(asked) == 0
    assert "no checkpoint is needed" in capsys.readouterr().out


def test_table_explanation_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "train",
        "plan",
        str(JOB),
        "--gpu",
        "H100",
        "--nodes",
        "4",
        "--preset",
        "gpt2-1.5b",
        "--precision",
        "bf16",
        "--explain",
    ]
    assert run([*asked, "--json", "-o", str(tmp_path / "terms.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "terms.png").read_bytes().startswith(b"\x89PNG")
    best = found["ranked"][0]
    assert found["fleets"]["4"] == best
    assert sum(best["memory_parts_bytes"].values()) == pytest.approx(best["memory_bytes"])
    assert run(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{found['fitting']} fit, {found['tight']} are tight" in lines[0]
    totals = [line.split()[1:] for line in lines if line.startswith("total ")]
    assert totals[0] == [f"{row['step_s']:.3f}" for row in found["ranked"]]
    assert totals[1] == [f"{row['memory_bytes'] / 2**30:.2f}" for row in found["ranked"]]
    own = next(line for line in lines if line.startswith("4  ") and f"{best['step_s']:.3f}" in line)
    assert own.split()[-1] == lines[2].split()[-1]


def test_an_unknown_framework_is_planned_and_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "H100", "--nodes", "1", "--framework"]
    assert run([*asked, "megatorn"]) == 0
    assert "'megatorn' is none of the frameworks that are known (rackray, " in capsys.readouterr().err
    assert run([*asked, "NeMo 25.04"]) == 0
    assert capsys.readouterr().err == ""


def test_a_job_of_fewer_ranks_than_gpus_is_judged_on_the_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "plan", str(JOB), "--spec", str(SPEC), "--as-written", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "data 2, pipeline 2" in text and "where the time goes" in text and "memory of the fullest GPU" in text
    assert run(["train", "plan", str(JOB), "--spec", str(SPEC), "--gpus-per-node", "16"]) == 2
    assert "dgx-h100 has 8" in capsys.readouterr().err


def test_a_mixed_spec_is_planned_for_its_most_frequent_gpus_and_under_their_cap_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = wiring.load_spec(SPEC).spec
    sku = plain.skus["dgx-h100"]
    old = sku.model_copy(update={"gpus": sku.gpus.model_copy(update={"model": "A100-SXM4-80GB"})})
    nodes = [node.model_copy(update={"sku": "old"}) if i % 3 == 0 else node for i, node in enumerate(plain.nodes)]
    mixed = plain.model_copy(update={"skus": {**plain.skus, "old": old}, "nodes": tuple(nodes)})
    caps = {node.name: PowerCap(4000.0, 150.0 if node.sku == "old" else 600.0) for node in nodes}
    monkeypatch.setattr(wiring, "load_spec", lambda path: SimpleNamespace(spec=mixed))
    monkeypatch.setattr(train_plan, "caps_of", lambda spec: caps)
    asked = ["train", "plan", str(JOB), "--spec", str(SPEC), "--preset", "gpt2-1.5b", "--json", "--nodes"]
    assert run([*asked, "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpu"], found["power_cap_w"]) == ("H100-80G", 600.0)
    assert run([*asked, "22"]) == 2
    assert "22 nodes are asked for and example has 21 of dgx-h100\n  way out: needs 1 more node\n" in capsys.readouterr().err
    for name in caps:
        caps[name] = PowerCap(11_000.0, 800.0)
    assert run([*asked, "4"]) == 0
    assert json.loads(capsys.readouterr().out)["power_cap_w"] is None, "no cap above the rating"


def test_why_not_lines_give_the_reason_that_the_ranking_has() -> None:
    """By the run's time or energy, not by the step's time alone: disks that are slow to write to may turn the order."""
    shape = PRESETS["llama-8b"]
    job = PlanJob(shape=shape, global_sequences=64, sequence_tokens=4096, steps=100, framework="nemo")
    best = plan(job, cluster_by_hand("H100", 2)).best
    longer = replace(best, step_s=0.99 * best.step_s, run_s=1.02 * best.run_s, goodput=0.97 * best.goodput)
    said = why_not(best, longer, "time")
    assert said.startswith("-1.0% step time, but +2.0% of the run, of which 96.") and "most of it" not in said
    slower = {**best.terms_s, "data": best.terms_s["data"] + 0.1 * best.step_s}
    other = replace(best, step_s=1.1 * best.step_s, run_s=1.1 * best.run_s, run_kwh=1.05 * best.run_kwh, terms_s=slower)
    assert why_not(best, other, "time").startswith("+10.0% step time, most of it data (+")
    assert why_not(best, other, "energy").startswith("+5.0% energy, +10.0% step time, most of it data (+")
    assert why_not(best, replace(best, layout=longer.layout), "time") == f"as good: {best.layout}"
    assert why_not(best, replace(best, fits=Fits.NO), "time").startswith("does not fit: needs ")


def test_the_energy_objectives_own_lines_speak_of_energy(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "H100", "--nodes", "4", "--preset", "gpt2-1.5b", "--precision", "bf16"]
    assert run([*asked, "--objective", "energy", "--explain"]) == 0
    lines = capsys.readouterr().out.split("why not the others:")[1].strip().splitlines()
    assert lines and all("% energy, " in line or "as good: " in line or "fit: needs" in line for line in lines)
    assert not any("% energy, " in line and line.split(": ")[1].startswith("-") for line in lines)


def test_the_jobs_own_layout_is_judged_and_told_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--as-written", "--gpu"]
    assert run([*asked, "A100", "--preset", "gpt2-1.5b"]) == 0
    assert "data 2, pipeline 2, ZeRO-1, micro-batch 4" in capsys.readouterr().out
    assert run([*asked, "V100-16G", "--preset", "llama-8b"]) == 1
    said = capsys.readouterr()
    assert "does not fit" in said.err
    assert run([*asked, "A100", "--preset", "llama-8b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == "tight"
    assert found["helps"] == ["the optimizer's state in the host's memory", "4 more nodes (data 4)"]


def test_offload_widens_the_choice_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "plan", str(JOB), "--gpu", "V100-16G", "--nodes", "1", "--preset", "llama-8b", "--json"]
    offloaded = []
    for more in ([], ["--offload"]):
        assert run([*asked, *more]) == 0
        ranked = json.loads(capsys.readouterr().out)["ranked"]
        assert all(row["layout"]["zero"] >= 1 for row in ranked if row["layout"]["offload"])
        offloaded.append({row["layout"]["offload"] for row in ranked})
    assert offloaded == [{False}, {True}]


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


def test_own_progress_logs_become_rows(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of the journal: warm-up and a torn line do not count, a command is no model, and the next plan is slower."""
    job = wiring.load_job(JOB).job.model_dump(mode="json")
    lines = tmp_path / "progress-0.jsonl"
    steps = [{"step": i, "step_s": 90.0 if i <= 2 else 3.0 + 0.01 * i} for i in range(1, 11)]
    events = [{"event": "started", "step": 0}]
    lines.write_text("\n".join(json.dumps(line) for line in (*events, *steps)) + '\n{"step": 11, "st', encoding="utf-8")

    class TwoRuns:
        def run_records(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(id="lm-1", job=job), SimpleNamespace(id="cmd-1", job={"name": "cmd"})]

        def progress_lines(self, run_id: str) -> Path:
            return lines

    monkeypatch.setattr(wiring, "open_views", lambda home: TwoRuns())
    assert run(["train", "calibrate", "lm-1", "--gpu", "CPU", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == 1
    assert found["error_after"] < 0.1 < found["error_before"]
    asked = ["train", "plan", str(JOB), "--as-written", "--gpu", "CPU", "--json"]
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["step_s"] == pytest.approx(3.065, rel=0.1)
    for name, says in (("cmd-1", "runs a command"), ("lm-9", "there is no run lm-9")):
        assert run(["train", "calibrate", name, "--gpu", "CPU"]) == 2
        assert says in capsys.readouterr().err


def test_a_calibration_leaves_those_of_other_gpus(tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "a,own,{gpu},Megatron-LM,24,1024,16,4096,50257,1024,8,8,8,1,1,1,1,4,32,fp16,{step_s}\n"
    tables = []
    for gpu, step_s in (("A100-80G", 0.25), ("H100-80G", 0.15), ("A100-80G", 0.5)):
        tables.append(tmp_path / f"{len(tables)}.CSV")
        tables[-1].write_text(HEADER + row.format(gpu=gpu, step_s=step_s), encoding="utf-8")
    found = []
    for table in tables:
        assert run(["train", "calibrate", str(table)]) == 0
        found.append(json.loads((own_home / "planner.json").read_text(encoding="utf-8"))["factors"]["pace"])
    said = capsys.readouterr().err
    assert "kept from earlier calibrations: A100|megatron-core" in said
    assert set(found[1]) == set(found[2]) == {"A100|megatron-core", "H100|megatron-core"}
    assert found[1]["A100|megatron-core"] == found[0]["A100|megatron-core"] != found[2]["A100|megatron-core"]


def test_runs_of_two_gpus_are_each_held_against_their_own_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "a,own,{gpu},Megatron-LM,24,1024,16,4096,50257,1024,8,8,8,1,1,1,1,4,32,fp16,{step_s}\n"
    table = tmp_path / "two.csv"
    lines = [row.format(gpu="A100-80G", step_s=0.2)] * 5 + [row.format(gpu="H100-80G", step_s=900)]
    table.write_text(HEADER + "".join(lines), encoding="utf-8")
    assert run(["train", "calibrate", str(table)]) == 2
    assert "times as long as predicted for H100; nothing was calibrated" in capsys.readouterr().err


def test_one_run_says_where_the_interval_lies_and_not_that_it_is_narrow(tmp_path: Path) -> None:
    row = "a,own,A100-80G,Megatron-LM,24,1024,16,4096,50257,1024,8,8,8,1,1,1,1,{micro},32,fp16,0.25\n"
    table = tmp_path / "own.csv"
    width = []
    for micros in ((4,), (4, 4), (4,) * 12):
        table.write_text(HEADER + "".join(row.format(micro=micro) for micro in micros), encoding="utf-8")
        low, high = calibrate(wiring.read_run_rows(table)).intervals["A100|megatron-core"]
        width.append(high - low)
    before = ends(study_of(wiring.read_run_rows(table)).cases, FITTED.step_intervals)
    assert width[0] == pytest.approx(float(np.log(before[1][0] / before[0][0])))
    assert width[1] == pytest.approx(width[0] / 2.0)
    assert width[2] == pytest.approx(0.1)


def test_what_calibration_says_of_before_is_what_validation_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a GPU and framework whose measured shapes lift or lower the prediction."""
    table = tmp_path / "own.csv"
    row = "a,own,H100-80G,NeMo,32,4096,32,14336,128256,8192,16,8,16,1,1,1,1,1,128,bf16,9.0\n"
    table.write_text(HEADER + row, encoding="utf-8")
    assert run(["planner", "validate", str(table), "--json"]) == 0
    error = json.loads(capsys.readouterr().out)["sources"][0]["step_error_mean"]
    assert run(["train", "calibrate", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error_before"] == pytest.approx(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty and has no column gpu"),
        ("id,source\na,b\n", "has no column gpu and no column n_gpus"),
        (HEADER, "there is no run in"),
        (HEADER.replace(",", ";") + "a;b\n", "has no column gpu"),
    ],
)
def test_tables_without_runs_are_one_sentence(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(text, encoding="utf-8")
    for command in (["validate"], ["fit", "-o", str(tmp_path), "--date", "2026-01-01"], ["bench", "-o", str(tmp_path)]):
        assert run(["planner", *command, str(table)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and says in said.err and "way out: " in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_fit_of_a_few_rows_is_refused_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "rows.csv"
    row = "a{i},one,A100-80G,Megatron-LM,{layers},1024,16,4096,50257,1024,8,8,8,1,1,1,1,4,32,fp16,0.25\n"
    table.write_text(HEADER + "".join(row.format(i=i, layers=12 + i) for i in range(12)), encoding="utf-8")
    assert run(["planner", "fit", str(table), "-o", str(tmp_path / "fit"), "--date", "2026-01-01"]) == 2
    assert "12 rows, 12 with a measured step time and 0 with a measured memory, are too few" in capsys.readouterr().err
    assert not (tmp_path / "fit").exists()


def test_a_step_of_no_length_or_of_a_century_is_not_measured(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    row = "a,one,A100-80G,Megatron-LM,24,1024,16,4096,50257,1024,8,8,8,1,1,1,1,4,32,fp16,{step_s}\n"
    said = ("1e-29", "1e29", "nan", "inf", "-1", "0", "~0.25")
    table.write_text("\ufeff" + HEADER.replace("\n", "\r\n") + "".join(row.format(step_s=s) for s in said), encoding="utf-8")
    assert [r.measured.step_s for r in wiring.read_run_rows(table)] == [None] * 6 + [0.25]


def test_a_preset_jobs_own_run_is_a_row_with_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    job = wiring.load_job(JOB.parent / "llama-8b.yaml").job
    inputs, shape = inputs_of_job(job.model_dump(mode="json"), "H100"), PRESETS["llama-8b"]
    assert (inputs.layers, inputs.hidden, inputs.heads, inputs.kv_heads) == (32, 4096, 32, 8)
    assert (inputs.ffn_hidden, inputs.vocab, inputs.gated_mlp) == (shape.d_ff, shape.vocabulary, True)


def test_a_folder_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "calibrate", str(tmp_path), "--gpu", "CPU"]) == 2
    assert "is no run and no CSV file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        '{"values": {}, "intervals": {}, "runs": 3}',
        "[]",
        '{"factors": {"pace": {"CPU|deepspeed-rackray": NaN}}, "intervals": {}}',
        '{"factors": {"pace": {"CPU|deepspeed-rackray": -3}}, "intervals": {}}',
        '{"factors": {"pace": {"CPU|deepspeed-rackray": 2}}, "intervals": {"CPU|deepspeed-rackray": [0.5, -0.5]}}',
    ],
)
def test_an_old_or_damaged_calibration_is_refused_with_the_way_out(
    text: str, tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_home.mkdir()
    (own_home / "planner.json").write_text(text, encoding="utf-8")
    assert run(["train", "plan", str(JOB), "--gpu", "CPU"]) == 2
    assert "calibrate again" in capsys.readouterr().err
    row = "a,own,A100-80G,Megatron-LM,24,1024,16,4096,50257,1024,8,8,8,1,1,1,1,4,32,fp16,0.25\n"
    (tmp_path / "own.csv").write_text(HEADER + row, encoding="utf-8")
    assert run(["train", "calibrate", str(tmp_path / "own.csv")]) == 0
    assert "it is replaced" in capsys.readouterr().err
    assert run(["train", "plan", str(JOB), "--gpu", "CPU"]) == 0


def test_bench_without_published_runs_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["planner", "bench", "-o", str(tmp_path)]) == 0
    assert "no published runs were given" in capsys.readouterr().err
