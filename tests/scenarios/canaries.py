"""Looks for secrets where none may be: every value the site's secrets folder holds is a canary, in every form it could take."""

import base64
import json
import stat
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.drivers.ray_head import temp_directory
from orchestrator.lab.control import lab_status
from tests.scenarios.lab_world import LabWorld

USERS = ("root", "admin", "Administrator", "rackray")
NODE_PLACES = ("tmp", "run", "var/log", "var/tmp", "home", "root", "etc", "srv")
LARGEST_BYTES = 200_000_000
CELL_TOKEN = "ray-cell.token"
LOOK_EVERY_S = 0.15


def secrets_of(home: Path) -> dict[str, str]:
    """Every secret of the site by name: passwords, tokens, and the private key's middle line."""
    folder = home / "secrets"
    found = {f"bmc/{path.name}": path.read_text().strip() for path in sorted((folder / "bmc").iterdir())}
    found |= {path.name: path.read_text().strip() for path in sorted(folder.glob("*token"))}
    key = (folder / "ssh_key").read_text().splitlines()
    found["ssh_key"] = key[len(key) // 2]
    rows = (folder / "factory.csv").read_text().splitlines()
    column = rows[0].split(",").index("password")
    return found | {f"factory/{row.split(',')[0]}": row.split(",")[column] for row in rows[1:]}


def forms_of(secret: str) -> set[bytes]:
    """The secret as it is, in JSON, in a URL, in base64, and in a basic-auth header."""
    forms = {secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe="")}
    encoded = {base64.b64encode(secret.encode()).decode().rstrip("=")}
    encoded |= {base64.b64encode(f"{user}:{secret}".encode()).decode().rstrip("=") for user in USERS}
    return {form.encode() for form in forms | encoded}


@dataclass
class Searcher:
    """Compares what it is shown with every form of every secret."""

    secrets: Mapping[str, str]
    finds: list[str] = field(default_factory=list)
    searched: dict[str, int] = field(default_factory=dict)
    """Bytes looked through, by kind of place."""

    def __post_init__(self) -> None:
        self._forms = [(name, form) for name, secret in self.secrets.items() for form in forms_of(secret)]

    def look(self, kind: str, place: str, data: bytes, allowed: Iterable[str] = ()) -> None:
        """Look through `data`; secrets in `allowed` may be there."""
        self.searched[kind] = self.searched.get(kind, 0) + len(data)
        self.finds += [f"{name} in {kind} {place}" for name, form in self._forms if form in data and name not in allowed]

    def look_below(
        self, kind: str, folder: Path, but: Iterable[Path] = (), allowed: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        """Look through every file below `folder`, those below `but` left out; `allowed` is by file name."""
        for path in files_below(folder, set(but)):
            self.look(kind, str(path), path.read_bytes(), (allowed or {}).get(path.name, ()))


def files_below(folder: Path, but: set[Path]) -> Iterator[Path]:
    """Plain files; links are not followed."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry in but or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from files_below(entry, but)
        elif entry.is_file() and entry.stat().st_size < LARGEST_BYTES:
            yield entry


class Watcher:
    """Collects command lines and environments of everything in a world's network, as long as it runs."""

    def __init__(self, world: LabWorld) -> None:
        self._world, self._stop = world, threading.Event()
        self.command_lines: set[bytes] = set()
        self.environments: set[bytes] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            for _pid, line, environment in self._world.living():
                self.command_lines.add(line)
                self.environments.add(environment)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)


def search_a_living_site(world: LabWorld, watcher: Watcher) -> Searcher:
    """Look everywhere while the lab is up: home, Ray's folders, the nodes' disks and memory, outputs, processes."""
    home = world.home
    searcher = Searcher(secrets_of(home))
    nodes = home / "lab" / "nodes"
    disks = [entry for node in nodes.iterdir() for entry in (node / "disk", node / "root")]
    searcher.look_below("home", home, but=[home / "secrets", home / "lab" / "image", *disks])
    searcher.look_below("outputs", world.outputs)
    for name in ("cell", "management"):
        searcher.look_below(f"{name} Ray", temp_directory(name, home))
    for node in lab_status(home).nodes:
        root = Path(f"/proc/{node.pid}/root")
        for place in NODE_PLACES:
            # The one secret a node holds is its cell's token, in the file Ray reads.
            searcher.look_below("nodes", root / place, but=shared_with(node.pid), allowed={"ray.token": [CELL_TOKEN]})
    for line in watcher.command_lines:
        searcher.look("command lines", repr(line[:80]), line)
    for environment in watcher.environments:
        searcher.look("environments", repr(environment[:80]), environment)
    return searcher


def shared_with(pid: int | None) -> list[Path]:
    """Folders a node only sees and cannot write, such as the runtime: a gigabyte that no bring-up has written to."""
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return [Path(f"/proc/{pid}/root{mount[4]}") for mount in mounts if "ro" in mount[5].split(",") and mount[4] != "/"]


def open_to_others(home: Path) -> list[str]:
    """Home, journal, secrets folder and every secret that anybody but their owner may read."""
    places = [home, home / "state.db", home / "secrets", *(home / "secrets").rglob("*")]
    return [f"{path} {stat.filemode(path.lstat().st_mode)}" for path in places if path.lstat().st_mode & 0o077]
