"""Rendering of what the machine is and measures: systems, processors, managers, chassis, sensors, event log.

Every function makes a resource from the machine as it is now; nothing is kept between two requests.
"""

from orchestrator.lab.bmc.messages import Json
from orchestrator.lab.bmc.schemas import ROOT, link, resource
from orchestrator.lab.bmc.state import Bmc
from orchestrator.lab.machine import BootSource, OverrideEnabled, ResetKind
from orchestrator.lab.machine_nouns import LogEntry

SYSTEM, CHASSIS, MANAGER = "/Systems/1", "/Chassis/1", "/Managers/1"
LOG = f"{SYSTEM}/LogServices/SEL"
RESET_TARGET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
MANAGER_RESET_TARGET = f"{MANAGER}/Actions/Manager.Reset"
CLEAR_LOG_TARGET = f"{LOG}/Actions/LogService.ClearLog"
MANAGER_RESET_KINDS = ("ForceRestart", "GracefulRestart")
INLET_WARNING_C, INLET_CRITICAL_C = 40.0, 45.0
CPU_MODEL = "Simulated CPU"


def ok(health: str = "OK") -> Json:
    """A Status object."""
    return {"State": "Enabled", "Health": health}


def system(bmc: Bmc) -> Json:
    """The computer: identity, power, boot."""
    machine, now_s = bmc.machine, bmc.now_s
    spec, override = machine.spec, machine.boot_override
    return resource(
        SYSTEM,
        "ComputerSystem",
        "1",
        "System",
        SystemType="Physical",
        Manufacturer=spec.manufacturer,
        Model=spec.model,
        SerialNumber=machine.serial,
        UUID=bmc.uuid,
        AssetTag=machine.asset_tag,
        LocationIndicatorActive=machine.is_identify_led_lit,
        PowerState=str(machine.power_state(now_s)),
        BootProgress={"LastState": str(machine.boot_stage(now_s))},
        BiosVersion=part_version(bmc, "BIOS"),
        Status={**ok(machine.health(now_s)), "HealthRollup": machine.health(now_s)},
        ProcessorSummary={"Count": spec.cpu_count, "Model": CPU_MODEL},
        MemorySummary={"TotalSystemMemoryGiB": spec.memory_gib},
        Boot={
            "BootSourceOverrideEnabled": str(override.enabled),
            "BootSourceOverrideEnabled@Redfish.AllowableValues": [str(one) for one in OverrideEnabled],
            "BootSourceOverrideMode": "UEFI",
            "BootSourceOverrideTarget": str(override.target),
            "BootSourceOverrideTarget@Redfish.AllowableValues": [str(one) for one in BootSource],
            "HttpBootUri": override.http_boot_uri or None,
        },
        Processors=link(f"{SYSTEM}/Processors"),
        LogServices=link(f"{SYSTEM}/LogServices"),
        Links={"Chassis": [link(CHASSIS)], "ManagedBy": [link(MANAGER)]},
        Actions={
            "#ComputerSystem.Reset": {
                "target": ROOT + RESET_TARGET,
                "ResetType@Redfish.AllowableValues": [str(kind) for kind in ResetKind],
            }
        },
    )


def processor_ids(bmc: Bmc) -> list[str]:
    """CPUs first, then GPUs, numbered from 1."""
    spec = bmc.machine.spec
    cpus = [f"CPU{number}" for number in range(1, spec.cpu_count + 1)]
    return cpus + [f"GPU{number}" for number in range(1, spec.gpu_count + 1)]


def processor(bmc: Bmc, processor_id: str) -> Json | None:
    """One CPU or GPU."""
    if processor_id not in processor_ids(bmc):
        return None
    spec, is_gpu = bmc.machine.spec, processor_id.startswith("GPU")
    return resource(
        f"{SYSTEM}/Processors/{processor_id}",
        "Processor",
        processor_id,
        processor_id,
        ProcessorType="GPU" if is_gpu else "CPU",
        Model=spec.gpu_model if is_gpu else CPU_MODEL,
        Socket=processor_id,
        Status=ok(),
    )


def manager(bmc: Bmc) -> Json:
    """The BMC itself."""
    spec = bmc.machine.spec
    servers = {} if spec.is_equipment else {"ManagerForServers": [link(SYSTEM)]}
    return resource(
        MANAGER,
        "Manager",
        "1",
        "BMC",
        ManagerType="BMC",
        Manufacturer=spec.manufacturer,
        Model="Simulated BMC",
        SerialNumber=f"BMC-{bmc.machine.serial}",
        FirmwareVersion=part_version(bmc, "BMC"),
        UUID=bmc.uuid,
        DateTime=bmc.timestamp(bmc.now_s),
        DateTimeLocalOffset="+00:00",
        PowerState="On",
        Status=ok(),
        Links={**servers, "ManagerForChassis": [link(CHASSIS)]},
        Actions={
            "#Manager.Reset": {
                "target": ROOT + MANAGER_RESET_TARGET,
                "ResetType@Redfish.AllowableValues": list(MANAGER_RESET_KINDS),
            }
        },
    )


def chassis(bmc: Bmc) -> Json:
    """The box."""
    machine, now_s = bmc.machine, bmc.now_s
    systems = {} if machine.spec.is_equipment else {"ComputerSystems": [link(SYSTEM)]}
    return resource(
        CHASSIS,
        "Chassis",
        "1",
        "Chassis",
        ChassisType="RackMount",
        Manufacturer=machine.spec.manufacturer,
        Model=machine.spec.model,
        SerialNumber=machine.serial,
        AssetTag=machine.asset_tag,
        LocationIndicatorActive=machine.is_identify_led_lit,
        PowerState=str(machine.power_state(now_s)),
        Status=ok(machine.health(now_s)),
        Power=link(f"{CHASSIS}/Power"),
        Thermal=link(f"{CHASSIS}/Thermal"),
        PowerSubsystem=link(f"{CHASSIS}/PowerSubsystem"),
        ThermalSubsystem=link(f"{CHASSIS}/ThermalSubsystem"),
        Sensors=link(f"{CHASSIS}/Sensors"),
        Links={**systems, "ManagedBy": [link(MANAGER)]},
    )


def power(bmc: Bmc) -> Json:
    """Draw and power supplies in the older schema, which most fleets still read."""
    path = f"{CHASSIS}/Power"
    sensors, spec = bmc.machine.sensors(bmc.now_s), bmc.machine.spec
    supplies = [
        {
            "@odata.id": f"{ROOT}{path}#/PowerSupplies/{index}",
            "MemberId": str(index),
            "Name": f"PSU{psu.number}",
            "LastPowerOutputWatts": psu.draw_w,
            "PowerCapacityWatts": spec.draw_max_w,
            "Status": ok(psu.health),
        }
        for index, psu in enumerate(sensors.psus)
    ]
    control = {
        "@odata.id": f"{ROOT}{path}#/PowerControl/0",
        "MemberId": "0",
        "Name": "Server power",
        "PowerConsumedWatts": sensors.draw_w,
        "PowerCapacityWatts": spec.draw_max_w,
        "Status": ok(),
    }
    redundancy = {
        "@odata.id": f"{ROOT}{path}#/Redundancy/0",
        "MemberId": "0",
        "Name": "Power supply redundancy",
        "Mode": "N+m",
        "MinNumNeeded": 1,
        "MaxNumSupported": spec.psu_count,
        "RedundancySet": [{"@odata.id": supply["@odata.id"]} for supply in supplies],
        "Status": ok("OK" if sensors.is_redundant else "Warning"),
    }
    return resource(
        path,
        "Power",
        "Power",
        "Power",
        PowerControl=[control],
        PowerSupplies=supplies,
        Redundancy=[redundancy],
    )


def thermal(bmc: Bmc) -> Json:
    """Inlet and fans in the older schema, which most fleets still read."""
    path = f"{CHASSIS}/Thermal"
    sensors = bmc.machine.sensors(bmc.now_s)
    inlet = {
        "@odata.id": f"{ROOT}{path}#/Temperatures/0",
        "MemberId": "0",
        "Name": "Inlet",
        "PhysicalContext": "Intake",
        "ReadingCelsius": sensors.inlet_c,
        "UpperThresholdNonCritical": INLET_WARNING_C,
        "UpperThresholdCritical": INLET_CRITICAL_C,
        "Status": ok(sensors.inlet_health),
    }
    fan = {
        "@odata.id": f"{ROOT}{path}#/Fans/0",
        "MemberId": "0",
        "Name": "Fan 1",
        "Reading": sensors.fan_rpm,
        "ReadingUnits": "RPM",
        "Status": ok(),
    }
    return resource(path, "Thermal", "Thermal", "Thermal", Temperatures=[inlet], Fans=[fan])


SENSOR_IDS = ["Inlet", "TotalPower", "Fan1"]


def sensor(bmc: Bmc, sensor_id: str) -> Json | None:
    """One reading in the newer schema."""
    now = bmc.machine.sensors(bmc.now_s)
    known: dict[str, Json] = {
        "Inlet": {
            "ReadingType": "Temperature",
            "ReadingUnits": "Cel",
            "PhysicalContext": "Intake",
            "Reading": now.inlet_c,
            "Thresholds": {
                "UpperCaution": {"Reading": INLET_WARNING_C},
                "UpperCritical": {"Reading": INLET_CRITICAL_C},
            },
            "Status": ok(now.inlet_health),
        },
        "TotalPower": {
            "ReadingType": "Power",
            "ReadingUnits": "W",
            "PhysicalContext": "Chassis",
            "Reading": now.draw_w,
            "ReadingRangeMax": bmc.machine.spec.draw_max_w,
            "Status": ok(),
        },
        "Fan1": {
            "ReadingType": "Rotational",
            "ReadingUnits": "{rev}/min",
            "PhysicalContext": "Fan",
            "Reading": now.fan_rpm,
            "Status": ok(),
        },
    }
    if sensor_id not in known:
        return None
    return resource(f"{CHASSIS}/Sensors/{sensor_id}", "Sensor", sensor_id, sensor_id, **known[sensor_id])


def power_subsystem(bmc: Bmc) -> Json:
    """Power supplies in the newer schema."""
    sensors = bmc.machine.sensors(bmc.now_s)
    health = "OK" if all(psu.health == "OK" for psu in sensors.psus) else "Warning"
    path = f"{CHASSIS}/PowerSubsystem"
    return resource(
        path,
        "PowerSubsystem",
        "PowerSubsystem",
        "Power subsystem",
        CapacityWatts=bmc.machine.spec.draw_max_w,
        PowerSupplies=link(f"{path}/PowerSupplies"),
        Status=ok(health),
    )


def power_supply_ids(bmc: Bmc) -> list[str]:
    """Power supplies, numbered from 1."""
    return [f"PSU{number}" for number in range(1, bmc.machine.spec.psu_count + 1)]


def power_supply(bmc: Bmc, supply_id: str) -> Json | None:
    """One power supply in the newer schema."""
    psus = bmc.machine.sensors(bmc.now_s).psus
    psu = next((one for one in psus if f"PSU{one.number}" == supply_id), None)
    if psu is None:
        return None
    return resource(
        f"{CHASSIS}/PowerSubsystem/PowerSupplies/{supply_id}",
        "PowerSupply",
        supply_id,
        f"Power supply {psu.number}",
        PowerCapacityWatts=bmc.machine.spec.draw_max_w,
        Status=ok(psu.health),
    )


def thermal_subsystem(bmc: Bmc) -> Json:
    """Cooling in the newer schema; the readings are under Sensors."""
    health = bmc.machine.sensors(bmc.now_s).inlet_health
    path = f"{CHASSIS}/ThermalSubsystem"
    return resource(path, "ThermalSubsystem", "ThermalSubsystem", "Thermal subsystem", Status=ok(health))


def log_service(bmc: Bmc) -> Json:
    """The system event log's front page."""
    return resource(
        LOG,
        "LogService",
        "SEL",
        "System event log",
        LogEntryType="SEL",
        ServiceEnabled=True,
        OverWritePolicy="WrapsWhenFull",
        DateTime=bmc.timestamp(bmc.now_s),
        DateTimeLocalOffset="+00:00",
        Entries=link(f"{LOG}/Entries"),
        Status=ok(),
        Actions={"#LogService.ClearLog": {"target": ROOT + CLEAR_LOG_TARGET}},
    )


def log_entries(bmc: Bmc) -> Json:
    """The system event log with its entries in full, as LogEntryCollection asks for."""
    members = [_log_entry(bmc, entry) for entry in bmc.machine.log(bmc.now_s)]
    return {
        "@odata.id": f"{ROOT}{LOG}/Entries",
        "@odata.type": "#LogEntryCollection.LogEntryCollection",
        "Name": "LogEntry Collection",
        "Members@odata.count": len(members),
        "Members": members,
    }


def log_entry(bmc: Bmc, entry_id: str) -> Json | None:
    """One entry of the system event log."""
    found = (entry for entry in bmc.machine.log(bmc.now_s) if str(entry.number) == entry_id)
    entry = next(found, None)
    return _log_entry(bmc, entry) if entry else None


def part_version(bmc: Bmc, part_id: str) -> str:
    """The version of a firmware part; empty if the machine has no part of that id."""
    parts = bmc.machine.firmware(bmc.now_s)
    return next((part.version for part in parts if part.id == part_id), "")


_SEVERITY_OFFSETS = {"OK": 0, "Warning": 1, "Critical": 2}


def _log_entry(bmc: Bmc, entry: LogEntry) -> Json:
    return resource(
        f"{LOG}/Entries/{entry.number}",
        "LogEntry",
        str(entry.number),
        f"Log entry {entry.number}",
        EntryType="SEL",
        Created=bmc.timestamp(entry.at_s),
        Severity=entry.severity,
        Message=f"{entry.sensor}: {entry.message}",
        EntryCode="Assert",
        # The three IPMI event data bytes, as the schema asks for SEL; FFFF says that the last two tell nothing.
        MessageId=f"0x{_SEVERITY_OFFSETS[entry.severity]:02X}FFFF",
    )
