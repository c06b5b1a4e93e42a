"""Which version of each Redfish schema the resources follow, and the documents that say so.

Versions are taken from DMTF's schema bundle (DSP8010); `$metadata`, JsonSchemas and every `@odata.type` use
this table.
"""

from orchestrator.lab.bmc.messages import BASE, UPDATE, Json

ROOT = "/redfish/v1"

VERSIONS = {
    "ServiceRoot": "v1_15_0",
    "ComputerSystem": "v1_20_0",
    "Processor": "v1_20_0",
    "Manager": "v1_17_0",
    "Chassis": "v1_22_0",
    "Power": "v1_7_1",
    "Thermal": "v1_7_1",
    "Sensor": "v1_7_0",
    "PowerSubsystem": "v1_1_0",
    "PowerSupply": "v1_5_0",
    "ThermalSubsystem": "v1_2_0",
    "SessionService": "v1_1_8",
    "Session": "v1_5_0",
    "AccountService": "v1_12_0",
    "ManagerAccount": "v1_10_0",
    "Role": "v1_3_1",
    "UpdateService": "v1_11_1",
    "SoftwareInventory": "v1_9_0",
    "TaskService": "v1_2_0",
    "Task": "v1_7_1",
    "LogService": "v1_4_0",
    "LogEntry": "v1_15_0",
    "MessageRegistryFile": "v1_1_3",
    "JsonSchemaFile": "v1_1_4",
}
COLLECTIONS = (
    "ComputerSystem",
    "Processor",
    "Manager",
    "Chassis",
    "Sensor",
    "PowerSupply",
    "Session",
    "ManagerAccount",
    "Role",
    "SoftwareInventory",
    "Task",
    "LogService",
    "LogEntry",
    "MessageRegistryFile",
    "JsonSchemaFile",
)
SERVICES = (
    "Systems",
    "Managers",
    "Chassis",
    "SessionService",
    "AccountService",
    "UpdateService",
    "TaskService",
    "Registries",
    "JsonSchemas",
)
_SCHEMA_URI = "http://redfish.dmtf.org/schemas/v1"


def link(path: str) -> Json:
    """A reference to another resource of this service."""
    return {"@odata.id": ROOT + path}


def resource(path: str, kind: str, resource_id: str, name: str, **properties: object) -> Json:
    """A resource with the properties every one has."""
    return {
        "@odata.id": ROOT + path,
        "@odata.type": f"#{kind}.{VERSIONS[kind]}.{kind}",
        "Id": resource_id,
        "Name": name,
        **properties,
    }


def collection(path: str, kind: str, member_ids: list[str]) -> Json:
    """A collection whose members lie directly below it."""
    return {
        "@odata.id": ROOT + path,
        "@odata.type": f"#{kind}Collection.{kind}Collection",
        "Name": f"{kind} Collection",
        "Members@odata.count": len(member_ids),
        "Members": [link(f"{path}/{member_id}") for member_id in member_ids],
    }


def described_by(body: Json) -> str:
    """The `Link` header of a resource: the JSON schema that describes it."""
    namespace = str(body.get("@odata.type", "#ServiceRoot.")).removeprefix("#").rpartition(".")[0]
    return f"<{_SCHEMA_URI}/{namespace or 'redfish-schema'}.json>; rel=describedby"


def metadata_document() -> str:
    """`$metadata`: every schema in use, as OData's entity model wants it."""
    references = [(kind, [kind, f"{kind}.{version}"]) for kind, version in VERSIONS.items()]
    references += [(f"{kind}Collection", [f"{kind}Collection"]) for kind in COLLECTIONS]
    references += [("Message", ["Message", "Message.v1_1_2"]), ("Resource", ["Resource", "Resource.v1_0_0"])]
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<edmx:Edmx xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx" Version="4.0">',
    ]
    for file, namespaces in references:
        includes = "".join(f'<edmx:Include Namespace="{namespace}"/>' for namespace in namespaces)
        lines.append(f'<edmx:Reference Uri="{_SCHEMA_URI}/{file}_v1.xml">{includes}</edmx:Reference>')
    lines += [
        f'<edmx:Reference Uri="{_SCHEMA_URI}/RedfishExtensions_v1.xml">'
        '<edmx:Include Namespace="RedfishExtensions.v1_0_0" Alias="Redfish"/></edmx:Reference>',
        '<edmx:DataServices><Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="Service">'
        f'<EntityContainer Name="Service" Extends="ServiceRoot.{VERSIONS["ServiceRoot"]}.ServiceContainer"/>'
        "</Schema></edmx:DataServices>",
        "</edmx:Edmx>",
    ]
    return "\n".join(lines)


def odata_document() -> Json:
    """The OData service document."""
    services = [{"name": name, "kind": "Singleton", "url": f"{ROOT}/{name}"} for name in SERVICES]
    return {
        "@odata.context": f"{ROOT}/$metadata",
        "value": [{"name": "Service", "kind": "Singleton", "url": f"{ROOT}/"}, *services],
    }


def openapi_document() -> str:
    """The OpenAPI document: where to find DMTF's, whose paths this service follows."""
    return (
        "openapi: 3.0.1\n"
        "info:\n"
        "  title: Redfish service of a simulated machine\n"
        "  version: '1.15'\n"
        "externalDocs:\n"
        f"  url: {_SCHEMA_URI}/openapi.yaml\n"
        "paths: {}\n"
    )


def schema_file(kind: str) -> Json | None:
    """Where the JSON schema of a kind of resource is published."""
    if kind not in VERSIONS:
        return None
    name = f"{kind}.{VERSIONS[kind]}"
    return resource(
        f"/JsonSchemas/{kind}",
        "JsonSchemaFile",
        kind,
        f"{kind} schema file",
        Schema=f"#{name}.{kind}",
        Languages=["en"],
        Location=[{"Language": "en", "PublicationUri": f"{_SCHEMA_URI}/{name}.json"}],
    )


REGISTRIES = {"Base": (BASE, f"{BASE}.1"), "Update": (UPDATE, f"{UPDATE}.0")}
"""Message registries in use: id → (as in MessageId, name of the published file)."""


def registry_file(registry_id: str) -> Json | None:
    """Where a message registry is published."""
    if registry_id not in REGISTRIES:
        return None
    registry, file = REGISTRIES[registry_id]
    return resource(
        f"/Registries/{registry_id}",
        "MessageRegistryFile",
        registry_id,
        f"{registry_id} message registry file",
        Registry=registry,
        Languages=["en"],
        Location=[{"Language": "en", "PublicationUri": f"https://redfish.dmtf.org/registries/{file}.json"}],
    )
