"""Specs with mistakes in them: the table of every kind, many at once, damaged files, and what must not be said."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import BadInput, Problem
from orchestrator.drivers.spec_reader import parse_spec, read_spec
from orchestrator.planning.validation import check_spec
from tests.drivers.bad_spec_cases import CHECK_CASES, FIELD_CASES, YAML_CASES, Bad

SPECS = Path(__file__).parents[2] / "cluster_specs"
LAB_4 = (SPECS / "lab-4.yaml").read_text(encoding="utf-8")
ALL_CASES = [*YAML_CASES, *FIELD_CASES, *CHECK_CASES]


def problems_of(data: str | bytes) -> tuple[Problem, ...]:
    raw = data if isinstance(data, bytes) else data.encode()
    with pytest.raises(BadInput) as caught:
        parse_spec(raw, "bad.yaml", check_spec)
    assert caught.value.exit_code == 2
    assert caught.value.problems == tuple(sorted(caught.value.problems))
    assert all(problem.message and problem.hint and "\n" not in str(problem) for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.kind)
def test_each_kind_of_bad_input_has_its_place_and_its_sentence(case: Bad) -> None:
    assert case.old in LAB_4
    text = LAB_4.replace(case.old, case.new, 1)
    before, marked, _ = text.partition("«")
    problems = problems_of(text.replace("«", ""))
    assert f"{problems[0].message}; {problems[0].hint}".startswith(case.says)
    assert len(problems) == 1 + case.more, [str(problem) for problem in problems]
    if marked and case.kind != "open bracket":
        assert (problems[0].line, problems[0].column) == (before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)


def test_the_specs_that_ship_are_valid() -> None:
    nodes = {path.name: len(read_spec(path, check_spec).spec.nodes) for path in SPECS.glob("*.yaml")}
    assert nodes == {
        "lab-4.yaml": 4,
        "lab-6.yaml": 6,
        "lab-rack.yaml": 1,
        "example-32-dgx.yaml": 32,
        "example-250-xe9680.yaml": 250,
        "example-gb200-nvl72.yaml": 18,
        "frontier-100k.yaml": 12_500,
    }


def test_lab_6_is_lab_4_with_two_nodes_more() -> None:
    four, six = (read_spec(SPECS / name, check_spec).spec for name in ("lab-4.yaml", "lab-6.yaml"))
    assert six.model_copy(update={"nodes": four.nodes}) == four
    assert [node.name for node in six.nodes if node not in four.nodes] == ["r01-n3", "r02-n3"]


@pytest.mark.parametrize(
    ("data", "where", "says"),
    [
        (b"", "bad.yaml:1:1", "the file is empty"),
        (b"# only words\n---\n", "bad.yaml:1:1", "the file is empty"),
        (b"- a\n", "bad.yaml:1:1", "the file holds a list"),
        (b"abc\n", "bad.yaml:1:1", "the file holds a single value"),
        (LAB_4.encode("utf-16"), "bad.yaml:1:1", "the file is UTF-16 or UTF-32, not UTF-8"),
        (b"\xef\xbb\xbf" + LAB_4.encode(), "bad.yaml:1:1", "the file begins with a byte order mark"),
        (b"rackray: 1\ncluster: \xc3\xa9\xff\n", "bad.yaml:2:11", "the byte 0xff is not UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text_or_no_mapping_is_said_so(data: bytes, where: str, says: str) -> None:
    (problem,) = problems_of(data)
    assert str(problem).startswith(f"{where}: {says}")


def test_windows_line_ends_change_nothing() -> None:
    assert (
        parse_spec(LAB_4.replace("\n", "\r\n").encode(), "crlf.yaml", check_spec).spec
        == parse_spec(LAB_4.encode(), "lf.yaml", check_spec).spec
    )


def test_problems_of_every_sort_are_shown_at_once() -> None:
    text = LAB_4
    for case in (c for c in ALL_CASES if c.kind in ALL_AT_ONCE):
        assert case.old in text, case.kind
        text = text.replace(case.old, case.new.replace("«", ""), 1)
    said = [problem.message for problem in problems_of(text)]
    assert said == [
        "`clutser` is not a key of this file",
        "the key `B` stands here a second time",
        "rack r01 draws 5.2 of 5.0 kW, 0.2 kW over",
        "firmware.lab-2g.BMC.approved[0] must be text, but 7.10 without quotes is read as the number 7.1",
        "10:20:30:40:50:10 without quotes is read by YAML as the base-60 number 8041827010",
        "nodes[2] (r02-n1) stands in rack r20, which `racks` does not have",
        "nodes[2] (r02-n1) has the address 127.1.1.1, also that of nodes[0] (r01-n1), line 51",
    ]


ALL_AT_ONCE = {
    "unknown key",
    "duplicate key",
    "rack over its power",
    "version as number",
    "MAC as number",
    "unknown rack",
    "address twice",
}


def test_a_wrong_value_causes_no_second_complaint_elsewhere() -> None:
    racks = LAB_4.replace("racks:\n", "rakcs:\n")
    assert [p.message for p in problems_of(racks)] == ["`racks` is missing in the file", "`rakcs` is not a key of this file"]
    bad_power = LAB_4.replace("max_w: 2600", "max_w: lots")
    assert [p.message for p in problems_of(bad_power)] == ['skus.lab-2g.max_w must be a number; it is "lots"']
    nameless = LAB_4.replace("{name: r01-n2, ", "{")
    assert [p.message for p in problems_of(nameless)] == ["`name` is missing in nodes[1]"]


def test_a_secret_in_a_spec_is_not_repeated() -> None:
    for case in (c for c in FIELD_CASES if "canary-7f3a" in c.new):
        text = LAB_4.replace(case.old, case.new.replace("«", ""), 1)
        assert "canary-7f3a" not in "\n".join(map(str, problems_of(text)))


def test_an_alias_bomb_and_a_flood_of_mistakes_end_soon() -> None:
    began_s = time.process_time()
    bomb = "a: &a [x, x]\n" + "".join(f"k{i}: &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, 60))
    assert any("is an alias" in problem.message for problem in problems_of(bomb))
    assert len(problems_of("a: 1\n" * 300_000)) <= 501
    assert len(problems_of("[" * 100_000)) == 1
    assert "more than 1,500,000 keys and values" in problems_of("a: [" + "1," * 1_600_000 + "]")[-1].message
    assert time.process_time() - began_s < 5


SEEDS = (1, 2)
"""Each is 2,000 damaged files of the small specs and four of the 100,000-GPU one, in a process of its own."""


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_specs_are_read_or_refused_within_two_seconds_and_a_gibibyte(seed: int) -> None:
    command = [sys.executable, "-m", "tests.drivers.spec_mutations", str(seed), "2000", "4"]
    done = subprocess.run(command, cwd=SPECS.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["read"] + told["refused"] == 2004
    assert told["read"] > 10, "damage that is always refused at once tests nothing but the first check"


DAMAGE = st.tuples(st.integers(0, len(LAB_4.encode()) - 1), st.integers(0, 3), st.binary(min_size=1, max_size=6))
"""Where, how (overwrite, insert, cut, repeat) and with which bytes."""


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(DAMAGE, min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused_in_good_order(damage: list[tuple[int, int, bytes]]) -> None:
    data = bytearray(LAB_4.encode())
    for offset, kind, new in damage:
        at = offset % max(len(data), 1)
        if kind == 0:
            data[at : at + len(new)] = new
        elif kind == 1:
            data[at:at] = new
        elif kind == 2:
            del data[at : at + 40 * len(new)]
        else:
            data[at:at] = data[max(0, at - 40 * len(new)) : at]
    began_s = time.process_time()
    try:
        parse_spec(bytes(data), "damaged.yaml", check_spec)
    except BadInput as error:
        assert all(problem.message and problem.hint and "\n" not in str(problem) for problem in error.problems)
        assert error.problems
    assert time.process_time() - began_s < 2


WORDS = ("lab-2g", "r01", "127.1.1.1", "2600", "42", '"7.10"', "A", "leaf-1", "1.5", "gpu", "lab")
ODD = (
    "[]",
    "{}",
    "''",
    "-1",
    "0",
    "1e400",
    "true",
    "~",
    "[[1]]",
    "{a: {b: c}}",
    '"\\u202e"',
    "9" * 40,
    ".5",
    "0o17",
    "*x",
    "&y z",
    "! w",
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_values_swapped_for_odd_ones_are_read_or_refused_in_good_order(data: st.DataObject) -> None:
    text = LAB_4
    for _ in range(data.draw(st.integers(1, 6))):
        text = text.replace(data.draw(st.sampled_from(WORDS)), data.draw(st.sampled_from(ODD)), data.draw(st.integers(1, 3)))
    try:
        parse_spec(text.encode(), "odd.yaml", check_spec)
    except BadInput as error:
        assert error.problems


def test_reading_a_spec_loads_no_heavy_library() -> None:
    code = "import sys; import orchestrator.drivers.spec_reader, orchestrator.planning.validation; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert not {"ray", "torch", "httpx", "paramiko", "sqlalchemy", "ansible_runner", "numpy"} & set(loaded)
