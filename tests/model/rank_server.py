"""Starts ranks by forking a process that has already imported everything: `python tests/model/rank_server.py`.

Importing torch and DeepSpeed is most of the time of a tiny run; here it is paid once for all runs of a test session.
A line of JSON in: {"arguments", "environment", "directory", "log", "break"}; lines out: {"pid"}, in the order asked, and
{"ended": pid, "code"} with the code as `subprocess` gives it.  Ends with its input.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import sys
from typing import Any

HEAVY = (
    *("model.train", "model.checkpoint", "model.engine", "model.data", "model.corpus"),
    *("deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3", "torch._dynamo"),
)


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"  # and no thread yet exists that a fork would lose
    for name in HEAVY:
        importlib.import_module(name)
    # SIGCHLD through a pipe would do the same; twenty looks a second at a few children cost nothing.
    while True:
        ready, _, _ = select.select([0], [], [], 0.05)
        if ready:
            line = sys.stdin.readline()
            if not line:
                return
            say(pid=start(json.loads(line)))
        reap()


def start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        os.chdir(order["directory"])
        if order["break"]:
            importlib.import_module("breaking_points").arm(order["break"])
        code = importlib.import_module("model.train").main(order["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        say(ended=pid, code=os.waitstatus_to_exitcode(status))


def say(**words: int) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
