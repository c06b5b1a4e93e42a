"""A first spec: it says itself what is missing, and is valid as soon as the serials stand in its table."""

from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.drivers.spec_reader import read_spec
from orchestrator.planning.spec_draft import MACHINES
from orchestrator.planning.validation import check_spec


def begin(folder: Path, *options: str) -> tuple[Path, Path]:
    spec = folder / "site-a.yaml"
    assert run(["spec", "new", str(spec), *options]) == 0
    return spec, folder / "site-a-machines.csv"


def fill_in(table: Path) -> None:
    header, *lines = table.read_text().splitlines()
    names = [line.split(",")[0] for line in lines]
    rows = [
        f"{name},SN{number:04},3C-EC-EF-00-{number >> 8:02X}-{number & 255:02X}" for number, name in enumerate(names, start=1)
    ]
    table.write_text("\n".join([header, *rows]) + "\n")


def test_only_the_serials_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, _ = begin(tmp_path)
    assert f"next: fill in the serials, make the lines marked <- yours, then `rackray validate {spec}`" in capsys.readouterr().err
    assert run(["validate", str(spec)]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert "`serial` is missing in nodes[0] (r[01-02]-n[1-4]), and for 7 more names" in only


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("racks", "per_rack"), [(1, 1), (2, 4), (60, 3), (200, 6)])
def test_with_serials_it_is_valid_and_survives_the_loss_of_a_side(
    tmp_path: Path, machine: str, racks: int, per_rack: int
) -> None:
    spec, table = begin(tmp_path, "--machine", machine, "--racks", str(racks), "--per-rack", str(per_rack))
    fill_in(table)
    loaded = read_spec(spec, check_spec).spec
    assert (loaded.cluster, len(loaded.racks), len(loaded.nodes)) == ("site-a", racks, racks * per_rack)
    assert all(len(rack.pdus) == 2 for rack in loaded.racks.values())
    assert loaded.nodes[0].serial == "SN0001" and loaded.nodes[0].mac == "3c:ec:ef:00:00:01"


def test_it_is_readable_comments_stand_in_one_column_and_no_line_is_too_long(tmp_path: Path) -> None:
    lines = begin(tmp_path, "--machine", "xe9680-h200")[0].read_text().splitlines()
    assert max(map(len, lines)) <= 130
    behind = [line.partition("# ")[0] for line in lines if "# " in line and not line.lstrip().startswith("#")]
    columns = {len(before) for before in behind if len(before.rstrip()) < 40}
    assert len(behind) > 15 and columns == {40}


@pytest.mark.parametrize("there", ["site-a.yaml", "site-a-machines.csv"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, there: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / there).write_text("mine")
    assert run(["spec", "new", str(tmp_path / "site-a.yaml")]) == 2
    assert f"{tmp_path / there} is there already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--per-rack", "7"], "7 machines of 8 units are 56 units, a rack has 48"),
        (["--cluster", "my cluster"], "'my cluster' cannot be a cluster's name"),
        (["--racks", "201"], "201 is not in the range"),
        (["--machine", "dgx-h10"], "is not one of"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["spec", "new", str(tmp_path / "site-a.yaml"), *options]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
