"""The head of a Ray cluster on this controller host: adopted if it runs, started if not, ended without a remainder.

A head outlives the command that started it. What is known about it stands in HOME/ray/NAME.json; every process of it also
carries RACKRAY_RAY_HEAD=... in its environment, so that a head whose file was never written is still found.

Token authentication is on, always (a Ray without it runs anybody's code: CVE-2023-48022). Ray's daemons listen on every
interface whatever --node-ip-address says: firewall the ports or give the controllers a network of their own.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.domain.errors import PeerUnreachable, SecretMissing
from orchestrator.drivers import processes
from orchestrator.drivers.own_limits import own_limits_told
from orchestrator.drivers.processes import ProcessId

START_LIMIT_S = 90.0
"""How long a head may take to answer; 5 s on a quiet machine, 10 s on a loaded one."""
ADOPT_LIMIT_S = 40.0
"""How long a head that runs may take to answer; it may have been started a moment ago by a command that was killed."""
KEPT_SESSIONS = 2
"""Session folders (logs, sockets) of earlier lives kept in a head's temporary directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """One head, as wanted."""

    name: str
    """`management` or `cell`; names the state file, the token and the log."""
    address: str
    port: int
    """The GCS; the two ports above it belong to this head as well (client server, dashboard agent)."""
    home: Path
    """$RACKRAY_HOME."""
    num_cpus: int = 0
    """CPUs that Ray may give to tasks on the head; actors of rackray ask for none."""
    object_store_bytes: int = 80_000_000
    health_period_ms: int = 1000
    """How often the GCS looks at each node."""
    health_failures: int = 4
    """Looks without an answer after which a node is dead: 4 s here; Ray's own defaults take 13 s or more."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def gcs(self) -> str:
        """ADDRESS:PORT that nodes join and drivers connect to."""
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInfo:
    """One head, as it runs."""

    name: str
    address: str
    port: int
    pid: int
    started_ticks: int
    ray_version: str
    python_version: str
    token_path: str
    temp_dir: str
    adopted: bool = False
    """True where it ran already."""

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.started_ticks)


def ensure_head(config: HeadConfig) -> HeadInfo:
    """The running head, started if need be. Takes 2 s to adopt and 5 to 15 s to start; safe to call from many commands.

    Raises PeerUnreachable where the head does not come up or the port belongs to somebody else, SecretMissing where the
    token can be read by others, OwnLimitReached.
    """
    token = ensure_token(config.home, config.name)
    with _locked(config):
        known = head_info(config.name, config.home)
        if known and _fits(known, config) and _comes_up(known, ADOPT_LIMIT_S):
            return known
        # A head that is broken, of another version or half dead is ended whole: what it knew is in the journal.
        processes.end(_family(config.name, config.home), patience_s=2.0)
        return _start(config, token)


def head_info(name: str, home: Path) -> HeadInfo | None:
    """The running head called `name`, or None: from its state file, believed only if that very process lives.

    Raises OwnLimitReached: a head that we could not look at is none that may be ended.
    """
    try:
        with own_limits_told(f"cannot look at the {name} Ray head"):
            known = json.loads(_state_file(name, home).read_text())
        info = HeadInfo(**{**known, "adopted": True})
    except (OSError, ValueError, TypeError):
        return None
    return info if info.process.is_alive() else None


def is_healthy(info: HeadInfo, *, limit_s: float = 40.0) -> bool:
    """Whether the head's GCS answers an authenticated question (`ray health-check`)."""
    if not _accepts(info.address, info.port):
        return False
    argv = [sys.executable, "-m", "ray.scripts.scripts", "health-check", f"--address={info.address}:{info.port}"]
    try:
        answer = subprocess.run(  # noqa: S603 - our own interpreter and Ray's own command
            argv, env=client_environment(Path(info.token_path)), capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0


def stop_head(name: str, home: Path) -> bool:
    """Ends the head called `name` and every process under it, and removes its temporary directory. False: none ran."""
    config_free = _Locations(name, home)
    with _locked(config_free):
        ended = processes.end(_family(name, home), patience_s=2.0)
        _state_file(name, home).unlink(missing_ok=True)
        temp_dir = temp_directory(name, home)
        if temp_dir.is_dir() and not temp_dir.is_symlink():
            shutil.rmtree(temp_dir, ignore_errors=True)  # sockets may vanish meanwhile; the next start checks what is left
    return ended > 0


def ensure_token(home: Path, name: str) -> Path:
    """The file HOME/secrets/ray-NAME.token, made once with 256 random bits. Raises SecretMissing if others may read it."""
    folder = home / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"ray-{name}.token"
    try:
        # Made under another name and linked: whoever sees the file sees the whole token.
        draft = folder / f".ray-{name}.{os.getpid()}.{secrets.token_hex(4)}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        finally:
            draft.unlink()
    except FileExistsError:
        pass  # made earlier, or by another command a moment ago
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SecretMissing(f"{path} is no private file of this user", f"chmod 600 {path}, or remove it to make a new token")
    return path


def client_environment(token: Path) -> dict[str, str]:
    """What any Ray process or driver of ours runs with. The token itself is never in an environment: children inherit it."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {
        **base,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    }


def temp_directory(name: str, home: Path) -> Path:
    """This head's folder outside HOME. Short, because Ray puts Unix sockets in it and their paths end at 107 bytes.

    Ray's own folder lies inside, because Ray opens that one to everybody (mode 0777).
    """
    digest = hashlib.sha256(f"{home.resolve()}\0{name}".encode()).hexdigest()[:8]
    return Path("/tmp") / f"rackray-{digest}"  # noqa: S108 - checked to be ours and 0700 before use


@dataclass(frozen=True, slots=True)
class _Locations:
    name: str
    home: Path


def _start(config: HeadConfig, token: Path) -> HeadInfo:
    if _accepts(config.address, config.port):
        raise PeerUnreachable(
            f"{config.gcs} is taken by a process that is not the {config.name} Ray of {config.home}",
            "see who listens (`ss -ltnp`), or choose another port in the spec",
        )
    temp_dir = _own_temp_directory(config)
    log = config.home / "ray" / f"{config.name}.log"
    began = log.stat().st_size if log.exists() else 0
    environment = {
        **client_environment(token),
        "RAY_health_check_period_ms": str(config.health_period_ms),
        "RAY_health_check_failure_threshold": str(config.health_failures),
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        **_marker_variable(config.name, config.home),
    }
    process = processes.start_detached(_argv(config, temp_dir), environment, log)
    info = HeadInfo(
        name=config.name,
        address=config.address,
        port=config.port,
        pid=process.pid,
        started_ticks=process.started_ticks,
        ray_version=importlib.metadata.version("ray"),
        python_version=platform.python_version(),
        token_path=str(token),
        temp_dir=str(temp_dir),
    )
    _write_state(info, config.home)
    if not _comes_up(info, START_LIMIT_S):
        raise _never_came_up(info, log, began)
    return info


def _argv(config: HeadConfig, temp_dir: Path) -> list[str]:
    labels = [f"--labels={','.join(f'{key}={value}' for key, value in sorted(config.labels.items()))}"] if config.labels else []
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        f"--node-ip-address={config.address}",
        f"--node-name=head-{config.name}",
        f"--port={config.port}",
        f"--ray-client-server-port={config.port + 1}",
        f"--dashboard-agent-listen-port={config.port + 2}",
        f"--num-cpus={config.num_cpus}",
        f"--object-store-memory={config.object_store_bytes}",
        f"--temp-dir={temp_dir}",
        "--include-dashboard=false",
        "--dashboard-host=127.0.0.1",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        *labels,
    ]


def _comes_up(info: HeadInfo, limit_s: float) -> bool:
    until = time.monotonic() + limit_s
    while time.monotonic() < until and info.process.is_alive():
        if _accepts(info.address, info.port) and is_healthy(info):
            return True
        time.sleep(0.2)
    return False


def _never_came_up(info: HeadInfo, log: Path, began: int) -> PeerUnreachable:
    with log.open(errors="replace") as file:
        file.seek(began)
        words = " | ".join(line.strip() for line in file.read().splitlines()[-5:])
    return PeerUnreachable(
        f"the {info.name} Ray head at {info.address}:{info.port} did not come up within {START_LIMIT_S:g} s: {words}",
        f"see {log}",
    )


def _fits(info: HeadInfo, config: HeadConfig) -> bool:
    return (info.address, info.port, info.ray_version, info.python_version) == (
        config.address,
        config.port,
        importlib.metadata.version("ray"),
        platform.python_version(),
    )


def _own_temp_directory(config: HeadConfig) -> Path:
    """Ray's folder, in a folder that is ours alone."""
    path = temp_directory(config.name, config.home)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PeerUnreachable(f"{path} belongs to somebody else or is open to others", f"remove {path} and run the command again")
    sessions = sorted(entry for entry in path.glob("r/session_2*") if not entry.is_symlink())  # named by their time
    for old in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)  # tidying only: what cannot be removed is tried again next time
    # Ray would refuse the port if this file names it and a raylet of the dead head's cluster still runs within sight.
    (path / "r" / "ray_current_cluster").unlink(missing_ok=True)
    return path / "r"


def _accepts(address: str, port: int) -> bool:
    """Whether somebody listens there. Raises OwnLimitReached: a live head is not ended because we cannot ask."""
    try:
        with own_limits_told(f"no connection to {address}:{port}"), socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False


def _marker_variable(name: str, home: Path) -> dict[str, str]:
    return {"RACKRAY_RAY_HEAD": f"{name}@{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]}"}


def _family(name: str, home: Path) -> Callable[[], list[ProcessId]]:
    """Who is left of a head: by its marker, and by its session even where the head itself is gone."""
    return processes.family(_marker(name, home), _leader(name, home))


def _leader(name: str, home: Path) -> ProcessId | None:
    """The head's first process as its state file names it, whether it lives or not."""
    try:
        known = json.loads(_state_file(name, home).read_text())
        return ProcessId(int(known["pid"]), int(known["started_ticks"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _marker(name: str, home: Path) -> str:
    return "=".join(*_marker_variable(name, home).items())


def _state_file(name: str, home: Path) -> Path:
    return home / "ray" / f"{name}.json"


def _write_state(info: HeadInfo, home: Path) -> None:
    path = _state_file(info.name, home)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(info), indent=1) + "\n")
    draft.replace(path)


@contextlib.contextmanager
def _locked(config: HeadConfig | _Locations) -> Iterator[None]:
    """One command at a time starts or ends a head of this name."""
    folder = config.home / "ray"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The descriptor closes on exec, so the head does not inherit the lock.
    with (folder / f"{config.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
