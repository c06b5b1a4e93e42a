"""A lab on the wire for tests, and an operator who works it by Redfish, HTTPS and OpenSSH."""

import csv
import os
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from orchestrator.lab.control import LabNodeStatus, check_machine, lab_status
from orchestrator.lab.errors import LabError
from orchestrator.lab.plan import LabPaths, LabSpec, NodePlan

NEW_PASSWORD = "Changed-12345678"
SYSTEM = "/redfish/v1/Systems/1"


def skip_unless_possible() -> None:
    if os.geteuid() != 0:
        pytest.skip("acceptance tests of the lab need root: as a normal user a forgotten `become` passes")
    try:
        check_machine()
    except LabError as error:
        pytest.skip(f"no lab on this machine: {error}")


def spec_of(*names: str, first: int = 1) -> LabSpec:
    """Nodes at 127.1.210.FIRST… (SSH) and 127.2.210.FIRST… (BMC) that boot at once."""
    nodes = tuple(
        NodePlan(
            name=name,
            serial=f"SER-{name}",
            manufacturer="Dell Inc.",
            model="PowerEdge XE9680",
            bmc_address=f"127.2.210.{number}",
            ssh_address=f"127.1.210.{number}",
            gpu_count=2,
            boot_s=0.1,
            image_s=0.0,
            update_s=0.1,
        )
        for number, name in enumerate(names, first)
    )
    return LabSpec(nodes=nodes, image_service_address=f"127.3.210.{first}")


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.02)


@dataclass
class Operator:
    """Knows what an operator of the simulated site knows: its addresses and its secrets folder."""

    home: Path
    spec: LabSpec
    passwords: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> LabPaths:
        return LabPaths(self.home)

    def plan(self, name: str) -> NodePlan:
        return next(node for node in self.spec.nodes if node.name == name)

    def status(self, name: str) -> LabNodeStatus:
        return next(node for node in lab_status(self.home).nodes if node.name == name)

    def papers(self) -> dict[str, dict[str, str]]:
        with self.paths.factory_csv.open(newline="") as file:
            return {row["node"]: row for row in csv.DictReader(file)}

    def bmc(self, name: str) -> httpx.Client:
        """A client of one BMC, past the change of the factory password."""
        if name not in self.passwords:
            with self._bmc(name, self.papers()[name]["password"]) as fresh:
                account = "/redfish/v1/AccountService/Accounts/1"
                etag = fresh.get(account).headers["ETag"]
                fresh.patch(account, json={"Password": NEW_PASSWORD}, headers={"If-Match": etag}).raise_for_status()
            self.passwords[name] = NEW_PASSWORD
        return self._bmc(name, self.passwords[name])

    def _bmc(self, name: str, password: str) -> httpx.Client:
        plan, row = self.plan(name), self.papers()[name]
        context = ssl.create_default_context(cafile=str(self.paths.node(name).bmc / f"{name}.pem"))
        url = f"https://{plan.bmc_address}:{plan.bmc_port}"
        return httpx.Client(base_url=url, verify=context, auth=(row["username"], password), trust_env=False, timeout=10)

    def images(self) -> httpx.Client:
        token = self.paths.image_token.read_text().strip()
        context = ssl.create_default_context(cafile=str(self.paths.service_certificate))
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.spec.image_service_url, verify=context, headers=headers, trust_env=False)

    def reset(self, name: str, kind: str) -> None:
        with self.bmc(name) as bmc:
            bmc.post(f"{SYSTEM}/Actions/ComputerSystem.Reset", json={"ResetType": kind}).raise_for_status()

    def install(self, name: str) -> None:
        """One network boot, waited for until SSH is open."""
        with self.bmc(name) as bmc:
            boot = {"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}}
            bmc.patch(SYSTEM, json=boot).raise_for_status()
        self.switch_off(name)
        self.switch_on(name)

    def switch_on(self, name: str) -> None:
        self.reset(name, "On")
        wait_until(lambda: self.status(name).ssh_listening, f"{name} listens for SSH")

    def switch_off(self, name: str) -> None:
        if self.status(name).power != "Off":
            self.reset(name, "ForceOff")
        wait_until(lambda: self.status(name).pid is None, f"{name} is off")

    def host_key(self, name: str) -> str:
        with self.images() as images:
            return str(images.get(f"/v1/nodes/{self.plan(name).serial}").raise_for_status().json()["ssh_host_key"])

    def ssh_command(self, name: str, command: str, host_key: str | None = None) -> list[str]:
        plan = self.plan(name)
        known = self.home / f"known_hosts_{name}"
        known.write_text(f"[{plan.ssh_address}]:{plan.ssh_port} {host_key or self.host_key(name)}\n")
        options = {
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
        }
        words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
        key = ["-i", str(self.paths.ssh_key), "-p", str(plan.ssh_port)]
        return ["ssh", "-F", "none", *key, *words, f"{plan.user}@{plan.ssh_address}", command]

    def ssh(self, name: str, command: str, host_key: str | None = None, limit_s: float = 20) -> subprocess.CompletedProcess[str]:
        words = self.ssh_command(name, command, host_key)
        return subprocess.run(words, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)

    def say(self, name: str, command: str) -> str:
        """The command's output; it must succeed."""
        done = self.ssh(name, command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()
