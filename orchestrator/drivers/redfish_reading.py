"""Reading what BMCs answer: lenient with machines, whatever they leave out, pad, repeat or page.

Every oddity here was met in captures of real BMCs: Members null, counts that do not match, paging at 50, one object where a list
is due, versions padded with blanks, dates of zeros.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from orchestrator.domain.errors import PeerRefused
from orchestrator.drivers.redfish_session import RedfishSession

ROOT = "/redfish/v1/"
MOST_PAGES = 100
MOST_MEMBERS = 5000
LONGEST_TEXT = 4000
LARGEST_NUMBER = 1e15


def text(source: Mapping[str, Any], *path: str) -> str | None:
    """The text at `path`, stripped, printable and bounded; None if it is absent, null, empty or no text."""
    value: Any = source
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return _printable(value) or None if isinstance(value, str) else None


def _printable(value: str) -> str:
    """What a BMC says ends up on terminals and in the journal."""
    return "".join(character for character in value if character.isprintable()).strip()[:LONGEST_TEXT]


def number(source: Mapping[str, Any], *path: str) -> float | None:
    """The number at `path`; None if it is absent, no number, or beyond what a float holds."""
    value: Any = source
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST_NUMBER else None


def inner(source: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The object at `path`; empty if it is absent or none."""
    value: Any = source
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def listed(source: Mapping[str, Any], key: str) -> list[Any]:
    """The list at `key`; one object counts as a list of one; null and absent as none."""
    value = source.get(key)
    return value if isinstance(value, list) else [value] if isinstance(value, Mapping) else []


def link(source: Mapping[str, Any], *path: str) -> str | None:
    """The @odata.id at `path`, or None."""
    return text(source, *path, "@odata.id")


def last_segment(uri: str) -> str:
    """The Id with which a URI ends, unescaped and printable."""
    return _printable(unquote(uri.rstrip("/").rsplit("/", 1)[-1]))


def members(session: RedfishSession, collection: str) -> Iterator[Mapping[str, Any]]:
    """Members as the collection gives them (links, or whole resources), every page, each one once.

    Members@odata.count is not looked at: it is wrong on many BMCs.
    """
    page: str | None = collection
    seen: set[str] = set()
    pages: set[str] = set()
    while page and page not in pages and len(pages) < MOST_PAGES:
        pages.add(page)
        body = session.get(page)
        for member in listed(body, "Members"):
            uri = link(member) if isinstance(member, Mapping) else None
            if uri is None or uri in seen or len(seen) >= MOST_MEMBERS:
                continue
            seen.add(uri)
            yield member
        page = text(body, "Members@odata.nextLink")


def follow(session: RedfishSession, *keys: str, start: str = ROOT) -> str:
    """The link behind `keys`, one resource after another from `start`. PeerRefused names what is missing."""
    here = start
    for key in keys:
        onward = link(session.get(here), key)
        if onward is None:
            raise PeerRefused(
                f"the BMC at {session.client.where} has no {key} in {here}",
                "it may still be starting; if it stays so, it does not offer this service",
                retryable=True,
            )
        here = onward
    return here


def allowed(resource: Mapping[str, Any], name: str) -> list[str]:
    """The values a BMC says it takes for `name`; empty if it does not say."""
    return [value for value in listed(resource, f"{name}@Redfish.AllowableValues") if isinstance(value, str)]


def date(source: Mapping[str, Any], *keys: str) -> str | None:
    """The first date among `keys` that is one; dates of zeros count as none."""
    for key in keys:
        value = text(source, key)
        if value and not value.startswith(("0000", "00:00", "1970-01-01")):
            return value
    return None
