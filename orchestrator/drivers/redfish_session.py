"""One login at one BMC: session token, one new login when the session has died, log-out at the end.

The two accounts of a BMC's life: `factory` (user and password of the vendor's delivery, per serial, never guessed) and `ours`
(`access.bmc_user` with the password from the secrets folder). BMCs lock accounts after a few wrong passwords, so a login is
tried once and never in a loop.
"""

import logging
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.errors import PeerError, PeerRefused
from orchestrator.domain.secret import Secret
from orchestrator.drivers.redfish_client import Answer, RedfishClient, extended_infos

LOG = logging.getLogger(__name__)
SESSIONS = "/redfish/v1/SessionService/Sessions"
MUST_CHANGE = "PasswordChangeRequired"
CONDITION_FAILED = (412, 428)
EMPTY_ETAGS = ("", '""', 'W/""')
"""What BMCs send where they keep no ETag."""


class PasswordChangeDue(PeerRefused):
    """The BMC serves nothing but a change of the password that was used to log in."""

    def __init__(self, where: str, account_uri: str) -> None:
        super().__init__(f"the BMC at {where} wants its factory password changed first", "`rackray apply` replaces it")
        self.account_uri = account_uri
        """URI of the account to change; empty if the BMC did not say."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and its password."""

    account: str
    """"factory" or "ours"."""
    username: str
    password: Secret


class RedfishSession:
    """Requests under one login. Thread-safe; raises what RedfishClient raises, and PasswordChangeDue."""

    def __init__(self, client: RedfishClient) -> None:
        self.client = client
        self._lock = threading.RLock()
        self._login: Login | None = None
        self._token = ""
        self._uri = ""
        self._basic = ""

    @property
    def account(self) -> str:
        """Who is logged in: "factory", "ours" or, before the first login, empty."""
        return self._login.account if self._login else ""

    @property
    def username(self) -> str:
        """User name of the login; empty before the first."""
        return self._login.username if self._login else ""

    def log_in(self, login: Login) -> bool:
        """Log in, leaving any earlier session. False if name or password is wrong."""
        with self._lock:
            self.log_out()
            if not self._open(login):
                return False
            self._login = login
            return True

    def log_out(self) -> None:
        """Delete the session at the BMC: it keeps few. A BMC that does not answer is let be; the session dies of age there."""
        with self._lock:
            token, uri = self._token, self._uri
            self._token = self._uri = self._basic = ""
            self._login = None
            if not (token and uri):
                return
            try:
                self.client.send("DELETE", uri, headers={"X-Auth-Token": token}, changes=False)
            except PeerError as error:
                LOG.info("a session at the BMC %s was not deleted: %s", self.client.where, error)

    def close(self) -> None:
        """Log out and close the connections."""
        self.log_out()
        self.client.close()

    def get(self, link: object) -> Mapping[str, Any]:
        """The resource's JSON object. PeerRefused if the answer is not one."""
        return self.fetch(link).body

    def fetch(self, link: object) -> Answer:
        """The resource with its headers."""
        return self._asked("GET", link, None, {})

    def find(self, link: object) -> Answer | None:
        """As `fetch`, but None where the BMC answers 404."""
        answer = self._answered("GET", link, None, {})
        return None if answer.status == 404 else self._checked(answer, "GET", link, None)

    def write(self, method: str, link: object, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
        """POST, PATCH or DELETE. The answer says yes, or PeerRefused or AnswerLost is raised."""
        return self._asked(method, link, body, headers or {})

    def patch(self, link: object, body: Mapping[str, Any]) -> Answer:
        """PATCH, with the resource's ETag where it has one (some BMCs answer 412 or 428 without).

        412 and 428 say that nothing was done, so another condition may follow them: a weak ETag as a strong one, because it may
        not be compared (RFC 9110, 13.1.1) and BMCs send such ones; a strong one as it reads now, because somebody may have
        written in between; none or an empty one as `*`.
        """
        answer = None
        for condition in self._conditions(link):
            answer = self._answered("PATCH", link, body, {"If-Match": condition} if condition else {})
            if answer.status not in CONDITION_FAILED:
                break
        assert answer is not None  # noqa: S101 - there is always a condition, and the type checker cannot know
        return self._checked(answer, "PATCH", link, body)

    def _conditions(self, link: object) -> Iterator[str]:
        """What If-Match may say, one after the other; empty for no If-Match."""
        etag = self.fetch(link).etag
        if etag.strip() in EMPTY_ETAGS:
            yield from ("", "*")
            return
        yield etag
        if etag.startswith("W/"):
            yield etag.removeprefix("W/")
        elif (now := self.fetch(link).etag) and now != etag:
            yield now
        else:
            yield etag

    def _asked(self, method: str, link: object, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Answer:
        return self._checked(self._answered(method, link, body, headers), method, link, body)

    def _answered(self, method: str, link: object, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Answer:
        path = self.client.path_of(link)
        used = self._credential()
        answer = self.client.send(method, path, body, {**headers, **used})
        if answer.status == 401 and self._renew(used):
            # 401 means that the request was not obeyed: sending it again repeats nothing.
            answer = self.client.send(method, path, body, {**headers, **self._credential()})
        return answer

    def _checked(self, answer: Answer, method: str, link: object, body: Mapping[str, Any] | None) -> Answer:
        if answer.status == 403 and MUST_CHANGE in answer.message_ids:
            raise PasswordChangeDue(self.client.where, self._account_to_change(answer))
        return self.client.check(answer, method, str(link), body)

    def _credential(self) -> dict[str, str]:
        with self._lock:
            if self._basic:
                return {"Authorization": self._basic}
            return {"X-Auth-Token": self._token} if self._token else {}

    def _renew(self, used: Mapping[str, str]) -> bool:
        """A new session after a 401. True if the request can be sent again."""
        with self._lock:
            if self._login is None or self._basic:
                return False
            if self._credential() != dict(used):
                return True  # another thread has renewed it already
            self._token = self._uri = ""
            if self._open(self._login):
                return True
            # The login is no longer good. Whoever comes next logs in anew, with what the secrets folder says then.
            self._login = None
            return False

    def _open(self, login: Login) -> bool:
        credentials = {"UserName": login.username, "Password": login.password.reveal()}
        # A lost answer costs one of the BMC's sessions until it times out, nothing more.
        answer = self.client.send("POST", SESSIONS, credentials, changes=False)
        if answer.status in (404, 405, 501) or "SessionLimitExceeded" in answer.message_ids:
            return self._open_without_session(login)
        if answer.status == 401 or (answer.status == 400 and "NoValidSession" in answer.message_ids):
            return False
        self.client.check(answer, "POST", SESSIONS, credentials)
        token = answer.headers.get("x-auth-token", "")
        if not token:
            raise PeerRefused(f"the BMC at {self.client.where} made a session without a token", retryable=True)
        self._token = token
        place = answer.headers.get("location") or answer.body.get("@odata.id")
        self._uri = self.client.path_of(place) if place else ""
        return True

    def _open_without_session(self, login: Login) -> bool:
        """No SessionService, or its pool is full: HTTP Basic, over the same pinned TLS."""
        pair = f"{login.username}:{login.password.reveal()}".encode()
        header = "Basic " + b64encode(pair).decode()
        answer = self.client.send("GET", "/redfish/v1/Systems", headers={"Authorization": header})
        if answer.status == 401:
            return False
        if not (answer.status == 403 and MUST_CHANGE in answer.message_ids):
            self.client.check(answer, "GET", "/redfish/v1/Systems")
        LOG.info("the BMC %s has no session to give; each request carries the login", self.client.where)
        self._basic = header
        return True

    def _account_to_change(self, answer: Answer) -> str:
        """MessageArgs of PasswordChangeRequired name the account (DSP0266, "Password management")."""
        for info in extended_infos(answer.body):
            arguments = info.get("MessageArgs")
            if str(info.get("MessageId", "")).endswith(MUST_CHANGE) and isinstance(arguments, list) and arguments:
                return self.client.path_of(arguments[0])
        return ""
