"""Replacing a BMC's factory password by ours, so that a crash at any point is mended by doing it again.

Order: our password is durable on our side before any BMC hears it; then the factory account gets it (the factory password is
dead from here on); then our own account is made with it. So "our account can log in" means that all of it was done, and a run
that was cut short finds its place by which login works:

    our account, our password            nothing left to do
    factory account, factory password    nothing was done
    factory account, our password        the first half was done
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.domain.errors import PeerRefused
from orchestrator.drivers.redfish_reading import follow, link, members, text
from orchestrator.drivers.redfish_session import Login, PasswordChangeDue, RedfishSession

ROLE = "Administrator"
RESERVED_SLOT = "1"
"""BMCs with fixed slots keep the first one for themselves (iDRAC: anonymous)."""


def replace_password(session: RedfishSession, factory: Login, ours: Login) -> bool:
    """Make `ours` the working login and the factory password a dead one. Leaves `session` logged in as ours.

    False if ours worked already. Raises PeerRefused (no login works, the service refuses), AnswerLost (do it again: it is
    idempotent), PeerUnreachable.
    """
    if session.log_in(ours):
        return False
    changed_factory = Login("factory", factory.username, ours.password)
    if session.log_in(factory):
        _change_own_password(session, ours)
    elif not session.log_in(changed_factory):
        raise PeerRefused(
            f"the BMC at {session.client.where} accepts neither our login nor the factory login of {factory.username}",
            "somebody changed it, or the delivery list is wrong: reset the BMC to factory defaults, or correct the list",
        )
    if ours.username != factory.username:
        # Some BMCs end every session of an account whose password changes.
        if not session.log_in(changed_factory):
            raise PeerRefused(f"the BMC at {session.client.where} took a new password for {factory.username} and refuses it")
        _make_account(session, ours)
    if not session.log_in(ours):
        raise PeerRefused(
            f"the BMC at {session.client.where} made the account {ours.username} and refuses its login",
            "some BMCs need seconds to apply it; if it stays, look at the account's role and the lock-out rules",
            retryable=True,
        )
    return True


def _change_own_password(session: RedfishSession, ours: Login) -> None:
    body = {"Password": ours.password.reveal()}
    try:
        uri = link(_account_named(session, session.username) or {})
    except PasswordChangeDue as due:
        uri = due.account_uri or None
    if uri is None:
        raise PeerRefused(
            f"the BMC at {session.client.where} does not show the account {session.username} it let in",
            "change the factory password by hand at its web page, to the one in the secrets folder",
        )
    try:
        session.patch(uri, body)
    except PasswordChangeDue:
        # Reading the account for its ETag is refused too; the change itself is what the BMC waits for.
        session.write("PATCH", uri, body)


def _make_account(session: RedfishSession, ours: Login) -> None:
    wanted = {"Password": ours.password.reveal(), "RoleId": ROLE, "Enabled": True}
    existing = link(_account_named(session, ours.username) or {})
    if existing:
        session.patch(existing, wanted)
        return
    accounts = follow(session, "AccountService", "Accounts")
    new = {"UserName": ours.username, "Password": wanted["Password"], "RoleId": ROLE}
    try:
        session.write("POST", accounts, new)
    except PeerRefused as refused:
        slot = _empty_slot(session, accounts)
        if slot is None:
            raise PeerRefused(
                f"the BMC at {session.client.where} does not let us add the account {ours.username}: {refused}",
                "name its only account in access.bmc_user",
                retryable=refused.retryable,
                retry_after_s=refused.retry_after_s,
            ) from refused
        session.patch(slot, {**wanted, "UserName": ours.username})


def _account_named(session: RedfishSession, username: str) -> Mapping[str, Any] | None:
    for account in _accounts(session, follow(session, "AccountService", "Accounts")):
        if text(account, "UserName") == username:
            return account
    return None


def _empty_slot(session: RedfishSession, accounts: str) -> str | None:
    """A BMC with fixed slots takes no POST; an account is made by naming an empty slot."""
    for account in _accounts(session, accounts):
        if "UserName" in account and text(account, "UserName") is None and text(account, "Id") != RESERVED_SLOT:
            return link(account)
    return None


def _accounts(session: RedfishSession, accounts: str) -> list[Mapping[str, Any]]:
    return [session.get(member["@odata.id"]) for member in members(session, accounts)]
