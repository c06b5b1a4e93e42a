"""The shape of the house: arrows, homes, sizes. Every rule is first shown something it must refuse."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata

import pytest

from tests import house
from tests.house import PROJECT, Module

Rule = Callable[[Sequence[Module]], list[str]]

HOUSE = house.modules_of(*house.OURS)


@dataclass(frozen=True)
class Case:
    """A rule, files that break it, and what it must say about them; files beside them that it must let pass."""

    rule: Rule
    bad: Mapping[str, str]
    says: str
    good: Mapping[str, str]


HIDDEN = "def run():\n    {}\n"
PLANNING, DRIVER = "orchestrator/planning/wish.py", "orchestrator/drivers/fax.py"
RULES = {
    "planning knows no execution": Case(
        house.broken_arrows,
        {PLANNING: "from orchestrator.execution.journal import Journal"},
        "planning imports orchestrator.execution.journal.Journal",
        {PLANNING: "from orchestrator.domain.plan import Step\nfrom model.shape import Shape\nimport model.contract"},
    ),
    "planning knows two files of the model": Case(
        house.broken_arrows,
        {PLANNING: "from model import engine"},
        "planning imports model.engine",
        {PLANNING: "from model import shape"},
    ),
    "execution knows no driver": Case(
        house.broken_arrows,
        {"orchestrator/execution/x.py": "from ..drivers.ssh import SshDoor"},
        "execution imports orchestrator.drivers.ssh.SshDoor",
        {"orchestrator/execution/x.py": "from ..drivers.interfaces import Hands"},
    ),
    "an arrow holds inside functions and for types too": Case(
        house.broken_arrows,
        {"orchestrator/cli/x.py": HIDDEN.format("from orchestrator.drivers.ssh import SshDoor")},
        "cli imports orchestrator.drivers.ssh.SshDoor",
        {"orchestrator/cli/x.py": "from orchestrator import wiring"},
    ),
    "only the command line imports wiring": Case(
        house.broken_arrows,
        {"orchestrator/web/x.py": "from orchestrator import wiring"},
        "web imports orchestrator.wiring",
        {"orchestrator/web/x.py": "from orchestrator.execution.views import Views"},
    ),
    "the domain knows nobody": Case(
        house.broken_arrows,
        {"orchestrator/domain/x.py": "import orchestrator.planning.site"},
        "domain imports orchestrator.planning.site; it may import domain",
        {"orchestrator/domain/x.py": "from orchestrator.domain.node import NodeState"},
    ),
    "the model knows nothing of the orchestrator": Case(
        house.broken_arrows,
        {"model/x.py": "from orchestrator.domain.job import JobSpec"},
        "model imports orchestrator.domain.job.JobSpec",
        {"model/x.py": "from model.shape import Shape"},
    ),
    "a folder without arrows imports nothing": Case(
        house.broken_arrows,
        {"orchestrator/utils/x.py": "from orchestrator.domain.node import NodeState"},
        "it may import nothing",
        {"orchestrator/__init__.py": ""},
    ),
    "drivers meet through Protocols": Case(
        house.drivers_too_close,
        {DRIVER: "from orchestrator.drivers import ssh"},
        "fax imports ssh",
        {
            DRIVER: "from orchestrator.drivers.interfaces import Bmc\nfrom orchestrator.drivers.outcomes import lost",
            "orchestrator/drivers/redfish_fans.py": "from orchestrator.drivers.redfish_client import Client",
        },
    ),
    "what all drivers share knows no driver": Case(
        house.drivers_too_close,
        {"orchestrator/drivers/pools.py": "from orchestrator.drivers.ssh import SshDoor"},
        "pools imports ssh",
        {"orchestrator/drivers/pools.py": "from orchestrator.drivers.interfaces import Bmc"},
    ),
    "a script that travels takes nothing of ours along": Case(
        house.travellers_with_luggage,
        {house.TRAVELLERS[0]: HIDDEN.format("from orchestrator.domain.health import Finding")},
        "orchestrator.domain.health.Finding",
        {house.TRAVELLERS[0]: "import json"},
    ),
    "ray stays out of the controller": Case(
        house.strays,
        {DRIVER: HIDDEN.format("import ray")},
        "imports ray; its home is orchestrator/worker.py",
        {"orchestrator/worker.py": "import ray"},
    ),
    "deepspeed stays in the engine": Case(
        house.strays, {"model/train.py": "import deepspeed"}, "imports deepspeed", {"model/engine.py": "import deepspeed"}
    ),
    "no subprocess on the command line": Case(
        house.strays, {"orchestrator/cli/x.py": "from subprocess import run"}, "imports subprocess", {DRIVER: "import subprocess"}
    ),
    "a new library needs a home": Case(
        house.strays, {DRIVER: "import requests"}, "imports requests; it has no home yet", {DRIVER: "import httpx, json"}
    ),
    "a light import stands at the top": Case(
        house.late_without_reason,
        {DRIVER: HIDDEN.format("import json")},
        "imports json inside a function, and it is not heavy",
        {DRIVER: "import json"},
    ),
    "no import of ours hides in a function": Case(
        house.late_without_reason,
        {DRIVER: HIDDEN.format("from orchestrator.domain import node")},
        "imports orchestrator.domain.node inside a function",
        {"orchestrator/wiring.py": HIDDEN.format("from orchestrator.drivers.ssh import SshDoor")},
    ),
    "a late import says why": Case(
        house.late_without_reason,
        {DRIVER: HIDDEN.format("import paramiko")},
        "without a comment",
        {DRIVER: HIDDEN.format("import paramiko  # 0.1 s") + HIDDEN.format("import paramiko")},
    ),
    "nothing is imported by name": Case(
        house.named_in_strings,
        {DRIVER: "import importlib\nssh = importlib.import_module('orchestrator.drivers.ssh')"},
        "imports by name",
        {"orchestrator/worker.py": "import importlib\nimportlib.import_module('x')"},
    ),
    "no circles, not even hidden ones": Case(
        house.circles,
        {
            "orchestrator/domain/a.py": "from orchestrator.domain.b import B",
            "orchestrator/domain/b.py": HIDDEN.format("from orchestrator.domain import a"),
        },
        "orchestrator.domain.a ↔ orchestrator.domain.b",
        {
            "orchestrator/domain/a.py": "from orchestrator.domain.b import B",
            "orchestrator/domain/b.py": "import typing\nif typing.TYPE_CHECKING:\n    from orchestrator.domain.a import A",
        },
    ),
    "planning reads no clock": Case(house.impure, {PLANNING: "import time"}, "planning imports time", {PLANNING: "import math"}),
    "planning opens no file": Case(
        house.impure, {PLANNING: "text = open('x').read()"}, "planning calls open()", {DRIVER: "text = open('x').read()"}
    ),
    "a file has an end": Case(
        house.too_long,
        {DRIVER: "x = 1\n" * (house.MOST_FILE_LINES + 1)},
        f"{house.MOST_FILE_LINES + 1} lines",
        {DRIVER: "x = 1\n" * house.MOST_FILE_LINES},
    ),
    "a function fits on a page": Case(
        house.too_long,
        {DRIVER: "def f():\n" + "    x = 1\n" * house.MOST_FUNCTION_LINES},
        f"f has {house.MOST_FUNCTION_LINES + 1} lines",
        {DRIVER: "def f():\n" + "    x = 1\n" * (house.MOST_FUNCTION_LINES - 1)},
    ),
    "__init__ files are empty": Case(
        house.filled_inits,
        {"orchestrator/domain/__init__.py": '"""Nouns."""\n'},
        "must be empty",
        {"orchestrator/domain/__init__.py": "", DRIVER: "x = 1"},
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_refuses_what_it_is_there_for_and_nothing_beside_it(name: str) -> None:
    case = RULES[name]
    said = case.rule([Module(path, source) for path, source in case.bad.items()])
    assert len(said) == 1 and case.says in said[0]
    assert case.rule([Module(path, source) for path, source in case.good.items()]) == []


@pytest.mark.parametrize("name", sorted({case.rule.__name__ for case in RULES.values()}))
def test_the_house_keeps_its_rules(name: str) -> None:
    rule: Rule = getattr(house, name)
    assert rule(HOUSE) == []


def test_tests_are_not_longer_than_code_may_be() -> None:
    assert house.too_long(house.modules_of("tests")) == []


def test_no_table_of_exceptions_names_what_is_gone() -> None:
    paths = {module.path for module in HOUSE}
    drivers = {path.split("/")[2].removesuffix(".py") for path in paths if path.startswith("orchestrator/drivers/")}
    kin = [pattern for patterns in house.DRIVER_FAMILIES.values() for pattern in patterns]
    assert [pattern for pattern in kin if not any(fnmatch(file, pattern) for file in drivers)] == []
    assert set(house.SHARED_BY_DRIVERS) <= drivers
    files = {*house.TRAVELLERS, *house.LATE_DOORS, *house.BY_NAME, *(name.partition(":")[0] for name in house.LONGER)}
    assert sorted(files - paths) == []
    used = {each.library for module in HOUSE for each in module.imports}
    assert sorted(set(house.HOMES) - used) == [], "libraries that nobody imports any more"


def test_every_folder_has_its_arrows() -> None:
    folders = {house.place_of(module.name) for module in HOUSE} - {""}
    assert folders == set(house.ARROWS)


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    distributions = {_canonical(re.split(r"[\s\[<>=!~;]", each)[0]) for each in declared}
    owners = metadata.packages_distributions()
    modules = [*HOUSE, *house.modules_of("tests")]
    known = {*sys.stdlib_module_names, *house.OURS, "tests", *(module.name.rpartition(".")[2] for module in modules)}
    imported = {each.library for module in modules for each in module.imports} - known
    assert {"click", "pytest"} <= imported
    undeclared = {name for name in imported if not {_canonical(owner) for owner in owners.get(name, ())} & distributions}
    # These two are pydantic's own halves: its version decides theirs.
    assert undeclared <= {"annotated_types", "pydantic_core"}


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


# ---------------------------------------------------------------------- what is really imported
LIGHT = (
    *("orchestrator.planning", "orchestrator.execution", "orchestrator.cli", "orchestrator.web", "orchestrator.domain"),
    *("orchestrator.wiring", "model.shape", "model.contract"),
)
TRAINING = {"ray", "torch", "deepspeed"}
COSTLY = {*house.HEAVY, "pydantic_core", "yaml", "networkx"}


def _modules_after(program: str, without: set[str]) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `program`; it cannot import those in `without`."""
    script = f"import json, sys\nfor name in {sorted(without)!r}: sys.modules[name] = None\n{program}\n"
    script += "held = {name.partition('.')[0] for name, module in sys.modules.items() if module}\n"
    script += "print(json.dumps(sorted(held)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_deciding_and_typing_need_neither_ray_nor_torch() -> None:
    names = [module.name for module in HOUSE if module.name.startswith(LIGHT) and not module.path.endswith("__init__.py")]
    assert {"orchestrator.planning.next_step", "orchestrator.execution.controller", "orchestrator.cli.apply"} <= set(names)
    held = _modules_after("import " + ", ".join(names), without=TRAINING)
    assert held & TRAINING == set()


@pytest.mark.parametrize(
    ("words", "may_hold"),
    [(["--help"], set()), (["validate", "cluster_specs/lab-4.yaml"], {"pydantic_core", "yaml"})],
    ids=["help", "validate"],
)
def test_a_quick_command_imports_nothing_costly(words: list[str], may_hold: set[str]) -> None:
    held = _modules_after(f"from orchestrator.cli.main import run\nassert run({words!r}) == 0", without=set())
    assert "click" in held
    assert held & COSTLY <= may_hold
