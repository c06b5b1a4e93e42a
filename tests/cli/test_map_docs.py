"""Drawings from the code: complete, legal, and refused where they cannot be right."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from orchestrator.cli import map_docs
from orchestrator.domain.node import BRING_UP, EQUIPMENT_BRING_UP, EQUIPMENT_MOVES, LEGAL_MOVES, NodeState
from orchestrator.domain.run import LEGAL_RUN_MOVES, RunState


class Silent(StrEnum):
    """A set that does not explain itself."""

    SAID = "said"
    """It is said what this one means."""
    UNSAID = "unsaid"


def arrows(drawing: str) -> list[tuple[str, str]]:
    return [(old, new) for old, new in re.findall(r"(\w+) --> (\w+)", drawing) if old != "bring_up" and new != "bring_up"]


@pytest.mark.parametrize(
    ("bring_up", "moves"), [(BRING_UP, LEGAL_MOVES), (EQUIPMENT_BRING_UP, EQUIPMENT_MOVES)], ids=["node", "equipment"]
)
def test_a_drawing_shows_every_legal_move_once_and_no_other(bring_up: tuple[NodeState, ...], moves: dict) -> None:
    drawing = map_docs.node_drawing(bring_up, moves)
    of_all_bring_up = [(str(state), new) for new in re.findall(r"bring_up --> (\w+)", drawing) for state in bring_up]
    drawn = sorted(arrows(drawing) + of_all_bring_up)
    assert drawn == sorted((str(old), str(new)) for old, news in moves.items() for new in news)


def test_the_runs_drawing_shows_every_legal_move_to_another_state() -> None:
    legal = sorted((str(old), str(new)) for old, news in LEGAL_RUN_MOVES.items() for new in news if new is not old)
    assert sorted(arrows(map_docs.run_drawing())) == legal


@pytest.mark.parametrize(("states", "moves"), [(NodeState, LEGAL_MOVES), (RunState, LEGAL_RUN_MOVES)], ids=["node", "run"])
def test_a_table_has_one_row_per_state_with_its_meaning(states: type[StrEnum], moves: dict) -> None:
    rows = map_docs.state_table(states, moves, "meaning").splitlines()[2:]
    assert [re.match(r"\| `(\w+)` \| .{20,} \| .+ \|$", row)[1] for row in rows] == [str(state) for state in states]


def test_a_state_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Silent does not say what has been proven in unsaid"):
        map_docs.state_meanings(Silent)


def test_only_what_stands_between_the_comments_is_redrawn(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- drawn: commands -->\nold\n<!-- end: commands -->\nafter\n")
    assert map_docs.main([str(page)]) == 0
    assert page.read_text() == f"before\n<!-- drawn: commands -->\n{map_docs.command_table()}\n<!-- end: commands -->\nafter\n"


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<!-- drawn: horses -->\n<!-- end: horses -->", "nobody draws 'horses'"),
        ("<!-- drawn: commands -->\n<!-- end: horses -->", "1 drawn parts begin and 0 end"),
    ],
)
def test_a_part_that_cannot_be_drawn_is_refused(page: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        map_docs.with_drawings(page)


def test_no_page_is_a_question_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert map_docs.main([]) == 2
    assert "usage" in capsys.readouterr().err
