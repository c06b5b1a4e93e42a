"""A first spec to start from: racks of one kind of machine on two feeds, every line with what it means. Pure.

What nobody but the site knows (addresses, image service, limits of feeds) is filled in as a sketch that validates, except for the
serials, which are left out: `rackray validate` asks for them until they stand in the table. The numbers of machines are those of
the example specs, where their sources stand; `hgx-h100` is any server around that board, and all its numbers are assumptions.
"""

import re
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from string import Template

from orchestrator.domain.errors import BadInput

MOST_RACKS, MOST_PER_RACK = 200, 20
"""Two subnets of 65,534 addresses with 256 to a rack have room for so many racks beside the services."""
RACK_UNITS = 48
COMMENT_COLUMN = 40
LINE_V, DERATING = 415, 0.8
BREAKERS_A = (16, 20, 30, 32, 40, 50, 60, 63, 80, 100, 125, 160, 200, 250, 320, 400, 500, 630)
"""Ratings that breakers are made for (IEC 60898-1, IEC 60947-2, NEC 240.6)."""


TEMPLATE = Template("""\
# ${cluster}: ${racks} x ${per_rack} ${machine}, as `rackray spec new` began it. Lines marked <- are a sketch.
# `rackray validate` says what is missing or contradicts itself; cluster_specs/README.md explains every field.
rackray: 1
cluster: ${cluster}

skus:
  ${machine}:
    manufacturer: ${manufacturer} # <- as the BMC says it: https://BMC/redfish/v1/Systems/...
    model: ${model} # <- the same: compared before anything is written to a machine
    units: ${units}
    idle: ${idle}                        # <- an assumption
    max: ${max}                       # <- largest sustained draw: the vendor's sizing tool knows yours
    weight: ${weight_kg} kg
    gpus: {model: ${gpu}, count: 8, memory_gib: ${memory_gib}, nvlink_domain: 8}
    supplies: {count: ${supplies}, capacity: ${supply}, least: ${least}}

feeds:                                  # <- what each may carry for hours, derating included
  A: {limit: ${feed}}
  B: {limit: ${feed}}

power:
  derating: ${derating}                         # of a breaker's rating, for loads of three hours or more (NEC 210.20(A))
  on_feed_loss: throttle                # or survive, or lose: what may happen to machines when one side is lost
  elements:                             # <- add the UPS and busways between feeds and PDUs, where there are some
    r${span}-pdu-a: {kind: pdu, fed_by: A, breaker: ${breaker_a} A, voltage: ${line_v} V}
    r${span}-pdu-b: {kind: pdu, fed_by: B, breaker: ${breaker_a} A, voltage: ${line_v} V}

racks:
  r${span}:
    units: ${rack_units}
    limit: ${rack_limit}
    feed: A                             # the side that labels name; supplies are plugged into all of `pdus` in turn
    leaf: leaf1                         # <- the leaf switch its nodes are cabled to
    pdus: ["r{1}-pdu-a", "r{1}-pdu-b"]

subnets:                                # <-
  bmc: 10.20.0.0/16
  management: 10.10.0.0/16

access: {bmc_user: rackray, ssh_user: ubuntu}   # <- passwords and keys stand in $$RACKRAY_HOME/secrets, never here

services:                               # <- what lays down the operating system
  image: {url: "https://10.10.250.10:8443", name: node-image}

runtime:
  shared_directory: /mnt/training       # <- a folder that every node sees: data sets, checkpoints

firmware:                               # components by their Id in https://BMC/redfish/v1/UpdateService/FirmwareInventory
  ${machine}: {}
    # BMC: {approved: ["24.09.17"]}     # <- versions in quotes; without a baseline nothing is audited

cell: {address: 10.10.250.20}           # <- a controller host's address; the nodes join this Ray
management: {address: 10.10.250.21}     # <- the controllers' own Ray: another address, or another `port` on the same

rollout: {canary: 1, growth: 4, failure_budget: 1, stage_limit_s: 3600, poll_s: 10}

inventory: "${table}" # the serial (and MAC) of each machine, one a line
nodes:
  - name: r${span}-n${numbers}
    rack: r{1}
    unit: [${places}]
    sku: ${machine}
    bmc: {first: 10.20.1.1, step: [256, 1]}         # <- 256 for the next rack, 1 for the next machine
    address: {first: 10.10.1.1, step: [256, 1]}     # <-
""")


@dataclass(frozen=True, slots=True)
class MachineDraft:
    """One kind of machine, with eight GPUs."""

    manufacturer: str
    model: str
    units: int
    idle_w: int
    max_w: int
    weight_kg: int
    gpu: str
    memory_gib: int
    supplies: int
    supply_w: int
    least: int


MACHINES = {
    "dgx-h100": MachineDraft("NVIDIA", "DGXH100", 8, 3000, 10_200, 130, "NVIDIA H100 80GB HBM3", 80, 6, 3300, 3),
    "hgx-h100": MachineDraft("VENDOR", "MODEL", 8, 2600, 10_200, 110, "NVIDIA H100 80GB HBM3", 80, 6, 3000, 3),
    "xe9680-h200": MachineDraft("Dell Inc.", "PowerEdge XE9680", 6, 2600, 11_000, 108, "NVIDIA H200", 141, 6, 2800, 3),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """What a first spec is for."""

    cluster: str
    machine: str
    """One of `MACHINES`."""
    racks: int
    per_rack: int

    @property
    def nodes(self) -> list[str]:
        """Names of the machines, in order."""
        return [f"{rack}-n{number}" for rack in self.rack_names for number in range(1, self.per_rack + 1)]

    @property
    def rack_names(self) -> list[str]:
        """`r01`, `r02`, ..."""
        return [f"r{number:0{self.digits}}" for number in range(1, self.racks + 1)]

    @property
    def digits(self) -> int:
        """So that names sort as numbers do, also after the next expansion."""
        return 3 if self.racks > 50 else 2


def draft_spec(asked: Draft, table: str) -> str:
    """The YAML. `table`: name of the file beside it that holds the serials. Raises BadInput for what fits into no rack."""
    machine = MACHINES[asked.machine]
    tall = machine.units * asked.per_rack
    if tall > RACK_UNITS:
        most = RACK_UNITS // machine.units
        message = f"{asked.per_rack} machines of {machine.units} units are {tall} units, a rack has {RACK_UNITS}"
        raise BadInput(message, f"put {most} or fewer into a rack")
    rack_w = asked.per_rack * machine.max_w
    limit_w = ceil(rack_w / 1000) * 1000
    # On two sides, either alone must carry the rack when the other is lost.
    breaker_a = next(rating for rating in BREAKERS_A if sqrt(3) * LINE_V * rating * DERATING >= rack_w)
    first, last = asked.rack_names[0], asked.rack_names[-1]
    span = f"[{first[1:]}-{last[1:]}]" if asked.racks > 1 else f"[{first[1:]}]"
    numbers = f"[1-{asked.per_rack}]" if asked.per_rack > 1 else "[1]"
    places = ", ".join(str(1 + machine.units * place) for place in range(asked.per_rack))
    words = {
        **asdict(machine),
        **asdict(asked),
        **{"idle": _kw(machine.idle_w), "max": _kw(machine.max_w), "supply": _kw(machine.supply_w)},
        **{"feed": _kw(asked.racks * limit_w), "rack_limit": _kw(limit_w), "rack_units": RACK_UNITS, "breaker_a": breaker_a},
        **{"derating": DERATING, "line_v": LINE_V, "span": span, "numbers": numbers, "places": places, "table": table},
    }
    return _aligned(TEMPLATE.substitute(words))


def draft_table(asked: Draft) -> str:
    """The CSV of the machines, with what is still to be filled in left empty."""
    return "node,serial,mac\n" + "".join(f"{name},,\n" for name in asked.nodes)


def _aligned(text: str) -> str:
    """Comments behind something begin at one column, where there is room."""
    lines = [re.fullmatch(r"(\s*[^#\s].*?) +(# .*)", line) or line for line in text.split("\n")]
    return "\n".join(line if isinstance(line, str) else f"{line[1] + ' ':<{COMMENT_COLUMN}}{line[2]}" for line in lines)


def _kw(watts: float) -> str:
    return f"{watts / 1000:g} kW"
