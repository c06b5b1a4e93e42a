"""The pipeline's bubble: step time for m = 1 … 16 micro-batches on two stages, beside (p - 1 + m)/m.

    python -m tests.benchmarks.model_bubble -o model/bench --machine "2 shared x86 cores"

All numbers of micro-batches are trained in turn by the same two processes, so that what else the machine does falls on
each alike; of each the least disturbed round counts. A micro-batch's time is the median slope between the points (Theil & Sen);
what a step takes whatever its micro-batches (update, norm, barrier) is told as fixed_s; each ratio is told with and without it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.contract import GuardSpec
from model.data import Batch
from model.guard import Guard
from tests.benchmarks.ranks import a_spec, run_ranks

STAGES, SEQUENCES, TOKENS = 2, 2, 128
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
MODEL = {"layers": 4, "d_model": 256, "heads": 4, "d_ff": 1024, "vocabulary": 300, "positions": TOKENS}
"""Few tokens, so that the head on the last stage weighs little and the stages are alike."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--machine", default="")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    if asked.output is None:
        worker(asked.rounds)
        return
    times = run_ranks("tests.benchmarks.model_bubble", STAGES, "--rounds", str(asked.rounds))
    steps_s = {m: min(times[str(m)]) for m in MICRO_BATCHES}
    pairs = itertools.combinations(MICRO_BATCHES, 2)
    one_s = statistics.median((steps_s[more] - steps_s[less]) / (more - less) for less, more in pairs)
    fixed_s = statistics.median(steps_s[m] - (STAGES - 1 + m) * one_s for m in MICRO_BATCHES)
    rows = [
        {
            "micro_batches": m,
            "step_s": round(steps_s[m], 4),
            "measured": round(steps_s[m] / (m * one_s), 3),
            "without_fixed": round((steps_s[m] - fixed_s) / (m * one_s), 3),
            "formula": round((STAGES - 1 + m) / m, 3),
        }
        for m in MICRO_BATCHES
    ]
    found: dict[str, Any] = {"machine": asked.machine, "stages": STAGES, "model": MODEL, "rounds": asked.rounds}
    found |= {"micro_batch_s": round(one_s, 4), "fixed_s": round(fixed_s, 4), "rows": rows}
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "model_bubble.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(rows, asked.output / "model_bubble.png")
    print(json.dumps(found, indent=1))


def worker(rounds: int) -> None:
    """One rank: an engine per number of micro-batches, stepped in turn."""
    from torch import distributed as dist  # late: the parent only draws

    from model.engine import build_engine  # late: deepspeed reads the rank environment
    from model.engine_ranks import join_ranks, leave_ranks

    join_ranks(600.0)
    engines = {}
    for m in MICRO_BATCHES:
        batch = {"global_sequences": SEQUENCES * m, "micro_sequences": SEQUENCES, "sequence_tokens": TOKENS}
        engines[m] = build_engine(a_spec(MODEL, {"pipeline": STAGES, "zero": 1}, batch))
    ids = np.random.default_rng(0).integers(0, MODEL["vocabulary"], (SEQUENCES, TOKENS + 1))
    guard, times = Guard(GuardSpec()), {m: [] for m in MICRO_BATCHES}
    for number in range(1, rounds + 2):
        for m, engine in engines.items():
            dist.barrier()
            begun_s = time.perf_counter()
            engine.train_step(number, [Batch(ids[:, :-1], ids[:, 1:])] * m, guard)
            dist.barrier()
            if number > 1:
                times[m].append(time.perf_counter() - begun_s)
    leave_ranks()
    sys.stdout.write(json.dumps(times) + "\n")


def draw(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib  # late: only the parent draws

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    m = [row["micro_batches"] for row in rows]
    axes.plot(m, [row["formula"] for row in rows], color="0.5", label="(p - 1 + m) / m")
    axes.plot(m, [row["measured"] for row in rows], "o", color="tab:blue", label="measured")
    axes.plot(m, [row["without_fixed"] for row in rows], "x", color="tab:orange", label="less update, norm and barrier")
    axes.set(xlabel="micro-batches m", ylabel="step time / time without a bubble", title=f"Pipeline bubble, p = {STAGES}")
    axes.set_ylim(bottom=0.9)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
