"""After a whole bring-up: every secret of the site was used, and none of them stands anywhere but in the secrets folder."""

from pathlib import Path

import pytest

from tests.scenarios.canaries import Searcher, forms_of
from tests.scenarios.conftest import Road

pytestmark = [pytest.mark.lab, pytest.mark.slow]

KINDS = {"bmc/r01-n1", "factory/r01-n1", "image_token", "ssh_key", "ray-cell.token", "ray-management.token"}
PLACES = {"home", "outputs", "cell Ray", "management Ray", "nodes", "command lines", "environments"}


def test_no_secret_stands_in_journal_logs_outputs_processes_or_on_a_node(road: Road) -> None:
    assert set(road.secrets.secrets) >= KINDS, "the search did not know what to look for"
    empty = [place for place in PLACES if not road.secrets.searched.get(place)]
    assert not empty, f"nothing was looked through in {empty}"
    assert all(len(secret) >= 12 for secret in road.secrets.secrets.values()), "a canary this short proves nothing"
    assert not road.secrets.finds


def test_the_search_finds_a_secret_in_every_form(tmp_path: Path) -> None:
    secret = 'pass/"word"+12345'
    for number, form in enumerate(forms_of(secret)):
        (tmp_path / f"{number}.log").write_bytes(b"user " + form + b" tail")
    searcher = Searcher({"canary": secret})
    searcher.look_below("logs", tmp_path)
    assert {find.rpartition("/")[2] for find in searcher.finds} == {path.name for path in tmp_path.iterdir()}


def test_secrets_and_home_are_closed_to_everybody_else(road: Road) -> None:
    assert not road.open_to_others
