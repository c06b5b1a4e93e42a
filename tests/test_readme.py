"""What the READMEs say is so: commands parse, links lead somewhere, drawings are fresh, and maps name every file."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import click
import pytest

from orchestrator.cli import map_docs, spec_docs
from orchestrator.cli.main import COMMANDS, cli
from tests import house
from tests.house import PROJECT

MAPPED = sorted(path for path in (PROJECT / "orchestrator").iterdir() if (path / "__init__.py").exists())
OPERATORS = "|&;<>()"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND_IN_WORDS = re.compile(r"`rackray((?: [a-z][a-z-]*)+)")


def readmes() -> list[Path]:
    """Every README of the project, hidden folders and what others installed aside."""
    found = PROJECT.rglob("README.md")
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(PROJECT).parts))


def named(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def each_readme(*, with_text: str = "") -> pytest.MarkDecorator:
    chosen = [path for path in readmes() if with_text in path.read_text(encoding="utf-8")]
    return pytest.mark.parametrize("readme", chosen, ids=named)


# ---------------------------------------------------------------------- commands
def typed(text: str) -> Iterator[list[str]]:
    """The words of each command in the sh blocks: continued lines joined, prompts and comments left out, pipes taken apart."""
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=OPERATORS)
                lexer.whitespace_split = True
                for is_operator, words in groupby(lexer, key=lambda word: set(word) <= {*OPERATORS}):
                    if not is_operator:
                        yield list(words)


def complaint(words: list[str], targets: set[str]) -> str:
    """What is wrong with a command of ours; empty for those that are right, and for those that are not ours."""
    while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
        words.pop(0)
    program = words[0].rpartition("/")[2] if words else ""
    if program == "make":
        unknown = [word for word in words[1:] if "=" not in word and not word.startswith("-") and word not in targets]
        return f"no target {unknown[0]}" if unknown else ""
    if program == "rackray":
        lost = [word for word in words if word.endswith(".yaml") and "/" in word and not (PROJECT / word).exists()]
        return f"there is no {lost[0]}" if lost else refusal(words[1:])
    if program.startswith(("python", "torchrun")) and "-m" in words:
        module = words[words.index("-m") + 1]
        return "" if importlib.util.find_spec(module) else f"no module {module}"
    return ""


def refusal(words: list[str]) -> str:
    """What click says against `rackray WORDS`, without running anything."""
    command: click.Command = cli
    context: click.Context | None = None
    name = "rackray"
    try:
        while isinstance(command, click.Group):
            context = command.make_context(name, list(words), parent=context)
            words = [*context._protected_args, *context.args]
            name, found, words = command.resolve_command(context, list(words))
            assert name is not None and found is not None
            command = found
        command.make_context(name, list(words), parent=context)
    except click.exceptions.Exit:
        return ""  # --help and --version end here
    except click.ClickException as error:
        return error.format_message()
    return ""


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@each_readme(with_text="```")
def test_every_command_in_a_readme_could_be_typed(readme: Path) -> None:
    commands = list(typed(readme.read_text(encoding="utf-8")))
    assert {shlex.join(words): said for words in commands if (said := complaint(words, make_targets()))} == {}


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("rackray conquer world", "No such command"),
        ("RACKRAY_HOME=/tmp/x .venv/bin/rackray status --colour red", "No such option"),
        ("$ rackray validate", "Missing argument"),
        ("rackray node \\\n  levitate n1", "No such command"),
        ("true && rackray train submit | tee log", "Missing argument"),
        ("rackray validate cluster_specs/lab-5.yaml", "there is no cluster_specs/lab-5.yaml"),
        ("make coffee", "no target coffee"),
        ("python -m orchestrator.cli.nowhere", "no module"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(block: str, says: str) -> None:
    said = [complaint(words, make_targets()) for words in typed(f"```sh\n{block}\n```\n")]
    assert says in "".join(said)


@pytest.mark.parametrize(
    "block",
    [
        "rackray --help",
        "rackray validate cluster_specs/lab-4.yaml --json | jq .ok  # it's a comment; rackray conquer",
        "make demo",
        "make test && make demo",
        "ls conquer",
    ],
)
def test_a_command_that_exists_passes(block: str) -> None:
    said = [complaint(words, make_targets()) for words in typed(f"```sh\n{block}\n```\n")]
    assert said and set(said) == {""}


def test_every_row_of_the_command_table_leads_to_a_command() -> None:
    context = click.Context(cli)
    assert [name for name in COMMANDS if not isinstance(cli.get_command(context, name), click.Command)] == []


@pytest.mark.parametrize("tree", ["orchestrator", "model", "playbooks"])
def test_a_hint_names_a_command_that_exists(tree: str) -> None:
    found = {}
    for module in house.modules_of(tree):
        for node in ast.walk(module.tree):
            texts = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            for path in (match.split() for text in texts for match in COMMAND_IN_WORDS.findall(text)):
                if said := unknown_command(path):
                    found[f"{module.path}:{node.lineno}"] = said
    assert found == {}


def unknown_command(path: list[str]) -> str:
    """Which word of `rackray WORDS` is no command; words after a command without subcommands are its own business."""
    command: click.Command | None = cli
    for word in path:
        if not isinstance(command, click.Group):
            return ""
        command = command.get_command(click.Context(command), word)
        if command is None:
            return f"rackray {' '.join(path)}: there is no {word}"
    return ""


def test_a_hint_with_an_unknown_command_is_noticed() -> None:
    assert unknown_command(["node", "levitate"]) == "rackray node levitate: there is no levitate"
    assert unknown_command(["train", "submit", "job"]) == ""


# ---------------------------------------------------------------------- links, drawings, maps
@each_readme(with_text="](")
def test_every_relative_link_leads_somewhere(readme: Path) -> None:
    text = FENCE.sub("", readme.read_text(encoding="utf-8"))
    targets = [target.partition("#") for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    lost = [path for path, _, _ in targets if path and not (readme.parent / path).exists()]
    assert lost == []
    anchors = [(readme.parent / path if path else readme, anchor) for path, _, anchor in targets if anchor]
    assert [anchor for file, anchor in anchors if anchor not in headings(file)] == []


def headings(file: Path) -> set[str]:
    """The anchors GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_readme(with_text="<!-- drawn: ")
def test_what_is_drawn_from_the_code_is_fresh(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert text == map_docs.with_drawings(text), f"run `python -m orchestrator.cli.map_docs {named(readme)}`"


def test_the_map_draws_both_lives() -> None:
    text = (PROJECT / "orchestrator" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- drawn: (.*?) -->", text)) == set(map_docs.DRAWN) - {"commands"}


@each_readme(with_text="<!-- end of fields")
def test_the_reference_of_fields_is_fresh(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert text == spec_docs.with_fields(text), f"run `python -m orchestrator.cli.spec_docs {named(readme)}`"
    assert set(re.findall(r"spec_docs (\S+)` -->", text)) == {named(readme)}


def test_every_kind_of_file_an_operator_writes_has_its_reference() -> None:
    found = {block[1] for readme in readmes() for block in spec_docs.BLOCK.finditer(readme.read_text(encoding="utf-8"))}
    assert found == set(spec_docs.BLOCKS)


@pytest.mark.parametrize("folder", MAPPED, ids=lambda folder: folder.name)
def test_a_folders_map_names_every_file_and_no_other(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    patterns = set(re.findall(r"`([\w*]+\.py)`", text))
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    missing = sorted(file for file in files if not any(fnmatch(file, pattern) for pattern in patterns))
    assert missing == [], f"{named(folder)}/README.md does not say what these hold"
    known = {module.path.rpartition("/")[2] for module in house.modules_of(*house.OURS)}
    gone = sorted(pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in known))
    assert gone == [], f"{named(folder)}/README.md names what is not there"


@each_readme(with_text=".py`")
def test_every_path_a_readme_names_exists(readme: Path) -> None:
    text = FENCE.sub("", readme.read_text(encoding="utf-8"))
    paths = re.findall(r"`((?:[\w*-]+/)+[\w*-]+\.(?:py|yaml|yml|md|toml))`", text)
    starts = (PROJECT, PROJECT / "orchestrator", readme.parent, PROJECT / "tests")
    assert sorted(path for path in paths if not any(list(start.glob(path)) for start in starts)) == []


def test_the_projects_readme_names_every_command_in_the_words_of_help() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"rackray {name}" not in text] == []
    rows = dict(re.findall(r"^\| `rackray ([a-z]+)` \| (.*?) \|$", text, re.MULTILINE))
    assert rows == {name: row.help for name, row in COMMANDS.items() if name in rows}


def test_continuous_integration_runs_the_command_that_the_readme_names() -> None:
    (command,) = re.findall(r"exec (make .*)$", (PROJECT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    commands = list(typed((PROJECT / "README.md").read_text(encoding="utf-8")))
    assert command.split() in commands
