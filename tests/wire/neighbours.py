"""One process full of neighbours: the lab's BMCs, scripted ones, real sshd behind the lab's acceptor; and the real way to them.

Every exchange takes the whole road, `LocalHands` → `Exchange` → driver → socket. Beside each broken neighbour stands a sound one
that is asked at the same moment.
"""

import dataclasses
import getpass
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.domain.deadline import within
from orchestrator.domain.operation import Action, Operation, Outcome, Status, Target
from orchestrator.drivers.exchange import Exchange
from orchestrator.drivers.image_service import ImageServiceClient
from orchestrator.drivers.interfaces import NodeShell, Secrets
from orchestrator.drivers.local_hands import LocalHands
from orchestrator.drivers.redfish import RedfishDoor
from orchestrator.drivers.secrets import SecretStore
from orchestrator.drivers.ssh import SshDoor
from orchestrator.lab.ssh_acceptor import SshAcceptor, SshFault
from orchestrator.lab.ssh_acceptor import SshDoor as NodeDoor
from tests.drivers.redfish_lab import FACTORY_PASSWORD, BmcLab
from tests.drivers.redfish_oddities import OddBmc
from tests.drivers.sshd_peers import SSHD, Peer, SshdPeer

EPOCH = 1
BMC_NETWORK, ODD_NETWORK, SSH_NETWORK = "127.2.202", "127.2.203", "127.1.202"
SSH_PORT = 2222
PATIENCE_S = 60.0
"""How long an outcome may take to come back through the hands before the test gives up."""


class Wire:
    """All of it. One per module of tests: a broken neighbour is always a new one, so that faults do not meet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sshd").mkdir()
        self.bmcs = BmcLab.started(folder, BMC_NETWORK)
        self.sshd = SshdPeer(folder / "sshd", f"{SSH_NETWORK}.1")
        self.acceptor = SshAcceptor()
        self.store = SecretStore(folder, environment={"RACKRAY_SSH_KEY": str(self.sshd.client_key)})
        self.exchange = self.new_exchange()
        self.hands = LocalHands(self._perform, threads=64)
        self._limits: dict[str, float] = {}
        self._numbers = itertools.count(1)
        self._odd: list[OddBmc] = []
        self._peers: list[Peer] = []
        self._outcomes: dict[str, Outcome] = {}
        self.arrived: list[str] = []
        """Operations in the order in which their outcomes came."""
        self.sound_bmc = self.credentialed()

    def new_exchange(self) -> Exchange:
        """Another set of connections to the same neighbours."""
        return Exchange(
            bmcs=RedfishDoor(self.store),
            shells=SshDoor(self.store),
            images=ImageServiceClient(self.store),
            secrets=self.store,
            join=_join,
            leave=_join,
            redact=self.store.redact,
        )

    # ------------------------------------------------------------------ neighbours
    def credentialed(self, *, on: bool = False) -> "tuple[str, Target]":
        """A lab BMC past its factory password, with a session open."""
        node = f"bmc{next(self._numbers)}"
        target = self.bmcs.add(node)
        assert self.ask(node, target, Action.BMC_CREDENTIAL).status is Status.DONE
        if on:
            self.bmcs.loop.call(lambda: self.bmcs.machines[node].reset("On", time.monotonic()))
        return node, target

    def delivered(self) -> "tuple[str, Target]":
        """A lab BMC as the vendor delivers it."""
        node = f"bmc{next(self._numbers)}"
        return node, self.bmcs.add(node)

    def odd(self) -> "tuple[OddBmc, str, Target]":
        """A BMC whose every answer is scripted; sound as long as its tree is not changed."""
        number = next(self._numbers)
        folder = self.folder / f"odd{number}"
        folder.mkdir()
        bmc = OddBmc(folder, f"{ODD_NETWORK}.{number % 250 + 1}")
        self._odd.append(bmc)
        node = f"odd{number}"
        self.store.bmc_password(node, create=True)
        target = Target(bmc_host=bmc.address, bmc_port=bmc.port, bmc_certificate_sha256=bmc.pin, serial="SER-odd")
        return bmc, node, target

    def node(self) -> "tuple[str, Target]":
        """A node with the lab's SSH port and the real sshd behind it."""
        number = next(self._numbers)
        name, address = f"ssh{number}", f"{SSH_NETWORK}.{number % 250 + 2}"
        words = (SSHD, "-i", "-f", str(self.sshd.folder / "sshd_config"), "-h", str(self.sshd.folder / "host_key"))
        self.acceptor.open(NodeDoor(name, address, SSH_PORT, words, self.folder / "sshd" / "node.log"))
        return name, self.ssh_target(address, SSH_PORT)

    def node_with(self, fault: SshFault) -> "tuple[str, Target]":
        """The same, broken."""
        node, target = self.node()
        self.acceptor.set_fault(node, fault)
        return node, target

    def sshd_with(self, config: str) -> "tuple[str, Target, SshdPeer]":
        """A real sshd with `config` in front of its own."""
        number = next(self._numbers)
        folder = self.folder / f"sshd{number}"
        folder.mkdir()
        peer = SshdPeer(folder, f"{SSH_NETWORK}.{number % 250 + 2}", config)
        (folder / "authorized_keys").write_text((self.sshd.folder / "authorized_keys").read_text())
        self._peers.append(peer)
        return f"ssh{number}", self.ssh_target(peer.address, peer.port, peer.host_key), peer

    def peer(self, answer: Callable[[Any], None]) -> "tuple[str, Target]":
        """Something that does `answer` with each connection."""
        number = next(self._numbers)
        peer = Peer(f"{SSH_NETWORK}.{number % 250 + 2}", answer)
        self._peers.append(peer)
        return f"ssh{number}", self.ssh_target(peer.address, peer.port)

    def ssh_target(self, address: str, port: int, host_key: str = "") -> Target:
        """Who an SSH neighbour must be."""
        return Target(
            ssh_host=address,
            ssh_port=port,
            ssh_user=getpass.getuser(),
            ssh_host_key=host_key or self.sshd.host_key,
            python=sys.executable,
        )

    def break_bmc(self, node: str, fault: str, **arguments: object) -> None:
        """Plant a fault of the lab, and let its socket see it."""
        self.bmcs.fault(node, fault, **arguments)
        self.bmcs.loop.call(self.bmcs.farm.tick)

    def heal_bmc(self, node: str, fault: str) -> None:
        """End it."""
        self.bmcs.heal(node, fault)
        self.bmcs.loop.call(self.bmcs.farm.tick)

    # ------------------------------------------------------------------ exchanges
    def ask(self, node: str, target: Target, action: Action, limit_s: float = 20.0, /, **args: Any) -> Outcome:
        """One exchange, waited for."""
        return self.wait(self.begin(node, target, action, limit_s, **args))

    def ask_beside_a_sound_one(
        self, node: str, target: Target, action: Action, limit_s: float, args: Mapping[str, Any]
    ) -> tuple[Outcome, Outcome]:
        """One exchange with a broken neighbour, one with a sound one of its kind at the same time."""
        broken = self.begin(node, target, action, limit_s, **args)
        sound = self.begin_sound(is_bmc=action.startswith("bmc."))
        return self.wait(broken), self.wait(sound)

    def begin_sound(self, *, is_bmc: bool) -> str:
        """An exchange with a neighbour that nothing is wrong with."""
        if is_bmc:
            return self.begin(*self.sound_bmc, Action.BMC_OBSERVE)
        return self.begin("sound", self.ssh_target(self.sshd.address, self.sshd.port), Action.SSH_EXEC, argv=["true"])

    def begin(self, node: str, target: Target, action: Action, limit_s: float = 20.0, /, **args: Any) -> str:
        """Hand one exchange over; its id."""
        operation = Operation(f"op{next(self._numbers)}", node, action, EPOCH, target, args)
        self._limits[operation.id] = limit_s
        self.hands.submit([operation])
        return operation.id

    def wait(self, operation: str) -> Outcome:
        """Its outcome."""
        end_s = time.monotonic() + PATIENCE_S
        while operation not in self._outcomes:
            assert time.monotonic() < end_s, f"{operation} did not come back within {PATIENCE_S:.0f} s"
            for outcome in self.hands.poll():
                self._outcomes[outcome.operation] = outcome
                self.arrived.append(outcome.operation)
            time.sleep(0.002)
        return self._outcomes[operation]

    def _perform(self, operation: Operation) -> Outcome:
        with within(self._limits[operation.id]):
            return self.exchange.perform(operation, lambda epoch: epoch == EPOCH)

    # ------------------------------------------------------------------ secrets
    def canaries(self, node: str) -> list[str]:
        """Every secret that an exchange with `node` holds in its hands."""
        key = self.sshd.client_key.read_text().splitlines()[1:-1]
        ours = [self.store.bmc_password(node).reveal()] if self.store.has_bmc_password(node) else []
        return [FACTORY_PASSWORD, "token-1", *key[:2], *ours]

    def close(self) -> None:
        """End everything."""
        self.hands.close()
        self.exchange.close()
        for bmc in self._odd:
            bmc.stop()
        for peer in self._peers:
            peer.stop()
        self.acceptor.stop()
        self.sshd.stop()
        self.bmcs.stop()


def _join(shell: NodeShell, operation: Operation, secrets: Secrets) -> Mapping[str, Any]:
    """Stands for the join: what it runs is the test's."""
    result = shell.run(list(operation.args["argv"]), timeout_s=operation.timeout_s)
    return {"started": result.exit_status == 0}


def quiet_logs() -> None:
    """Faults on purpose are no news."""
    logging.getLogger("orchestrator").setLevel(logging.ERROR)


def other_serial(target: Target) -> Target:
    """The same place, another machine wanted."""
    return dataclasses.replace(target, serial="SER-wanted")


def json_of(outcome: Outcome) -> str:
    """Everything an outcome says."""
    return json.dumps(outcome.to_json())
