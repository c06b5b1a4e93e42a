"""The rules of the house as functions: modules in, broken rules out. `test_architecture.py` holds the code to them.

A rule answers with one sentence per breach, `file:line: what, and what is allowed`. The tables say why each exception stands.
"""

import ast
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from io import StringIO
from pathlib import Path

import networkx

PROJECT = Path(__file__).parent.parent
OURS = ("orchestrator", "model")

ARROWS: Mapping[str, tuple[str, ...]] = {
    "cli": ("cli", "web", "execution", "planning", "domain", "wiring"),
    "web": ("web", "execution", "planning", "domain"),
    "wiring": ("web", "execution", "planning", "drivers", "agent", "lab", "domain", "model"),
    "worker": ("agent", "domain", "drivers.outcomes"),
    "execution": ("execution", "planning", "drivers.interfaces", "domain"),
    "planning": ("planning", "domain", "model.shape", "model.contract"),
    "drivers": ("drivers", "domain"),
    "lab": ("lab", "drivers.interfaces", "domain"),
    "agent": ("agent", "domain"),
    "domain": ("domain",),
    "model": ("model",),
}
"""Folder (or file) → what it may import of ours. worker.py reaches wiring by name, because tests name another."""

DRIVER_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "BMCs by Redfish": ("redfish", "redfish_*"),
    "YAML files": ("yaml_*", "model_problems", "spec_reader", "job_reader"),
    "Ray clusters": ("ray_*", "cell_hands", "door_process"),
}
"""Several files that are one neighbour's driver; they may import each other. Every other driver is a family of one file."""

SHARED_BY_DRIVERS: Mapping[str, str] = {
    "interfaces": "the Protocols: how drivers know each other",
    "outcomes": "what Hands of every kind say about operations that failed before any neighbour was asked",
    "own_limits": "limits of the host that rackray runs on, whatever was to be opened",
    "pools": "connections kept between exchanges, whatever they lead to",
    "processes": "a process of this machine by pid and start time",
}
"""Files below all drivers, and why they are shared; they import nothing of drivers but each other."""

TRAVELLERS = ("orchestrator/agent/probe.py", "orchestrator/agent/identity.py")
"""Sent over SSH by themselves: they import nothing of ours."""

HOMES: Mapping[str, tuple[str, ...]] = {
    "ray": ("orchestrator/worker.py", "orchestrator/agent/*"),
    "deepspeed": ("model/engine*.py",),
    "torchao": ("model/compression.py",),
    "torch": ("model/*", "orchestrator/agent/compute*.py"),
    "pynvml": ("orchestrator/agent/probe.py",),
    "numpy": ("model/*", "orchestrator/planning/parallel/*"),
    "scipy": ("orchestrator/planning/common_cause.py",),
    "safetensors": ("model/*",),
    "tokenizers": ("model/*",),
    "polib": ("model/translation/*",),
    "sacrebleu": ("model/translation/*",),
    "httpx": ("orchestrator/drivers/*",),
    "paramiko": ("orchestrator/drivers/*",),
    "ansible_runner": ("orchestrator/drivers/*",),
    "yaml": ("orchestrator/drivers/*",),
    "matplotlib": ("orchestrator/drivers/*", "model/translation/attention.py"),
    "sqlalchemy": ("orchestrator/execution/*",),
    "pydantic": ("orchestrator/domain/*", "orchestrator/drivers/*", "orchestrator/cli/spec_docs.py"),
    "pydantic_core": ("orchestrator/domain/*", "orchestrator/drivers/*"),
    "annotated_types": ("orchestrator/domain/*", "orchestrator/cli/spec_docs.py"),
    "click": ("orchestrator/cli/*",),
    "rich": ("orchestrator/cli/*",),
    "ClusterShell": ("orchestrator/cli/*",),
    "aiohttp": ("orchestrator/lab/*",),
    "h11": ("orchestrator/lab/*",),
    "cryptography": ("orchestrator/lab/*",),
    "subprocess": ("orchestrator/drivers/*", "orchestrator/agent/*", "orchestrator/lab/*"),
}
"""Library → where it may be imported. A library that is not here has no home yet: give it one."""

HEAVY = frozenset(
    {
        *("ray", "torch", "deepspeed", "pynvml", "numpy", "scipy", "safetensors", "tokenizers", "matplotlib"),
        *("httpx", "paramiko", "ansible_runner", "sqlalchemy", "rich", "ClusterShell", "aiohttp"),
    }
)
"""Libraries that may be imported inside a function, with a comment that says why."""

LATE_DOORS: Mapping[str, str] = {
    "orchestrator/wiring.py": "builds for each command what that command uses, so that none pays for another's libraries",
    "model/train.py": "refuses a bad RUN.json before numpy, torch and deepspeed are imported",
}
"""Files whose functions may import modules of ours, and why."""

BY_NAME: Mapping[str, str] = {
    "orchestrator/cli/main.py": "the command line's table",
    "orchestrator/worker.py": "the wiring it is told to use",
    "model/engine_ranks.py": "a module of deepspeed whose attribute is replaced",
}
"""Files that may import modules by a name in a string, and what for."""

IMPURE = frozenset(
    {
        *("time", "datetime", "random", "secrets", "uuid"),
        *("os", "io", "shutil", "tempfile", "sqlite3", "logging", "signal", "subprocess", "threading", "asyncio"),
        *("socket", "select", "ssl", "http", "urllib"),
    }
)
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval"})
"""What planning must not use: it decides, without I/O, clock or randomness."""

MOST_FILE_LINES = 450
MOST_FUNCTION_LINES = 70
LONGER: Mapping[str, str] = {}
"""Files (`path`) and functions (`path:name`) that may be longer, and why."""


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is `a.b.c`."""

    name: str
    line: int
    is_late: bool
    is_for_types: bool

    @property
    def library(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """One source file; `path` is relative to the project, with slashes."""

    path: str
    source: str

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(self._imports(self.tree, False, False))

    def _imports(self, parent: ast.AST, is_late: bool, is_for_types: bool) -> Iterator[Import]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno, is_late, is_for_types) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names = [f"{self._absolute(node)}.{alias.name}" for alias in node.names]
                yield from (Import(name, node.lineno, is_late, is_for_types) for name in names)
            else:
                inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
                yield from self._imports(node, is_late or inside, is_for_types or for_types)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.path.endswith("__init__.py") else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    @cached_property
    def commented_lines(self) -> frozenset[int]:
        tokens = tokenize.generate_tokens(StringIO(self.source).readline)
        return frozenset(token.start[0] for token in tokens if token.type == tokenize.COMMENT)


def modules_of(*folders: str) -> list[Module]:
    """Every module below `folders` of the project."""
    paths = sorted(path for folder in folders for path in (PROJECT / folder).rglob("*.py"))
    return [Module(path.relative_to(PROJECT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def place_of(name: str) -> str:
    """A module's or name's place in ARROWS: `drivers`, `wiring`, `model`; empty for the package itself."""
    parts = name.split(".")
    if parts[0] == "orchestrator":
        return parts[1] if len(parts) > 1 else ""
    return parts[0]


def broken_arrows(modules: Sequence[Module]) -> list[str]:
    """Imports of ours that go against the arrows."""
    found = []
    for module in modules:
        place = place_of(module.name)
        for each in module.imports:
            if each.library not in OURS or not place_of(each.name) or not place:
                continue
            inner = each.name if each.library == "model" else each.name.removeprefix("orchestrator.")
            allowed = ARROWS.get(place, ())
            if not any(inner == way or inner.startswith(f"{way}.") for way in allowed):
                ways = ", ".join(allowed) or "nothing"
                found.append(f"{module.path}:{each.line}: {place} imports {each.name}; it may import {ways}")
    return found


def drivers_too_close(modules: Sequence[Module]) -> list[str]:
    """Drivers that import another neighbour's driver instead of a Protocol."""
    found = []
    for module in modules:
        if place_of(module.name) != "drivers" or module.path.endswith("__init__.py"):
            continue
        mine = module.name.split(".")[2]
        for each in module.imports:
            if not each.name.startswith("orchestrator.drivers."):
                continue
            other = each.name.split(".")[2]
            is_kin = mine not in SHARED_BY_DRIVERS and _family(mine) == _family(other)
            if other not in SHARED_BY_DRIVERS and not is_kin:
                found.append(f"{module.path}:{each.line}: {mine} imports {other}; drivers know each other through interfaces.py")
    return found


def _family(file: str) -> str:
    return next((name for name, kin in DRIVER_FAMILIES.items() if any(fnmatch(file, each) for each in kin)), file)


def travellers_with_luggage(modules: Sequence[Module]) -> list[str]:
    """Scripts that travel by themselves and yet import something of ours."""
    return [
        f"{module.path}:{each.line}: imports {each.name}, which does not travel with it"
        for module in modules
        if module.path in TRAVELLERS
        for each in module.imports
        if each.library in OURS
    ]


def strays(modules: Sequence[Module]) -> list[str]:
    """Libraries outside their homes, and libraries that have none."""
    found = []
    for module in modules:
        for each in module.imports:
            homes = HOMES.get(each.library)
            if homes is None and (each.library in sys.stdlib_module_names or each.library in OURS):
                continue
            if not any(fnmatch(module.path, home) for home in homes or ()):
                allowed = f"its home is {', '.join(homes)}" if homes else "it has no home yet: name one in tests/house.py"
                found.append(f"{module.path}:{each.line}: imports {each.library}; {allowed}")
    return found


def late_without_reason(modules: Sequence[Module]) -> list[str]:
    """Imports inside functions that are neither of a heavy library with a comment, nor in a file that is a late door."""
    found = []
    for module in modules:
        explained: set[str] = set()
        for each in (each for each in module.imports if each.is_late and not each.is_for_types):
            at = f"{module.path}:{each.line}: imports {each.name} inside a function"
            if each.library in OURS and module.path in LATE_DOORS:
                continue
            if each.library not in HEAVY:
                found.append(f"{at}, and it is not heavy")
            elif {each.line, each.line - 1} & module.commented_lines:
                explained.add(each.library)
            elif each.library not in explained:
                found.append(f"{at} without a comment that says why")
    return found


def named_in_strings(modules: Sequence[Module]) -> list[str]:
    """Imports by a name in a string, which no other rule can see."""
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or module.path in BY_NAME:
                continue
            call = ast.unparse(node.func)
            if call in ("importlib.import_module", "import_module", "__import__"):
                found.append(f"{module.path}:{node.lineno}: {call} imports by name")
    return found


def circles(modules: Sequence[Module]) -> list[str]:
    """Modules that need each other to be imported; imports inside functions count, those for types alone do not."""
    names = {module.name for module in modules}
    graph = networkx.DiGraph()
    for module in modules:
        for each in module.imports:
            target = each.name
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target and not each.is_for_types and target != module.name:
                graph.add_edge(module.name, target)
    return [" ↔ ".join(sorted(circle)) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


def impure(modules: Sequence[Module]) -> list[str]:
    """Planning that reads a clock, draws a number, or touches a file, a socket or a thread."""
    found = []
    for module in (module for module in modules if place_of(module.name) == "planning"):
        for each in module.imports:
            if each.library in IMPURE or each.name in ("pathlib.Path", "pathlib"):
                found.append(f"{module.path}:{each.line}: planning imports {each.name}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                found.append(f"{module.path}:{node.lineno}: planning calls {node.func.id}()")
    return found


def too_long(modules: Sequence[Module]) -> list[str]:
    """Files and functions that nobody reads in one go."""
    found = []
    for module in modules:
        lines = len(module.source.splitlines())
        if lines > MOST_FILE_LINES and module.path not in LONGER:
            found.append(f"{module.path}: {lines} lines, at most {MOST_FILE_LINES}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MOST_FUNCTION_LINES and f"{module.path}:{node.name}" not in LONGER:
                    found.append(f"{module.path}:{node.lineno}: {node.name} has {length} lines, at most {MOST_FUNCTION_LINES}")
    return found


def filled_inits(modules: Sequence[Module]) -> list[str]:
    """`__init__.py` files that hold anything."""
    return [f"{module.path}: must be empty" for module in modules if module.path.endswith("__init__.py") and module.source]
