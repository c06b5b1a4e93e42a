"""Ranks as real small processes: started once, adopted, watched, ended, and their exit status known whoever dies."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.node_agent import NodeAgent
from orchestrator.agent.ranks import PROGRESS_BYTES, RankError, RankFiles, look_at_rank, read_lines, start_rank, stop_rank

FOREVER = ["/bin/sh", "-c", "echo up; exec sleep 300"]


@pytest.fixture
def args(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The args of an operation on rank 0; whatever was started is killed at the end."""
    given = {
        "run": "lm-1",
        "attempt": 1,
        "rank": 0,
        "environment": {"RANK": "0", "MASTER_PORT": 29500},
        "argv": FOREVER,
        "directory": str(tmp_path / "run with space"),
        "run_json": "",
    }
    yield given
    for pid_file in tmp_path.glob("*/attempt-*/rank-*.pid"):
        attempt, rank = int(pid_file.parent.name.split("-")[1]), int(pid_file.stem.split("-")[1])
        stop_rank({**given, "attempt": attempt, "rank": rank, "directory": str(pid_file.parent.parent), "signal": "KILL"})


def until(condition: Callable[[], Any], limit_s: float = 15.0) -> Any:
    """Waits for something a real process does; the value it became."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def test_a_rank_is_a_child_of_pid_1_in_its_own_session(args: dict[str, Any]) -> None:
    pid = start_rank(args)["pid"]
    _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    _, parent, _, session = fields.split()[:4]
    assert int(session) == pid
    assert int(parent) != os.getpid()


def test_a_second_start_adopts_the_running_rank(args: dict[str, Any]) -> None:
    first, second = start_rank(args), start_rank(args)
    assert (first["adopted"], second["adopted"]) == (False, True)
    assert (first["pid"], first["started_ticks"]) == (second["pid"], second["started_ticks"])


def test_a_rank_that_has_ended_is_not_started_again_in_the_same_attempt(args: dict[str, Any]) -> None:
    args["argv"] = ["/bin/sh", "-c", "echo once >>count; exit 7"]
    start_rank(args)
    until(lambda: look_at_rank(args)["exit_status"] == 7)
    assert start_rank(args)["adopted"] is True
    assert (Path(args["directory"]) / "count").read_text() == "once\n"
    assert start_rank({**args, "attempt": 2})["adopted"] is False


def _race(gate: Any, args: dict[str, Any]) -> None:
    gate.wait()
    start_rank(args)


def test_starts_at_the_same_moment_make_one_rank(args: dict[str, Any]) -> None:
    args["argv"] = ["/bin/sh", "-c", "echo up >>count; exec sleep 300"]
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    racers = [context.Process(target=_race, args=(gate, args)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    until(lambda: (Path(args["directory"]) / "count").exists())
    time.sleep(0.2)  # a second rank, if there were one, would have spoken by now
    assert (Path(args["directory"]) / "count").read_text() == "up\n"


def test_the_exit_status_is_known_though_the_starter_died(args: dict[str, Any]) -> None:
    args["argv"] = ["/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; exit 3"]
    starter = subprocess.Popen(
        [sys.executable, "-c", f"from orchestrator.agent.ranks import start_rank; start_rank({args!r}); input()"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    until(lambda: (Path(args["directory"]) / "attempt-1" / "rank-0.pid").exists())
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    assert look_at_rank(args)["alive"] is True
    (Path(args["directory"]) / "go").touch()
    assert until(lambda: look_at_rank(args)["exit_status"]) == 3
    assert look_at_rank(args)["alive"] is False


def test_another_boot_is_another_process_even_with_the_same_pid_and_start_time(args: dict[str, Any]) -> None:
    start_rank(args)
    pid_file = RankFiles.of(args).base.with_suffix(".pid")
    boot_id, *rest = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([boot_id[::-1], *rest]))
    assert look_at_rank(args)["alive"] is False
    assert stop_rank({**args, "signal": "KILL"})["was_alive"] is False
    pid_file.write_text("\n".join([boot_id, *rest]))
    assert look_at_rank(args)["alive"] is True


def test_term_reaches_the_rank_and_its_own_status_is_kept(args: dict[str, Any]) -> None:
    code = "import signal,sys\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up')\nsignal.pause()"
    args["argv"] = [sys.executable, "-c", code]
    start_rank(args)
    until(lambda: "up" in look_at_rank(args)["log_tail"])
    assert stop_rank({**args, "signal": "TERM"})["was_alive"] is True
    assert until(lambda: not look_at_rank(args)["alive"])
    assert look_at_rank(args)["exit_status"] == 0


def test_kill_ends_the_whole_session_and_the_status_says_signal_9(args: dict[str, Any]) -> None:
    args["argv"] = ["/bin/sh", "-c", "trap '' TERM; sleep 300 & echo $! >child; echo up; wait; wait"]
    start_rank(args)
    until(lambda: "up" in look_at_rank(args)["log_tail"])
    child = int((Path(args["directory"]) / "child").read_text())
    stop_rank({**args, "signal": "KILL"})
    assert look_at_rank(args)["exit_status"] == 128 + 9
    assert until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])
    assert stop_rank({**args, "signal": "KILL"})["was_alive"] is False


def test_children_left_behind_by_a_killed_wrapper_count_as_alive_and_can_be_stopped(args: dict[str, Any]) -> None:
    pid = start_rank(args)["pid"]
    until(lambda: "up" in look_at_rank(args)["log_tail"])
    os.kill(pid, signal.SIGKILL)
    assert look_at_rank(args)["alive"] is True
    stop_rank({**args, "signal": "KILL"})
    assert until(lambda: not look_at_rank(args)["alive"])
    assert look_at_rank(args)["exit_status"] is None


def test_the_rank_sees_what_was_assigned_and_nothing_of_ray(args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere")
    args["argv"] = ["/bin/sh", "-c", "env; pwd; cat RUN.json"]
    args["run_json"] = '{"output_directory": "out"}'
    start_rank(args)
    until(lambda: look_at_rank(args)["exit_status"] == 0)
    said = look_at_rank(args)["log_tail"]
    assert "MASTER_PORT=29500" in said and args["directory"] in said and args["run_json"] in said
    assert "RAY_" not in said


def test_a_command_that_is_not_there_is_an_exit_status_not_a_silence(args: dict[str, Any]) -> None:
    start_rank({**args, "argv": ["/no/such/program"]})
    assert until(lambda: look_at_rank(args)["exit_status"]) == 127


def test_a_directory_that_cannot_be_made_is_refused_with_its_name(args: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = NodeAgent("n1").start({**args, "directory": str(tmp_path / "file" / "run")})
    assert str(tmp_path / "file" / "run") in answer["refused"]


def test_looking_at_a_rank_that_never_started_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(RankError, match="never started"):
        look_at_rank(args)


def test_progress_is_read_where_run_json_says_once_and_in_order(args: dict[str, Any], tmp_path: Path) -> None:
    args["run_json"] = json.dumps({"output_directory": str(tmp_path / "out")})
    start_rank(args)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "progress-0.jsonl"
    path.write_text('{"step": 1}\nnoise\n[1]\n{"step": 2}\n{"st')
    first = look_at_rank({**args, "progress_offset": 0})
    assert [line["step"] for line in first["progress"]] == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    second = look_at_rank({**args, "progress_offset": first["progress_offset"]})
    assert second["progress"] == [{"step": 3}]
    assert look_at_rank({**args, "progress_offset": second["progress_offset"]})["progress"] == []


def test_one_look_reads_a_bounded_part_and_the_rest_follows(tmp_path: Path) -> None:
    path = tmp_path / "progress-0.jsonl"
    path.write_text("".join(json.dumps({"step": step, "pad": "x" * 1000}) + "\n" for step in range(600)))
    seen, offset, looks = [], 0, 0
    while looks < 20:
        lines, offset = read_lines(path, offset)
        if not lines:
            break
        seen += [line["step"] for line in lines]
        looks += 1
    assert seen == list(range(600)) and looks == 3


def test_a_line_longer_than_a_look_is_passed_over_and_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "progress-0.jsonl"
    path.write_text("x" * (PROGRESS_BYTES + 10) + '\n{"step": 1}\n')
    _, offset = read_lines(path, 0)
    assert read_lines(path, offset)[0] == [{"step": 1}]
    path.write_text('{"step": 5}\n')
    assert read_lines(path, offset)[0] == [{"step": 5}]


def test_the_heartbeat_counts_from_the_start_until_the_rank_itself_speaks(args: dict[str, Any]) -> None:
    directory = Path(args["directory"])
    directory.mkdir()
    stale = {"rank": 0, "pid": os.getpid(), "step": 9, "phase": "step", "monotonic_s": time.monotonic() - 1000, "at": 0.0}
    (directory / "heartbeat-0").write_text(json.dumps(stale))
    code = (
        "import json,os,time\n"
        "while not os.path.exists('go'): time.sleep(0.02)\n"
        "beat = dict(rank=0, pid=os.getpid(), step=4, phase='step', monotonic_s=time.monotonic() - 50, at=0)\n"
        "open('draft', 'w').write(json.dumps(beat)); os.replace('draft', 'heartbeat-0'); time.sleep(300)"
    )
    start_rank({**args, "argv": [sys.executable, "-c", code]})
    assert look_at_rank(args)["heartbeat_age_s"] < 20
    (directory / "go").touch()
    until(lambda: look_at_rank(args).get("heartbeat_step") == 4)
    assert 50 <= look_at_rank(args)["heartbeat_age_s"] < 70
