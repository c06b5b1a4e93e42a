"""The image service: verified TLS, a token in the header alone, and reports that are about the right machine."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import IdentityMismatch, PeerRefused, PeerUnreachable, SecretMissing
from orchestrator.drivers.image_service import ImageServiceClient, parse_report
from orchestrator.drivers.secrets import SecretStore
from orchestrator.lab.bmc.certificates import make_certificate

ADDRESS = "127.3.201.1"
TOKEN = "image-token-canary"
NODE = {
    "serial": "SER1",
    "image": "lab-node",
    "digest": "sha256:1",
    "ssh_host_key": "ssh-ed25519 AAAA root@image",
    "installed_at": "2026-01-02T03:04:05Z",
    "boots": 2,
}


class Service:
    """Answers what `answers` says, by path."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"/v1/images/lab-node": (200, {"name": "lab-node", "digest": "sha256:1"})}
        self.seen: list[tuple[str, str]] = []
        files = make_certificate(folder, "images", ADDRESS)
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.seen.append((self.path, self.headers.get("Authorization", "")))
                status, body = service.answers.get(self.path, (404, {}))
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = HTTPServer((ADDRESS, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate_path, files.key_path)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://{ADDRESS}:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        secrets = folder / "secrets"
        secrets.mkdir(mode=0o700)
        (secrets / "image_ca.pem").write_bytes(files.certificate_path.read_bytes())
        (secrets / "image_token").touch(mode=0o600)
        (secrets / "image_token").write_text(TOKEN + "\n")
        self.client = ImageServiceClient(SecretStore(folder, environment={}))

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=5)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.stop()


def test_a_machine_without_an_image_and_one_with_it(service: Service) -> None:
    fresh = service.client.report(service.url, "SER1", "lab-node", 5.0)
    assert fresh["installed"] is False and fresh["wanted_digest"] == "sha256:1" and fresh["ssh_host_key"] is None
    service.answers["/v1/nodes/SER1"] = (200, NODE)
    facts = service.client.report(service.url, "SER1", "lab-node", 5.0)
    assert facts == {
        "installed": True,
        "image": "lab-node",
        "digest": "sha256:1",
        "wanted_digest": "sha256:1",
        "ssh_host_key": "ssh-ed25519 AAAA",
        "installed_at_s": 1767323045.0,
        "boots": 2,
    }
    assert {authorization for _, authorization in service.seen} == {f"Bearer {TOKEN}"}


def test_a_service_whose_certificate_nobody_vouches_for_gets_no_token(service: Service, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other", ADDRESS)
    (tmp_path / "secrets" / "image_ca.pem").write_bytes(other.certificate_path.read_bytes())
    with pytest.raises(IdentityMismatch, match="does not vouch"):
        service.client.report(service.url, "SER1", "lab-node", 5.0)
    assert service.seen == []


@pytest.mark.parametrize(
    ("status", "body", "retryable"),
    [(503, {}, True), (401, {}, False), (200, b"<html>", True), (200, [1], True), (404, {}, False)],
)
def test_what_is_no_answer_is_a_refusal(service: Service, status: int, body: Any, retryable: bool) -> None:
    service.answers["/v1/images/lab-node"] = (status, body)
    with pytest.raises(PeerRefused) as refused:
        service.client.report(service.url, "SER1", "lab-node", 5.0)
    assert refused.value.retryable is retryable and TOKEN not in str(refused.value)


def test_a_serial_cannot_change_the_path(service: Service) -> None:
    service.client.report(service.url, "../images/lab-node?x=#", "lab-node", 5.0)
    assert service.seen[-1][0] == "/v1/nodes/..%2Fimages%2Flab-node%3Fx%3D%23"


def test_nobody_there_is_unreachable_and_a_certificate_others_can_replace_is_refused(service: Service, tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachable):
        service.client.report("https://127.3.201.9:1", "SER1", "lab-node", 2.0)
    (tmp_path / "secrets" / "image_ca.pem").chmod(0o666)
    with pytest.raises(SecretMissing, match="replaced by others"):
        service.client.report(service.url, "SER1", "lab-node", 5.0)


def test_a_report_about_another_machine_is_a_mismatch() -> None:
    with pytest.raises(IdentityMismatch):
        parse_report({"digest": "sha256:1"}, {**NODE, "serial": "SER2"}, "SER1")
    with pytest.raises(PeerRefused, match="no digest"):
        parse_report({}, NODE, "SER1")


@pytest.mark.parametrize(
    ("given", "seconds"), [(17, 17.0), (1.5, 1.5), ("1970-01-01T00:01:00+00:00", 60.0), ("soon", None), (True, None)]
)
def test_dates_come_as_numbers_or_texts(given: object, seconds: float | None) -> None:
    assert parse_report({"digest": "d"}, {**NODE, "installed_at": given}, "SER1")["installed_at_s"] == seconds
