"""The power switch and the boot of one lab node: what `Machine` asks for, done with real processes.

Each verb returns at once. Booting happens in a worker thread and is given up when the power goes meanwhile: every change of
power starts a new generation, and a boot of an older generation must not come up any more.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.lab.errors import LabError
from orchestrator.lab.gpus import NodeGpus
from orchestrator.lab.image import HOST_KEY, Image, LaidImage, has_image, lay_image, make_ssh_key
from orchestrator.lab.machine_nouns import BootSource
from orchestrator.lab.namespaces import BootOrder, NodeProcess, Share
from orchestrator.lab.plan import NodePaths, NodePlan
from orchestrator.lab.ssh_acceptor import SSHD, SshAcceptor, SshDoor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """What all nodes of a lab share."""

    image: Image
    acceptor: SshAcceptor
    executor: Executor
    shares: tuple[Share, ...]
    hidden: tuple[str, ...]
    report: Callable[[str, LaidImage], None]
    """(serial, what was laid): the network boot tells the image service."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class NodePower:
    """Implements `machine.Board` on the wire. Thread-safe."""

    def __init__(self, plan: NodePlan, paths: NodePaths, gpus: NodeGpus, site: Site) -> None:
        self._plan = plan
        self._paths = paths
        self._gpus = gpus
        self._site = site
        self._lock = threading.Lock()
        self._boot_lock = threading.Lock()
        self._generation = 0
        self._off = threading.Event()
        self._node: NodeProcess | None = None
        self._failure = ""
        self._silent = False
        self._disk_read_only = False

    def power_on(self, boot: BootSource) -> None:
        """Starts the operating system from the network (new image first) or from the disk."""
        with self._lock:
            self._generation += 1
            self._off = threading.Event()
            work = self._site.executor.submit(self._boot, boot, self._generation, self._off)
        work.add_done_callback(self._note_outcome)

    def power_off(self) -> None:
        """Ends every process of the node and closes its sockets."""
        with self._lock:
            self._generation += 1
            self._off.set()
            self._site.acceptor.close(self._plan.name)
            if self._node is not None:
                self._node.cut()

    def freeze(self) -> None:
        """The silent fault: every process of the node stops; SSH connections are taken and never answered."""
        with self._lock:
            self._silent = True
            if self._node is not None and self._node.alive:
                self._node.freeze()

    def thaw(self) -> None:
        """Ends `freeze`."""
        with self._lock:
            self._silent = False
            if self._node is not None:
                self._node.thaw()

    def set_disk_read_only(self, broken: bool) -> None:
        """The disk fault: the node's file systems refuse to be written, at once and after every boot, until it is mended."""
        with self._lock:
            self._disk_read_only = broken
            if self._node is not None and self._node.alive:
                self._node.remount_disk("ro" if broken else "rw")

    def replace_host_key(self) -> None:
        """The node shows another SSH host key than the one reported, as a machine in the middle would.

        Raises: LabError when the node has no image, and so no key yet.
        """
        self._require_image()
        key, kept = self._key_files()
        if not kept[0].exists():
            for source, target in zip(key, kept, strict=True):
                shutil.copy2(source, target)
        make_ssh_key(key[0], f"root@{self._plan.name}")

    def restore_host_key(self) -> None:
        """Ends `replace_host_key`; nothing happens when the node was re-imaged since."""
        key, kept = self._key_files()
        for source, target in zip(kept, key, strict=True):
            if source.exists():
                source.replace(target)

    def wait_gone(self) -> None:
        """Returns when no process of the node is left and no boot is under way. Raises: LabError after 10 s."""
        with self._boot_lock:
            if self._node is not None:
                self._node.wait_gone()
                self._node = None

    @property
    def pid(self) -> int | None:
        """The node's pid 1 as seen from this machine; None while the node is down."""
        with self._lock:
            return self._node.pid if self._node is not None and self._node.alive else None

    @property
    def is_silent(self) -> bool:
        """Whether the silent fault is on."""
        return self._silent

    @property
    def is_disk_read_only(self) -> bool:
        """Whether the disk fault is on."""
        return self._disk_read_only

    @property
    def failure(self) -> str:
        """Why the last boot failed; empty if it did not."""
        return self._failure

    def _boot(self, boot: BootSource, generation: int, off: threading.Event) -> None:
        with self._boot_lock:
            if self._node is not None:
                self._node.wait_gone()
            if generation != self._generation:
                return
            if boot.is_network:
                if off.wait(self._plan.image_s):
                    return  # the power went while the image was on its way; the disk is as it was
                self._lay_image()
            if not has_image(self._paths):
                log.info("%s: no operating system on the disk; waits at the boot prompt", self._plan.name)
                return
            self._gpus.power_cycled()
            node = NodeProcess.start(self._order(), self._paths.boot_order, self._paths.console)
            with self._lock:
                self._node = node
                if generation != self._generation:
                    node.cut()
                    return
                if self._disk_read_only:
                    node.remount_disk("ro")
                if self._silent:
                    node.freeze()
                self._site.acceptor.open(self._door(node))
            log.info("%s: up, pid 1 is %d", self._plan.name, node.pid)

    def _lay_image(self) -> None:
        now = self._site.now().isoformat(timespec="seconds")
        for kept in self._key_files()[1]:
            kept.unlink(missing_ok=True)
        laid = lay_image(self._site.image, self._plan, self._paths, now)
        self._site.report(self._plan.serial, laid)

    def _note_outcome(self, work: Future[None]) -> None:
        error = work.exception()
        self._failure = "" if error is None else str(error)
        if error is not None:
            log.error("%s: boot failed", self._plan.name, exc_info=error)

    def _require_image(self) -> None:
        if not has_image(self._paths):
            raise LabError(f"{self._plan.name} has no image yet, so it has no SSH host key", hint="bring it up first")

    def _key_files(self) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        key = self._paths.disk / HOST_KEY
        kept = self._paths.directory / "kept_host_key"
        return (key, key.with_name(key.name + ".pub")), (kept, kept.with_name(kept.name + ".pub"))

    def _order(self) -> BootOrder:
        return BootOrder(
            hostname=self._plan.name,
            root=str(self._paths.root),
            disk=str(self._paths.disk),
            identity={
                "product_serial": self._plan.serial,
                "chassis_serial": self._plan.serial,
                "product_name": self._plan.model,
                "sys_vendor": self._plan.manufacturer,
            },
            binds=(*self._site.shares, Share(str(self._paths.hardware), "/var/lib/rackray-lab")),
            hidden=self._site.hidden,
        )

    def _door(self, node: NodeProcess) -> SshDoor:
        # One SetEnv with several values: sshd takes only the first SetEnv option it meets.
        environment = f"SetEnv=RACKRAY_LAB=1 NODE_NAME={self._plan.name} NODE_ADDR={self._plan.ssh_address}"
        sshd = (SSHD, "-i", "-e", "-f", "/etc/ssh/sshd_config", "-h", f"/{HOST_KEY}", "-o", environment)
        return SshDoor(
            name=self._plan.name,
            address=self._plan.ssh_address,
            port=self._plan.ssh_port,
            sshd_command=(*node.enter_command(), *sshd),
            log=self._paths.console,
        )
