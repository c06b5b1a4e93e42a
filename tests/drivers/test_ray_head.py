"""What a head is recognised by, and what is refused before anything is started."""

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from orchestrator.domain.errors import PeerUnreachable, SecretMissing
from orchestrator.drivers import processes
from orchestrator.drivers.processes import ProcessId
from orchestrator.drivers.ray_head import HeadConfig, client_environment, ensure_head, ensure_token, head_info, temp_directory

MARK = f"RACKRAY_TEST_FAMILY={os.getpid()}"


def family() -> list[ProcessId]:
    return processes.marked(MARK)


def start(script: str, log: Path) -> ProcessId:
    name, _, value = MARK.partition("=")
    return processes.start_detached(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin", name: value}, log)


def test_the_token_is_made_once_private_and_long(tmp_path: Path) -> None:
    path = ensure_token(tmp_path, "cell")
    token = path.read_text()
    assert len(bytes.fromhex(token)) == 32
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert ensure_token(tmp_path, "cell").read_text() == token
    assert ensure_token(tmp_path, "management").read_text() != token
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["ray-cell.token", "ray-management.token"]


def test_a_token_that_others_can_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = ensure_token(tmp_path, "cell")
    path.chmod(0o644)
    with pytest.raises(SecretMissing) as caught:
        ensure_token(tmp_path, "cell")
    assert "chmod 600" in caught.value.hint


def test_a_token_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("x")
    elsewhere.chmod(0o600)
    (tmp_path / "secrets" / "ray-cell.token").symlink_to(elsewhere)
    with pytest.raises(SecretMissing):
        ensure_token(tmp_path, "cell")


def test_no_environment_carries_the_token_itself_or_a_foreign_setting_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "foreign")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    path = ensure_token(tmp_path, "cell")
    environment = client_environment(path)
    assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_AUTH_TOKEN_PATH"] == str(path)
    assert "RAY_AUTH_TOKEN" not in environment and "RAY_ADDRESS" not in environment
    assert path.read_text() not in environment.values()


def test_a_state_file_is_believed_only_while_that_very_process_lives(tmp_path: Path) -> None:
    me = processes.find(os.getpid())
    assert me is not None
    told = {
        "name": "cell",
        "address": "127.1.220.4",
        "port": 6418,
        "ray_version": "0",
        "python_version": "0",
        "token_path": "t",
        "temp_dir": "d",
    }
    (tmp_path / "ray").mkdir()
    path = tmp_path / "ray" / "cell.json"

    def seen(**changes: int) -> bool:
        path.write_text(json.dumps({**told, "pid": me.pid, "started_ticks": me.started_ticks, **changes}))
        return head_info("cell", tmp_path) is not None

    assert seen()
    assert not seen(started_ticks=me.started_ticks - 1), "another process has the pid now"
    assert not seen(pid=2**22 + 1)
    path.write_text("{half")
    assert head_info("cell", tmp_path) is None


def test_a_port_that_somebody_else_has_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.1.220.4", 6418)):
        config = HeadConfig(name="cell", address="127.1.220.4", port=6418, home=tmp_path)
        with pytest.raises(PeerUnreachable, match=r"127\.1\.220\.4:6418 is taken") as caught:
            ensure_head(config)
    assert "another port" in caught.value.hint
    assert not temp_directory("cell", tmp_path).exists()


def test_rays_sockets_fit_whatever_the_length_of_home(tmp_path: Path) -> None:
    longest = "r/session_2026-11-21_04-01-24_377018_4194304/sockets/plasma_store"
    home = tmp_path / ("x" * 200)
    assert len(str(temp_directory("management", home) / longest)) < 107
    assert temp_directory("management", home) != temp_directory("cell", home)


def test_a_family_is_ended_whole_though_it_ignores_term_and_changes_sessions(tmp_path: Path) -> None:
    parent = start("trap '' TERM; setsid sleep 300 & sleep 300 & wait; wait; wait", tmp_path / "log")
    stranger = processes.start_detached(
        ["sleep", "300"], {"PATH": "/usr/bin:/bin", "RACKRAY_TEST_FAMILY": "other"}, tmp_path / "log"
    )
    try:
        while len(family()) < 3:
            assert parent.is_alive()
        assert processes.end(family, patience_s=0.2) == 3
        assert family() == [] and not parent.is_alive()
        assert stranger.is_alive()
    finally:
        processes.end(lambda: [stranger] if stranger.is_alive() else [], patience_s=1.0)


def test_a_signal_is_not_sent_to_another_process_with_the_same_pid(tmp_path: Path) -> None:
    process = start("exec sleep 300", tmp_path / "log")
    try:
        processes.send([ProcessId(process.pid, process.started_ticks - 1)], signal.SIGKILL)
        assert process.is_alive()
    finally:
        processes.end(family, patience_s=1.0)
