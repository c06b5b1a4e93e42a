"""BMCs by Redfish (DMTF DSP0266): who it is, power, boot, lamp, log; its relatives hold accounts, firmware and the wire.

redfish_client     one BMC over pinned TLS        redfish_accounts   replacing the factory password
redfish_session    one login                      redfish_updates    firmware inventory, updates, tasks
redfish_reading    lenient readers
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.domain.deadline import within
from orchestrator.domain.errors import IdentityMismatch, PeerRefused
from orchestrator.domain.operation import Target
from orchestrator.domain.secret import Secret
from orchestrator.drivers.redfish_accounts import replace_password
from orchestrator.drivers.redfish_client import RedfishClient, pinned_context, shown
from orchestrator.drivers.redfish_reading import ROOT, allowed, date, follow, inner, link, listed, members, number, text
from orchestrator.drivers.redfish_session import Login, PasswordChangeDue, RedfishSession
from orchestrator.drivers.redfish_updates import inventory, list_tasks, look_at_task, start_update

LOG = logging.getLogger(__name__)
LOG_NAMES = ("SEL", "Sel", "IEL", "EventLog", "Event", "Log1")
"""Ids of log services that hold the system event log, best first, as vendors call them."""
MOST_EVENTS = 500


class BmcSecrets(Protocol):
    """What this driver asks of the secrets folder."""

    def factory_login(self, node: str) -> tuple[str, Secret]: ...
    def has_factory_login(self, node: str) -> bool: ...
    def factory_serial(self, node: str) -> str | None: ...
    def factory_certificate(self, node: str) -> str | None: ...
    def bmc_password(self, node: str, *, create: bool = False) -> Secret: ...
    def has_bmc_password(self, node: str) -> bool: ...


class RedfishDoor:
    """Opens BMCs; implements `interfaces.BmcDoor`. Nothing is sent before the first verb."""

    def __init__(self, secrets: BmcSecrets) -> None:
        self._secrets = secrets

    def open(self, node: str, target: Target, timeout_s: float) -> "RedfishBmc":
        """`timeout_s`: longest silence within one request; whole exchanges are bounded by `domain.deadline`."""
        pin = target.bmc_certificate_sha256 or self._secrets.factory_certificate(node) or ""
        if target.bmc_insecure:
            LOG.warning("%s: the certificate of its BMC at %s is NOT checked (insecure_bmc)", node, target.bmc_host)
        context = pinned_context(
            f"the BMC of {node} at {target.bmc_host}:{target.bmc_port}", pin, checked=not target.bmc_insecure
        )
        client = RedfishClient(target.bmc_host, target.bmc_port, context, timeout_s)
        return RedfishBmc(node, target, RedfishSession(client), self._secrets, is_known=bool(pin) or target.bmc_insecure)


class RedfishBmc:
    """One BMC; implements `interfaces.Bmc`. Facts are those of `domain.operation.Action`. Two threads may share it.

    Every verb makes sure of the machine's serial before it writes. Errors: PeerUnreachable, PeerRefused, AnswerLost,
    IdentityMismatch, SecretMissing.
    """

    def __init__(self, node: str, target: Target, session: RedfishSession, secrets: BmcSecrets, *, is_known: bool) -> None:
        self._node = node
        self._target = target
        self._session = session
        self._secrets = secrets
        self._is_known = is_known
        """Whether the certificate was known before the first contact (or the spec gives up on it)."""
        self._lock = threading.RLock()
        self._system_uri = ""
        self._draw_uri = ""

    def identify(self) -> Mapping[str, Any]:
        """Who it is, with whichever login works. Only this verb may meet a certificate that nobody has named before."""
        self._enter_any()
        facts: dict[str, Any] = {
            "serial": None,
            "model": None,
            "manufacturer": None,
            "uuid": None,
            "power": None,
            "certificate_sha256": self._session.client.certificate_sha256,
            "bmc_firmware": None,
            "account": self._session.account,
            "password_change_required": False,
        }
        try:
            system = self._system()
        except PasswordChangeDue:
            return {**facts, "password_change_required": True}
        return {
            **facts,
            "serial": text(system, "SerialNumber"),
            "model": text(system, "Model"),
            "manufacturer": text(system, "Manufacturer"),
            "uuid": text(system, "UUID"),
            "power": text(system, "PowerState"),
            "bmc_firmware": self._manager_firmware(system),
        }

    def observe(self) -> Mapping[str, Any]:
        """Power, boot override, health, draw."""
        self._enter()
        system = self._system()
        return {
            "power": text(system, "PowerState"),
            "boot_override_target": text(system, "Boot", "BootSourceOverrideTarget"),
            "boot_override_enabled": text(system, "Boot", "BootSourceOverrideEnabled"),
            "health": text(system, "Status", "Health"),
            "draw_w": self._draw_w(system),
        }

    def replace_factory_password(self) -> Mapping[str, Any]:
        """Make our login the only one that works. Safe to repeat after a crash or a lost answer."""
        self._need_known_certificate()
        ours = self._our_login(create=True)
        with self._lock:
            if self._session.account == "ours":
                changed = False
            elif self._secrets.has_factory_login(self._node):
                changed = replace_password(self._session, self._factory_login(), ours)
            else:
                # Without a delivery row, a login of ours that works already is all there can be.
                self._enter()
                changed = False
        self._system()
        return {"account": self._session.account, "changed": changed}

    def reset(self, kind: str) -> Mapping[str, Any]:
        """ComputerSystem.Reset. `accepted` says that the BMC took it, not that it happened."""
        self._enter()
        action = inner(self._system(), "Actions", "#ComputerSystem.Reset")
        target = text(action, "target")
        if target is None:
            raise PeerRefused(f"the BMC of {self._node} offers no Reset")
        self._need_allowed(action, "ResetType", kind)
        self._session.write("POST", target, {"ResetType": kind})
        return {"reset": kind, "accepted": True}

    def boot_once(self, target: str) -> Mapping[str, Any]:
        """Boot from `target` the next time only; read back, because some BMCs answer 200 and change nothing."""
        self._enter()
        system = self._system()
        self._need_allowed(inner(system, "Boot"), "BootSourceOverrideTarget", target)
        wanted = {"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": target}
        answer = self._session.patch(self._system_uri, {"Boot": wanted})
        boot = inner(self._system(), "Boot")
        # 202: it is applied later, so reading it back now would prove nothing.
        if answer.status != 202 and any(text(boot, key) != value for key, value in wanted.items()):
            read = ", ".join(f"{key} {text(boot, key)}" for key in wanted)
            raise PeerRefused(f"the BMC of {self._node} took the boot override {target} and reads back {read}", retryable=True)
        return {"target": target}

    def firmware(self) -> Mapping[str, Any]:
        """The firmware inventory."""
        self._enter()
        return {"components": inventory(self._session)}

    def update(self, component: str, image_uri: str, version: str) -> Mapping[str, Any]:
        """Start one update; the task is watched with `task`."""
        self._enter()
        self._system()
        return start_update(self._session, component, image_uri, version)

    def task(self, uri: str) -> Mapping[str, Any]:
        """Where an update stands; "Vanished" if the BMC does not know the task any more."""
        self._enter()
        return look_at_task(self._session, uri)

    def tasks(self) -> Mapping[str, Any]:
        """Every task the BMC still remembers, newest last; `listed` is false where it lists none to anybody."""
        self._enter()
        tasks = list_tasks(self._session)
        return {"tasks": tasks or [], "listed": tasks is not None}

    def locate(self, lit: bool) -> Mapping[str, Any]:
        """Switch the lamp that shows a technician the machine."""
        self._enter()
        system = self._system()
        chassis = self._chassis_uri(system)
        for uri, resource in ((self._system_uri, system), (chassis, self._session.get(chassis) if chassis else {})):
            if uri and isinstance(resource.get("LocationIndicatorActive"), bool):
                self._session.patch(uri, {"LocationIndicatorActive": lit})
                return {"lit": lit}
            if uri and text(resource, "IndicatorLED"):
                self._session.patch(uri, {"IndicatorLED": "Blinking" if lit else "Off"})
                return {"lit": lit}
        raise PeerRefused(f"the BMC of {self._node} has no locator lamp")

    def events(self) -> Mapping[str, Any]:
        """The newest entries of the system event log, at most MOST_EVENTS."""
        self._enter()
        system = self._system()
        services: dict[str, str] = {}
        for place in (system, *self._managers(system)):
            collection = link(place, "LogServices")
            for service in members(self._session, collection) if collection else ():
                uri = service["@odata.id"]
                services.setdefault(uri.rstrip("/").rsplit("/", 1)[-1], uri)
        chosen = next((services[name] for name in LOG_NAMES if name in services), next(iter(services.values()), None))
        if chosen is None:
            raise PeerRefused(f"the BMC of {self._node} keeps no event log")
        entries = []
        for member in members(self._session, follow(self._session, "Entries", start=chosen)):
            # Some collections show their entries, some only links, some entries with most of their fields left out.
            entry = member if "Message" in member else self._session.get(member["@odata.id"])
            at = date(entry, "EventTimestamp", "Created")
            entries.append({"at": at, "severity": text(entry, "Severity"), "message": shown(str(entry.get("Message") or ""))})
        return {"entries": sorted(entries, key=lambda entry: str(entry["at"] or ""))[-MOST_EVENTS:]}

    def close(self) -> None:
        """Log out and close the connections."""
        with within(5.0):
            self._session.close()

    # Logins.

    def _enter(self) -> None:
        """Be logged in as ourselves."""
        self._need_known_certificate()
        with self._lock:
            if self._session.account == "ours":
                return
            if not self._session.log_in(self._our_login()):
                raise PeerRefused(
                    f"the BMC of {self._node} does not accept the login of {self._target.bmc_user}",
                    "its password was changed behind rackray's back, or it was reset to factory defaults",
                )

    def _enter_any(self) -> None:
        """Be logged in: as ourselves if our password exists and works, else with the factory login of this serial."""
        with self._lock:
            if self._session.account == "ours":
                return
            has_ours = self._secrets.has_bmc_password(self._node)
            if has_ours and self._session.log_in(self._our_login()):
                return
            if self._session.account == "factory":
                return
            if not self._session.log_in(self._factory_login()):
                raise PeerRefused(
                    f"the BMC of {self._node} does not accept the factory login of the delivery list"
                    + (", nor ours" if has_ours else ""),
                    "check its row in factory.csv; other passwords are not tried, because that locks accounts",
                )

    def _our_login(self, *, create: bool = False) -> Login:
        return Login("ours", self._target.bmc_user, self._secrets.bmc_password(self._node, create=create))

    def _factory_login(self) -> Login:
        listed_serial = self._secrets.factory_serial(self._node)
        if listed_serial and self._target.serial and listed_serial != self._target.serial:
            raise IdentityMismatch(
                f"factory.csv says that {self._node} is {listed_serial}; the spec says {self._target.serial}",
                "a factory password is sent only to the machine it was delivered for",
            )
        return Login("factory", *self._secrets.factory_login(self._node))

    def _need_known_certificate(self) -> None:
        if not self._is_known:
            raise IdentityMismatch(
                f"no certificate is pinned for the BMC of {self._node}",
                "it is pinned when the BMC is identified, or comes with factory.csv (bmc_certificate_sha256)",
            )

    def _need_allowed(self, resource: Mapping[str, Any], name: str, value: str) -> None:
        values = allowed(resource, name)
        if values and value not in values:
            raise PeerRefused(f"the BMC of {self._node} does not take {name} {value}; it takes {', '.join(values)}")

    # Resources.

    def _system(self) -> Mapping[str, Any]:
        """The ComputerSystem, read now; of equipment without one, its chassis. Raises IdentityMismatch if it is another
        machine than the spec's."""
        with self._lock:
            if not self._system_uri:
                self._system_uri = self._session.client.path_of(self._find_system())
        answer = self._session.find(self._system_uri)
        if answer is None:
            uri, self._system_uri = self._system_uri, ""
            raise PeerRefused(f"the BMC of {self._node} does not serve {uri}", "it may still be starting", retryable=True)
        system = answer.body
        serial = text(system, "SerialNumber")
        if serial and self._target.serial and serial != self._target.serial:
            raise IdentityMismatch(
                f"the BMC of {self._node} at {self._session.client.where} says serial {shown(serial)}; "
                f"the spec says {self._target.serial}",
                "are two machines swapped in the rack, or their BMC cables?",
            )
        return system

    def _find_system(self) -> str:
        root = self._session.get(ROOT)
        systems = link(root, "Systems")
        if self._target.is_equipment:
            # Switches and power shelves often have no computer system: who they are then stands at their chassis.
            uris = self._members_of(systems) or self._members_of(link(root, "Chassis"))
        else:
            uris = self._members_of(systems or ROOT + "Systems")
        if not uris:
            raise PeerRefused(f"the BMC of {self._node} lists no computer system", "it may still be starting", retryable=True)
        if len(uris) == 1:
            return uris[0]
        # GPU servers list their baseboard as a system too: ours has the spec's serial, or else a power button.
        found = {uri: self._session.get(uri) for uri in uris}
        by_serial = [uri for uri, system in found.items() if text(system, "SerialNumber") == self._target.serial]
        by_button = [uri for uri, system in found.items() if inner(system, "Actions", "#ComputerSystem.Reset")]
        return [*by_serial, *by_button, *uris][0]

    def _members_of(self, collection: str | None) -> list[str]:
        return [member["@odata.id"] for member in members(self._session, collection)] if collection else []

    def _managers(self, system: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        links = [link(item) for item in listed(inner(system, "Links"), "ManagedBy") if isinstance(item, Mapping)]
        if not links:
            links = [*self._members_of(link(self._session.get(ROOT), "Managers"))]
        return [self._session.get(uri) for uri in links if uri]

    def _manager_firmware(self, system: Mapping[str, Any]) -> str | None:
        return next((version for manager in self._managers(system) if (version := text(manager, "FirmwareVersion"))), None)

    def _chassis_uri(self, system: Mapping[str, Any]) -> str | None:
        if str(text(system, "@odata.type") or "").startswith("#Chassis."):
            return self._system_uri
        links = [link(item) for item in listed(inner(system, "Links"), "Chassis") if isinstance(item, Mapping)]
        return next((uri for uri in links if uri), None)

    def _draw_w(self, system: Mapping[str, Any]) -> float | None:
        """Watts the machine draws; None where the BMC does not measure it."""
        try:
            if not self._draw_uri:
                chassis_uri = self._chassis_uri(system)
                chassis = self._session.get(chassis_uri) if chassis_uri else {}
                self._draw_uri = link(chassis, "EnvironmentMetrics") or link(chassis, "Power") or ""
            if not self._draw_uri:
                return None
            source = self._session.get(self._draw_uri)
        except PeerRefused as refused:
            LOG.info("%s: no power reading: %s", self._node, refused)
            return None
        controls = [control for control in listed(source, "PowerControl") if isinstance(control, Mapping)]
        readings = [number(source, "PowerWatts", "Reading"), *(number(control, "PowerConsumedWatts") for control in controls)]
        return next((reading for reading in readings if reading is not None), None)
