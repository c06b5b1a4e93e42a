"""What the lab has to deliver for a cluster spec: the spec's machines, with the faults its `lab:` section plants."""

from urllib.parse import urlsplit

from orchestrator.domain.errors import BadInput
from orchestrator.domain.spec import ClusterSpec, Equipment, LabFault, Machine
from orchestrator.lab.machine_nouns import FirmwarePart
from orchestrator.lab.plan import FirmwareImage, LabSpec, NodePlan, PlantedFault


def lab_spec(spec: ClusterSpec) -> LabSpec:
    """The lab of `spec`. Raises BadInput for a spec of real machines, LabError for addresses off loopback."""
    if spec.lab is None:
        raise BadInput(
            f"cluster {spec.cluster} has no `lab:` section: its machines are real, or meant to be", "use a spec made for the lab"
        )
    service = urlsplit(spec.services.image.url)
    lab = LabSpec(
        nodes=tuple(_node(spec, node) for node in spec.managed()),
        image_service_address=service.hostname or "",
        image_service_port=service.port or 443,
        image_name=spec.services.image.name,
        firmware_images=_firmware_images(spec),
    )
    lab.check()
    return lab


def _node(spec: ClusterSpec, node: Machine) -> NodePlan:
    sku, access, lab = spec.sku_of(node), spec.access, spec.lab
    assert lab is not None, "lab_spec has refused specs without a lab"  # noqa: S101 - tells the type checker what was checked
    baseline = spec.firmware.get(node.sku, {})
    return NodePlan(
        name=node.name,
        serial=node.serial,
        manufacturer=sku.manufacturer,
        model=sku.model,
        bmc_address=node.bmc or "",
        bmc_port=access.bmc_port,
        ssh_address="" if isinstance(node, Equipment) else node.address,
        ssh_port=access.ssh_port,
        user=access.ssh_user,
        gpu_model=sku.gpus.model,
        gpu_count=sku.gpus.count,
        firmware=tuple(FirmwarePart(key, key, part.approved[0]) for key, part in baseline.items()),
        planted=tuple(_fault(fault) for fault in lab.plant if fault.node == node.name),
        boot_s=lab.boot_s,
        update_s=lab.update_s,
        is_equipment=isinstance(node, Equipment),
    )


def _fault(fault: LabFault) -> PlantedFault:
    given = {"gpu": fault.gpu, "part": fault.component, "version": fault.version}
    return PlantedFault(fault.fault, tuple((key, value) for key, value in given.items() if value is not None))


def _firmware_images(spec: ClusterSpec) -> tuple[FirmwareImage, ...]:
    """Every image the baselines name, as the image service has to offer it below /firmware/."""
    images = {
        FirmwareImage(part.image.removeprefix("/firmware/"), key, part.approved[0])
        for baseline in spec.firmware.values()
        for key, part in baseline.items()
        if part.image
    }
    return tuple(sorted(images, key=lambda image: image.file))
