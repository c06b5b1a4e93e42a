"""What every lab node sees of this machine: the Python environment that runs the lab, the project, and nothing secret.

Shown read-only at the same paths, because scripts of a virtual environment name their interpreter by absolute path, and
once more at TRAINING_RUNTIME, the path a cluster spec names.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import orchestrator
from orchestrator.lab.errors import LabError
from orchestrator.lab.namespaces import NODE_ENVIRONMENT, Share

TRAINING_RUNTIME = "/opt/rackray/venv"
SHARED_STORAGE = "/srv/shared"
PACKAGES = ("orchestrator", "model")
_WHERE = "import importlib.util as u, json, sys; print(json.dumps([(s := u.find_spec(p)) and s.origin for p in sys.argv[1:]]))"
ASK_LIMIT_S = 30.0


def project_root() -> Path:
    """The folder that holds the packages `orchestrator` and `model`."""
    locations = list(orchestrator.__path__)
    return Path(locations[0]).parent


def runtime_shares(shared: Path) -> tuple[Share, ...]:
    """The environment, its base interpreter and the project, read-only; and the site's shared storage, writable.

    Raises: LabError outside a virtual environment: the nodes could not be given the libraries without the system's own.
    """
    if sys.prefix == sys.base_prefix:
        raise LabError(
            f"the lab runs in the system's own Python ({sys.prefix}); its nodes need a virtual environment",
            hint="use the .venv that `make` creates",
        )
    shares = [Share(str(Path(sys.prefix).resolve()), TRAINING_RUNTIME)]
    for path in (project_root(), Path(sys.prefix), *_interpreter_paths(Path(sys.base_prefix))):
        # Also where a symlink leads: links inside the environment may name either path.
        shares += [Share(str(path.resolve()), target) for target in sorted({str(path), str(path.resolve())})]
    return (*shares, *_packages_of_this_checkout(), Share(str(shared), SHARED_STORAGE, read_only=False))


def _packages_of_this_checkout() -> tuple[Share, ...]:
    """This checkout's packages at the places where the environment finds them, if those are another checkout's.

    A node has neither our working directory nor our PYTHONPATH: it finds rackray where the environment installed it. Several
    checkouts (git worktrees) may share one environment, whose editable install names only one of them.
    """
    shares = []
    for package, found in _where_installed().items():
        ours = (project_root() / package).resolve()
        if found is None:
            raise LabError(
                f"the environment {sys.prefix} does not know the package {package}, so its lab nodes would not find it either",
                hint="install this checkout into it: `make setup`, or `pip install -e .`",
            )
        if found.resolve() != ours:
            shares.append(Share(str(ours), str(found)))
            if found.is_relative_to(sys.prefix):
                shares.append(Share(str(ours), str(TRAINING_RUNTIME / found.relative_to(sys.prefix))))
    return tuple(shares)


def _where_installed() -> dict[str, Path | None]:
    """Where an interpreter of this environment finds each package when no directory and no variable helps it."""
    command = [sys.executable, "-I", "-c", _WHERE, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, env=NODE_ENVIRONMENT, timeout=ASK_LIMIT_S)  # noqa: S603 - our words
    if done.returncode != 0:
        raise LabError(f"{sys.executable} does not say where it finds rackray: {done.stderr.strip()}")
    origins = zip(PACKAGES, json.loads(done.stdout), strict=True)
    return {package: Path(origin).parent if origin else None for package, origin in origins}


def hidden_directories(shares: tuple[Share, ...], home: Path) -> tuple[str, ...]:
    """Where the shares would show RACKRAY_HOME with its secrets and the disks of all nodes (the default is ./.rackray)."""
    resolved = home.resolve()
    return tuple(
        str(Path(share.target) / resolved.relative_to(share.source)) for share in shares if resolved.is_relative_to(share.source)
    )


def _interpreter_paths(base: Path) -> tuple[Path, ...]:
    """What must be bound for the base interpreter to run; nothing where it lies in /usr, which every node has."""
    if base == Path("/usr"):
        return ()
    if base == Path("/usr/local"):
        # The node's /usr/local is its own; only the interpreter's parts are shown in it.
        hops = [hop for hop in _links_from(Path(sys.prefix) / "bin/python") if hop.is_relative_to(base)]
        return (*hops, base / f"lib/python{sysconfig.get_python_version()}")
    return (base,)


def _links_from(path: Path) -> list[Path]:
    """Every place a chain of symbolic links leads through, the end included: a virtual environment's python is one."""
    hops: list[Path] = []
    while path.is_symlink():
        path = path.parent / path.readlink()
        if path in hops:
            raise LabError(f"{path} is a symbolic link to itself", hint="make the virtual environment anew")
        hops.append(path)
    return hops
