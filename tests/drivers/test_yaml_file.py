import hashlib
import os
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.domain.errors import BadInput
from orchestrator.drivers.yaml_file import examine, load_model, parse_model
from orchestrator.drivers.yaml_text import MAX_BYTES
from orchestrator.drivers.yaml_words import read_word


class Wheel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    radius_mm: Annotated[int, Field(ge=1)]


class Cart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    name: str
    """What it is called."""
    wheels: list[Wheel]
    load_kg: float = 0.0
    lid: Wheel | None = None

    @model_validator(mode="after")
    def balanced(self) -> "Cart":
        if len(self.wheels) % 2:
            raise ValueError(f"{len(self.wheels)} wheels do not stand")
        return self


CART = "name: big\nwheels:\n  - {radius_mm: 200}\n  - radius_mm: 210\n"


def problems_of(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        parse_model(text, "cart.yaml", Cart)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_file_is_its_model_its_text_and_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(CART)
    loaded = load_model(path, Cart)
    assert loaded.model == Cart(name="big", wheels=[Wheel(radius_mm=200), Wheel(radius_mm=210)])
    assert loaded.text == CART
    assert loaded.sha256 == hashlib.sha256(CART.encode()).hexdigest()


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("name",), "1:7"),
        (("wheels",), "2:1"),
        (("wheels", 0), "3:5"),
        (("wheels", 0, "radius_mm"), "3:17"),
        (("wheels", 1, "radius_mm"), "4:16"),
        (("wheels", 1, "spokes"), "4:5"),
        (("load_kg",), "1:1"),
    ],
)
def test_a_later_problem_finds_its_place(path: tuple[str | int, ...], place: str) -> None:
    problem = parse_model(CART, "cart.yaml", Cart).problem_at(path, "too small", "take a larger one")
    assert str(problem) == f"cart.yaml:{place}: too small; take a larger one"


def test_the_explanation_of_a_field_is_part_of_the_way_out() -> None:
    assert problems_of("wheels: []\n") == [
        "cart.yaml:1:1: `name` is missing in the file; add `name: ...` (name: What it is called)"
    ]


def test_a_rule_of_the_whole_model_is_said_in_its_own_words() -> None:
    (problem,) = problems_of("name: big\nwheels: [{radius_mm: 1}]\n")
    assert problem.startswith("cart.yaml:1:1:") and problem.endswith("1 wheels do not stand")


def test_a_broken_file_yields_what_is_right_in_it_and_says_what_is_not() -> None:
    examined = examine(b"name: 5\nwheels: [{radius_mm: 0}, {radius_mm: 3}]\nlid: {radius: 1}\n", "cart.yaml", Cart)
    assert examined.model is not None
    assert examined.model.wheels[1] == Wheel(radius_mm=3)
    assert examined.broken == {("name",), ("wheels", 0, "radius_mm"), ("lid", "radius_mm")}
    assert len(examined.problems) == 4


def test_positions_survive_wide_characters_and_windows_line_ends() -> None:
    text = "name: 'größe 🚚'\r\nwheels:\r\n  - {radius_mm: no}\r\n  - {radius_mm: 1}\r\n"
    (problem,) = problems_of(text)
    assert problem.startswith("cart.yaml:3:17: YAML readers disagree whether no is text")
    assert problems_of("# 🚚\nname: '🚚', x\n")[0].startswith("cart.yaml:2:10:")


@pytest.mark.parametrize(
    ("word", "value"),
    [("12", 12), ("-3", -3), ("0", 0), ("1.5", 1.5), ("2e3", 2000.0), ("true", True), ("False", False), ("r01", "r01"),
     ("127.1.1.1", "127.1.1.1"), ("02:00:00:00:01:01", "02:00:00:00:01:01"), ("nova", "nova"), ("1.2.3", "1.2.3"), ("-", "-")],
)  # fmt: skip
def test_words_that_look_like_what_they_are_are_taken(word: str, value: object) -> None:
    assert read_word(word) == (value, None)
    assert type(read_word(word)[0]) is type(value)


REFUSED = (
    *(
        "yes",
        "NO",
        "On",
        "off",
        "y",
        "010",
        "00",
        "0x1F",
        "0o17",
        "0b1",
        "1_000",
        "22:30",
        "1:30.5",
        ".5",
        ".inf",
        "-.INF",
        ".NaN",
    ),
    *("2024-01-02", "2024-1-2 10:00:00", "=", "~", "null", "", "1e999", "9" * 31),
)


@pytest.mark.parametrize("word", REFUSED)
def test_words_that_yaml_reads_otherwise_are_refused(word: str) -> None:
    _, trouble = read_word(word)
    assert trouble is not None and all(trouble)


def test_what_is_no_readable_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "full").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    said = {}
    for name in ("none.yaml", "full", "pipe", "large.yaml", "loop", "nul\0"):
        with pytest.raises(BadInput) as caught:
            load_model(tmp_path / name, Cart)
        (problem,) = caught.value.problems
        assert (problem.line, problem.column) == (0, 0) and problem.hint
        said[name] = problem.message
    assert said["none.yaml"] == "there is no such file"
    assert said["full"] == "is a folder"
    assert said["pipe"] == "is not a regular file"
    assert said["large.yaml"] == "is 8.0 MiB large; at most 8 MiB are read"
    assert said["loop"].startswith("cannot be read: ") and said["nul\0"].startswith("cannot be read: ")


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    before = set(os.listdir("/proc/self/fd"))
    for name in ("cart.yaml", "."):
        try:
            load_model(tmp_path / name, Cart)
        except BadInput:
            assert name == "."
    assert set(os.listdir("/proc/self/fd")) == before
