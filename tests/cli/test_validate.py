import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.spec_docs import BEGIN, BLOCKS, END, main, schema_text, with_fields
from orchestrator.cli.validate import validate
from orchestrator.domain.errors import BadInput

SPECS = Path(__file__).parents[2] / "cluster_specs"
BAD = (
    (SPECS / "lab-4.yaml")
    .read_text()
    .replace("cluster: lab\n", "clutser: lab\n")
    .replace("rack: r02, unit: 5", "rack: r20, unit: 5")
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(validate, arguments, standalone_mode=False)


def test_a_valid_spec_is_summed_up_in_one_line() -> None:
    result = run(str(SPECS / "lab-4.yaml"))
    assert result.return_value == 0
    assert (
        result.stdout
        == f"{SPECS / 'lab-4.yaml'} is valid: 4 nodes, 8 GPUs, 2 racks; feed A 5.2 of 17.0 kW, feed B 5.2 of 17.0 kW\n"
    )
    assert result.stderr == ""


def test_a_training_job_is_checked_as_one(tmp_path: Path) -> None:
    job = SPECS / "jobs" / "llama-8b.yaml"
    assert run(str(job)).stdout == f"{job} is valid: job llama-8b on 32 nodes of 8 ranks each\n"
    assert json.loads(run(str(job), "--json").stdout) == {"ok": True, "job": "llama-8b", "ranks": 256, "problems": []}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(job.read_text().replace("nodes: 32", "nodes: 31").replace("steps: 100000", "steps: many"))
    said = run(str(wrong))
    assert said.return_value == 2
    assert said.stdout == "" and "steps" in said.stderr and "`cluster` is missing" not in said.stderr
    assert json.loads(run(str(wrong), "--json").stdout)["ok"] is False
    with pytest.raises(BadInput, match="is a training job"):
        CliRunner().invoke(validate, [str(job), "--explain", "power"], standalone_mode=False, catch_exceptions=False)


def test_problems_go_to_stderr_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    about = "(cluster: Name of the cluster, as reports and events show it)"
    otherwise = "Otherwise add r20 to `racks`"
    result = run(str(path))
    assert result.return_value == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:1:1: `cluster` is missing in the file; add `cluster: ...` {about}",
        f"{path}:4:1: `clutser` is not a key of this file; did you mean `cluster`?",
        f"{path}:52:26: nodes[3] (r02-n2) stands in rack r20, which `racks` does not have; did you mean r02? {otherwise}",
        f"{path} has 3 problems; nothing was touched",
    ]


def test_json_has_the_verdict_the_counts_and_every_problem(tmp_path: Path) -> None:
    good = run(str(SPECS / "lab-6.yaml"), "--json")
    assert good.return_value == 0
    assert json.loads(good.stdout) == {"ok": True, "nodes": 6, "gpus": 12, "racks": 2, "problems": []}
    (tmp_path / "bad.yaml").write_text(BAD)
    bad = run(str(tmp_path / "bad.yaml"), "--json")
    assert bad.return_value == 2
    answer = json.loads(bad.stdout)
    assert answer["ok"] is False
    assert [(p["line"], p["column"]) for p in answer["problems"]] == [(1, 1), (4, 1), (52, 26)]
    assert all(
        set(p) == {"file", "line", "column", "message", "hint"} and p["file"] == str(tmp_path / "bad.yaml")
        for p in answer["problems"]
    )


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_what_is_no_file_is_a_sentence(tmp_path: Path, name: str) -> None:
    result = run(str(tmp_path / name))
    assert result.return_value == 2
    assert result.stderr.startswith(f"{tmp_path / name}: ") and "Traceback" not in result.stderr
    answer = json.loads(run(str(tmp_path / name), "--json").stdout)
    assert (answer["ok"], answer["problems"][0]["line"]) == (False, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "closed.yaml"
    path.write_text(BAD)
    path.chmod(0)
    assert "cannot be read: Permission denied" in run(str(path)).stderr


def test_the_real_command_writes_nothing_and_takes_under_a_second_of_processor_time(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(SPECS.parent), "HOME": str(tmp_path), "RACKRAY_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-B", "-m", "orchestrator.cli.main", "validate"]
    specs = (str(SPECS / "lab-4.yaml"), "bad.yaml")
    codes = [
        subprocess.run([*command, spec], cwd=tmp_path, capture_output=True, timeout=60, env=environment).returncode
        for spec in specs
    ]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert codes == [0, 2]
    assert os.listdir(tmp_path) == ["bad.yaml"]
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2 < 1


def test_the_readme_of_the_specs_explains_the_fields_as_the_schema_does() -> None:
    readme = (SPECS / "README.md").read_text()
    assert readme == with_fields(readme), "run: python -m orchestrator.cli.spec_docs cluster_specs/README.md"
    assert "| `max_w` | number, more than 0, at most 1,000,000,000 | **required** | Largest sustained draw" in readme
    named = {path.name for path in SPECS.glob("*.yaml")}
    assert all(f"`{name}`" in readme for name in named)


def test_the_schema_for_editors_is_current() -> None:
    assert (SPECS / "spec.schema.json").read_text() == schema_text(), (
        "run: python -m orchestrator.cli.spec_docs cluster_specs/README.md"
    )


def test_the_power_tree_is_explained_and_drawn(tmp_path: Path) -> None:
    spec = str(SPECS / "example-250-xe9680.yaml")
    done = run(spec, "--explain", "power", "-o", str(tmp_path / "power.svg"), "-o", str(tmp_path / "racks.svg"))
    assert done.return_value == 0
    assert (
        "feed A                                        1,446.5 kW  3,000.0 kW     +52%    2,243.0 kW     +25%   B" in done.stdout
    )
    assert "      … and 24 more like it, up to su1-r25-pdu-a" in done.stdout
    assert "after the worst single loss 250 xe9680 must be capped at 8.4 of 11.0 kW each" in done.stdout
    titles = {
        "power.svg": "5 × ups su1-ups-a: 289.3 of 600.0 kW; 448.6 kW without B, 25% left",
        "racks.svg": "rack su1-r01: 22.0 of 24.0 kW",
    }
    for name, holds in titles.items():
        drawn = ElementTree.parse(tmp_path / name)  # noqa: S314 - our own drawing
        assert holds in {each.text for each in drawn.iter("{http://www.w3.org/2000/svg}title")}
    caps = json.loads(run(spec, "--explain", "power", "--json").stdout)["power_caps_w"]
    assert set(caps.values()) == {8400.0} and len(caps) == 250
    assert sorted(os.listdir(tmp_path)) == ["power.svg", "racks.svg"]


def test_a_racks_drawing_of_a_hundred_thousand_gpus_has_a_tile_for_each_rack(tmp_path: Path) -> None:
    assert run(str(SPECS / "frontier-100k.yaml"), "-o", str(tmp_path / "racks.svg")).return_value == 0
    drawn = ElementTree.parse(tmp_path / "racks.svg")  # noqa: S314 - our own drawing
    titles = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(str(title).startswith("rack ") for title in titles) == 3_330


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lab-4.yaml", "--explain", "power"], "has no `power:` section"),
        (["lab-4.yaml", "-o", "/tmp/picture.png"], "nothing can be drawn as picture.png"),
        (["lab-4.yaml", "-o", "/nowhere/racks.svg"], "/nowhere/racks.svg cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_explained_or_drawn_is_said(arguments: list[str], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        validate.main(args=[str(SPECS / arguments[0]), *arguments[1:]], standalone_mode=False)
    assert says in str(caught.value) and caught.value.hint


def markers(what: str) -> tuple[str, str]:
    return BEGIN.format(what=what, readme="cluster_specs/README.md"), END.format(what=what)


@pytest.mark.parametrize(("what", "least"), [("fields", 150), ("fields of a job", 80), ("fields of a fault profile", 25)])
def test_every_field_is_explained(what: str, least: int) -> None:
    begin, end = markers(what)
    rows = [line for line in with_fields(f"{begin}\n{end}").splitlines() if line.startswith("| `")]
    assert len(rows) >= least
    assert [row for row in rows if "|  |" in row] == []


def test_a_limit_is_told_also_where_the_field_may_be_left_out_and_where_it_is_no_whole_number() -> None:
    text = "".join(with_fields("\n".join(markers(what))) for what in BLOCKS)
    assert "| `voltage_v` | number, at least 12, at most 1,000,000 |" in text
    assert "| `spread` | number, at least 0, at most 0.9 |" in text
    assert "| `betas` | list; each item number | `[0.9, 0.95]` |" in text


def test_the_generator_rewrites_only_what_is_between_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    begin, end = markers("fields of a job")
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert main([str(path)]) == 0
    text = path.read_text()
    assert text.startswith(f"before\n{begin}\n\n### The file") and text.endswith(f"{end}\nafter\n") and "\nold\n" not in text
    assert os.listdir(tmp_path) == ["README.md"], "the schema belongs beside the specs alone"
    with pytest.raises(ValueError, match="needs the lines"):
        with_fields("no markers")
    assert main([]) == 2
