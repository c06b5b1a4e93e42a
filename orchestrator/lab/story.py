"""The story `rackray demo` tells: real commands, one after the other, each followed by a check that it did what it says.

Nothing here knows how the commands work: it types them, shows what they print, and asks for JSON to see whether it is so.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEARNED_NATS = 0.3
"""Held-out loss has to end at least this far below the corpus's unigram entropy, in nat per token."""
RESUMED_STEPS = 40
"""How much further the resumed run goes."""
END_PATIENCE_S = 5.0
COMMAND_LIMIT_S = 600.0


class StoryBroken(Exception):
    """Something of the story did not happen."""


@dataclass
class Story:
    """One telling, in a home of its own, which stays behind with every log."""

    home: Path
    specs: Path
    began_s: float = field(default_factory=time.monotonic)
    chapters: list[tuple[str, float]] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)

    def tell(self) -> int:
        """All chapters; returns 0 only if every one of them happened. The lab is taken down in any case."""
        if (self.home / "lab").exists():
            self._command("lab", "down")
        shutil.rmtree(self.home, ignore_errors=True)
        try:
            for title, chapter in self._plot():
                self._chapter(title, chapter)
        except StoryBroken as broken:
            self._say(f"THE STORY BROKE: {broken}")
            self._say(f"everything it left is in {self._named(self.home)}")
            return 1
        finally:
            self._keep_logs()
            self._command("lab", "down")
        if left := self._leftovers_at_last():
            self._say(f"THE STORY BROKE: {len(left)} processes are still there: {', '.join(left[:5])}")
            return 1
        self._conclude()
        return 0

    def _plot(self) -> Sequence[tuple[str, Callable[[], None]]]:
        return (
            ("1. Four machines are delivered: powered off, factory passwords, no image", self._delivery),
            ("2. The spec is checked, and the plan shown; nothing is touched", self._planning),
            ("3. Bring-up: from the factory password to the cell", self._bring_up),
            ("4. The sick GPU is healed, and its node proves itself again", self._requalify),
            ("5. Training: two pipeline stages × two replicas, then ZeRO-3 on four ranks", self._training),
            ("6. Two nodes more; only these two are touched", self._expansion),
            ("7. The first run is continued on four of the six nodes, two are spares", self._resume),
        )

    # ------------------------------------------------------------------ chapters
    def _delivery(self) -> None:
        self._command("lab", "up", "--spec", self._spec("lab-4"))
        self._command("lab", "status")

    def _planning(self) -> None:
        before = _tree(self.home, but="access")
        self._command("validate", self._spec("lab-4"))
        self._command("plan", self._spec("lab-4"))
        requests = self._bmc_requests()
        other = [r for r in requests if r["method"] not in ("GET", "HEAD") and "/SessionService/Sessions" not in r["path"]]
        self._check(not other, f"plan sent {[(r['method'], r['path']) for r in other[:3]]} to a BMC")
        self._check(bool(requests), "plan did not look at any BMC")
        created = sum(r["method"] == "POST" for r in requests)
        ended = sum(r["method"] == "DELETE" for r in requests)
        self._check(created == ended, f"plan opened {created} sessions and closed {ended}")
        self._check(_tree(self.home, but="access") == before, "plan wrote a file")
        self._note(f"plan made {len(requests)} requests to four BMCs: GET, and {created} sessions of its own, closed again")

    def _bring_up(self) -> None:
        self._command("apply", self._spec("lab-4"), "--yes", expect=1)
        self._command("status")
        self._expect_states({"ready": 3, "quarantined": 1})
        self._command("firmware", "audit")
        self._command("apply", self._spec("lab-4"), "--yes", expect=1)
        self._check("nothing to do" in self._last_output, "a second apply found something to do")

    def _requalify(self) -> None:
        self._command("lab", "fault", "r02-n2", "gpu_row_remap_pending", "gpu=1", "--heal")
        self._command("node", "requalify", "r02-n2", "--reason", "GPU reset, row remap done")
        self._expect_states({"ready": 4})
        self._command("status", "--listeners")

    def _training(self) -> None:
        for job in ("lm-pipeline", "lm-zero3"):
            self._command("train", "submit", self._job(job))
            self._expect_learning(self._run_of(job))

    def _expansion(self) -> None:
        self._command("lab", "up", "--spec", self._spec("lab-6"))
        before = {node["name"]: node["since"] for node in self._json("status")["nodes"]}
        self._command("apply", self._spec("lab-6"), "--yes")
        self._expect_states({"ready": 6})
        after = {node["name"]: node["since"] for node in self._json("status")["nodes"]}
        moved = [name for name in before if after[name] != before[name]]
        self._check(not moved, f"apply touched {', '.join(moved)}, which were in service")

    def _resume(self) -> None:
        first = self._run_of("lm-pipeline")
        self._command("train", "submit", self._job("lm-pipeline"), "--resume", "--steps", str(first["step"] + RESUMED_STEPS))
        run = self._run_of("lm-pipeline")
        self._check(run["id"] != first["id"], "no new run was made")
        self._check(len(run["nodes"]) == 4, f"it ran on {run['nodes']}")
        lines = self._progress_lines(run["id"])
        steps = [line["step"] for line in lines if "loss" in line and "step" in line and "event" not in line]
        self._check(bool(steps) and steps[0] == first["step"] + 1, f"it began at step {steps[:1]}, not at {first['step'] + 1}")
        self._expect_learning(run)
        self._note(f"{run['id']} continued {first['id']} at step {steps[0]} and ended at step {steps[-1]}")
        self._command("train", "list")

    # ------------------------------------------------------------------ typing and checking
    def _chapter(self, title: str, chapter: Callable[[], None]) -> None:
        self._say(title, rule=True)
        began_s = time.monotonic()
        chapter()
        self.chapters.append((title, time.monotonic() - began_s))

    def _command(self, *words: str, expect: int = 0) -> None:
        """Type one command, show what it prints as it comes, and see that it ends as expected."""
        self._say(f"$ rackray {' '.join(words)}")
        process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "orchestrator.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self._environment(),
        )
        printed: list[str] = []
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        for line in process.stdout:
            printed.append(line)
            sys.stdout.write(f"  {line}")
            sys.stdout.flush()
        self._last_output = "".join(printed)
        status = process.wait(COMMAND_LIMIT_S)
        self._check(status == expect, f"`rackray {' '.join(words)}` ended with {status}, not {expect}")

    def _json(self, *words: str) -> Any:
        done = subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, "-m", "orchestrator.cli.main", *words, "--json"],
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            env=self._environment(),
            check=False,
        )
        self._check(bool(done.stdout), f"`rackray {' '.join(words)} --json` printed nothing: {done.stderr}")
        return json.loads(done.stdout)

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, "RACKRAY_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise StoryBroken(otherwise)

    def _expect_states(self, wanted: Mapping[str, int]) -> None:
        counts = self._json("status")["counts"]
        self._check(counts == dict(wanted), f"nodes are {counts}, not {dict(wanted)}")

    def _run_of(self, job: str) -> dict[str, Any]:
        runs = [run for run in self._json("train", "list") if run["job"] == job]
        self._check(bool(runs), f"no run of {job} is listed")
        newest: dict[str, Any] = runs[-1]
        return newest

    def _expect_learning(self, run: Mapping[str, Any]) -> None:
        self._check(run["state"] == "finished", f"{run['id']} is {run['state']}")
        lines = self._progress_lines(run["id"])
        heldout = [line["heldout_loss"] for line in lines if line.get("heldout_loss") is not None]
        unigram = [line["unigram_entropy_nats"] for line in lines if line.get("unigram_entropy_nats") is not None]
        self._check(bool(heldout and unigram), f"{run['id']} told no held-out loss")
        gain = unigram[-1] - heldout[-1]
        self._check(gain >= LEARNED_NATS, f"{run['id']} ended {gain:.2f} nat below the unigram entropy, wanted {LEARNED_NATS}")
        manifests = list((self.home / "lab" / "shared").rglob("manifest.json"))
        self._check(bool(manifests), "no checkpoint manifest was written")
        self._note(
            f"{run['id']}: loss {run['loss_first']:.2f} → {run['loss_last']:.2f}; held out {heldout[-1]:.2f}, "
            f"{gain:.2f} nat/token below the unigram entropy {unigram[-1]:.2f}; "
            f"{run['tokens_per_s']:.0f} tokens/s on {', '.join(run['nodes'])}"
        )

    def _progress_lines(self, run_id: str) -> list[dict[str, Any]]:
        path = self.home / "runs" / run_id / "progress.jsonl"
        self._check(path.exists(), f"there are no progress lines of {run_id}")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def _bmc_requests(self) -> list[dict[str, Any]]:
        logs = self._access_logs()
        self._check(bool(logs), "the BMCs kept no access log")
        return [json.loads(line) for log in logs for line in log.read_text().splitlines()]

    def _access_logs(self) -> list[Path]:
        return sorted((self.home / "lab" / "nodes").glob("*/bmc_access.log"))

    def _leftovers_at_last(self) -> list[str]:
        """What is still there after a moment: a process that has just been ended takes a while to go."""
        until_s = time.monotonic() + END_PATIENCE_S
        while (left := self._leftovers()) and time.monotonic() < until_s:
            time.sleep(0.2)
        return left

    def _leftovers(self) -> list[str]:
        """Processes that still name this home in their command line or environment, other than this one and its ancestors."""
        mine = {os.getpid(), os.getppid()}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in mine:
                continue
            try:
                words = (entry / "cmdline").read_bytes()
                if str(self.home).encode() in words + (entry / "environ").read_bytes() and b"demo" not in words:
                    found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace')[:60]}")
            except OSError:
                continue  # it ended while we looked
        return found

    # ------------------------------------------------------------------ telling
    def _keep_logs(self) -> None:
        """The lab takes its disks with it: what the summary points to is copied first."""
        for path in (*(self.home / "lab" / "shared" / "rackray" / "runs").rglob("rank-*.log"), *self._access_logs()):
            kept = self.home / "logs" / path.relative_to(self.home / "lab")
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept)

    def _conclude(self) -> None:
        self._say("What happened", rule=True)
        for title, seconds in self.chapters:
            self._say(f"{seconds:6.0f} s  {title}")
        for line in self.summary:
            self._say(f"  {line}")
        for picture in sorted((self.home / "runs").rglob("*.png")):
            self._say(f"  loss curve: {self._named(picture)}")
        self._say(f"  journal: {self._named(self.home / 'state.db')}; logs of ranks and BMCs: {self._named(self.home / 'logs')}")
        self._say(f"the whole story took {time.monotonic() - self.began_s:.0f} s")

    def _note(self, line: str) -> None:
        self.summary.append(line)
        self._say(f"  ✓ {line}")

    def _say(self, line: str, rule: bool = False) -> None:
        if rule:
            dashes = "─" * (min(shutil.get_terminal_size((114, 24)).columns, 114) - len(line) - 4)
            print(f"\n── {line} {dashes}", flush=True)
        else:
            print(line, flush=True)

    def _spec(self, name: str) -> str:
        return self._named(self.specs / f"{name}.yaml")

    def _job(self, name: str) -> str:
        return self._named(self.specs / "jobs" / f"{name}.yaml")

    @staticmethod
    def _named(path: Path) -> str:
        """The path as the operator would type it."""
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)


def _tree(folder: Path, but: str) -> dict[str, int]:
    """Every file below `folder` with its size, except those whose name holds `but` and live files of the machines themselves."""
    files = {}
    for path in folder.rglob("*"):
        if but not in path.name and "nodes" not in path.parts and path.suffix != ".log" and path.is_file():
            files[str(path)] = path.stat().st_size
    return files
