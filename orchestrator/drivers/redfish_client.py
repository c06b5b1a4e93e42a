"""HTTP to one BMC: the certificate is checked before a byte is sent, foreign links are refused, foreign errors end here.

certificate     SHA-256 of its DER, compared inside the TLS handshake of every new connection (DESIGN section 7; the pin is
                the identity, so the name in the certificate does not matter and a self-signed one will do)
links           only paths on this BMC; a link to another host or scheme would carry the session token there
time            every read and write is bounded by the deadline of `domain.deadline`, however slowly the BMC drips
errors          PeerUnreachable, AnswerLost, PeerRefused, IdentityMismatch, OwnLimitReached; nothing of httpx leaves this file
"""

import hashlib
import json
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from orchestrator.domain.deadline import remaining_s, within
from orchestrator.domain.errors import AnswerLost, IdentityMismatch, PeerRefused, PeerUnreachable
from orchestrator.domain.secret import MASK
from orchestrator.drivers.own_limits import own_limit

LOG = logging.getLogger(__name__)
# At INFO httpx logs whole URLs, at DEBUG httpcore logs headers, and a token is a header.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)

CONNECT_S = 5.0
LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
CONNECTIONS_PER_BMC = 2
"""BMCs have small listen backlogs: a third parallel connection costs more than it brings."""
SAFE_METHODS = frozenset({"GET", "HEAD"})

BUSY_STATUSES = frozenset({409, 423, 425, 429, 503})
"""It says no for now."""
UNCLEAR_STATUSES = frozenset({500, 502, 504})
"""After a write these do not say whether it was done."""
PASSING_MESSAGES = (
    "ResourceInUse",
    "ResourceInStandby",
    "ResourceExhaustion",
    "ServiceTemporarilyUnavailable",
    "ServiceInUnknownState",
    "ServiceShuttingDown",
    "SessionLimitExceeded",
    "InvalidOperationForSystemState",
    "OperationTimeout",
)
"""Ends of MessageIds whose cause passes by itself, whatever status they come with (iLO says them with 400)."""
SHOWN_CHARACTERS = 600
LONGEST_PATH = 4000
_ABSOLUTE = re.compile(r"^(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?#]*)(.*)$", re.DOTALL)
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a BMC answered: status, headers (keys in lower case) and the JSON object, empty where there was none."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any] = field(default_factory=dict)
    not_json: str = ""
    """Why the body is empty although bytes came; empty if all is well."""

    @property
    def etag(self) -> str:
        """The resource's ETag, from the header or the body; empty if there is none."""
        found = self.headers.get("etag") or self.body.get("@odata.etag")
        return found if isinstance(found, str) else ""

    @property
    def message_ids(self) -> tuple[str, ...]:
        """MessageIds of its extended errors, without registry and version."""
        return tuple(str(info.get("MessageId", "")).rsplit(".", 1)[-1] for info in extended_infos(self.body))


class PinnedContext(ssl.SSLContext):
    """TLS that accepts exactly one certificate: the pinned one, or else the first one met."""

    where: str
    pin: str
    """Lower-case hex SHA-256; empty until the first handshake where nothing is known yet."""
    checked: bool
    """False only for a BMC that the spec names insecure."""
    seen: str
    """Certificate of the latest handshake."""

    def check(self, certificate: bytes | None) -> None:
        """Raises IdentityMismatch; called with the peer's DER before anything is sent."""
        if not certificate:
            raise IdentityMismatch(f"{self.where} showed no certificate", "is it a BMC?")
        self.seen = hashlib.sha256(certificate).hexdigest()
        if self.checked and self.pin and self.seen != self.pin:
            raise IdentityMismatch(
                f"{self.where} shows the certificate {self.seen}, but {self.pin} is pinned",
                "another machine answers there, or its certificate was replaced; nothing was sent to it",
            )
        self.pin = self.pin or self.seen


class PinnedSocket(ssl.SSLSocket):
    """Checks the certificate inside the handshake, and lets no wait go beyond the deadline."""

    def do_handshake(self, block: bool = False) -> None:
        """The handshake, and then the check that no byte may precede."""
        super().do_handshake(block)
        if isinstance(self.context, PinnedContext):
            self.context.check(self.getpeercert(binary_form=True))

    def settimeout(self, value: float | None) -> None:
        """As asked, but never beyond the deadline. httpcore calls this before every read and write."""
        left_s = remaining_s()
        if left_s == 0.0:
            raise TimeoutError("the deadline of the exchange has passed")
        super().settimeout(left_s if value is None and left_s != float("inf") else None if value is None else min(value, left_s))


def pinned_context(where: str, pin: str, *, checked: bool = True) -> PinnedContext:
    """A client context for one BMC. `pin` empty: the first certificate met is kept for as long as the context lives."""
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.where, context.pin, context.checked, context.seen = where, pin.lower(), checked, ""
    context.check_hostname = False
    # The pin replaces the chain: BMC certificates are self-signed and carry factory names.
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = PinnedSocket
    return context


class RedfishClient:
    """Requests to one BMC. Thread-safe. It knows no login; `RedfishSession` puts the token on."""

    def __init__(self, host: str, port: int, context: PinnedContext, step_s: float = 20.0) -> None:
        """`step_s`: longest silence, in seconds, within one request; the deadline of the exchange may be shorter."""
        shown = f"[{host}]" if ":" in host else host
        self.where = f"{shown}:{port}"
        self._context = context
        self._own = {self.where.lower()} | ({shown.lower()} if port == 443 else set())
        self._base = f"https://{self.where}"
        self._step_s = step_s
        self._http = httpx.Client(
            verify=context,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=CONNECTIONS_PER_BMC, max_keepalive_connections=CONNECTIONS_PER_BMC),
            headers={
                "Accept": "application/json",
                # Some BMCs weaken their ETags once compression is offered.
                "Accept-Encoding": "identity",
                "OData-Version": "4.0",
                "User-Agent": "rackray",
            },
        )

    @property
    def certificate_sha256(self) -> str:
        """The certificate of the latest connection; empty before the first."""
        return self._context.seen

    def path_of(self, link: object) -> str:
        """The path, on this BMC, of a link that it gave. Raises PeerRefused if the link leads anywhere else."""
        if not isinstance(link, str) or not link:
            raise PeerRefused(f"the BMC at {self.where} gave {link!r} where a link is due", retryable=True)
        path = link
        if absolute := _ABSOLUTE.match(link):
            scheme, authority, path = absolute.groups()
            if (scheme or "https").lower() != "https" or authority.lower() not in self._own:
                raise PeerRefused(
                    f"the BMC at {self.where} sends us to another place: {scheme or 'https'}://{authority.rpartition('@')[2]}",
                    "links are followed on the BMC itself only, because the session token would go with them",
                )
        # A "#/" is a JSON pointer into the resource; any other "#" belongs to an Id and must travel escaped.
        path = _STRAY_PERCENT.sub("%25", path.split("#/", 1)[0])
        path = quote(path, safe="/:@!$&'()*+,;=?%~-._")
        if not path.startswith("/redfish") or len(path) > LONGEST_PATH:
            raise PeerRefused(f"the BMC at {self.where} gave the link {shown(link)!r}, which is no Redfish path", retryable=True)
        return path

    def send(
        self,
        method: str,
        link: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        changes: bool | None = None,
    ) -> Answer:
        """One request and its answer, whatever the status. `changes`: a lost answer matters (default: unless GET or HEAD).

        Raises PeerUnreachable (nothing happened), AnswerLost (it may have), IdentityMismatch, OwnLimitReached (nothing happened).
        """
        path = self.path_of(link)
        content = None if body is None else json.dumps(body).encode()
        sent_headers = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        lost_matters = method not in SAFE_METHODS if changes is None else changes
        if not all(value.isascii() and value.isprintable() for value in sent_headers.values()):
            # Tokens and ETags come from the BMC, and go back to it in headers.
            raise PeerRefused(f"the BMC at {self.where} gave a token or an ETag that cannot be a header", retryable=True)
        left_s = remaining_s()
        if left_s == 0.0:
            raise PeerUnreachable(f"no time left for {method} {path} at {self.where}", "nothing was sent")
        timeout = httpx.Timeout(min(self._step_s, left_s), connect=min(CONNECT_S, left_s))
        with (
            within(self._step_s * 3),
            self._as_peer_errors(method, path, lost_matters),
            self._http.stream(method, self._base + path, content=content, headers=sent_headers, timeout=timeout) as response,
        ):
            data = self._read(response)
        return _answer(response, data)

    def check(self, answer: Answer, method: str, link: str, sent: Mapping[str, Any] | None = None) -> Answer:
        """`answer` if it says yes. Raises PeerRefused, or AnswerLost where an error does not say whether a write was done."""
        if answer.status < 300:
            if answer.not_json:
                text = f"{method} {link} at {self.where} answered {answer.status} with {answer.not_json}"
                if method in SAFE_METHODS:
                    raise PeerRefused(text, retryable=True)
                raise AnswerLost(text, "look before repeating")
            return answer
        text = f"{method} {link} at {self.where} answered {answer.status}: {_without(sent, explain(answer))}"
        if method not in SAFE_METHODS and answer.status in UNCLEAR_STATUSES:
            raise AnswerLost(text, "look before repeating")
        passing = any(end in PASSING_MESSAGES for end in answer.message_ids)
        # A 404 may go away: some BMCs list a resource before they serve it.
        retryable = passing or answer.status in BUSY_STATUSES | UNCLEAR_STATUSES | {404, 408, 412, 428}
        raise PeerRefused(text, _way_out(answer.status), retryable=retryable, retry_after_s=_retry_after_s(answer))

    def close(self) -> None:
        """Close the connections; the session, if any, lives on at the BMC."""
        self._http.close()

    def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > LARGEST_ANSWER_BYTES:
                raise PeerRefused(f"the BMC at {self.where} answered more than {LARGEST_ANSWER_BYTES} bytes", "is it a BMC?")
        return bytes(data)

    @contextmanager
    def _as_peer_errors(self, method: str, path: str, lost_matters: bool) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            if limit := own_limit(error, f"no connection to the BMC at {self.where}"):
                raise limit from error
            raise PeerUnreachable(
                f"no connection to the BMC at {self.where}: {_cause(error)}", "is it cabled, powered and in the right subnet?"
            ) from error
        except (httpx.RequestError, TimeoutError) as error:
            what = f"{method} {path} at {self.where}: {_cause(error)}"
            if lost_matters:
                raise AnswerLost(f"no answer to {what}", "what it did is not known; look before repeating") from error
            raise PeerUnreachable(f"no answer to {what}", "reading again is safe") from error


def extended_infos(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Redfish's extended information (DSP0266, "Error responses"), wherever it stands and whatever shape it has."""
    error = body.get("error")
    found: list[Mapping[str, Any]] = []
    for place in (error, body):
        infos = place.get("@Message.ExtendedInfo") if isinstance(place, Mapping) else None
        # Some BMCs give one object where a list is due.
        for info in [infos] if isinstance(infos, Mapping) else infos if isinstance(infos, list) else []:
            if isinstance(info, Mapping):
                found.append(info)
    return found


def explain(answer: Answer) -> str:
    """What a refusal says, for a person, on one line."""
    parts = [str(info.get("Message") or info.get("MessageId") or "") for info in extended_infos(answer.body)]
    error = answer.body.get("error")
    if not any(parts) and isinstance(error, Mapping):
        parts = [str(error.get("message") or error.get("code") or "")]
    return shown("; ".join(part for part in parts if part) or answer.not_json or "no explanation")


def shown(text: str) -> str:
    """Foreign text made harmless for a terminal and a log: one line, printable, bounded."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + "…"


def _answer(response: httpx.Response, data: bytes) -> Answer:
    headers = {key.lower(): value for key, value in response.headers.items()}
    if not data.strip():
        return Answer(response.status_code, headers)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        kind = headers.get("content-type", "no content type").split(";")[0]
        return Answer(response.status_code, headers, not_json=f"{len(data)} bytes of {shown(kind)} that are no JSON")
    if not isinstance(body, dict):
        return Answer(response.status_code, headers, not_json=f"JSON {type(body).__name__} where an object is due")
    return Answer(response.status_code, headers, body)


def _without(sent: Mapping[str, Any] | None, text: str) -> str:
    """BMCs quote refused values in their messages, passwords too."""
    password = (sent or {}).get("Password")
    return text.replace(password, MASK) if isinstance(password, str) and password else text


def _way_out(status: int) -> str:
    return {
        401: "our login is not accepted any more",
        403: "the account lacks the privilege; it needs the role Administrator",
        429: "it is busy; asking again later helps",
        503: "it is busy or restarting; asking again later helps",
    }.get(status, "")


def _retry_after_s(answer: Answer) -> float:
    """Retry-After in seconds (RFC 9110, 10.2.3), at most an hour; 0 where it is absent or a date."""
    text = answer.headers.get("retry-after", "").strip()
    return float(min(int(text), 3600)) if text.isascii() and text.isdigit() else 0.0


def _cause(error: BaseException) -> str:
    return shown(str(error)) or type(error).__name__
