"""The cluster as an operator declares it: racks, power, nodes, firmware baselines, policies.

Every field carries its unit in its name and its explanation under it. Unknown keys are refused. What depends on several
fields together (a node in an unknown rack, a rack over its power) is checked in `planning/validation.py`, which answers with
`Finding`s. `cluster_specs/README.md` is generated from the texts below the fields.
"""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.domain.spec_network import Link
from orchestrator.domain.spec_power import Cord, OnFeedLoss, Phases, Power, Supplies
from orchestrator.domain.spec_words import (
    Address,
    ComponentId,
    Finding,
    Folder,
    Form,
    Kilograms,
    Label,
    Metres,
    Name,
    Port,
    Serial,
    SpecPath,
    Strict,
    Subnet,
    Version,
    Watts,
)

__all__ = ["NO_GPUS", "TABLE_COLUMNS", "UNKNOWN_MAC", "ClusterSpec", "Finding", "Form", "Machine", "SpecPath", "Strict"]

Kind = Literal["compute", "leaf-switch", "spine-switch", "management-switch", "switch-tray", "power-shelf", "cooling"]
Mac = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"),
    Form('six pairs of lower-case hexadecimal digits, such as "02:00:00:00:01:01"'),
]
TABLE_COLUMNS = ("serial", "rack", "unit", "mac", "bmc", "address")
"""What a table (`inventory: machines.csv`) may say about a machine, beside its name in the column `node`."""
UNKNOWN_MAC = "00:00:00:00:00:00"
Unit = Annotated[int, Field(ge=1, le=60)]
Cords = Annotated[tuple[Cord, ...], Field(strict=False)]
Outlets = Annotated[tuple[Annotated[int, Field(ge=1, le=200)], ...], Field(strict=False)]
Lot = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$"), Form("text on one line, without control characters")]


class GpuSku(Strict):
    """The GPUs of one node."""

    model: Label
    """Product name as NVML prints it."""
    count: Annotated[int, Field(ge=0, le=128)]
    """GPUs in one node."""
    memory_gib: Annotated[float, Field(gt=0, le=4096)] = 80.0
    """Memory of one GPU, in GiB."""
    nvlink_domain: Annotated[int, Field(ge=0, le=1024)] = 0
    """GPUs that NVLink joins: 8 in an HGX machine, 72 across an NVL72 rack. 0: those of one machine."""


NO_GPUS = GpuSku(model="none", count=0)


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
    gpus: GpuSku = NO_GPUS
    """The GPUs of one machine; `count: 0` for machines without. Only SKUs of equipment may leave it out."""
    kind: Kind = "compute"
    """`compute` for what stands in `nodes`, another kind for what stands in `equipment`."""
    typical_w: Watts | None = None
    """Draw under the usual load, in watts; shown beside the largest."""
    weight_kg: Kilograms | None = None
    """Weight as mounted, in kilograms; checked where the rack has `weight_limit_kg`."""
    liquid_w: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """How much of `max_w` goes into the cooling liquid, in watts; the rest goes into the air."""
    supplies: Supplies | None = None
    """Its power supplies. Left out: it draws from the busbar that its rack's power shelves feed."""
    rails: Annotated[int, Field(ge=0, le=64)] = 0
    """Ports `rail1`, `rail2`, ... of the compute fabric that one machine has."""
    ports: Annotated[int, Field(ge=0, le=4096)] = 0
    """Of a switch: its ports, counted from 1."""


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
    pdus: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """The PDUs that machines in this rack are plugged into, elements of `power`; `cords` count them from 1."""
    on_feed_loss: OnFeedLoss | None = None
    """What may happen to its machines when one feed, UPS, busway or PDU is lost. Left out: `power.on_feed_loss`."""
    air_limit_w: Watts | None = None
    """Heat that the room's air can take from this rack, in watts."""
    liquid_limit_w: Watts | None = None
    """Heat that the liquid loop can take from this rack, in watts."""
    weight_limit_kg: Kilograms | None = None
    """Weight of machines that rack and floor carry, in kilograms."""
    x_m: Metres | None = None
    """Where it stands along its row, in metres from a corner of the room; cables are measured with it."""
    y_m: Metres | None = None
    """Where its row stands, in metres from the same corner."""


class Node(Strict):
    """One machine."""

    name: Name
    """What every command calls it; unique without regard to case."""
    rack: Name
    """The rack it stands in, one of `racks`."""
    unit: Unit
    """Lowest rack unit it occupies, counted from the bottom."""
    sku: Name
    """What kind of machine it is, one of `skus`."""
    serial: Serial
    """Serial number on its plate, as its BMC must say it."""
    bmc: Address
    """Address of its BMC."""
    address: Address
    """Address of the node itself (SSH, Ray, ranks)."""
    mac: Mac = UNKNOWN_MAC
    """MAC of the port it boots from, lower case, quoted. Left out: not known."""
    insecure_bmc: bool = False
    """This BMC's certificate cannot be checked. Shown loudly wherever it matters."""
    cords: Cords = ()
    """Which of its rack's `pdus` each supply is plugged into, where this machine differs from its SKU."""
    phases: Phases = ()
    """The phase each supply is on, where this machine differs from its SKU."""
    outlets: Outlets = ()
    """The outlet of its PDU that each supply is plugged into, where the PDU says `outlets`. Left out: the next free one."""
    pair: Name | None = None
    """The redundancy pair it belongs to: of the machines that name the same one, power and firmware take one down at a time."""
    lot: Lot = ""
    """The lot it was delivered in, as the delivery note says; failures that gather in one lot are named."""


class Equipment(Strict):
    """One thing in a rack that is no compute node: a switch, a switch tray, a power shelf, a cooling unit."""

    name: Name
    """What every report calls it; unique among nodes and equipment without regard to case."""
    rack: Name
    """The rack it stands in, one of `racks`."""
    unit: Unit
    """Lowest rack unit it occupies, counted from the bottom."""
    sku: Name
    """What kind of thing it is, one of `skus`; its `kind` is not `compute`."""
    serial: Serial
    """Serial number on its plate."""
    bmc: Address | None = None
    """Address of its BMC or management port. Left out: it has none, and nothing is ever done with it."""
    mac: Mac = UNKNOWN_MAC
    """MAC of that port, lower case, quoted. Left out: not known."""
    insecure_bmc: bool = False
    """This BMC's certificate cannot be checked. Shown loudly wherever it matters."""
    cords: Cords = ()
    """Which of its rack's `pdus` each supply is plugged into, where it differs from its SKU."""
    phases: Phases = ()
    """The phase each supply is on, where it differs from its SKU."""
    outlets: Outlets = ()
    """The outlet of its PDU that each supply is plugged into, where the PDU says `outlets`. Left out: the next free one."""
    pair: Name | None = None
    """The redundancy pair it belongs to: of the machines that name the same one, power and firmware take one down at a time."""
    lot: Lot = ""
    """The lot it was delivered in, as the delivery note says; failures that gather in one lot are named."""


Machine = Node | Equipment
"""Whatever stands in a rack and has a serial number."""


class Subnets(Strict):
    """Where addresses may lie."""

    bmc: Subnet
    """Subnet of the BMCs, in CIDR form."""
    management: Subnet
    """Subnet of the nodes' own addresses, in CIDR form."""
    storage: Subnet | None = None
    """Subnet of the storage network, in CIDR form."""
    rails: Annotated[tuple[Subnet, ...], Field(strict=False)] = ()
    """Subnets of the compute fabric's rails, in CIDR form, in the rails' order; each has room for every node."""


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


class StorageMount(Strict):
    """One file system that every node mounts."""

    mount: Folder
    """Where the nodes see it."""
    source: Annotated[str, Field(max_length=255, pattern=r"^[^\s\x00-\x1f\x7f@]+:/[^\s\x00-\x1f\x7f]*$"), Form("SERVER:/PATH")]
    """Server and path, without user or password."""
    kind: Literal["nfs", "lustre", "weka", "gpfs", "beegfs"]
    """File system."""


class Services(Strict):
    """What the site offers to its nodes."""

    image: ImageServiceSpec
    """Lays down and serves the operating system."""
    ntp: Annotated[tuple[Address, ...], Field(strict=False)] = ()
    """Time servers."""
    dns: Annotated[tuple[Address, ...], Field(strict=False)] = ()
    """Name servers."""
    storage: Annotated[tuple[StorageMount, ...], Field(strict=False)] = ()
    """What every node mounts."""


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
    """Every machine that computes, one item each."""
    equipment: Annotated[tuple[Equipment, ...], Field(strict=False)] = ()
    """Everything else with a serial number: switches, switch trays, power shelves."""
    power: Power | None = None
    """The power tree below the feeds. Left out: racks and feeds are checked by their `limit_w` alone."""
    links: Annotated[tuple[Link, ...], Field(strict=False)] = ()
    """Cables between machines and switches."""
    lab: Lab | None = None
    """Only for simulated machines."""

    def node(self, name: str) -> Node:
        """The node called `name`. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def sku_of(self, machine: Machine) -> Sku:
        """The SKU of `machine`."""
        return self.skus[machine.sku]

    def managed(self) -> tuple[Machine, ...]:
        """Every machine with a BMC, which the controller brings up: the compute nodes, then the equipment."""
        return (*self.nodes, *(item for item in self.equipment if item.bmc is not None))
