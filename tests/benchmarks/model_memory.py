"""Training state per rank by ZeRO stage: bytes of the tensors that are really there, beside the formula.

    python -m tests.benchmarks.model_memory -o model/bench --machine "2 shared x86 cores"

Just before the second update every tensor that the process holds is counted once, by its storage, and what it held before
the engine was built is taken off. What is left is parameters, gradients, optimizer state and DeepSpeed's buffers; activations
are gone by then. The formula is `shape.state_bytes_per_rank` (ZeRO, figure 1).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.contract import GuardSpec
from model.data import Batch
from model.guard import Guard, Verdict
from model.shape import state_bytes_per_rank
from tests.benchmarks.ranks import a_spec, run_ranks

MODEL = {"layers": 4, "d_model": 256, "heads": 4, "d_ff": 1024, "vocabulary": 1024, "positions": 64}
RANKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--machine", default="")
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    if asked.output is None:
        worker(asked.zero, asked.precision)
        return
    rows = []
    for precision in ("fp32", "bf16"):
        for zero in (0, 1, 2, 3):
            if zero or precision == "fp32":
                rows.append(run_ranks("tests.benchmarks.model_memory", RANKS, "--zero", str(zero), "--precision", precision))
                print(rows[-1], file=sys.stderr)
    found = {"machine": asked.machine, "ranks": RANKS, "model": MODEL, "rows": rows}
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "model_memory.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(rows, asked.output / "model_memory.png")
    print(json.dumps(found, indent=1))


def worker(zero: int, precision: str) -> None:
    """One rank: builds, steps twice, counts."""
    from model.engine import build_engine  # late: deepspeed reads the rank environment
    from model.engine_ranks import from_every_rank, join_ranks, leave_ranks

    join_ranks(600.0)
    before = held_bytes()
    batch = {"global_sequences": 2 * RANKS, "micro_sequences": 2, "sequence_tokens": 64}
    spec = a_spec(MODEL, {"data": RANKS, "zero": zero}, batch, precision=precision)
    engine, guard = build_engine(spec), CountingGuard(GuardSpec())
    ids = np.random.default_rng(0).integers(0, MODEL["vocabulary"], (2, 65))
    for step in (1, 2):
        engine.train_step(step, [Batch(ids[:, :-1], ids[:, 1:])], guard)
    held = max(from_every_rank(guard.held_bytes - before))
    parameters = spec.model.shape().parameters().total
    formula = state_bytes_per_rank(parameters, zero_stage=zero, data_ranks=RANKS, precision=precision).total_bytes
    leave_ranks()
    row = {"precision": precision, "zero": zero, "parameters": parameters, "held_bytes": held, "formula_bytes": formula}
    sys.stdout.write(json.dumps({**row, "ratio": round(held / formula, 3)}) + "\n")


class CountingGuard(Guard):
    """Asked just before the update: the moment at which the whole state is there."""

    held_bytes = 0

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        self.held_bytes = held_bytes()
        return super().judge(loss, grad_norm)


def held_bytes() -> int:
    """Of all tensors that this process can reach, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib  # late: only the parent draws

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    places = np.arange(len(rows))
    for shift, key, color, label in ((-0.2, "formula_bytes", "0.6", "formula"), (0.2, "held_bytes", "tab:blue", "held")):
        axes.bar(places + shift, [row[key] / row["parameters"] for row in rows], 0.4, color=color, label=label)
    axes.set_xticks(places, [f"{row['precision']}\nZeRO-{row['zero']}" for row in rows])
    axes.set(ylabel="bytes per parameter and rank", title=f"Training state on {RANKS} ranks")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
