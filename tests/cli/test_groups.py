"""What a person who mistypes is told, and what every group's help says."""

import click
import pytest

from orchestrator.cli.groups import CommandGroup
from orchestrator.cli.main import COMMANDS, cli, run

GROUPS = [name for name in COMMANDS if isinstance(cli.get_command(click.Context(cli), name), click.Group)]


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["stauts"], "status"), (["vaildate", "x.yaml"], "validate"), (["node", "shwo"], "show"), (["lab", "upp"], "up")],
)
def test_a_mistyped_command_names_the_near_one(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert f"Did you mean {meant}" in capsys.readouterr().err


def test_a_word_that_is_near_nothing_is_only_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["xyzzy"]) == 2
    said = capsys.readouterr().err
    assert "No such command 'xyzzy'." in said and "mean" not in said


@pytest.mark.parametrize("name", GROUPS)
def test_no_line_of_a_groups_help_is_cut(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = cli.get_command(click.Context(cli), name)
    assert isinstance(group, CommandGroup)
    assert run([name, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for command in group.commands.values():
        first_words, _, _ = (command.help or "").partition(".")
        assert " ".join(first_words.split()) in said, command.name
