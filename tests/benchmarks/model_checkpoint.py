"""What a checkpoint costs the training: `python -m tests.benchmarks.model_checkpoint [-o model/bench/model_checkpoint.json]`.

One process trains a model of some 19 million parameters (229 MB of state) and takes turns, so that a machine that others use
at the same time slows all alike: plain steps, a step that saves in the background with the steps under which the writing
goes on, and a step that saves and waits.  Ratios are of medians from this one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import Checkpoints
from model.contract import RunSpec
from model.data import Batch
from model.engine import Engine, build_engine
from model.engine_ranks import join_ranks, leave_ranks
from model.guard import Guard
from model.ranks import RankEnvironment


def main() -> None:
    parser = argparse.ArgumentParser(description="Time steps with and without a checkpoint.")
    parser.add_argument("-o", "--output", type=Path, help="keep the numbers in this JSON file")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    os.environ.update(RankEnvironment.from_environment({}).as_environment())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        join_ranks(60.0)
        result = measure(a_run(Path(folder)), given.rounds)
        leave_ranks()
    print(json.dumps(result, indent=1))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(result, indent=1) + "\n")


def a_run(folder: Path) -> RunSpec:
    return RunSpec.from_json(
        json.dumps(
            {
                "run_id": "checkpoint-cost",
                "seed": 1,
                "model": {"layers": 6, "d_model": 480, "heads": 8, "d_ff": 1920, "vocabulary": 4096, "positions": 256},
                "data": {"corpus": "python-stdlib", "directory": "unused"},
                "layout": {"zero": 1},
                "batch": {"global_sequences": 4, "micro_sequences": 4, "sequence_tokens": 256},
                "optimizer": {"lr": 0.0001},
                "steps": 10_000,
                "checkpoint": {"directory": str(folder), "keep": 1},
                "output_directory": str(folder),
            }
        )
    )


def measure(spec: RunSpec, rounds: int) -> dict[str, Any]:
    """Seconds of each kind of step, and their ratios to a plain one."""
    engine, checkpoints, trainer = build_engine(spec), Checkpoints(spec, 0, 1), None
    trainer = Steps(spec, engine)
    for _ in range(2):
        trainer.timed()
    plain, saving, beside, waiting, held = [], [], [], [], []
    size_bytes = 0
    for _ in range(rounds):
        plain += [trainer.timed(), trainer.timed()]
        saving.append(trainer.timed(lambda step: checkpoints.begin(engine, step, {})))
        saved = checkpoints.poll(engine)
        while saved is None:
            beside.append(trainer.timed())
            saved = checkpoints.poll(engine)
        held.append(saved.held_s)
        size_bytes = saved.size_bytes
        plain.append(trainer.timed())
        waiting.append(trainer.timed(lambda step: (checkpoints.begin(engine, step, {}), checkpoints.finish())))
    checkpoints.close()
    engine.close()
    one = statistics.median(plain)
    under_way = [*saving, *beside]
    return {
        "parameters": spec.model.shape().parameters().total,
        "checkpoint_bytes": size_bytes,
        "tokens_per_step": spec.tokens_per_step,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "plain_step_s": one,
        "held_s": statistics.median(held),
        "saving_step_ratio": statistics.median(saving) / one,
        "steps_under_the_writing_ratio": statistics.mean(under_way) / statistics.mean(plain),
        "saving_and_waiting_step_ratio": statistics.median(waiting) / one,
    }


class Steps:
    """Trains on random tokens and times it."""

    def __init__(self, spec: RunSpec, engine: Engine) -> None:
        self._engine, self._guard, self._step = engine, Guard(spec.guard), 0
        draw = np.random.default_rng(1)
        shape = (spec.batch.micro_sequences, spec.batch.sequence_tokens)
        rows = [draw.integers(spec.model.vocabulary, size=shape) for _ in range(spec.micro_batches)]
        self._batches = [Batch(row, row) for row in rows]

    def timed(self, after: Any = None) -> float:
        """Seconds of the next step and of what follows it."""
        begun_s = time.perf_counter()
        self._step += 1
        self._engine.train_step(self._step, self._batches, self._guard)
        if after:
            after(self._step)
        return time.perf_counter() - begun_s


if __name__ == "__main__":
    main()
