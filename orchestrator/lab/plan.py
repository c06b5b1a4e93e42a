"""What a lab is made of: plain frozen nouns that `lab_up` takes and the daemon is told over its socket."""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.lab.errors import BadLabInput
from orchestrator.lab.machine_nouns import FirmwarePart

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class PlantedFault:
    """A fault a node is delivered with; words as for `lab_fault`."""

    fault: str
    arguments: tuple[tuple[str, str | int | float], ...] = ()


@dataclass(frozen=True, slots=True)
class FirmwareImage:
    """One file the image service offers at /firmware/`file`: `version` of the firmware part `part`."""

    file: str
    part: str
    version: str


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One simulated machine as it is delivered: racked, cabled, powered off, without an image.

    Equipment (a switch, a power shelf) is a BMC alone: no processes, no SSH, no GPUs.
    """

    name: str
    serial: str
    manufacturer: str
    model: str
    bmc_address: str
    ssh_address: str = ""
    """Empty for equipment."""
    bmc_port: int = 8443
    ssh_port: int = 2222
    user: str = "gpu"
    """The login user; uid 20001 where the lab runs as root, the lab's own uid otherwise."""
    gpu_model: str = "H100"
    gpu_count: int = 8
    firmware: tuple[FirmwarePart, ...] = ()
    planted: tuple[PlantedFault, ...] = ()
    factory_username: str = "admin"
    boot_s: float = 1.5
    """Power-on to the operating system's start."""
    image_s: float = 1.0
    """How long the network boot takes to lay the image, beyond the copying itself."""
    update_s: float = 3.0
    """How long one firmware update takes."""
    is_equipment: bool = False


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. Every address must lie in 127.0.0.0/8: the lab listens nowhere else."""

    nodes: tuple[NodePlan, ...]
    image_service_address: str = "127.3.0.1"
    image_service_port: int = 8443
    image_name: str = "rackray-lab"
    firmware_images: tuple[FirmwareImage, ...] = ()

    @property
    def image_service_url(self) -> str:
        """Where the site's image service answers."""
        return f"https://{self.image_service_address}:{self.image_service_port}"

    def check(self) -> None:
        """Raises: BadLabInput that names every clash of names, serials and addresses, and every address off loopback."""
        problems = _problems(self)
        if problems:
            raise BadLabInput("; ".join(problems), hint="correct the spec; nothing was started")

    def to_json(self) -> dict[str, Any]:
        """Plain values for the control socket."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "LabSpec":
        """The spec that `to_json` described."""
        nodes = tuple(_node_from_json(node) for node in values["nodes"])
        images = tuple(FirmwareImage(**image) for image in values["firmware_images"])
        return LabSpec(**{**values, "nodes": nodes, "firmware_images": images})


@dataclass(frozen=True, slots=True)
class LabPaths:
    """Every path of a lab under RACKRAY_HOME."""

    home: Path

    @property
    def lab(self) -> Path:
        return self.home / "lab"

    @property
    def pid_file(self) -> Path:
        """`PID START`: START is field 22 of /proc/PID/stat, so that a reused pid is never taken for the daemon."""
        return self.lab / "labd.pid"

    @property
    def control(self) -> Path:
        return self.lab / "control.sock"

    @property
    def log(self) -> Path:
        return self.lab / "labd.log"

    @property
    def spec(self) -> Path:
        """What the running daemon was asked to be, nodes added later included."""
        return self.lab / "spec.json"

    @property
    def nodes(self) -> Path:
        return self.lab / "nodes"

    @property
    def image(self) -> Path:
        """The image that the network boot lays down, as a directory."""
        return self.lab / "image"

    @property
    def shared(self) -> Path:
        """Shared storage: /srv/shared in every node."""
        return self.lab / "shared"

    @property
    def service_certificate(self) -> Path:
        return self.lab / "image_service.pem"

    @property
    def service_key_directory(self) -> Path:
        return self.lab / "image_service"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def factory_csv(self) -> Path:
        return self.secrets / "factory.csv"

    @property
    def ssh_key(self) -> Path:
        return self.secrets / "ssh_key"

    @property
    def image_token(self) -> Path:
        return self.secrets / "image_token"

    @property
    def secrets_given(self) -> Path:
        """There as long as the site's secrets below `secrets` are the lab's own, to be replaced and removed by it."""
        return self.lab / "secrets_given"

    @property
    def image_ca(self) -> Path:
        """The image service's certificate where the drivers look for it."""
        return self.secrets / "image_ca.pem"

    def node(self, name: str) -> "NodePaths":
        return NodePaths(self.nodes / name)


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Every path of one node."""

    directory: Path

    @property
    def disk(self) -> Path:
        """What re-imaging deletes and a power cycle keeps."""
        return self.directory / "disk"

    @property
    def hardware(self) -> Path:
        """What re-imaging keeps: the GPUs' state."""
        return self.directory / "hardware"

    @property
    def nvml(self) -> Path:
        return self.hardware / "nvml"

    @property
    def root(self) -> Path:
        """Where the node's root is put together inside its own mount namespace; always empty from outside."""
        return self.directory / "root"

    @property
    def boot_order(self) -> Path:
        return self.directory / "boot.json"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def bmc(self) -> Path:
        """Certificate and key of the BMC."""
        return self.directory / "bmc"

    @property
    def access_log(self) -> Path:
        """One JSON line per request that the BMC answered."""
        return self.directory / "bmc_access.log"


def _node_from_json(values: Mapping[str, Any]) -> NodePlan:
    firmware = tuple(FirmwarePart(**part) for part in values["firmware"])
    planted = tuple(
        PlantedFault(fault=plant["fault"], arguments=tuple((word, value) for word, value in plant["arguments"]))
        for plant in values["planted"]
    )
    return NodePlan(**{**values, "firmware": firmware, "planted": planted})


def _problems(spec: LabSpec) -> list[str]:
    problems = _off_loopback("the image service", spec.image_service_address)
    problems += _twice("node name", (node.name for node in spec.nodes))
    problems += _twice("serial", (node.serial for node in spec.nodes))
    places = [f"{spec.image_service_address}:{spec.image_service_port}"]
    for node in spec.nodes:
        problems += _off_loopback(f"{node.name}'s BMC", node.bmc_address)
        places.append(f"{node.bmc_address}:{node.bmc_port}")
        if not node.is_equipment:
            problems += _off_loopback(f"{node.name}'s SSH", node.ssh_address)
            places.append(f"{node.ssh_address}:{node.ssh_port}")
    return problems + _twice("address", places)


def _off_loopback(who: str, address: str) -> list[str]:
    try:
        inside = ipaddress.ip_address(address) in LOOPBACK
    except ValueError:
        return [f"{who} has the address {address!r}, which is none"]
    return [] if inside else [f"{who} has the address {address}; the lab listens on {LOOPBACK} only"]


def _twice(what: str, values: Iterable[str]) -> list[str]:
    return [f"{what} {value} appears {times} times" for value, times in sorted(Counter(values).items()) if times > 1]
