"""Secrets do not print, travel or end up in logs."""

import copy
import json
import logging
import pickle
import time

import pytest

from orchestrator.domain.errors import SecretMissing
from orchestrator.domain.secret import RedactingFilter, Redactor, Secret

CANARY = "Canary-pa55word-ÄÖ"


def test_no_way_of_showing_a_secret_shows_it() -> None:
    secret = Secret(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>30}",
        f"{secret!r}",
        repr([secret]),
        repr({"a": secret}),
    ]
    shown += [json.dumps({"password": secret}, default=str), repr(pickle.dumps(secret)), repr(copy.copy(secret))]
    assert not any(CANARY in text for text in shown)
    with pytest.raises(TypeError):
        json.dumps({"password": secret})
    with pytest.raises(TypeError):
        list(secret)
    assert secret.reveal() == CANARY


def test_a_secret_that_was_pickled_refuses_to_be_used() -> None:
    travelled = pickle.loads(pickle.dumps(Secret(CANARY)))  # noqa: S301 - our own bytes
    with pytest.raises(SecretMissing):
        travelled.reveal()


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("x") and not Secret("")


def test_the_filter_cleans_messages_arguments_and_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    redactor = Redactor([Secret(CANARY), Secret(CANARY + "-longer")])
    logger = logging.getLogger("rackray.test")
    caplog.handler.addFilter(RedactingFilter(redactor))
    try:
        raise ValueError(f"bad {CANARY}")
    except ValueError:
        logger.exception("login with %s and %s failed", CANARY, {"deep": [CANARY + "-longer"]})
    caplog.handler.removeFilter(caplog.handler.filters[-1])
    assert "login with ***" in caplog.text and "-longer" not in caplog.text
    assert CANARY not in caplog.text and "ValueError" in caplog.text


def test_every_occurrence_goes_and_nothing_else() -> None:
    redactor = Redactor([Secret("abcdef"), Secret("abcdef-and-more"), Secret("xyzxyz")])
    assert redactor.clean("abcdefabcdef abcdef-and-more.abcde xyzxyzxyz") == "****** ***.abcde ***xyz"
    assert redactor.clean("") == "" and redactor.clean("abcde") == "abcde"


def test_thousands_of_secrets_do_not_slow_the_log() -> None:
    redactor = Redactor(Secret(f"{number:05d}-password") for number in range(20_000))
    text = "x" * 5000 + "19999-password"
    started_s = time.perf_counter()
    assert redactor.clean(text).endswith("x***")
    assert time.perf_counter() - started_s < 1.0


def test_words_too_short_to_be_secrets_are_left_in_the_text() -> None:
    assert Redactor([Secret("on")]).clean("power on") == "power on"
