"""The site's image service over HTTPS: which image a node has, and the SSH host key that was made with it.

    GET /v1/images/NAME     {"name", "digest"}
    GET /v1/nodes/SERIAL    {"serial", "image", "digest", "ssh_host_key", "installed_at", "boots"}, or 404 before the first image

Its certificate is verified against `image_ca.pem`; the bearer token is read from the secrets folder at each call.
"""

import datetime
import ssl
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import httpx

from orchestrator.domain.deadline import remaining_s
from orchestrator.domain.errors import IdentityMismatch, PeerRefused, PeerUnreachable, SecretMissing
from orchestrator.domain.secret import Secret
from orchestrator.drivers.own_limits import own_limit, own_limits_told

CONNECT_S = 5.0
LARGEST_ANSWER_BYTES = 1024 * 1024


class ImageSecrets(Protocol):
    """What this driver asks of the secrets folder."""

    def image_ca_path(self) -> str: ...
    def read(self, name: str) -> Secret: ...


class ImageServiceClient:
    """Implements `interfaces.ImageService`; thread-safe, keeps no connection."""

    def __init__(self, secrets: ImageSecrets) -> None:
        self._secrets = secrets

    def report(self, base_url: str, serial: str, image: str, timeout_s: float) -> Mapping[str, Any]:
        """Facts of `Action.IMAGE_REPORT`.

        Errors: PeerUnreachable, PeerRefused (no such image, token refused, nonsense), IdentityMismatch (its certificate is not
        the one of image_ca.pem, or the report is about another machine), SecretMissing, OwnLimitReached.
        """
        limit_s = remaining_s(timeout_s)
        with httpx.Client(
            verify=self._context(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s)),
            headers={"Authorization": f"Bearer {self._secrets.read('image_token').reveal()}", "Accept": "application/json"},
        ) as http:
            wanted = self._get(http, base_url, f"/v1/images/{quote(image, safe='')}")
            if wanted is None:
                raise PeerRefused(
                    f"the image service {base_url} has no image {image}", "name one of its images in services.image.name"
                )
            node = self._get(http, base_url, f"/v1/nodes/{quote(serial, safe='')}")
        return parse_report(wanted, node, serial)

    def _context(self) -> ssl.SSLContext:
        path = self._secrets.image_ca_path()
        try:
            with own_limits_told(f"{path} cannot be read"):
                return ssl.create_default_context(cafile=path)
        except (ssl.SSLError, OSError) as error:
            raise SecretMissing(f"{path} is no PEM certificate: {error}", "ask the image service's operator for it") from error

    def _get(self, http: httpx.Client, base_url: str, path: str) -> Mapping[str, Any] | None:
        """The JSON object at `path`, or None for 404."""
        where = f"the image service at {urlsplit(base_url).netloc}"
        try:
            response = http.get(base_url.rstrip("/") + path)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            if limit := own_limit(error, f"no connection to {where}"):
                raise limit from error
            if _is_certificate_error(error):
                raise IdentityMismatch(
                    f"{where} shows a certificate that image_ca.pem does not vouch for: {error}", "nothing was sent to it"
                ) from error
            raise PeerUnreachable(
                f"no answer from {where}: {str(error) or type(error).__name__}", "asking again is safe"
            ) from error
        if response.status_code == 404:
            return None
        if response.status_code != 200 or len(response.content) > LARGEST_ANSWER_BYTES:
            hint = "is the token in secrets/image_token the right one?" if response.status_code in (401, 403) else ""
            passing = response.status_code in (429, 500, 502, 503, 504)
            raise PeerRefused(f"{where} answered {response.status_code} to GET {path}", hint, retryable=passing)
        try:
            body = response.json()
        except ValueError as error:
            raise PeerRefused(f"{where} answered GET {path} with something that is no JSON", retryable=True) from error
        if not isinstance(body, dict):
            raise PeerRefused(f"{where} answered GET {path} with JSON that is no object", retryable=True)
        return body


def parse_report(wanted: Mapping[str, Any], node: Mapping[str, Any] | None, serial: str) -> dict[str, Any]:
    """The facts from the service's two answers. Raises PeerRefused or IdentityMismatch."""
    digest = wanted.get("digest")
    if not isinstance(digest, str) or not digest:
        raise PeerRefused("the image service gives no digest for the image", "an image without a digest cannot be verified")
    if node is None:
        nothing = {"image": None, "digest": None, "ssh_host_key": None, "installed_at_s": None, "boots": 0}
        return {"installed": False, "wanted_digest": digest, **nothing}
    if node.get("serial") != serial:
        raise IdentityMismatch(f"asked about {serial}, the image service answers about {str(node.get('serial'))[:64]}")
    key = node.get("ssh_host_key")
    boots = node.get("boots")
    return {
        "installed": True,
        "image": node.get("image"),
        "digest": node.get("digest"),
        "wanted_digest": digest,
        "ssh_host_key": " ".join(key.split()[:2]) if isinstance(key, str) and key.strip() else None,
        "installed_at_s": _seconds(node.get("installed_at")),
        "boots": boots if isinstance(boots, int) else 0,
    }


def _seconds(value: object) -> float | None:
    """Seconds since the epoch of a number or an ISO 8601 text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        return None
    # A date without a zone is read as UTC: a service that leaves it out means that.
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
