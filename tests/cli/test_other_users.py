"""Who is not root, or not the owner, is told so in a sentence with the way out, and finds nothing changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.execution.site import Rehearsal
from tests.house import PROJECT

LAB_4 = str(PROJECT / "cluster_specs/lab-4.yaml")
NOBODY = 65534
DROP = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    # So that an interpreter in root's own home can be run; what is refused here is to write.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
as_nobody = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
NO_NAMESPACES = [
    *("unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps"),
    *("sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'),
]


def rackray(prefix: list[str], home: Path, *words: str) -> tuple[int, list[str]]:
    """Exit code, and what was said on stderr, by line."""
    command = [*prefix, sys.executable, "-m", "orchestrator.cli.main", *words]
    surroundings = {**os.environ, "RACKRAY_HOME": str(home), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, cwd=PROJECT, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()


@as_nobody
@pytest.mark.parametrize("words", [("lab", "up", "--spec", LAB_4), ("apply", LAB_4, "--yes")], ids=["lab up", "apply"])
@pytest.mark.parametrize("is_there", [False, True], ids=["absent", "of root"])
def test_a_home_that_this_user_may_not_write_to_is_named(tmp_path: Path, words: tuple[str, ...], is_there: bool) -> None:
    home = tmp_path / "home"
    if is_there:
        home.mkdir(mode=0o755)
    code, said = rackray(DROP, home, *words)
    assert code == 2
    assert said == [
        f"RACKRAY_HOME {home} cannot be used by nobody: Permission denied",
        "  way out: set RACKRAY_HOME to a folder that you may write to",
    ]
    assert (sorted(home.iterdir()) if is_there else home.exists()) in ([], False)


@as_nobody
@pytest.mark.parametrize("words", [("status",), ("rollout", "status"), ("node", "show")], ids=" ".join)
def test_the_owner_of_a_journal_that_is_not_ours_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    Rehearsal(tmp_path).apply()
    code, said = rackray(DROP, tmp_path, *words)
    assert code == 1
    assert said[0] == f"the journal {tmp_path}/state.db belongs to root, and this user may not use it"
    assert said[1].startswith("  way out: run rackray as root, or set RACKRAY_HOME")


def can_forbid_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NO_NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    not can_forbid_namespaces(),
    reason="this system lets us make no user namespace to forbid them in",
)
def test_a_system_that_refuses_a_user_the_labs_namespaces_is_told_with_the_way_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    tmp_path.chmod(0o777)
    code, said = rackray(NO_NAMESPACES, home, "lab", "up", "--spec", LAB_4)
    assert code == 1
    assert said[0].startswith("this system refuses the namespaces a lab node is made of")
    assert "way out: run as root" in said[1] and len(said) == 2
    assert not (home / "lab").exists() and not (home / "secrets").exists()
