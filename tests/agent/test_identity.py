"""Who a machine says it is, and from where it knows."""

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator.agent import identity

SYSTEM_PYTHON = Path("/usr/bin/python3")


def test_the_script_runs_by_itself_on_the_systems_python() -> None:
    if not SYSTEM_PYTHON.exists():
        pytest.skip("no /usr/bin/python3")
    script = Path(identity.__file__).read_bytes()
    done = subprocess.run([str(SYSTEM_PYTHON), "-I", "-"], input=script, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.decode().removeprefix(identity.MARKER))
    assert facts["boot_id"] and facts["hostname"] and facts["kernel"] and facts["python"] and facts["uptime_s"] > 0
    assert facts["serial_source"] in ("dmi", "image", None)


@pytest.mark.parametrize(
    ("board", "image", "found"),
    [
        ("SER-1\n", {"serial": "SER-image"}, ("SER-1", "dmi")),
        # A board that says nothing of use is not overruled by a file that anybody could have copied.
        ("To Be Filled By O.E.M.\n", {"serial": "SER-image"}, (None, None)),
        (None, {"serial": "SER-image"}, ("SER-image", "image")),
        (None, {}, (None, None)),
    ],
)
def test_the_board_is_believed_first(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    board: str | None,
    image: dict[str, str],
    found: tuple[str | None, str | None],
) -> None:
    path = tmp_path / "product_serial"
    if board is not None:
        path.write_text(board)
    monkeypatch.setattr(identity, "DMI_SERIAL", str(path))
    assert identity.read_serial(image) == found


def test_an_image_file_of_nonsense_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    for text in ("{", "[1]", ""):
        path.write_text(text)
        assert identity.read_image(str(path)) == {}
    assert identity.read_image(str(tmp_path / "absent")) == {}


def test_a_file_that_sudo_refuses_gives_no_serial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refusing = tmp_path / "sudo"
    refusing.write_text("#!/bin/sh\necho password required >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert identity.read_as_root("/etc/hostname") is None
    refusing.unlink()
    assert identity.read_as_root("/etc/hostname") is None
