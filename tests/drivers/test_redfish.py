"""Redfish against the lab's real BMC: identity, passwords, power, boot, firmware, and what happens when it misbehaves."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import AnswerLost, IdentityMismatch, PeerRefused, PeerUnreachable, SecretMissing
from orchestrator.drivers.redfish import RedfishBmc
from tests.drivers.redfish_lab import FACTORY_USER, BmcLab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[BmcLab]:
    lab = BmcLab.started(tmp_path)
    try:
        yield lab
    finally:
        lab.stop()


def credentialed(lab: BmcLab, node: str = "n1") -> RedfishBmc:
    """A BMC past the change of its factory password, logged in as ourselves."""
    lab.add(node)
    bmc = lab.open(node)
    bmc.replace_factory_password()
    return bmc


def soon(look: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + 5
    while not look():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def answers(bmc: RedfishBmc) -> bool:
    try:
        bmc.observe()
    except PeerUnreachable:
        return False
    return True


def test_a_machine_from_the_factory_says_only_its_certificate_until_its_password_is_replaced(lab: BmcLab) -> None:
    target = lab.add("n1")
    bmc = lab.open("n1")
    facts = bmc.identify()
    assert facts["password_change_required"] is True
    assert facts["serial"] is None and facts["model"] is None
    assert facts["account"] == "factory"
    assert facts["certificate_sha256"] == target.bmc_certificate_sha256

    assert bmc.replace_factory_password() == {"account": "ours", "changed": True}
    facts = bmc.identify()
    assert (facts["serial"], facts["model"], facts["manufacturer"], facts["power"]) == ("SER-n1", "LAB-2G", "Rackray", "Off")
    assert facts["account"] == "ours" and facts["bmc_firmware"] and facts["password_change_required"] is False
    bmc.close()


def test_the_factory_password_is_dead_afterwards_and_a_second_replacement_changes_nothing(lab: BmcLab) -> None:
    credentialed(lab).close()
    accounts = lab.machines["n1"].accounts
    assert {account.username for account in accounts.all()} == {FACTORY_USER, "rackray"}
    assert not any(account.must_change for account in accounts.all())
    ours = lab.secrets().bmc_password("n1").reveal()
    assert {account.password for account in accounts.all()} == {ours}

    again = lab.open("n1")
    assert again.replace_factory_password() == {"account": "ours", "changed": False}
    again.close()
    assert [r["method"] for r in lab.requests("n1") if r["method"] == "PATCH"].count("PATCH") == 1


def test_a_site_may_keep_the_factory_user_with_our_password(lab: BmcLab) -> None:
    lab.add("n1")
    bmc = lab.open("n1", bmc_user=FACTORY_USER)
    assert bmc.replace_factory_password() == {"account": "ours", "changed": True}
    assert bmc.identify()["serial"] == "SER-n1"
    (account,) = lab.machines["n1"].accounts.all()
    assert account.password == lab.secrets().bmc_password("n1").reveal()
    bmc.close()


@pytest.mark.parametrize("path", ["/redfish/v1/AccountService/Accounts/1", "/redfish/v1/AccountService/Accounts"])
def test_a_replacement_cut_short_at_either_write_is_finished_by_the_next_one(lab: BmcLab, path: str) -> None:
    lab.add("n1")
    method = "PATCH" if path.endswith("1") else "POST"
    lab.fault("n1", "lost_answer", path_prefix=path, method=method, remaining=1)
    bmc = lab.open("n1")
    with pytest.raises(AnswerLost):
        bmc.replace_factory_password()
    bmc.close()

    next_run = lab.open("n1")
    assert next_run.replace_factory_password()["account"] == "ours"
    assert next_run.identify()["serial"] == "SER-n1"
    next_run.close()
    roles = {account.username: account.role for account in lab.machines["n1"].accounts.all()}
    assert roles == {FACTORY_USER: "Administrator", "rackray": "Administrator"}


def test_another_certificate_than_the_pinned_one_is_told_before_anything_is_sent(lab: BmcLab) -> None:
    lab.add("n1")
    bmc = lab.open("n1", bmc_certificate_sha256="ab" * 32)
    for verb in (bmc.identify, bmc.replace_factory_password, bmc.observe):
        with pytest.raises((IdentityMismatch, SecretMissing)):
            verb()
    assert lab.requests("n1") == []
    bmc.close()


def test_without_any_pin_only_identify_speaks_and_it_reports_the_certificate(lab: BmcLab) -> None:
    target = lab.add("n1", certificate_delivered=False)
    bmc = lab.open("n1", bmc_certificate_sha256="")
    assert bmc.identify()["certificate_sha256"] == target.bmc_certificate_sha256
    before = len(lab.requests("n1"))
    for verb in (bmc.replace_factory_password, bmc.observe, lambda: bmc.reset("On")):
        with pytest.raises(IdentityMismatch, match="no certificate is pinned"):
            verb()
    assert len(lab.requests("n1")) == before
    bmc.close()


def test_an_insecure_bmc_is_spoken_to_loudly(lab: BmcLab, caplog: pytest.LogCaptureFixture) -> None:
    lab.add("n1", certificate_delivered=False)
    bmc = lab.open("n1", bmc_certificate_sha256="ab" * 32, bmc_insecure=True)
    assert bmc.identify()["account"] == "factory"
    assert "NOT checked" in caplog.text
    bmc.close()


def test_swapped_machines_are_noticed_before_anything_is_written(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    lab.fault("n1", "wrong_serial", serial="OTHER-1")
    before = [r for r in lab.requests("n1") if r["method"] in ("POST", "PATCH")]
    for verb in (lambda: bmc.reset("On"), lambda: bmc.boot_once("Pxe"), lambda: bmc.locate(True), bmc.observe):
        with pytest.raises(IdentityMismatch, match="OTHER-1"):
            verb()
    assert [r for r in lab.requests("n1") if r["method"] in ("POST", "PATCH")] == before
    bmc.close()


def test_a_factory_password_goes_only_to_the_serial_it_was_delivered_for(lab: BmcLab) -> None:
    lab.add("n1")
    bmc = lab.open("n1", serial="SER-other")
    with pytest.raises(IdentityMismatch, match=r"factory\.csv says"):
        bmc.identify()
    assert lab.requests("n1") == []


def test_no_password_is_guessed_where_the_delivery_names_none(lab: BmcLab) -> None:
    lab.add("n1", in_delivery=False)
    with pytest.raises(SecretMissing, match="no row"):
        lab.open("n1").identify()
    assert [r for r in lab.requests("n1") if r["method"] == "POST"] == []


def test_looking_writes_nothing_but_its_own_session(lab: BmcLab) -> None:
    credentialed(lab).close()
    before = len(lab.requests("n1"))
    bmc = lab.open("n1")
    bmc.identify(), bmc.observe(), bmc.firmware(), bmc.events()
    bmc.close()
    made = [r for r in lab.requests("n1")[before:] if r["method"] not in ("GET", "HEAD")]
    assert [(r["method"], r["path"].rsplit("/", 1)[0 if r["method"] == "DELETE" else 1].rsplit("/", 1)[-1]) for r in made] == [
        ("POST", "Sessions"),
        ("DELETE", "Sessions"),
    ]


def test_power_and_boot_override_are_read_back(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    assert bmc.boot_once("Pxe") == {"target": "Pxe"}
    assert bmc.reset("On") == {"reset": "On", "accepted": True}
    soon(lambda: bmc.observe()["power"] == "On", "it never powered on")
    seen = bmc.observe()
    assert seen["health"] == "OK" and seen["draw_w"] > 0
    soon(lambda: bmc.observe()["boot_override_enabled"] == "Disabled", "the override was not consumed")
    with pytest.raises(PeerRefused, match="takes"):
        bmc.reset("Nmi")
    with pytest.raises(PeerRefused) as refused:
        bmc.reset("On")
    assert refused.value.retryable, "a state passes"
    bmc.close()


def test_an_update_runs_to_its_end_and_the_version_is_read_back(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    before = {c["id"]: c["version"] for c in bmc.firmware()["components"]}
    assert before == {"BMC": "7.10", "NIC1": "28.36.1010"}
    bmc.reset("On")
    started = bmc.update("NIC1", "https://127.3.0.1:8480/firmware/nic1-28.39.1002.bin", "28.39.1002")
    assert started["task"].startswith("/redfish/v1/TaskService/")
    soon(lambda: bmc.task(started["task"])["state"] == "Completed", "the task never completed")
    assert {c["id"]: c["version"] for c in bmc.firmware()["components"]}["NIC1"] == "28.39.1002"
    assert bmc.task("/redfish/v1/TaskService/Tasks/4711")["state"] == "Vanished"
    with pytest.raises(PeerRefused, match="no firmware component NIC9") as refused:
        bmc.update("NIC9", "https://127.3.0.1/x.bin", "1")
    assert refused.value.hint == "it has BMC, NIC1"
    bmc.close()


def test_lamp_and_event_log(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    assert bmc.locate(True) == {"lit": True} and lab.machines["n1"].is_identify_led_lit
    bmc.locate(False)
    assert not lab.machines["n1"].is_identify_led_lit
    lab.fault("n1", "psu_failed", psu=1)
    entries = bmc.events()["entries"]
    assert any("power supply failed" in e["message"] and e["severity"] == "Critical" and e["at"] for e in entries)
    bmc.close()


def test_a_lost_answer_to_a_reset_is_unknown_and_the_reset_has_happened(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    lab.fault("n1", "lost_answer", path_prefix="/redfish/v1/Systems", method="POST", remaining=1)
    with pytest.raises(AnswerLost):
        bmc.reset("On")
    soon(lambda: bmc.observe()["power"] == "On", "the reset was obeyed all the same")
    bmc.close()


def test_a_dead_session_is_renewed_once_and_the_request_is_done(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    bmc.observe()
    intruder = lab.open("n1")
    # Ends every session behind the first client's back, as a BMC restart does.
    uris = [m["@odata.id"] for m in _sessions(intruder)]
    for uri in uris:
        intruder._session.write("DELETE", uri, {})
    assert bmc.observe()["power"] == "Off"
    assert bmc.reset("On")["accepted"]
    bmc.close()


def _sessions(bmc: RedfishBmc) -> list[dict[str, str]]:
    bmc._enter()
    members = list(bmc._session.get("/redfish/v1/SessionService/Sessions")["Members"])
    own = bmc._session._uri
    return [m for m in members if m["@odata.id"] != own]


def test_busy_and_broken_bmcs_are_told_apart(lab: BmcLab) -> None:
    bmc = credentialed(lab)
    lab.fault("n1", "http_error", path_prefix="/redfish/v1/Systems", status=503, remaining=1, retry_after_s=7)
    with pytest.raises(PeerRefused) as busy:
        bmc.observe()
    assert busy.value.retryable and busy.value.retry_after_s == 7
    lab.fault("n1", "truncated_json", path_prefix="/redfish/v1/Systems", remaining=1)
    with pytest.raises((PeerRefused, PeerUnreachable)):
        bmc.observe()
    lab.fault("n1", "bmc_gone")
    soon(lambda: not answers(bmc), "it is gone and answers")
    lab.heal("n1", "bmc_gone")
    soon(lambda: answers(bmc), "it is back and does not answer")
    bmc.close()


def test_a_full_session_pool_does_not_lock_us_out(lab: BmcLab) -> None:
    credentialed(lab).close()
    lab.fault("n1", "session_pool_full")
    bmc = lab.open("n1")
    assert bmc.observe()["power"] == "Off"
    bmc.close()
