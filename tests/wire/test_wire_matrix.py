"""Every fault kind of the SSH and Redfish lists, injected on a real socket against the real drivers, one after the other.

Each row is held to all of its words: what the driver answers, what the controller makes of that, that a sound neighbour asked at
the same time does not notice, that no secret is in anything that is said, and that the exchange works once the fault is healed.
"""

import logging
import re

import pytest

from orchestrator.domain.node import NodeState
from orchestrator.domain.operation import Action, Outcome, Status
from tests.wire import controller_view
from tests.wire.faults import Fault, Then
from tests.wire.matrix import FAULTS, NUMBERS, README, with_matrix
from tests.wire.neighbours import Wire, json_of

MADE = [fault for fault in FAULTS if fault.inject is not None]
SLACK_S = 2.0
"""How far an exchange may overrun its deadline on a busy machine."""


def test_every_fault_kind_has_its_row_and_no_row_is_of_another() -> None:
    assert {fault.number for fault in FAULTS} == set(NUMBERS)
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)


def test_the_readme_shows_the_matrix_as_it_is() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_matrix(text), "run `python -m tests.wire.matrix`"


def test_a_readme_without_a_place_for_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        with_matrix("nothing here")


@pytest.mark.parametrize("fault", MADE, ids=lambda fault: fault.id)
def test_a_fault_is_answered_as_its_row_says(wire: Wire, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    assert fault.inject is not None
    caplog.set_level(logging.DEBUG)
    story = fault.inject(wire)
    met = next(story)
    outcome, sound = wire.ask_beside_a_sound_one(met.node, met.target, fault.action, fault.limit_s, met.args)

    assert outcome.status is fault.status, outcome
    assert re.search(fault.says, outcome.reason), outcome.reason
    if outcome.status is Status.DONE:
        assert fault.shows(outcome.facts), outcome.facts
    else:
        assert outcome.retryable is fault.retryable, outcome
        assert outcome.reason and "Traceback" not in outcome.reason and outcome.reason.isprintable()
    assert outcome.retry_after_s == fault.retry_after_s
    assert outcome.seconds < fault.limit_s + SLACK_S
    because = controller_view.check(fault, outcome, met.args, met.target.serial)
    assert re.search(fault.because, because), because

    assert sound.status is Status.DONE, sound
    said = caplog.text + json_of(outcome) + because
    assert [secret for secret in wire.canaries(met.node) if secret in said] == []

    assert next(story, None) is None, "a story has one exchange"
    if fault.heals:
        healed = wire.ask(met.node, met.target, fault.action, 20.0, **met.args)
        if healed.status is Status.UNREACHABLE:
            # Nothing was sent: the connection that was broken while nobody used it is noticed by its next user.
            healed = wire.ask(met.node, met.target, fault.action, 20.0, **met.args)
        assert healed.status is Status.DONE, f"healed, and yet: {healed}"


def outcome_of(fault: Fault) -> Outcome:
    """What the row says, without a wire."""
    return Outcome(
        "op", controller_view.NODE, fault.action, fault.status, {}, "it is broken", fault.retryable, fault.retry_after_s, 1.0
    )


@pytest.mark.parametrize("fault", [f for f in MADE if f.then is Then.AGAIN], ids=lambda fault: fault.id)
def test_a_fault_that_never_heals_ends_in_quarantine_with_its_reason(fault: Fault) -> None:
    moved, answers, seconds = controller_view.until_given_up(fault, outcome_of(fault), {}, "SER-1")
    assert moved.to is NodeState.QUARANTINED and "it is broken" in moved.because
    limits = controller_view.site().spec.rollout
    assert answers >= 2
    assert seconds <= max(limits.stage_limit_s, limits.attempts * fault.retry_after_s) + 120


def test_the_rows_name_every_way_an_exchange_can_end() -> None:
    assert {fault.status for fault in MADE} == set(Status) - {Status.FENCED, Status.HELD}  # these two are no neighbour's
    assert {fault.then for fault in MADE} == set(Then)
    assert {Action.BMC_POWER, Action.BMC_UPDATE, Action.BMC_BOOT_ONCE, Action.CELL_JOIN} <= {fault.action for fault in MADE}
