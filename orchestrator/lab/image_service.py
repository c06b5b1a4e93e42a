"""The site's image service, simulated: what image there is, what the network boot laid on which machine, firmware files.

    GET /v1/images/NAME     {"name", "digest"}
    GET /v1/nodes/SERIAL    {"serial", "image", "digest", "ssh_host_key", "installed_at", "boots"}; 404 before a network boot
    GET /firmware/FILE      {"part", "version"}

/v1 asks for `Authorization: Bearer TOKEN`. /firmware does not: the client is a BMC that was given nothing but a URI, as with
Redfish SimpleUpdate (DSP0266) in life.
"""

import hmac
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass

from aiohttp import web

from orchestrator.lab.image import Image, LaidImage
from orchestrator.lab.plan import FirmwareImage

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What the image service tells about one machine."""

    serial: str
    image: str
    digest: str
    ssh_host_key: str
    installed_at: str
    boots: int
    """How often this machine booted from the network into this service."""


class ImageService:
    """One HTTPS endpoint. `report` may be called from any thread; the rest from the event loop's."""

    def __init__(self, image: Image, token: str) -> None:
        self._image = image
        self._token = token
        self._lock = threading.Lock()
        self._reports: dict[str, NodeReport] = {}
        self._firmware: dict[str, FirmwareImage] = {}
        self._runner: web.AppRunner | None = None

    def offer_firmware(self, images: Iterable[FirmwareImage]) -> None:
        """Adds files below /firmware."""
        self._firmware |= {image.file: image for image in images}

    def report(self, serial: str, laid: LaidImage) -> None:
        """The network boot has laid an image on the machine with this serial."""
        with self._lock:
            before = self._reports.get(serial)
            self._reports[serial] = NodeReport(serial=serial, boots=1 + (before.boots if before else 0), **asdict(laid))

    def report_of(self, serial: str) -> NodeReport | None:
        """What was reported of a machine last; None before its first network boot."""
        with self._lock:
            return self._reports.get(serial)

    async def start(self, address: str, port: int, context: ssl.SSLContext) -> None:
        """Listens. Raises: OSError when the address is taken."""
        application = web.Application(middlewares=[self._require_token])
        application.router.add_get("/v1/images/{name}", self._get_image)
        application.router.add_get("/v1/nodes/{serial}", self._get_node)
        application.router.add_get("/firmware/{file}", self._get_firmware)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, address, port, ssl_context=context).start()

    async def stop(self) -> None:
        """Closes the socket and open connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _require_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if request.path.startswith("/v1/") and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return web.json_response({"error": "a bearer token is required"}, status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    async def _get_image(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name != self._image.name:
            return web.json_response({"error": f"no image is called {name}"}, status=404)
        return web.json_response({"name": name, "digest": self._image.digest})

    async def _get_node(self, request: web.Request) -> web.StreamResponse:
        report = self.report_of(request.match_info["serial"])
        if report is None:
            return web.json_response({"error": "this machine has not booted from the network"}, status=404)
        return web.json_response(asdict(report))

    async def _get_firmware(self, request: web.Request) -> web.StreamResponse:
        image = self._firmware.get(request.match_info["file"])
        if image is None:
            return web.json_response({"error": "no such firmware file"}, status=404)
        return web.json_response({"part": image.part, "version": image.version})
