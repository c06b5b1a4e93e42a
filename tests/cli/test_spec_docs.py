"""The reference of a spec's fields and its JSON Schema: every example validates, every shipped spec fits the schema."""

import json
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import yaml
from pydantic import TypeAdapter

from orchestrator.cli.spec_docs import SCHEMA_FILE, SPECS, _parts
from orchestrator.cli.spec_examples import OUR_OWN, Examples
from orchestrator.domain.spec import ClusterSpec

PARTS = dict(_parts("", ClusterSpec))
SCHEMA = json.loads((SPECS / SCHEMA_FILE).read_text())


def test_every_field_has_an_example_of_its_own_key() -> None:
    examples = Examples(SPECS)
    for part, model in PARTS.items():
        for key in model.model_fields:
            assert examples.of(part, key).startswith(f"{key}: "), (part, key)


@pytest.mark.parametrize(("part", "key"), OUR_OWN, ids=lambda word: str(word))
def test_examples_that_no_shipped_spec_gives_are_valid_all_the_same(part: str, key: str) -> None:
    field = PARTS[part].model_fields[key]
    (value,) = yaml.safe_load(OUR_OWN[part, key]).values()
    assert TypeAdapter(Annotated[field.annotation, field]).validate_python(value) is not None


def editor(text: str) -> list[str]:
    """What an editor that knows the schema would underline."""
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.name)
def test_an_editor_underlines_nothing_in_the_specs_that_ship(path: Path) -> None:
    assert editor(path.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cluster: example", "clutser: example"),
        ("    units: 8\n", "    units: eight\n"),
        ("    idle: 3 kW\n", "    idle: lots\n"),
        ("kind: leaf-switch", "kind: leaf"),
        ("breaker: 60 A, voltage: 415 V}", "breaker: 60 A, volts: 415 V}"),
        ("cable: aoc", "cable: string"),
        ("  image: {url", "  image: {uri"),
        ("    sku: dgx-h100\n    serial", "    sku: [1]\n    seriall"),
    ],
)
def test_an_editor_underlines_a_mistake(old: str, new: str) -> None:
    text = (SPECS / "example-32-dgx.yaml").read_text()
    assert old in text
    wrong: list[Any] = editor(text.replace(old, new, 1))
    assert wrong
