# ruff: noqa: E501 - a case is a row of a table
"""Patterns, defaults, includes, tables and quantities: what they stand for, and what is refused, each with its place and sentence."""

import os
import re
import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import BadInput, Problem
from orchestrator.domain.pattern import Pattern, PatternError
from orchestrator.domain.spec import ClusterSpec
from orchestrator.drivers.spec_reader import LoadedSpec, parse_spec, read_spec
from orchestrator.planning.validation import check_spec

SPECS = Path(__file__).parents[2] / "cluster_specs"
DGX = (SPECS / "example-32-dgx.yaml").read_text(encoding="utf-8")
NVL = (SPECS / "example-gb200-nvl72.yaml").read_text(encoding="utf-8")
LAB_4 = (SPECS / "lab-4.yaml").read_text(encoding="utf-8")


def problems_of(text: str, folder: Path | None = None) -> list[Problem]:
    file = str(folder / "spec.yaml") if folder is not None else "spec.yaml"
    with pytest.raises(BadInput) as caught:
        parse_spec(text.encode(), file, check_spec)
    return list(caught.value.problems)


def read(text: str, folder: Path) -> LoadedSpec:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return read_spec(folder / "spec.yaml", check_spec)


# ---------------------------------------------------------------------- what they stand for
def test_a_pattern_stands_for_its_names_in_order_and_fills_in_the_texts_beside_it() -> None:
    pattern = Pattern.parse("r[08-10]-n[a,b]")
    assert pattern.names() == ["r08-na", "r08-nb", "r09-na", "r09-nb", "r10-na", "r10-nb"]
    assert pattern.fill("r{1}") == ["r08", "r08", "r09", "r09", "r10", "r10"]
    assert pattern.fill("{1*2}") == list("123456")
    assert pattern.fill("p{1*2/4+10:03}") == ["p011", "p011", "p011", "p011", "p012", "p012"]
    assert pattern.running(5, [100, 1]) == [5, 6, 105, 106, 205, 206]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 9), st.booleans()), min_size=1, max_size=3))
def test_a_pattern_has_as_many_names_as_its_ranges_multiply_to_and_all_differ(ranges: list[tuple[int, int, bool]]) -> None:
    text, count = "x", 1
    for first, more, padded in ranges:
        width = len(str(first + more)) if padded else 0
        text += f"-[{str(first).zfill(width)}-{str(first + more).zfill(width) if padded else first + more}]"
        count *= more + 1
    pattern = Pattern.parse(text)
    names = pattern.names()
    assert len(names) == len(set(names)) == len(pattern) == count
    assert pattern.fill("{" + "*".join(str(i + 1) for i in range(len(ranges))) + "/1}") == [str(i + 1) for i in range(count)]


def test_a_spec_by_pattern_is_the_spec_written_out(tmp_path: Path) -> None:
    nodes = LAB_4[LAB_4.index("nodes:\n") : LAB_4.index("lab:\n")]
    short = """nodes:
  - name: r[01-02]-n[1-2]
    rack: r{1}
    unit: [1, 5]
    sku: lab-2g
    serial: LAB0000{1*2}
    bmc: {first: 127.2.1.1, step: [256, 1]}
    address: {first: 127.1.1.1, step: [256, 1]}
    mac: {first: "02:00:00:00:01:01", step: [256, 1]}
"""
    racks = 'racks:\n  r[01-02]: {units: 42, limit: 12 kW, feed: [A, B], leaf: "leaf-{1/1}", row: north}\n'
    text = re.sub(r"racks:\n.*\n.*\n", racks, LAB_4.replace(nodes, short), count=1)
    loaded = read(text, tmp_path)
    assert loaded.spec == read_spec(SPECS / "lab-4.yaml", check_spec).spec
    assert ClusterSpec.model_validate(loaded.spec.model_dump(mode="json")) == loaded.spec


@pytest.mark.parametrize("name", ["example-32-dgx", "example-250-xe9680", "example-gb200-nvl72", "frontier-100k"])
def test_an_expanded_spec_survives_its_way_through_the_journal(name: str) -> None:
    spec = read_spec(SPECS / f"{name}.yaml", lambda spec: []).spec
    assert ClusterSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_node_goes_before_its_rack_which_goes_before_the_defaults(tmp_path: Path) -> None:
    text = LAB_4.replace("sku: lab-2g, serial: LAB00001", "serial: LAB00001").replace(
        "sku: lab-2g, serial: LAB00003", "serial: LAB00003"
    )
    text = text.replace("feed: B, leaf", "nodes: {insecure_bmc: true}, feed: B, leaf") + "\ndefaults: {nodes: {sku: lab-2g}}\n"
    spec = read(text, tmp_path).spec
    assert [node.sku for node in spec.nodes] == ["lab-2g"] * 4
    assert [node.insecure_bmc for node in spec.nodes] == [False, False, True, True]


def test_included_files_and_a_table_make_one_spec(tmp_path: Path) -> None:
    begin, end = LAB_4.index("nodes:\n"), LAB_4.index("lab:\n")
    racks = LAB_4[LAB_4.index("racks:\n") : LAB_4.index("subnets:\n")]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "racks.yaml").write_text(racks)
    nodes = re.sub(r"serial: LAB\d+, |, mac: \"[^\"]*\"", "", LAB_4[begin:end])
    (tmp_path / "nodes.yaml").write_text(nodes)
    lines = [
        f"r0{rack}-n{n},LAB0000{rack * 2 - 2 + n},root,canary-7f3a,02:00:00:00:0{rack}:0{n}" for rack in (1, 2) for n in (1, 2)
    ]
    table = tmp_path / "machines.csv"
    table.write_text("node,serial,username,password,mac\n" + "\n".join(lines) + "\n")
    table.chmod(0o600)
    head = LAB_4[:begin].replace(racks, "") + LAB_4[end:] + "\ninclude: [parts/racks.yaml, nodes.yaml]\ninventory: machines.csv\n"
    loaded = read(head, tmp_path)
    assert loaded.spec == read_spec(SPECS / "lab-4.yaml", check_spec).spec
    assert "canary-7f3a" not in loaded.spec.model_dump_json()
    before = loaded.sha256
    table.write_text(table.read_text().replace("LAB00004", "LAB00009"))
    assert read(head, tmp_path).sha256 != before
    # A problem in an included file or in the table is shown there.
    (tmp_path / "nodes.yaml").write_text(nodes.replace("rack: r02, unit: 5", "rack: r03, unit: 5"))
    table.write_text(table.read_text().replace("LAB00002", "LAB00001").replace("r02-n2,", "r09-n2,"))
    said = "\n".join(str(problem) for problem in problems_of(head, tmp_path))
    assert f"{tmp_path}/nodes.yaml:5:26: nodes[3] (r02-n2) stands in rack r03" in said
    assert f"{tmp_path}/machines.csv:3:1: the serial LAB00001 is also that of nodes[0] (r01-n1), line 2" in said
    assert f"{tmp_path}/machines.csv:5:1: r09-n2 is no machine of the spec" in said
    assert "canary-7f3a" not in said


# ---------------------------------------------------------------------- what is refused
PATTERNS = [
    ("n[1-10000000]", "n[1-10000000] stands for 10,000,000 names; at most 200,000 are read"),
    ("n[9-1]", "[9-1] in n[9-1] runs backwards"),
    ("n[01-100]", "[01-100] in n[01-100] is padded with zeros on one side only"),
    ("n[1-5,3-7]", "[1-5,3-7] in n[1-5,3-7] names 3 twice"),
    ("n[1-5", "n[1-5 has a bracket without its partner"),
    ("n[1-5]]", "n[1-5]] has a bracket without its partner"),
    ("n[]", "[] in n[] is no range"),
    ("n[1-5;reboot]", "[1-5;reboot] in n[1-5;reboot] is no range"),
    ("[1-2]" * 7, "has 7 ranges; at most 6 are read"),
]


@pytest.mark.parametrize(("text", "says"), PATTERNS)
def test_a_pattern_that_is_none_is_refused_before_it_is_expanded(text: str, says: str) -> None:
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text)
    assert says in str(caught.value) and caught.value.hint


RANGES = "r[01-08]"
CASES = [
    ("bomb", DGX, "name: r[01-08]-n[1-4]", "name: «r[01-08]-n[1-9999999]", "r[01-08]-n[1-9999999] stands for 79,999,992 names"),
    ("reversed range", DGX, "name: r[01-08]-n[1-4]", "name: «r[08-01]-n[1-4]", "[08-01] in r[08-01]-n[1-4] runs backwards"),
    ("padding lost", DGX, "  r[01-08]:\n    units", "  «r[1-08]:\n    units", "[1-08] in r[1-08] is padded with zeros on one side only; write [01-08] or [1-8]"),
    ("names of two patterns", DGX, "racks:\n", "racks:\n  r08: {limit: 1 kW, feed: A, leaf: l}\n", "r08 stands here a second time"),
    ("reference to no range", DGX, "    rack: r{1}\n", "    rack: «r{3}\n", "{3} in r{3} refers to range 3, but r[01-08]-n[1-4] has 2 ranges"),
    ("no reference", DGX, "    rack: r{1}\n", "    rack: «r{x}\n", "{x} in r{x} is no reference to a range"),
    ("uneven list", DGX, "unit: [1, 11, 21, 31]", "«unit: [1, 11, 21]", "`unit` has 3 values, which do not go evenly into the 4 names of the last range"),
    ("steps", DGX, "bmc: {first: 10.20.1.1, step: [256, 1]}", "«bmc: {first: 10.20.1.1, step: [256]}", "`step` of `bmc` needs one number for each of the 2 ranges"),
    ("counting over the end", DGX, "bmc: {first: 10.20.1.1, step", "«bmc: {first: 255.255.255.254, step", "`bmc` counts from 255.255.255.254 over the end of all addresses"),
    ("kA for kW", DGX, "limit: 41.5 kW", "limit: «41.5 kA", '`limit` is "41.5 kA", a current where a power is due'),
    ("no unit", DGX, "limit: 41.5 kW", "limit: «41500", "`limit` is 41500, without a unit; write `limit: 41500 W` or `limit_w: 41500`"),
    ("unit misspelled", DGX, "limit: 41.5 kW", "limit: «41.5 KW", '`limit` is "41.5 KW"; KW is written kW'),
    ("quantity twice", DGX, "limit: 41.5 kW", "limit_w: 41500, limit: 41.5 kW".replace(", ", "\n    «"), "`limit` is given as `limit_w` too"),
    ("negative quantity", DGX, "limit: 41.5 kW", "limit: «-41.5 kW", "racks.r[01-08].limit is -41500.0 W; it must be more than 0 W"),
    ("wrong value in a pattern", DGX, "    weight_limit: 1200 kg", "    «weigth_limit: 1200 kg", "`weigth_limit` is not a key of racks.r[01-08]"),
    ("unknown PDU", DGX, '"r{1}-pdu-c"]', '"r{1}-pdu-d"]', "rack r01 has the PDU r01-pdu-d, which `power.elements` does not have"),
    ("unknown part above", DGX, "fed_by: ups-b", "fed_by: «ups-x", "r01-pdu-b hangs on ups-x, which neither `power.elements` nor `feeds` has"),
    ("circle", DGX, "ups-c: {kind: ups, fed_by: A, backup: B", "ups-c: {kind: ups, fed_by: «r01-pdu-c, backup: B", "the power tree runs in a circle: ups-c is fed by r01-pdu-c is fed by ups-c"),
    ("no limit", DGX, "breaker: 60 A, voltage: 415 V}\n    r[01-08]-pdu-b", "derating: 0.8}\n    r[01-08]-pdu-b", "nothing says what r01-pdu-a may carry"),
    ("breaker without voltage", DGX, "breaker: 60 A, voltage: 415 V}\n    r[01-08]-pdu-b", "breaker: 60 A}\n    r[01-08]-pdu-b", "r01-pdu-a has a breaker of 60 A and no voltage"),
    ("overloaded UPS", DGX, "ups-a: {kind: ups, fed_by: A, limit: 200 kW", "ups-a: {kind: ups, fed_by: A, limit: «118 kW", "ups ups-a carries 119.0 of 118.0 kW, 1.0 kW over, with everything alive"),
    ("N-1 fails", DGX, "ups-c: {kind: ups, fed_by: A, backup: B, limit: 200 kW", "ups-c: {kind: ups, fed_by: A, backup: B, limit: «150 kW", "after the loss of A, ups ups-c carries 163.2 of 150.0 kW, 13.2 kW over (normally 108.8 kW)"),
    ("phase imbalance", DGX, "imbalance_max: 0.3 ", "imbalance_max: 0.2 ", "the phases of ups ups-a carry 44.2, 44.2, 30.6 kW: 23% off their mean, more than 20%"),
    ("too few supplies left", DGX, "count: 6, capacity: 3.3 kW, least: 3", "count: 6, capacity: 2.4 kW, least: 3", "after the loss of A, r01-n1 gets 9.6 of 10.2 kW (4 of 6 supplies), 0.6 kW short; so do 31 more"),
    ("cords", DGX, "capacity: 3.3 kW, least: 3}", "capacity: 3.3 kW, least: 3, «cords: [1, 2, 3]}", "SKU dgx-h100 has 6 supplies and 3 cords"),
    ("cord to nowhere", DGX, "capacity: 3.3 kW, least: 3}", "capacity: 3.3 kW, least: 3, cords: [1, 2, 3, 4, 1, 2]}", "r01-n1 has a supply on PDU 4 of rack r01, which has 3"),
    ("no PDUs", DGX, "    pdus: [net-pdu-a, net-pdu-b]\n", "", "leaf1 stands in rack net, which has no PDUs to plug it into"),
    ("weight", DGX, "weight_limit: 1200 kg", "weight_limit: «500 kg", "rack r01 holds 520 of 500 kg, 20 kg over"),
    ("heat into the air", DGX, "air_limit: 41.5 kW", "air_limit: «30 kW", "rack r01 gives 40.8 of 30.0 kW to the air, 10.8 kW over"),
    ("heat into the liquid", NVL, "liquid_limit: 115 kW", "liquid_limit: «100 kW", "rack nvl72 gives 107.1 of 100.0 kW to the liquid, 7.1 kW over"),
    ("liquid without a loop", NVL, "    liquid_limit: 115 kW\n", "", "rack nvl72 gives 107.1 kW to the liquid, and nothing says what its loop can take"),
    ("shelves too weak", NVL, "capacity: 5.5 kW", "capacity: 5.3 kW", "after the loss of B, the busbar of rack nvl72 gets 127.2 of 128.706 kW (24 of 48 supplies), 1.506 kW short"),
    ("overlap with equipment", NVL, "  - name: shelf[1-4]\n    rack: nvl72\n    unit: {first: 3}", "  - name: shelf[1-4]\n    rack: nvl72\n    «unit: {first: 6}", "equipment[12] (shelf4) takes units 9-9 of rack nvl72, 1 of them shared with nodes[0] (tray01) in 9-9, line 88; unit 1 is"),
    ("kind in the wrong list", NVL, "sku: power-shelf\n    serial: SHELF{1}\n    bmc: {first: 10.20.0.111}", "sku: «compute-tray\n    serial: SHELF{1}\n    bmc: {first: 10.20.0.111}", "equipment[9] (shelf1) is of SKU compute-tray, whose kind is compute"),
    ("serial of a switch", DGX, "serial: EXAMPLELEAF{1}", "serial: EXAMPLESPINE{1}", "the serial EXAMPLESPINE1 is also that of equipment[0] (leaf1)"),
    ("port twice", DGX, 'to: "spine2/{1*2}"', 'to: «"spine1/{1*2}"', "port spine1/1 gets a second cable, as do 63 more, line"),
    ("no such port", DGX, 'to: "leaf{3}/{1*2}"', 'to: «"leaf{3}/{1*2+40}"', "leaf1/65: leaf1 is of SKU qm9700, with ports 1 to 64"),
    ("no such switch", DGX, 'to: "leaf{3}/{1*2}"', 'to: «"laef{3}/{1*2}"', "laef1/1: there is no machine laef1"),
    ("rail without cable", DGX, 'n[1-4]/rail[1-8]", to: "leaf{3}', 'n[1-4]/rail[1-7]", to: "leaf{3}', "r01-n1/rail8 and 31 more of SKU dgx-h100 have no cable"),
    ("no such rail", DGX, 'n[1-4]/rail[1-8]"', 'n[1-4]/rail[0-7]"', "r01-n1/rail0: r01-n1 is of SKU dgx-h100, with ports rail1 to rail8"),
    ("cable too short", DGX, "cable: aoc, length: 15 m", "cable: aoc, length: «5 m", "the way from r01-n1 to leaf1 takes"),
    ("cable too long for its kind", DGX, "length: 2.5 m}\n  - {note: leaf to spine 2", "length: «4 m}\n  - {note: leaf to spine 2", "a cable of kind dac and 4 m is longer than such cables reach, 3 m"),
    ("subnets overlap", DGX, "storage: 10.30.0.0/16", "storage: «10.20.128.0/17", "10.20.128.0/17 overlaps 10.20.0.0/16, line"),
    ("switch outside the subnet", DGX, "bmc: {first: 10.20.100.1}", "«bmc: {first: 10.21.100.1}", "the BMC of equipment[0] (leaf1) has the address 10.21.100.1, outside subnets.bmc 10.20.0.0/16"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "base", "old", "new", "says"), CASES, ids=[case[0] for case in CASES])
def test_each_kind_of_bad_input_has_its_place_and_its_sentence(kind: str, base: str, old: str, new: str, says: str) -> None:
    assert old in base
    text = base.replace(old, new, 1)
    before, marked, _ = text.partition("«")
    problems = problems_of(text.replace("«", ""))
    found = [problem for problem in problems if says in f"{problem.message}; {problem.hint}"]
    assert found, [str(problem) for problem in problems]
    if marked:
        assert found[0].line == before.count("\n") + 1


def test_a_mistake_in_a_pattern_is_said_once_and_not_for_each_of_its_names() -> None:
    text = (SPECS / "frontier-100k.yaml").read_text(encoding="utf-8")
    assert len(problems_of(text.replace("sku: hgx-h200\n", "sku: 5\n"))) == 1
    said = [str(problem) for problem in problems_of(text.replace("    sku: hgx-h200\n", "    sku: hgx-h100\n"))]
    assert [line for line in said if "is of SKU hgx-h100" in line] and len(said) < 12
    assert any("… and 12,497 more like these come from this place" in line for line in said)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("../outside.yaml", "include names ../outside.yaml, which leads out of the folder of this spec"),
        ("/etc/passwd", "include names /etc/passwd, an absolute path"),
        ("link.yaml", "include names link.yaml, which leads out of the folder of this spec"),
        ("missing.yaml", "include names missing.yaml: there is no such file"),
        ("folder", "include names folder: is a folder"),
        ("spec.yaml", "spec.yaml includes itself"),
        ("again.yaml", "`cluster` stands here and in"),
    ],
)
def test_an_include_stays_in_the_folder_of_its_spec(named: str, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("racks: {}\n")
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (folder / "again.yaml").write_text("cluster: lab\n")
    text = LAB_4 + f"include: [{named}]\n"
    (folder / "spec.yaml").write_text(text)
    assert any(says in problem.message for problem in problems_of(text, folder))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("", "the table has no column `node`"),
        ("name,serial\n", "the table has unknown column 'name'"),
        ("node,serial\nr01-n1\n", "the line has 1 cells, the first line 2"),
        ("node,serial\nr01-n1,A\nr01-n1,B\n", "r01-n1 stands in line 2 too"),
        ("node,serial\nr01-n1,OTHER\n", "the table says serial OTHER for r01-n1, the spec says LAB00001"),
        ('node,serial\n"r01-n1,A\n', "this is not CSV"),
        ("node,serial\nr01-n9,A\n", "r01-n9 is no machine of the spec"),
    ],
)
def test_a_table_that_is_wrong_is_refused_line_by_line(table: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "machines.csv").write_text(table)
    assert any(
        says in problem.message and problem.file.endswith("machines.csv")
        for problem in problems_of(LAB_4 + "inventory: machines.csv\n", tmp_path)
    )


def test_a_table_with_passwords_must_be_private(tmp_path: Path) -> None:
    (tmp_path / "machines.csv").write_text("node,password\nr01-n1,canary-7f3a\n")
    os.chmod(tmp_path / "machines.csv", 0o644)
    (problem,) = problems_of(LAB_4 + "inventory: machines.csv\n", tmp_path)
    assert "holds factory passwords and has mode 0644: others can read it" in problem.message
    (missing,) = problems_of(LAB_4 + "inventory: nowhere.csv\n", tmp_path)
    assert "inventory names nowhere.csv: there is no such file" in missing.message


def test_two_levels_of_defaults_that_disagree_are_refused() -> None:
    text = (
        LAB_4.replace("feed: B, leaf", "nodes: {insecure_bmc: true}, feed: B, leaf")
        + "\ndefaults: {nodes: {insecure_bmc: false}}\n"
    )
    problem = problems_of(text)[0]
    assert problem.message == "`insecure_bmc` for nodes of rack r02 is True, but False in `defaults.nodes`, line 61"
    assert problem.line == 21


# ---------------------------------------------------------------------- damage
BASES = [DGX.encode(), NVL.encode(), (SPECS / "example-250-xe9680.yaml").read_bytes()]
DAMAGE = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 4), st.binary(min_size=1, max_size=5)), min_size=1, max_size=6)


def _damaged(base: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    data = bytearray(base)
    for offset, kind, new in damage:
        at = offset % max(1, len(data))
        if kind == 0:
            data[at : at + len(new)] = new
        elif kind == 1:
            data[at:at] = new
        elif kind == 2:
            del data[at : at + 30 * len(new)]
        elif kind == 3:
            data[at:at] = data[max(0, at - 30 * len(new)) : at]
        else:  # digits and brackets make patterns grow
            data[at : at + 1] = b"0123456789[]-{},"[new[0] % 16 : new[0] % 16 + 1]
    return bytes(data)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(BASES), DAMAGE)
def test_a_damaged_spec_with_patterns_is_read_or_refused_in_good_order(base: bytes, damage: list[tuple[int, int, bytes]]) -> None:
    began_s = time.process_time()
    try:
        parse_spec(_damaged(base, damage), "damaged.yaml", check_spec)
    except BadInput as error:
        assert error.problems and all(problem.message and "\n" not in str(problem) for problem in error.problems)
    assert time.process_time() - began_s < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1024 * 1024


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(BASES), DAMAGE)
def test_thousands_of_damaged_specs_are_read_or_refused_in_good_order(base: bytes, damage: list[tuple[int, int, bytes]]) -> None:
    began_s = time.process_time()
    try:
        parse_spec(_damaged(base, damage), "damaged.yaml", check_spec)
    except BadInput as error:
        assert error.problems
    assert time.process_time() - began_s < 2


TWO_BY_TWO = (
    LAB_4[: LAB_4.index("nodes:\n")]
    + "inventory: machines.csv\nnodes:\n"
    + "  - {name: 'r[01-02]-n[1-2]', rack: 'r{1}', unit: [1, 5], sku: lab-2g, bmc: {first: 127.2.1.1}, address: {first: 127.1.1.1}}\n"
)


def test_macs_in_a_table_may_be_spelled_as_vendors_spell_them(tmp_path: Path) -> None:
    rows = ["r01-n1,A1,3C:EC:EF:00:01:0A", "r01-n2,A2,3c-ec-ef-00-01-0b", "r02-n1,A3,3C-EC-EF-00-01-0C", "r02-n2,A4,"]
    (tmp_path / "machines.csv").write_text("node,serial,mac\n" + "\n".join(rows) + "\n")
    (tmp_path / "spec.yaml").write_text(TWO_BY_TWO)
    nodes = read_spec(tmp_path / "spec.yaml", check_spec).spec.nodes
    assert [node.mac for node in nodes] == [*(f"3c:ec:ef:00:01:0{last}" for last in "abc"), "00:00:00:00:00:00"]


def test_what_a_pattern_lacks_is_said_once_with_how_many_lack_it_and_the_table_as_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "machines.csv").write_text("node,serial\nr01-n1,A1\n")
    (problem,) = problems_of(TWO_BY_TWO, tmp_path)
    assert problem.message == "`serial` is missing in nodes[0] (r[01-02]-n[1-2]), and for 2 more names of its pattern"
    assert "`inventory: machines.csv`, with the columns node,serial" in problem.hint


def test_a_wrong_cell_of_a_table_is_called_by_its_column(tmp_path: Path) -> None:
    (tmp_path / "machines.csv").write_text("node,serial,mac\nr01-n1,A1,3C:EC\nr01-n2,A2,\nr02-n1,A3,\nr02-n2,A4,\n")
    (problem,) = problems_of(TWO_BY_TWO, tmp_path)
    assert (problem.line, problem.message) == (2, 'mac is "3c:ec"')
