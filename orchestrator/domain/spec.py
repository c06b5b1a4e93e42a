"""The cluster as an operator declares it: racks, power, nodes, firmware baselines, policies.

Every field carries its unit in its name and its explanation under it. Unknown keys are refused. What depends on several
fields together (a node in an unknown rack, a rack over its power) is checked in `planning/validation.py`, which answers with
`Finding`s. `cluster_specs/README.md` is generated from the texts below the fields.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SpecPath = tuple[str | int, ...]
"""Keys and list indices from the top of a spec to a value: ("nodes", 2, "mac")."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a spec whose fields are each right by themselves."""

    path: SpecPath
    """The value to look at."""
    message: str
    """What is wrong, and by how much."""
    hint: str
    """The way out."""
    other: SpecPath | None = None
    """The second place of a finding about two places; shown by its line at the end of the message."""
    rests_on: tuple[SpecPath, ...] = ()
    """Further values the finding reckons with; "*" stands for any one key or index. A wrong one voids the finding."""


@dataclass(frozen=True, slots=True)
class Form:
    """Says in words what the pattern beside it in an annotation demands; errors show it instead of the pattern."""

    text: str


Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,62}$"),
    Form("a letter, then at most 62 letters, digits, points, hyphens or underscores"),
]
Address = Annotated[str, Form("an IPv4 or IPv6 address in its canonical form, such as 10.1.2.3 or fd00::1")]
Subnet = Annotated[str, Form("a network in CIDR form, such as 10.1.0.0/16")]
Port = Annotated[int, Field(ge=1, le=65535)]
Watts = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Label = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Form("text on one line, without control characters"),
]
Serial = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]*$"), Form("ASCII without spaces, as on the machine's plate")
]
Version = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]*$"), Form("the version as the BMC prints it, in ASCII")
]
ComponentId = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]*$"),
    Form("the Id that the BMC's FirmwareInventory gives, in ASCII"),
]
Folder = Annotated[
    str,
    Field(max_length=255, pattern=r"^(/[A-Za-z0-9._+-]+)+$"),
    Form("an absolute path of letters, digits, points, plus signs, hyphens and underscores"),
]


class Strict(BaseModel):
    """A frozen value that refuses what it does not know and never guesses a type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class GpuSku(Strict):
    """The GPUs of one node."""

    model: Label
    """Product name as NVML prints it."""
    count: Annotated[int, Field(ge=0, le=128)]
    """GPUs in one node."""
    memory_gib: Annotated[float, Field(gt=0, le=4096)] = 80.0
    """Memory of one GPU, in GiB."""


class Sku(Strict):
    """One kind of machine."""

    manufacturer: Label
    """As the BMC's ComputerSystem.Manufacturer says it."""
    model: Label
    """As the BMC's ComputerSystem.Model says it; compared before anything is written to the node."""
    units: Annotated[int, Field(ge=1, le=60)]
    """Height in rack units."""
    idle_w: Watts
    """Draw when idle, in watts."""
    max_w: Watts
    """Largest sustained draw, in watts; what power checks reckon with."""
    gpus: GpuSku
    """The GPUs of one machine; `count: 0` for machines without."""


class Feed(Strict):
    """One power feed."""

    limit_w: Watts
    """Continuous load the feed may carry, in watts, derating included."""


class Rack(Strict):
    """One rack."""

    units: Annotated[int, Field(ge=1, le=60)] = 42
    """Usable height in rack units."""
    limit_w: Watts
    """Power the rack may draw, in watts."""
    feed: Name
    """The feed it hangs on."""
    leaf: Name
    """The leaf switch its nodes are cabled to."""
    row: Annotated[
        str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$"), Form("text on one line, without control characters")
    ] = ""
    """The row it stands in."""


class Node(Strict):
    """One machine."""

    name: Name
    """What every command calls it; unique without regard to case."""
    rack: Name
    """The rack it stands in, one of `racks`."""
    unit: Annotated[int, Field(ge=1, le=60)]
    """Lowest rack unit it occupies, counted from the bottom."""
    sku: Name
    """What kind of machine it is, one of `skus`."""
    serial: Serial
    """Serial number on its plate, as its BMC must say it."""
    bmc: Address
    """Address of its BMC."""
    address: Address
    """Address of the node itself (SSH, Ray, ranks)."""
    mac: Annotated[
        str,
        Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"),
        Form('six pairs of lower-case hexadecimal digits, such as "02:00:00:00:01:01"'),
    ] = "00:00:00:00:00:00"
    """MAC of the port it boots from, lower case, quoted. Left out: not known."""
    insecure_bmc: bool = False
    """This BMC's certificate cannot be checked. Shown loudly wherever it matters."""


class Subnets(Strict):
    """Where addresses may lie."""

    bmc: Subnet
    """Subnet of the BMCs, in CIDR form."""
    management: Subnet
    """Subnet of the nodes' own addresses, in CIDR form."""


class Access(Strict):
    """How nodes and BMCs are reached."""

    bmc_user: Name = "rackray"
    """Account rackray uses at every BMC once the factory password is replaced."""
    bmc_port: Port = 443
    """TCP port of the BMCs' Redfish service."""
    ssh_user: Name
    """Unprivileged login user with passwordless sudo."""
    ssh_port: Port = 22
    """TCP port of the nodes' SSH service."""


class ImageServiceSpec(Strict):
    """The site's image service."""

    url: Annotated[
        str,
        Field(pattern=r"^https://[^/@\x00-\x20\x7f]+$"),
        Form("https://HOST or https://HOST:PORT, without path, user or password"),
    ]
    """Base URL; https only. Its certificate is checked against `image_ca.pem` in the secrets folder."""
    name: Name
    """The image every node gets."""


class Services(Strict):
    """What the site offers to its nodes."""

    image: ImageServiceSpec
    """Lays down and serves the operating system."""


class Runtime(Strict):
    """What training runs with on the nodes."""

    python: Folder = "/opt/rackray/venv/bin/python"
    """Interpreter with torch, deepspeed, ray and rackray."""
    shared_directory: Folder
    """Folder that every node of a cell sees (NFS, Lustre, ...): data sets, checkpoints, run directories."""
    interface: Annotated[
        str,
        Field(max_length=64, pattern=r"^[A-Za-z0-9._:@,=^-]*$"),
        Form("an interface name such as eth0, or NCCL's list of names"),
    ] = ""
    """Network interface ranks talk over (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME). Left out: the libraries choose."""


class FirmwareComponent(Strict):
    """The baseline of one component."""

    approved: Annotated[tuple[Version, ...], Field(min_length=1, strict=False)]
    """Versions that may run, compared for equality after stripping; the first is the one updates install. Quote them."""
    image: Annotated[
        str,
        Field(max_length=255, pattern=r"^((/[A-Za-z0-9._+-]+)+)?$"),
        Form("an absolute path at the image service, such as /firmware/nic.bin"),
    ] = ""
    """Path of the first version's file at the image service; empty: deviations are reported, never updated."""


class HealthPolicy(Strict):
    """Limits of the acceptance probe."""

    gpu_temperature_max_c: Annotated[int, Field(ge=30, le=120)] = 85
    """Hottest GPU allowed at rest, in degrees Celsius."""
    uncorrected_ecc_max: Annotated[int, Field(ge=0)] = 0
    """Volatile uncorrected ECC errors allowed per GPU."""
    compute_seconds: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """How long the compute check runs on each device, in seconds."""


class Rollout(Strict):
    """How fast a change may spread, and when it stops."""

    canary: Annotated[int, Field(ge=1)] = 1
    """Nodes in the first wave."""
    growth: Annotated[float, Field(ge=1, le=100)] = 4.0
    """Each wave is at most this many times the one before."""
    max_in_flight: Annotated[int, Field(ge=1)] = 256
    """Nodes worked on at once."""
    failure_budget: Annotated[int, Field(ge=0)] = 1
    """Nodes that may fail (refused, unreachable, timed out or unknown) in all before no new node starts."""
    wave_failure_budget: Annotated[int, Field(ge=0)] | None = None
    """Nodes of one wave that may fail before no new node starts. Left out: only `failure_budget` counts."""
    max_unavailable: Annotated[int, Field(ge=1)] | None = None
    """Nodes that may be in work or out of service at once; those that are unhealthy already count. Left out: no limit."""
    down_per_rack: Annotated[int, Field(ge=1)] | None = None
    """Nodes of one rack that power and firmware steps may take down at once. Left out: no limit."""
    down_per_feed: Annotated[int, Field(ge=1)] | None = None
    """Nodes on one power feed that power and firmware steps may take down at once. Left out: no limit."""
    down_per_leaf: Annotated[int, Field(ge=1)] | None = None
    """Nodes on one leaf switch that power and firmware steps may take down at once. Left out: no limit."""
    inrush_factor: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 1.0
    """What a node that is being powered on counts on its rack and feed, as a multiple of its SKU's `max_w`."""
    inrush_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 3.0
    """How long after its BMC accepted the power-on it counts so, in seconds."""
    stage_limit_s: Annotated[float, Field(gt=0, le=604800)] = 1800.0
    """Longest a node may stay in one stage, in seconds, before it is quarantined."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 5
    """Failed exchanges in a row, in one stage, before a node is quarantined."""
    poll_s: Annotated[float, Field(gt=0, le=300)] = 1.0
    """Pause between two looks at the same slow thing, in seconds."""


class RayHead(Strict):
    """Where a Ray cluster's head listens. It runs on a controller host."""

    address: Address
    """Address the head is reached at; none of the nodes' addresses."""
    port: Port = 6379
    """TCP port of its control store (GCS)."""


class LabFault(Strict):
    """A fault planted in a simulated node."""

    node: Name
    """The simulated node it is planted in."""
    fault: Name
    """Which fault, as `rackray lab fault` calls it."""
    gpu: Annotated[int, Field(ge=0, le=127)] | None = None
    """Index of the GPU it hits, for faults of a GPU."""
    component: ComponentId | None = None
    """Firmware component it hits, for faults of firmware."""
    version: Version | None = None
    """Version the component pretends to have."""


class Lab(Strict):
    """Read by `rackray lab` alone: how the simulated machines behave. Real clusters leave it out."""

    boot_s: Annotated[float, Field(ge=0, le=3600)] = 1.5
    """Time from power-on to the boot of the operating system, in seconds."""
    update_s: Annotated[float, Field(ge=0, le=3600)] = 3.0
    """How long a firmware update takes, in seconds."""
    plant: Annotated[tuple[LabFault, ...], Field(strict=False)] = ()
    """Faults that are there from the start."""


class ClusterSpec(Strict):
    """One cluster."""

    rackray: Literal[1]
    """Version of this format."""
    cluster: Name
    """Name of the cluster, as reports and events show it."""
    skus: dict[Name, Sku]
    """The kinds of machines, by name."""
    feeds: dict[Name, Feed]
    """The power feeds, by name."""
    racks: dict[Name, Rack]
    """The racks, by name."""
    subnets: Subnets
    """Where addresses may lie."""
    access: Access
    """How nodes and BMCs are reached. Passwords and keys never stand here."""
    services: Services
    """What the site offers to its nodes."""
    runtime: Runtime
    """What training runs with on the nodes."""
    firmware: dict[Name, dict[ComponentId, FirmwareComponent]]
    """Per SKU, per component (the Id in the BMC's FirmwareInventory)."""
    cell: RayHead
    """The GPU nodes' Ray: runs checks and training; holds no management secret."""
    management: RayHead
    """The controllers' Ray: runs Redfish, SSH and playbook shards."""
    health: HealthPolicy = HealthPolicy()
    """Limits of the acceptance probe."""
    rollout: Rollout = Rollout()
    """How fast a change may spread, and when it stops."""
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, strict=False)]
    """Every machine, one item each."""
    lab: Lab | None = None
    """Only for simulated machines."""

    def node(self, name: str) -> Node:
        """The node called `name`. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def sku_of(self, node: Node) -> Sku:
        """The SKU of `node`."""
        return self.skus[node.sku]
