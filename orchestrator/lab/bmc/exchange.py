"""A request and its answer, without sockets: what the protocol layer takes and gives."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from orchestrator.lab.bmc.messages import Json


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, read to its end."""

    method: str
    path: str
    """Percent-decoded, without query; a trailing slash is kept."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    peer: str
    """The client's address."""

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.method in ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; `user` is for the access log alone."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    user: str | None = field(default=None)

    @property
    def reason(self) -> str:
        """The status in words."""
        known = {int(status): status.phrase for status in HTTPStatus}
        return known.get(self.status, "Unknown")


def json_bytes(body: Json) -> bytes:
    """A JSON object as it goes over the wire."""
    return json.dumps(body, ensure_ascii=False).encode()
