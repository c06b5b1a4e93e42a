"""The applied spec, indexed for planning: one lookup per question, made once per spec."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.domain.node import COMPUTE, NodeRecord
from orchestrator.domain.operation import Target
from orchestrator.domain.spec import ClusterSpec, Equipment, FirmwareComponent, Machine, Node, Rack, Sku
from orchestrator.domain.words import counted
from orchestrator.planning.power_caps import PowerCap, caps_of


@dataclass(frozen=True)
class Site:
    """Read-only view of one `ClusterSpec`."""

    spec: ClusterSpec
    nodes: dict[str, Machine]
    """Every machine that the controller brings up: compute nodes, and equipment with a BMC."""
    computes: dict[str, Node]
    """Those that carry work."""

    @staticmethod
    def of(spec: ClusterSpec) -> "Site":
        """Index `spec`."""
        machines = {machine.name: machine for machine in spec.managed()}
        return Site(spec, machines, {node.name: node for node in spec.nodes})

    def blank(self, name: str) -> NodeRecord:
        """The record of a machine about which nothing is known yet."""
        return NodeRecord(name, kind=COMPUTE if name in self.computes else self.sku(name).kind)

    def words(self, names: Collection[str]) -> str:
        """`18 nodes`, or `18 nodes and 17 pieces of equipment`: the two are counted apart."""
        equipment = sum(name not in self.computes for name in names)
        nodes = counted(len(names) - equipment, "node")
        pieces = f"{counted(equipment, 'piece')} of equipment"
        return nodes if not equipment else pieces if equipment == len(names) else f"{nodes} and {pieces}"

    def sku(self, name: str) -> Sku:
        """SKU of the machine called `name`."""
        return self.spec.skus[self.nodes[name].sku]

    def rack(self, name: str) -> Rack:
        """Rack of the machine called `name`."""
        return self.spec.racks[self.nodes[name].rack]

    def baseline(self, name: str) -> dict[str, FirmwareComponent]:
        """Firmware baseline of the machine called `name`; empty if its SKU has none."""
        return self.spec.firmware.get(self.nodes[name].sku, {})

    @cached_property
    def power_caps(self) -> dict[str, PowerCap]:
        """What nodes may draw so that any one feed, UPS, busway or PDU may be lost; those that need no cap are not here."""
        return caps_of(self.spec)

    def gpu_cap_w(self, name: str) -> float | None:
        """The power limit that the node's GPUs must have, in watts; None where they need none."""
        cap = self.power_caps.get(name)
        return cap.gpu_w if cap is not None else None

    def labels(self, name: str) -> dict[str, str]:
        """Labels the node carries in its cell."""
        node, rack = self.computes[name], self.rack(name)
        return {"node": name, "rack": node.rack, "leaf": rack.leaf, "feed": rack.feed}

    def joins_with(self, name: str) -> dict[str, Any]:
        """Arguments of `Action.CELL_JOIN` for the node."""
        cell = self.spec.cell
        return {"address": f"{cell.address}:{cell.port}", "labels": self.labels(name)}

    def playbook_variables(self, name: str) -> dict[str, Any]:
        """What the playbooks are told of one node, whoever runs them; each becomes the host variable `rackray_<key>`."""
        return {
            **self.labels(name),
            "shared_directory": self.spec.runtime.shared_directory,
            "lab": self.spec.lab is not None,
            "trusted_networks": [str(self.spec.subnets.management)],
            "gpu_power_cap_w": int(self.gpu_cap_w(name) or 0),
        }

    def target(self, record: NodeRecord) -> Target:
        """Where the node is, and who it must be according to the spec and the pins so far."""
        node, access = self.nodes[record.name], self.spec.access
        return Target(
            bmc_host=node.bmc or "",
            bmc_port=access.bmc_port,
            bmc_user=access.bmc_user,
            bmc_certificate_sha256=record.pins.get("bmc_certificate_sha256", ""),
            bmc_insecure=node.insecure_bmc,
            ssh_host="" if isinstance(node, Equipment) else node.address,
            ssh_port=access.ssh_port,
            ssh_user=access.ssh_user,
            ssh_host_key=record.pins.get("ssh_host_key", ""),
            serial=record.serial or node.serial,
            is_equipment=isinstance(node, Equipment),
            python=self.spec.runtime.python,
            image_url=self.spec.services.image.url,
        )
