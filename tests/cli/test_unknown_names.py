"""Every command that is given a name nobody has: exit code 2, a sentence on stderr, nothing on stdout, nothing begun."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.lab.control import _end, _start_daemon
from orchestrator.lab.plan import LabPaths
from tests.execution.site import Rehearsal
from tests.house import PROJECT

SPEC = str(PROJECT / "cluster_specs/lab-4.yaml")
JOB = str(PROJECT / "cluster_specs/jobs/lm-pipeline.yaml")
NODE, WHY = "r09-n9", ("--reason", "a test")

UNKNOWN: dict[str, tuple[str, ...]] = {
    "a command": ("stauts",),
    "an option": ("status", "--jsn"),
    "status of a node": ("status", NODE),
    "node show": ("node", "show", NODE),
    "node drain": ("node", "drain", NODE, *WHY),
    "node enroll": ("node", "enroll", NODE, "--yes", *WHY),
    "node replace": ("node", "replace", NODE, "--serial", "X", "--yes", *WHY),
    "node requalify": ("node", "requalify", NODE, *WHY),
    "node retire": ("node", "retire", NODE, "--yes", *WHY),
    "firmware audit": ("firmware", "audit", NODE),
    "rollout skip": ("rollout", "skip", NODE, *WHY),
    "rollout retry": ("rollout", "retry", NODE, *WHY),
    "a set of nodes that is none": ("status", "r[01-"),
    "train watch": ("train", "watch", "lm-9"),
    "train logs": ("train", "logs", "lm-9"),
    "train cancel": ("train", "cancel", "lm-9", "--yes", *WHY),
    "train calibrate": ("train", "calibrate", "lm-9"),
    "train submit": ("train", "submit", "absent.yaml"),
    "train plan of a job": ("train", "plan", "absent.yaml", "--gpu", "H100"),
    "train plan with a GPU": ("train", "plan", JOB, "--gpu", "H1000"),
    "train plan with a preset": ("train", "plan", JOB, "--gpu", "H100", "--preset", "gpt9"),
    "train plan with a precision": ("train", "plan", JOB, "--gpu", "H100", "--precision", "fp7"),
    "train plan with a spec": ("train", "plan", JOB, "--spec", "absent.yaml"),
    "validate": ("validate", "absent.yaml"),
    "validate explain": ("validate", SPEC, "--explain", "pwoer"),
    "validate drawing": ("validate", SPEC, "-o", "racks.gif"),
    "plan": ("plan", "absent.yaml"),
    "plan limit": ("plan", SPEC, "--offline", "--limit", NODE),
    "apply": ("apply", "absent.yaml", "--yes"),
    "apply limit": ("apply", SPEC, "--limit", NODE, "--yes"),
    "rehearse": ("rehearse", "absent.yaml"),
    "rehearse faults": ("rehearse", SPEC, "--faults", "absent.yaml"),
    "spec new": ("spec", "new", "new.yaml", "--machine", "dgx-h10"),
    "lab up": ("lab", "up", "--spec", "absent.yaml"),
    "lab fault setting": ("lab", "fault", "r01-n1", "bmc_silent", "seconds"),
    "lab fault": ("lab", "fault", "r01-n1", "bmc_silnet"),
    "lab fault heal": ("lab", "fault", "r01-n1", "bmc_silnet", "--heal"),
    "lab fault node": ("lab", "fault", NODE, "bmc_silent"),
}
NEAR = {
    "a command": "Did you mean status",
    "an option": "--json",
    "lab fault": "did you mean bmc_silent",
    "lab fault heal": "did you mean bmc_silent",
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A home with four nodes of an applied spec, and one where a lab daemon runs, without nodes."""
    cluster, lab = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("lab")
    Rehearsal(cluster).apply()
    paths = LabPaths(lab)
    paths.lab.mkdir(mode=0o700, parents=True)
    _start_daemon(paths)
    yield cluster, lab
    _end(paths, keep=False)


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_name_is_bad_input_and_begins_nothing(
    what: str, homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = UNKNOWN[what]
    home = homes[words[0] == "lab"]
    monkeypatch.setenv("RACKRAY_HOME", str(home))
    monkeypatch.chdir(home)
    before = sorted(path.name for path in home.iterdir())
    code = run(list(words))
    said = capsys.readouterr()
    assert (code, said.out) == (2, ""), said.err
    assert NEAR.get(what, "") in said.err and "Traceback" not in said.err
    assert sorted(path.name for path in home.iterdir()) == before
