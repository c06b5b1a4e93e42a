"""The Redfish protocol (DSP0266) over the table of routes: headers, login, privileges, conditions, errors.

`RedfishService.handle` is a plain function from a request to an answer; sockets and faults of the wire are
elsewhere.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping

from orchestrator.lab.bmc.actions import Outcome, log_in
from orchestrator.lab.bmc.exchange import Answer, Request, json_bytes
from orchestrator.lab.bmc.messages import Json, Refused, message, refused
from orchestrator.lab.bmc.routes import Route, find_route
from orchestrator.lab.bmc.schemas import (
    ROOT,
    described_by,
    metadata_document,
    odata_document,
    openapi_document,
)
from orchestrator.lab.bmc.services import ACCOUNTS, SESSIONS
from orchestrator.lab.bmc.state import Bmc, Caller
from orchestrator.lab.bmc.writes import write

CHALLENGE = 'Basic realm="Redfish"'
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"})
READ_ONLY = "GET, HEAD"
_ALWAYS = {"OData-Version": "4.0", "Cache-Control": "no-cache"}
_VOLATILE = ("DateTime",)
"""Not part of an ETag: a clock that ticks is no change of the resource."""
_DOCUMENTS = {
    "/redfish": ("application/json", lambda: json_bytes({"v1": f"{ROOT}/"})),
    f"{ROOT}/odata": ("application/json", lambda: json_bytes(odata_document())),
    f"{ROOT}/$metadata": ("application/xml", lambda: metadata_document().encode()),
    f"{ROOT}/openapi.yaml": ("application/yaml", lambda: openapi_document().encode()),
}


class RedfishService:
    """The service of one BMC."""

    def __init__(self, bmc: Bmc) -> None:
        self.bmc = bmc

    def handle(self, request: Request) -> Answer:
        """Answer a request; every refusal is an extended error."""
        user: list[str] = []
        try:
            return self._answer(request, user)
        except Refused as refusal:
            headers = {**_ALWAYS, "Content-Type": "application/json", **refusal.headers}
            return Answer(refusal.status, headers, json_bytes(refusal.body()), user[0] if user else None)

    def _answer(self, request: Request, user: list[str]) -> Answer:
        """`user` receives the name of the caller as soon as it is known, so that refusals are logged with
        it.
        """
        _check_odata_version(request)
        path = request.path.rstrip("/")
        if path in _DOCUMENTS:
            return _document(path, request)
        _check_accept(request)
        found = find_route(path, is_equipment=self.bmc.machine.spec.is_equipment)
        caller = self._identify(request)
        if caller:
            user.append(caller.account.username)
        if caller is None and not _is_open_to_all(found, request):
            raise refused(401, "NoValidSession", WWW_Authenticate=CHALLENGE)
        if caller:
            _check_password_is_changed(caller, request, path)
        if request.method not in KNOWN_METHODS:
            allow = ", ".join(found[0].methods) if found else READ_ONLY
            raise refused(501, "OperationNotAllowed", Allow=allow)
        if found is None:
            raise refused(404, "ResourceMissingAtURI", request.path)
        route, resource_id = found
        if request.method not in route.methods:
            raise refused(405, "OperationNotAllowed", Allow=", ".join(route.methods))
        if request.is_read:
            _check_may_read(route, resource_id, caller)
            return self._read(route, resource_id, request, user)
        outcome = self._write(route, resource_id, request, caller)
        return _render(outcome, route, outcome.user or (user[0] if user else None))

    def _read(self, route: Route, resource_id: str, request: Request, user: list[str]) -> Answer:
        name = user[0] if user else None
        if any(key.startswith("$") for key in request.query):
            raise refused(501, "QueryNotSupported")
        if route.shows_outcome:
            outcome = route.shows_outcome(self.bmc, resource_id)
            if outcome is None:
                raise refused(404, "ResourceMissingAtURI", request.path)
            return _render(outcome, route, name)
        body = self._shown(route, resource_id, request)
        tag = etag_of(body)
        if _matches(request.headers.get("if-none-match", ""), tag):
            return Answer(304, {**_ALWAYS, "ETag": tag}, user=name)
        return _render(Outcome(200, body), route, name)

    def _shown(self, route: Route, resource_id: str, request: Request) -> Json:
        body = route.show(self.bmc, resource_id) if route.show else None
        if body is None:
            raise refused(404, "ResourceMissingAtURI", request.path)
        return body

    def _write(self, route: Route, resource_id: str, request: Request, caller: Caller | None) -> Outcome:
        if request.method == "POST" and route.takes_logins:
            return log_in(self.bmc, _json_object(request), request.peer)
        if caller is None:
            raise refused(401, "NoValidSession", WWW_Authenticate=CHALLENGE)
        shown = self._shown(route, resource_id, request) if route.show else {}
        body = {} if request.method == "DELETE" else _json_object(request)
        _check_privilege(route, resource_id, request.method, body, caller)
        condition = request.headers.get("if-match", "")
        if condition and shown and not _matches(condition, etag_of(shown)):
            raise refused(412, "PreconditionFailed")
        if request.method == "DELETE" and route.delete:
            return route.delete(self.bmc, resource_id)
        if request.method == "POST" and route.post:
            return route.post(self.bmc, body, caller)
        messages = write(self.bmc, resource_id, route.writables or {}, shown, body)
        changed = self._shown(route, resource_id, request)
        if messages:
            changed["@Message.ExtendedInfo"] = messages
        return Outcome(200, changed)

    def _identify(self, request: Request) -> Caller | None:
        """The caller by token or by Basic authentication; None if there is no valid login."""
        accounts, now_s = self.bmc.machine.accounts, self.bmc.now_s
        token = request.headers.get("x-auth-token")
        if token is not None:
            session = self.bmc.sessions.use(token, now_s)
            account = next((a for a in accounts.all() if session and a.id == session.account_id), None)
            return Caller(account, session) if account and account.enabled else None
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        account = accounts.authenticate(username, password, now_s)
        return Caller(account, None) if account else None


def etag_of(body: Json) -> str:
    """A strong ETag over everything of a resource but its clock."""
    steady = {key: value for key, value in body.items() if key not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()
    return f'"{digest[:16]}"'


def _matches(condition: str, tag: str) -> bool:
    candidates = [one.strip().removeprefix("W/") for one in condition.split(",")]
    return bool(condition) and ("*" in candidates or tag in candidates)


def _render(outcome: Outcome, route: Route, user: str | None) -> Answer:
    headers: dict[str, str] = {**_ALWAYS, "Allow": ", ".join(route.methods), **outcome.headers}
    if outcome.body is None:
        return Answer(outcome.status, headers, user=user)
    headers |= {"Content-Type": "application/json", "Link": described_by(outcome.body)}
    if outcome.status in (200, 201):
        # Messages about a write are not part of the resource, so they are not part of its ETag.
        steady = {key: value for key, value in outcome.body.items() if key != "@Message.ExtendedInfo"}
        headers["ETag"] = etag_of(steady)
        if steady.get("@odata.type", "").startswith("#ManagerAccount."):
            outcome.body["@odata.etag"] = headers["ETag"]
    return Answer(outcome.status, headers, json_bytes(outcome.body), user)


def _document(path: str, request: Request) -> Answer:
    if not request.is_read:
        status = 405 if request.method in KNOWN_METHODS else 501
        raise refused(status, "OperationNotAllowed", Allow=READ_ONLY)
    content_type, content = _DOCUMENTS[path]
    headers = {
        **_ALWAYS,
        "Content-Type": content_type,
        "Allow": READ_ONLY,
        "Link": described_by({}),
    }
    return Answer(200, headers, content())


def _check_odata_version(request: Request) -> None:
    if request.headers.get("odata-version", "4.0").strip() != "4.0":
        raise refused(412, "PreconditionFailed", resolution="send OData-Version: 4.0, or no such header")


def _check_accept(request: Request) -> None:
    accept = request.headers.get("accept", "")
    kinds = [one.split(";")[0].strip().lower() for one in accept.split(",") if one.strip()]
    if kinds and not {"*/*", "application/*", "application/json"} & set(kinds):
        raise refused(406, "GeneralError", resolution="this resource is application/json only")


def _is_open_to_all(found: tuple[Route, str] | None, request: Request) -> bool:
    if found is None:
        return False
    route = found[0]
    return (route.is_public and request.is_read) or (route.takes_logins and request.method == "POST")


def _check_password_is_changed(caller: Caller, request: Request, path: str) -> None:
    """While a password must be changed: only its PATCH, a look at the account, the root, and logging in and
    out.
    """
    if not caller.account.must_change:
        return
    own_account = f"{ROOT}{ACCOUNTS}/{caller.account.id}"
    own_session = f"{ROOT}{SESSIONS}/{caller.session.id}" if caller.session else ""
    allowed = {
        (own_account, "GET"),
        (own_account, "HEAD"),
        (own_account, "PATCH"),
        (own_session, "DELETE"),
        (f"{ROOT}{SESSIONS}", "POST"),
        (ROOT, "GET"),
        (ROOT, "HEAD"),
    }
    if (path, request.method) not in allowed:
        raise refused(403, "PasswordChangeRequired", own_account)


def _check_privilege(route: Route, resource_id: str, method: str, body: Mapping[str, object], caller: Caller) -> None:
    if caller.account.must_change and method == "PATCH" and set(body) != {"Password"}:
        raise refused(403, "PasswordChangeRequired", f"{ROOT}{ACCOUNTS}/{caller.account.id}")
    if caller.may(route.write_privilege):
        return
    own_session = caller.session and caller.session.id == resource_id and route.path.startswith(SESSIONS)
    own_password = caller.account.id == resource_id and route.path.startswith(ACCOUNTS) and set(body) == {"Password"}
    is_own = (method == "DELETE" and own_session) or (method == "PATCH" and own_password)
    if not (is_own and route.owner_privilege and caller.may(route.owner_privilege)):
        raise refused(403, "InsufficientPrivilege")


def _check_may_read(route: Route, resource_id: str, caller: Caller | None) -> None:
    """Accounts of others are for those who configure users; everything else is for everyone who may log in."""
    if caller is None or not route.path.startswith(f"{ACCOUNTS}/"):
        return
    if caller.account.id != resource_id and not caller.may(route.write_privilege):
        raise refused(403, "InsufficientPrivilege")


def _json_object(request: Request) -> Json:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refused(415, [message("GeneralError", resolution="send the body as Content-Type: application/json")])
    try:
        body = json.loads(request.body)
    except ValueError as error:
        raise refused(400, "MalformedJSON") from error
    if not isinstance(body, dict):
        raise refused(400, "UnrecognizedRequestBody")
    return body
