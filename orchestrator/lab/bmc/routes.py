"""The table of routes: every path of the service, what it shows, and what may be written there by whom."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.lab.bmc import actions, hardware, schemas, services, writes
from orchestrator.lab.bmc.actions import Outcome
from orchestrator.lab.bmc.messages import Json
from orchestrator.lab.bmc.schemas import ROOT, collection
from orchestrator.lab.bmc.state import Bmc, Caller
from orchestrator.lab.machine_accounts import ROLE_PRIVILEGES

Show = Callable[[Bmc, str], Json | None]
"""(bmc, id) → the resource, or None if there is none of that id. Paths without an id are called with ""."""
Post = Callable[[Bmc, Json, Caller], Outcome]
Delete = Callable[[Bmc, str], Outcome]


@dataclass(frozen=True, slots=True)
class Route:
    """One path. `{id}` in it stands for one segment."""

    path: str
    show: Show | None = None
    writables: writes.Writables | None = None
    post: Post | None = None
    delete: Delete | None = None
    write_privilege: str = "ConfigureComponents"
    """What PATCH, POST and DELETE need; owners of accounts and sessions have rights of their own."""
    is_public: bool = False
    """Readable without a login."""
    takes_logins: bool = False
    """POST makes a session and needs no login."""
    shows_outcome: Callable[[Bmc, str], Outcome | None] | None = None
    """For task monitors, whose GET answers with the outcome of another request."""
    owner_privilege: str = ""
    """What the owner of the account or session needs to read it, and to write their own password or log
    out.
    """

    @property
    def methods(self) -> tuple[str, ...]:
        """What `Allow` says."""
        able = {
            "GET": self.show or self.shows_outcome,
            "HEAD": self.show or self.shows_outcome,
            "POST": self.post or self.takes_logins,
            "PATCH": self.writables is not None,
            "DELETE": self.delete,
        }
        return tuple(method for method, ability in able.items() if ability)


def _one(render: Callable[[Bmc], Json]) -> Show:
    return lambda bmc, _: render(bmc)


def _members(path: str, kind: str, ids: Callable[[Bmc], list[str]]) -> Show:
    return lambda bmc, _: collection(path, kind, ids(bmc))


def _fixed_members(path: str, kind: str, ids: list[str]) -> Show:
    return lambda bmc, _: collection(path, kind, ids)


_SYSTEM, _CHASSIS = hardware.SYSTEM, hardware.CHASSIS
_SUPPLIES = f"{_CHASSIS}/PowerSubsystem/PowerSupplies"

ROUTES = (
    Route("", show=_one(services.service_root), is_public=True),
    Route("/Systems", show=_fixed_members("/Systems", "ComputerSystem", ["1"])),
    Route(_SYSTEM, show=_one(hardware.system), writables=writes.SYSTEM_WRITABLES),
    Route(hardware.RESET_TARGET, post=actions.reset_system),
    Route(f"{_SYSTEM}/Processors", show=_members(f"{_SYSTEM}/Processors", "Processor", hardware.processor_ids)),
    Route(f"{_SYSTEM}/Processors/{{id}}", show=hardware.processor),
    Route(f"{_SYSTEM}/LogServices", show=_fixed_members(f"{_SYSTEM}/LogServices", "LogService", ["SEL"])),
    Route(hardware.LOG, show=_one(hardware.log_service)),
    Route(hardware.CLEAR_LOG_TARGET, post=actions.clear_log, write_privilege="ConfigureManager"),
    Route(f"{hardware.LOG}/Entries", show=_one(hardware.log_entries)),
    Route(f"{hardware.LOG}/Entries/{{id}}", show=hardware.log_entry),
    Route("/Managers", show=_fixed_members("/Managers", "Manager", ["1"])),
    Route(hardware.MANAGER, show=_one(hardware.manager)),
    Route(hardware.MANAGER_RESET_TARGET, post=actions.reset_manager, write_privilege="ConfigureManager"),
    Route("/Chassis", show=_fixed_members("/Chassis", "Chassis", ["1"])),
    Route(_CHASSIS, show=_one(hardware.chassis), writables=writes.CHASSIS_WRITABLES),
    Route(f"{_CHASSIS}/Power", show=_one(hardware.power)),
    Route(f"{_CHASSIS}/Thermal", show=_one(hardware.thermal)),
    Route(f"{_CHASSIS}/PowerSubsystem", show=_one(hardware.power_subsystem)),
    Route(_SUPPLIES, show=_members(_SUPPLIES, "PowerSupply", hardware.power_supply_ids)),
    Route(f"{_SUPPLIES}/{{id}}", show=hardware.power_supply),
    Route(f"{_CHASSIS}/ThermalSubsystem", show=_one(hardware.thermal_subsystem)),
    Route(f"{_CHASSIS}/Sensors", show=_fixed_members(f"{_CHASSIS}/Sensors", "Sensor", hardware.SENSOR_IDS)),
    Route(f"{_CHASSIS}/Sensors/{{id}}", show=hardware.sensor),
    Route(
        "/SessionService",
        show=_one(services.session_service),
        writables=writes.SESSION_SERVICE_WRITABLES,
        write_privilege="ConfigureManager",
    ),
    Route(
        services.SESSIONS,
        show=_members(services.SESSIONS, "Session", services.session_ids),
        takes_logins=True,
    ),
    Route(f"{services.SESSIONS}/Members", takes_logins=True),
    Route(
        f"{services.SESSIONS}/{{id}}",
        show=services.session,
        delete=actions.log_out,
        write_privilege="ConfigureManager",
        owner_privilege="ConfigureSelf",
    ),
    Route("/AccountService", show=_one(services.account_service)),
    Route(
        services.ACCOUNTS,
        show=_members(services.ACCOUNTS, "ManagerAccount", services.account_ids),
        post=actions.create_account,
        write_privilege="ConfigureUsers",
    ),
    Route(
        f"{services.ACCOUNTS}/{{id}}",
        show=services.account,
        writables=writes.ACCOUNT_WRITABLES,
        delete=actions.delete_account,
        write_privilege="ConfigureUsers",
        owner_privilege="ConfigureSelf",
    ),
    Route(services.ROLES, show=_fixed_members(services.ROLES, "Role", list(ROLE_PRIVILEGES))),
    Route(f"{services.ROLES}/{{id}}", show=services.role),
    Route("/UpdateService", show=_one(services.update_service)),
    Route(services.SIMPLE_UPDATE_TARGET, post=actions.simple_update),
    Route(
        services.FIRMWARE,
        show=_members(services.FIRMWARE, "SoftwareInventory", services.part_ids),
    ),
    Route(f"{services.FIRMWARE}/{{id}}", show=services.part),
    Route("/TaskService", show=_one(services.task_service)),
    Route(services.TASKS, show=_members(services.TASKS, "Task", services.task_ids)),
    Route(f"{services.TASKS}/{{id}}", show=services.task),
    Route(f"{services.MONITORS}/{{id}}", shows_outcome=actions.watch_task),
    Route(
        "/Registries",
        show=_fixed_members("/Registries", "MessageRegistryFile", list(schemas.REGISTRIES)),
    ),
    Route("/Registries/{id}", show=lambda _, one: schemas.registry_file(one)),
    Route("/JsonSchemas", show=_fixed_members("/JsonSchemas", "JsonSchemaFile", list(schemas.VERSIONS))),
    Route("/JsonSchemas/{id}", show=lambda _, one: schemas.schema_file(one)),
)
_EXACT = {ROOT + route.path: route for route in ROUTES if "{id}" not in route.path}
_PATTERNS = [
    (re.compile(re.escape(ROOT + route.path).replace(r"\{id\}", "([^/]+)")), route) for route in ROUTES if "{id}" in route.path
]


def _is_of_system(route: Route) -> bool:
    return route.path == "/Systems" or route.path.startswith(_SYSTEM)


def find_route(path: str, *, is_equipment: bool = False) -> tuple[Route, str] | None:
    """The route of a path without its trailing slash, and the id in it; None if there is none.

    Equipment has no computer system, and nothing below one.
    """
    found: tuple[Route, str] | None = None
    if exact := _EXACT.get(path):
        found = exact, ""
    else:
        matches = ((route, pattern.fullmatch(path)) for pattern, route in _PATTERNS)
        found = next(((route, match.group(1)) for route, match in matches if match), None)
    return None if found and is_equipment and _is_of_system(found[0]) else found
