"""The Protocols through which rackray meets the outside. Nothing here is concrete; `wiring.py` chooses what stands behind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.domain.operation import Operation, Outcome, Target


class Clock(Protocol):
    """Time as the controller sees it."""

    @property
    def boot(self) -> str:
        """Which run of the machine's timer `steady_s` counts from."""
        ...

    def now_s(self) -> float:
        """Seconds since the epoch; somebody may set it, forward or back, at any time."""
        ...

    def steady_s(self) -> float:
        """Seconds of the machine's own timer, which nobody sets: alike in every process of one boot."""
        ...

    def wait_s(self, seconds: float) -> None:
        """Let at most `seconds` pass; may return early when there is something to do."""
        ...


class Hands(Protocol):
    """Carries out operations, many at once, never blocking the caller."""

    def submit(self, operations: Sequence[Operation]) -> None:
        """Take the operations and return at once. Every one of them yields exactly one outcome, sooner or later."""
        ...

    def poll(self) -> list[Outcome]:
        """The outcomes that have come since the last call, without waiting."""
        ...

    def close(self) -> None:
        """Stop. Operations in flight end by themselves; their outcomes are lost, and their intents are re-observed later."""
        ...


MayAct = Callable[[int], bool]
"""Asked with an epoch immediately before an exchange: is that epoch still the one that decides?"""


class Bmc(Protocol):
    """One BMC, spoken to over one logged-in session. Raises the PeerError family of `domain.errors`."""

    def identify(self) -> Mapping[str, Any]: ...
    def observe(self) -> Mapping[str, Any]: ...
    def replace_factory_password(self) -> Mapping[str, Any]: ...
    def reset(self, kind: str) -> Mapping[str, Any]: ...
    def boot_once(self, target: str) -> Mapping[str, Any]: ...
    def firmware(self) -> Mapping[str, Any]: ...
    def update(self, component: str, image_uri: str, version: str) -> Mapping[str, Any]: ...
    def task(self, uri: str) -> Mapping[str, Any]: ...
    def tasks(self) -> Mapping[str, Any]: ...
    def locate(self, lit: bool) -> Mapping[str, Any]: ...
    def events(self) -> Mapping[str, Any]: ...
    def close(self) -> None:
        """Log out: BMCs keep few sessions."""
        ...


class BmcDoor(Protocol):
    """Opens BMCs."""

    def open(self, node: str, target: Target, timeout_s: float) -> Bmc: ...


class NodeShell(Protocol):
    """One SSH connection to one node whose host key is pinned."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> "ShellResult": ...
    def close(self) -> None: ...


class ShellResult(Protocol):
    """What a remote command left behind."""

    @property
    def exit_status(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class ShellDoor(Protocol):
    """Opens shells on nodes."""

    def open(self, node: str, target: Target, timeout_s: float) -> NodeShell: ...


class ImageService(Protocol):
    """The site's image service, seen by rackray."""

    def report(self, base_url: str, serial: str, image: str, timeout_s: float) -> Mapping[str, Any]: ...


class Playbooks(Protocol):
    """Runs one playbook on many nodes at once and tells each node's result."""

    def run(self, playbook: str, operations: Sequence[Operation]) -> Iterable[Outcome]: ...


class Secrets(Protocol):
    """The only way to a secret. Values are `Secret` objects that never print."""

    def factory_login(self, node: str) -> tuple[str, Any]: ...
    def bmc_password(self, node: str, *, create: bool = False) -> Any: ...
    def ssh_key_path(self) -> str: ...
    def read(self, name: str) -> Any: ...
