"""Real BMCs of the lab, in this process, on 127.2.201.0/24 or as told; and a secrets folder as a vendor's delivery makes it."""

import asyncio
import dataclasses
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.domain.operation import Target
from orchestrator.drivers.redfish import RedfishBmc, RedfishDoor
from orchestrator.drivers.secrets import SecretStore
from orchestrator.lab.bmc.certificates import make_certificate
from orchestrator.lab.bmc.service import BmcEndpoint, BmcFarm
from orchestrator.lab.machine import FirmwarePart, Machine, MachineSpec

PORT = 8443
FACTORY_USER = "root"
FACTORY_PASSWORD = "Factory-Canary-77"
CATALOG = {"/firmware/nic1-28.39.1002.bin": ("NIC1", "28.39.1002")}


class EventLoopThread:
    """An event loop of its own thread, for servers that a synchronous test talks to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)

    def call(self, work: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            return work()

        return self.run(inside())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


def fingerprint_of(pem: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.read_text())).hexdigest()


@dataclass
class BmcLab:
    """BMCs by node name, and everything a test asks about them."""

    home: Path
    loop: EventLoopThread
    farm: BmcFarm
    network: str = "127.2.201"
    """The first three parts of every BMC's address."""
    machines: dict[str, Machine] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)

    @staticmethod
    def started(home: Path, network: str = "127.2.201") -> "BmcLab":
        loop = EventLoopThread()
        farm = BmcFarm()
        loop.run(farm.start())
        return BmcLab(home, loop, farm, network)

    def add(self, node: str, *, in_delivery: bool = True, certificate_delivered: bool = True) -> Target:
        """A machine with factory password, switched off; its row goes into factory.csv."""
        number = len(self.machines) + 1
        address = f"{self.network}.{number}"
        spec = MachineSpec(
            name=node,
            serial=f"SER-{node}",
            manufacturer="Rackray",
            model="LAB-2G",
            uuid=f"00000000-0000-4000-8000-{number:012d}",
            factory_username=FACTORY_USER,
            factory_password=FACTORY_PASSWORD,
            boot_s=0.05,
            update_s=0.3,
            shutdown_s=0.05,
            firmware=(FirmwarePart("BMC", "BMC", "7.10"), FirmwarePart("NIC1", "NIC 1", "28.36.1010")),
        )
        machine = Machine(spec, firmware_catalog=CATALOG)
        files = make_certificate(self.home, node, address)
        endpoint = BmcEndpoint(machine, address, PORT, files.certificate_path, files.key_path, self.home / f"{node}.log")
        self.loop.run(self.farm.add(endpoint))
        pin = fingerprint_of(files.certificate_path)
        if in_delivery:
            self.deliver(node, pin if certificate_delivered else "")
        self.machines[node] = machine
        self.targets[node] = Target(bmc_host=address, bmc_port=PORT, serial=spec.serial, bmc_certificate_sha256=pin)
        return self.targets[node]

    def deliver(self, node: str, pin: str, password: str = FACTORY_PASSWORD) -> None:
        path = self.home / "secrets" / "factory.csv"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text("node,serial,username,password,bmc_certificate_sha256\n")
        with path.open("a") as file:
            file.write(f"{node},SER-{node},{FACTORY_USER},{password},{pin}\n")

    def fault(self, node: str, name: str, **arguments: object) -> None:
        self.loop.call(lambda: self.machines[node].fault(name, time.monotonic(), **arguments))

    def heal(self, node: str, name: str) -> None:
        self.loop.call(lambda: self.machines[node].heal(name, time.monotonic()))

    def requests(self, node: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home / f"{node}.log").read_text().splitlines()]

    def secrets(self) -> SecretStore:
        return SecretStore(self.home, environment={})

    def open(self, node: str, **changed: Any) -> RedfishBmc:
        return RedfishDoor(self.secrets()).open(node, dataclasses.replace(self.targets[node], **changed), 5.0)

    def stop(self) -> None:
        self.loop.run(self.farm.stop())
        self.loop.stop()
