"""A running lab inside the daemon: machines with their BMCs, nodes, GPUs, SSH ports, and the image service.

Machines belong to the event loop; boots run in worker threads; SSH connections in the acceptor's thread.
"""

import asyncio
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.domain.words import meant
from orchestrator.lab.bmc.certificates import make_certificate, server_context
from orchestrator.lab.bmc.service import BmcEndpoint, BmcFarm
from orchestrator.lab.delivery import FactoryRow, deliver, factory_password, give_site_secrets, write_private
from orchestrator.lab.errors import BadLabInput, LabError
from orchestrator.lab.gpus import GPU_FAULTS, NodeGpus
from orchestrator.lab.image import USER_UID, build_image, has_image
from orchestrator.lab.image_service import ImageService
from orchestrator.lab.machine import Machine
from orchestrator.lab.machine_faults import FAULTS as MACHINE_FAULTS
from orchestrator.lab.machine_faults import UnknownFault
from orchestrator.lab.machine_nouns import MachineError, MachineSpec
from orchestrator.lab.namespaces import AS_ROOT
from orchestrator.lab.plan import LabPaths, LabSpec, NodePlan
from orchestrator.lab.power import NodePower, Site
from orchestrator.lab.runtime import hidden_directories, runtime_shares
from orchestrator.lab.ssh_acceptor import SshAcceptor, SshFault

log = logging.getLogger(__name__)

BOOTS_AT_ONCE = 32
"""Worker threads; most of a boot is waiting."""
NODE_FAULTS = {
    "power_cut": "the node loses its power at once; its BMC reports Off",
    "silent": "every process of the node stops; connections are taken and never answered; its BMC lives",
    "disk_read_only": "the node's file systems refuse to be written, as after an error of its disk",
    "ssh_new_host_key": "the node shows another SSH host key than the one that was reported",
}


@dataclass(frozen=True, slots=True)
class HostedNode:
    """One node with everything that simulates it; equipment is its machine alone."""

    plan: NodePlan
    machine: Machine
    power: NodePower | None
    gpus: NodeGpus | None


class HostedLab:
    """All of a lab. Every verb belongs on the event loop."""

    def __init__(self, paths: LabPaths) -> None:
        self._paths = paths
        self._spec: LabSpec | None = None
        self._nodes: dict[str, HostedNode] = {}
        self._farm = BmcFarm()
        self._acceptor = SshAcceptor()
        self._executor = ThreadPoolExecutor(BOOTS_AT_ONCE, thread_name_prefix="boot")
        self._catalog: dict[str, tuple[str, str]] = {}
        self._service: ImageService | None = None
        self._site: Site | None = None
        self._adding = asyncio.Lock()

    async def add(self, spec: LabSpec) -> list[str]:
        """Delivers and racks the nodes that are not here yet; the first call also starts the image service.

        Returns: the names of the new nodes. Raises: LabError when a node that is here is planned differently now, or an
        address is taken; then none of this call's nodes was added.
        """
        spec.check()
        async with self._adding:
            known = self._spec
            if known is not None:
                _check_unchanged(known, spec)
            fresh = [plan for plan in spec.nodes if plan.name not in self._nodes]
            if self._site is None or self._service is None:
                self._service, self._site = await self._found(spec)
            self._service.offer_firmware(spec.firmware_images)
            self._catalog |= {f"/firmware/{image.file}": (image.part, image.version) for image in spec.firmware_images}
            await self._rack(fresh, self._site)
            before = known.nodes if known is not None else ()
            self._spec = replace(spec, nodes=(*before, *fresh))
            write_private(self._paths.spec, json.dumps(self._spec.to_json()))
            return [plan.name for plan in fresh]

    def fault(self, node: str, fault: str, arguments: Mapping[str, Any]) -> None:
        """Breaks something of one node. Raises: BadLabInput for an unknown node, fault or argument."""
        _check_fault(fault)
        hosted = self._node(node)
        if fault in GPU_FAULTS:
            _gpus_of(hosted, fault).fault(fault, **_whole_numbers({"gpu": 0, **arguments}))
        elif fault in NODE_FAULTS or fault in set(SshFault):
            self._change_node(hosted, fault, arguments, broken=True)
        else:
            _as_lab_error(lambda: hosted.machine.fault(fault, time.monotonic(), **arguments))

    def heal(self, node: str, fault: str, arguments: Mapping[str, Any]) -> None:
        """Ends a fault of one node; one that is not there is no error. Raises: BadLabInput as `fault` does."""
        _check_fault(fault)
        hosted = self._node(node)
        if fault in GPU_FAULTS:
            _gpus_of(hosted, fault).heal(fault, **_whole_numbers(arguments))
        elif fault in NODE_FAULTS or fault in set(SshFault):
            self._change_node(hosted, fault, arguments, broken=False)
        else:
            _as_lab_error(lambda: hosted.machine.heal(fault, time.monotonic()))

    def status(self) -> dict[str, Any]:
        """What every node is doing, as plain values."""
        digest = self._site.image.digest if self._site is not None else ""
        spec = self._spec
        return {
            "pid": os.getpid(),
            "mode": "root" if AS_ROOT else "user",
            "image": spec.image_name if spec is not None else "",
            "image_digest": digest,
            "image_service_url": spec.image_service_url if spec is not None else "",
            "nodes": [self._status_of(hosted) for hosted in self._nodes.values()],
        }

    async def stop_nodes(self) -> None:
        """Cuts the power of every node and waits for the last process. Raises: LabError when one does not end."""
        switches = [hosted.power for hosted in self._nodes.values() if hosted.power is not None]
        for power in switches:
            power.power_off()
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._executor, power.wait_gone) for power in switches))

    async def stop(self) -> None:
        """Ends everything: every process of every node, every socket. Raises: LabError as `stop_nodes` does."""
        await self._farm.stop()  # first: nobody must switch a node on any more
        if self._service is not None:
            await self._service.stop()
        await self.stop_nodes()
        self._acceptor.stop()
        self._executor.shutdown()

    async def _found(self, spec: LabSpec) -> tuple[ImageService, Site]:
        """What all nodes share: keys, the image, the image service, shared storage."""
        paths, loop = self._paths, asyncio.get_running_loop()
        operator_key = give_site_secrets(paths)
        users = sorted({plan.user for plan in spec.nodes if not plan.is_equipment}) or ["gpu"]
        if len(users) > 1:
            raise LabError(f"the nodes name different users ({', '.join(users)}); one image has one login user")
        image = await loop.run_in_executor(self._executor, build_image, spec.image_name, paths.image, users[0], operator_key)
        paths.shared.mkdir(mode=0o755, exist_ok=True)
        if AS_ROOT:
            os.chown(paths.shared, USER_UID, USER_UID)
        files = make_certificate(paths.service_key_directory, "image-service", spec.image_service_address)
        shutil.copyfile(files.certificate_path, paths.service_certificate)
        write_private(paths.image_ca, files.certificate_path.read_text())
        service = ImageService(image, paths.image_token.read_text().strip())
        context = server_context(files.certificate_path, files.key_path)
        try:
            await service.start(spec.image_service_address, spec.image_service_port, context)
        except OSError as error:
            hint = "another lab may run on this machine: `rackray lab down`, with its RACKRAY_HOME, ends it"
            raise LabError(f"the image service cannot listen on {spec.image_service_url}: {error.strerror}", hint) from error
        shares = runtime_shares(paths.shared)
        site = Site(
            image=image,
            acceptor=self._acceptor,
            executor=self._executor,
            shares=shares,
            hidden=hidden_directories(shares, paths.home),
            report=service.report,
        )
        await self._farm.start()
        return service, site

    async def _rack(self, plans: list[NodePlan], site: Site) -> None:
        """Makes the machines, then delivers their papers; all of them or none."""
        rows: list[FactoryRow] = []
        added: list[str] = []
        try:
            for plan in plans:
                rows.append(await self._rack_one(plan, site))
                added.append(plan.name)
            for plan in plans:
                for plant in plan.planted:
                    self.fault(plan.name, plant.fault, dict(plant.arguments))
        except (OSError, LabError) as error:
            for name in added:
                await self._farm.remove(name)
                del self._nodes[name]
            kind = BadLabInput if isinstance(error, BadLabInput) else LabError
            raise kind(f"the nodes cannot be added: {error}", hint=getattr(error, "hint", "")) from error
        deliver(self._paths.factory_csv, rows)

    async def _rack_one(self, plan: NodePlan, site: Site) -> FactoryRow:
        paths = self._paths.node(plan.name)
        paths.hardware.mkdir(parents=True, exist_ok=True)
        gpus = None if plan.is_equipment else NodeGpus(paths.nvml, plan.gpu_model, plan.gpu_count, plan.serial)
        password = factory_password()
        power = None if gpus is None else NodePower(plan, paths, gpus, site)
        machine = Machine(_machine_spec(plan, password), power, self._catalog)
        certificate = make_certificate(paths.bmc, plan.name, plan.bmc_address)
        await self._farm.add(
            BmcEndpoint(
                machine=machine,
                address=plan.bmc_address,
                port=plan.bmc_port,
                certificate_path=certificate.certificate_path,
                key_path=certificate.key_path,
                access_log_path=paths.access_log,
            )
        )
        self._nodes[plan.name] = HostedNode(plan, machine, power, gpus)
        return FactoryRow(plan.name, plan.serial, plan.factory_username, password, certificate.sha256)

    def _change_node(self, hosted: HostedNode, fault: str, arguments: Mapping[str, Any], broken: bool) -> None:
        if arguments:
            raise BadLabInput(f"fault {fault} takes no argument {', '.join(sorted(arguments))}")
        name, power = hosted.plan.name, hosted.power
        if power is None:
            raise BadLabInput(f"{name} is equipment: only its BMC is simulated, so {fault} cannot happen to it")
        match fault, broken:
            case "ssh_new_host_key", True:
                power.replace_host_key()
            case "ssh_new_host_key", False:
                power.restore_host_key()
            case "disk_read_only", _:
                power.set_disk_read_only(broken)
            case "silent", True:
                power.freeze()
                self._acceptor.set_fault(name, SshFault.HANG)
            case "silent", False:
                power.thaw()
                self._acceptor.set_fault(name, None)
            case "power_cut", True:
                hosted.machine.lose_power(time.monotonic())
            case "power_cut", False:
                pass  # nothing mends it but switching on, which is the operator's to do
            case _, True:
                self._acceptor.set_fault(name, SshFault(fault))
            case _, False if self._acceptor.fault_of(name) == fault:
                self._acceptor.set_fault(name, None)

    def _status_of(self, hosted: HostedNode) -> dict[str, Any]:
        now_s, plan = time.monotonic(), hosted.plan
        ssh_fault = self._acceptor.fault_of(plan.name)
        faults = [*hosted.machine.faults.names(), *([ssh_fault.value] if ssh_fault is not None else [])]
        return {
            "name": plan.name,
            "serial": plan.serial,
            "power": hosted.machine.power_state(now_s).value,
            "boots": hosted.machine.boots,
            "has_image": has_image(self._paths.node(plan.name)),
            "ssh_listening": self._acceptor.is_listening(plan.name),
            "pid": hosted.power.pid if hosted.power else None,
            "faults": faults
            + (["silent"] if hosted.power and hosted.power.is_silent else [])
            + (["disk_read_only"] if hosted.power and hosted.power.is_disk_read_only else [])
            + (hosted.gpus.faults() if hosted.gpus else []),
            "failure": hosted.power.failure if hosted.power else "",
        }

    def _node(self, name: str) -> HostedNode:
        if name not in self._nodes:
            hint = f"{meant(name, self._nodes)}it has {', '.join(sorted(self._nodes)) or 'none'}"
            raise BadLabInput(f"the lab has no node {name}", hint=hint)
        return self._nodes[name]


def _as_lab_error(act: Callable[[], object]) -> None:
    """Says a machine's refusal as the lab's."""
    try:
        act()
    except (UnknownFault, MachineError) as error:
        raise BadLabInput(str(error)) from error


def _gpus_of(hosted: HostedNode, fault: str) -> NodeGpus:
    if hosted.gpus is None:
        raise BadLabInput(f"{hosted.plan.name} is equipment and has no GPU: {fault} cannot happen to it")
    return hosted.gpus


def _machine_spec(plan: NodePlan, password: str) -> MachineSpec:
    return MachineSpec(
        name=plan.name,
        serial=plan.serial,
        manufacturer=plan.manufacturer,
        model=plan.model,
        uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"rackray-lab:{plan.serial}")),
        factory_username=plan.factory_username,
        factory_password=password,
        gpu_model=plan.gpu_model,
        gpu_count=plan.gpu_count,
        is_equipment=plan.is_equipment,
        boot_s=plan.boot_s,
        update_s=plan.update_s,
        firmware=plan.firmware,
    )


def _check_unchanged(known: LabSpec, wanted: LabSpec) -> None:
    """A running lab grows; it does not change."""
    # What was planted is a delivery's business: it is healed or not, and says nothing about the plan of today.
    here = {plan.name: replace(plan, planted=()) for plan in known.nodes}
    changed = [plan.name for plan in wanted.nodes if replace(plan, planted=()) != here.get(plan.name, replace(plan, planted=()))]
    if changed or (known.image_service_url, known.image_name) != (wanted.image_service_url, wanted.image_name):
        what = f"node {', '.join(changed)}" if changed else "the image service"
        raise LabError(f"{what} runs with other settings than the spec has now", hint="`rackray lab down` first")
    combined = replace(wanted, nodes=(*known.nodes, *(plan for plan in wanted.nodes if plan.name not in here)))
    combined.check()


def _whole_numbers(arguments: Mapping[str, Any]) -> dict[str, int]:
    try:
        return {name: int(str(value)) for name, value in arguments.items()}
    except ValueError as error:
        raise BadLabInput(f"GPU faults take whole numbers: {error}") from error


def _check_fault(fault: str) -> None:
    """Raises: BadLabInput with the near names, and with all there are."""
    known = sorted({*GPU_FAULTS, *NODE_FAULTS, *(kind.value for kind in SshFault), *MACHINE_FAULTS})
    if fault not in known:
        raise BadLabInput(f"no fault is called {fault!r}", hint=f"{meant(fault, known)}there are {', '.join(known)}")
