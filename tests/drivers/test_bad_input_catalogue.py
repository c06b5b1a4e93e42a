# ruff: noqa: E501 - a row of a table
"""Every kind of bad input that specs are known to meet, and the case or test that holds its file and its sentence."""

import pytest

from tests.drivers import test_bad_specs, test_job_reader, test_spec_expansion
from tests.drivers.bad_spec_cases import CHECK_CASES, FIELD_CASES, YAML_CASES

CASES = {case.kind for case in (*YAML_CASES, *FIELD_CASES, *CHECK_CASES)} | {case[0] for case in test_spec_expansion.CASES}
TESTS = {
    name for module in (test_bad_specs, test_job_reader, test_spec_expansion) for name in dir(module) if name.startswith("test_")
}
NOT_TEXT = "test_a_file_that_is_no_text_or_no_mapping_is_said_so"
FLOOD = "test_an_alias_bomb_and_a_flood_of_mistakes_end_soon"

CATALOGUE: dict[str, tuple[str, ...]] = {
    "empty file": (NOT_TEXT,),
    "not UTF-8, byte order mark, UTF-16": (NOT_TEXT,),
    "tabs as indentation": ("tab",),
    "duplicate key": ("duplicate key", "duplicate key inside"),
    "unknown key": ("unknown key", "wrong value in a pattern"),
    "missing key": ("missing key",),
    "a tag that makes Python objects": ("python tag", "harmless tag"),
    "alias bomb": (FLOOD, "alias"),
    "recursive alias": ("recursive alias",),
    "nested 500 deep": ("depth", FLOOD),
    "merge key": ("merge key",),
    "several documents": ("two documents",),
    "MAC read as a number": ("MAC as number",),
    "time read as a number": ("time as number",),
    "on, off, yes, no": ("no as text", "on as switch", "no as key"),
    "octal, hexadecimal, underscores": ("octal", "hexadecimal", "underscores"),
    "firmware version read as a number": ("version as number",),
    "date": ("date",),
    "watts that are not finite": ("nan", "infinity", "overflow to infinity"),
    "negative, zero and huge counts": ("negative", "zero", "huge", "endless number", "negative quantity"),
    "empty value": ("empty value",),
    "text where a list is due": ("text for a list",),
    "name, address, BMC, MAC or serial twice": ("name twice", "address twice", "BMC address twice", "MAC twice", "serial twice", "serial of a switch"),
    "one address for host and BMC": ("BMC and node",),
    "address outside its subnet, network or broadcast address": ("outside", "network address", "broadcast address", "switch outside the subnet"),
    "IPv6, mapped IPv4, leading zeros": ("long IPv6", "mapped IPv4", "leading zero"),
    "names with shell characters, line breaks, too long": ("shell characters", "line break in a name", "long name"),
    "names that differ in case or by a look-alike": ("name in other case", "look-alike"),
    "range bomb": ("range as a name", "bomb"),
    "range reversed, overlapping, padding lost": ("reversed range", "padding lost", "names of two patterns", "test_a_pattern_that_is_none_is_refused_before_it_is_expanded"),
    "unknown rack, PDU or switch": ("unknown rack", "unknown PDU", "unknown part above", "no such switch"),
    "circle in the power tree": ("circle",),
    "units overlap, above the rack": ("above the rack", "overlap with equipment"),
    "kW for W for A": ("unit in another key", "unit in the value", "kA for kW", "no unit", "unit misspelled"),
    "draw over a breaker, N-1 fails": ("overloaded UPS", "N-1 fails", "too few supplies left", "phase imbalance"),
    "firmware baseline wrong": ("baseline of no SKU", "blank version", "no version"),
    "versions that are no numbers": ("version twice", "version as number"),
    "secret in clear": ("secret key", "secret in a URL", "test_a_secret_in_a_spec_is_not_repeated"),
    "secret's file not found": ("test_a_table_with_passwords_must_be_private",),
    "paths that lead out of the tree": ("test_an_include_stays_in_the_folder_of_its_spec", "climbing path", "relative path"),
    "secret's file readable by others": ("test_a_table_with_passwords_must_be_private",),
    "huge file, endless line": (FLOOD, "endless number"),
    "CRLF": ("test_windows_line_ends_change_nothing",),
    "NUL and control characters": ("NUL", "escaped control", "zero width"),
    "defaults of two levels that disagree": ("test_two_levels_of_defaults_that_disagree_are_refused",),
    "degrees of parallelism that do not multiply": ("test_a_wrong_job_is_refused_at_its_place",),
}  # fmt: skip


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_kind_has_its_file_and_its_sentence(kind: str) -> None:
    missing = [name for name in CATALOGUE[kind] if name not in CASES and name not in TESTS]
    assert missing == []


def test_the_catalogue_is_whole() -> None:
    assert len(CATALOGUE) == 46
