"""A bench for BMCs on the wire: a farm on a loop of its own, machines with a clock that only the test moves."""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from orchestrator.lab.bmc.certificates import CertificateFiles, make_certificate
from orchestrator.lab.bmc.service import BmcEndpoint, BmcFarm
from orchestrator.lab.machine import BootSource, FirmwarePart, Machine, MachineSpec

PORT = 8443
FACTORY = ("factory", "printed-on-the-label")
OURS = ("factory", "our-own-secret")
CATALOG = {"/firmware/nic.bin": ("NIC1", "28.39"), "/firmware/cpld.bin": ("CPLD", "4")}
SPEC = MachineSpec(
    name="r01-n1",
    serial="LAB-0001",
    manufacturer="Rackray",
    model="LAB-8G",
    uuid="5c3f0f5e-6f6b-4a6e-9d4e-0f5a3c1b2d01",
    factory_username=FACTORY[0],
    factory_password=FACTORY[1],
    gpu_model="H100",
    gpu_count=2,
    boot_s=10.0,
    update_s=20.0,
    firmware=(
        FirmwarePart("BIOS", "BIOS", "2.7.4"),
        FirmwarePart("BMC", "BMC", "7.10"),
        FirmwarePart("NIC1", "NIC 1", "28.36"),
        FirmwarePart("CPLD", "CPLD", "3", updateable=False),
    ),
)
Made = TypeVar("Made")


class HandClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class RecordingBoard:
    """Remembers what the power switch and the boot firmware did."""

    def __init__(self) -> None:
        self.deeds: list[str] = []

    def power_on(self, boot: BootSource) -> None:
        self.deeds.append(f"start from {boot}")

    def power_off(self) -> None:
        self.deeds.append("cut")


@dataclass(frozen=True)
class BenchBmc:
    """One BMC on the bench."""

    bench: "Bench"
    machine: Machine
    board: RecordingBoard
    url: str
    certificate: CertificateFiles
    access_log_path: Path

    def client(self, auth: tuple[str, str] | None = OURS, timeout_s: float = 10.0) -> httpx.Client:
        """A client that trusts this BMC's certificate alone."""
        trusted = ssl.create_default_context(cafile=str(self.certificate.certificate_path))
        return httpx.Client(base_url=self.url, verify=trusted, auth=auth, timeout=timeout_s, trust_env=False)

    def on_machine(self, verb: Callable[[Machine, float], Made]) -> Made:
        """Call a verb of the machine on the farm's loop, which owns it."""
        return self.bench.run(lambda: verb(self.machine, self.bench.clock.now_s))

    def fault(self, name: str, **arguments: object) -> None:
        """Plant a fault, and let the farm see it."""
        self.on_machine(lambda machine, now_s: machine.fault(name, now_s, **arguments))
        self.bench.tick()

    def heal(self, name: str) -> None:
        """End a fault, and let the farm see it."""
        self.on_machine(lambda machine, now_s: machine.heal(name, now_s))
        self.bench.tick()

    def access_log(self) -> list[dict[str, Any]]:
        """What the access log holds."""
        return [json.loads(line) for line in self.access_log_path.read_text().splitlines()]


class Bench:
    """The farm, its loop in a thread, and the clock."""

    def __init__(self, directory: Path) -> None:
        self.clock = HandClock()
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.farm = BmcFarm(clock=self.clock)
        self.wait(self.farm.start())

    def add(self, number: int, password_changed: bool = True, **changes: Any) -> BenchBmc:
        """One more BMC at 127.2.200.NUMBER."""
        spec = replace(SPEC, name=f"n{number}", serial=f"LAB-{number:04}", **changes)
        address, board = f"127.2.200.{number}", RecordingBoard()
        machine = Machine(spec, board, CATALOG)
        if password_changed:
            machine.accounts.set_password("1", OURS[1])
        certificate = make_certificate(self._directory / "tls", spec.name, address)
        log_path = self._directory / "log" / f"{spec.name}.jsonl"
        endpoint = BmcEndpoint(machine, address, PORT, certificate.certificate_path, certificate.key_path, log_path)
        self.wait(self.farm.add(endpoint))
        return BenchBmc(self, machine, board, f"https://{address}:{PORT}", certificate, log_path)

    def run(self, verb: Callable[[], Made]) -> Made:
        """Call something on the loop."""

        async def call() -> Made:
            return verb()

        return self.wait(call())

    def wait(self, coroutine: Any) -> Any:
        """Run a coroutine on the loop and wait for it."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(timeout=30)

    def tick(self, seconds: float = 0.0) -> None:
        """Move the clock and tick every machine and socket once."""
        self.clock.now_s += seconds
        self.run(self.farm.tick)

    def close(self) -> list[str]:
        """Stop everything; the names of tasks that were left behind."""
        self.wait(self.farm.stop())

        async def others() -> list[str]:
            await asyncio.sleep(0)
            return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        left: list[str] = self.wait(others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return left


@contextmanager
def a_bench(directory: Path) -> Iterator[Bench]:
    """A bench that leaves nothing behind."""
    bench = Bench(directory)
    try:
        yield bench
    finally:
        left = bench.close()
    assert left == [], "the farm left tasks behind"
