"""Own measured runs for the layout planner: the model trained by torchrun on this machine in several layouts, one row each.

    python -m tests.benchmarks.own_runs -o orchestrator/planning/parallel/bench/own_runs.csv --machine "2 shared x86 cores"

Each run's step time is that of its fastest step after the first fifth: on a machine that others use too, a step that was least
disturbed. On a busy machine the numbers are worth little: run it on a quiet one. Rows have the columns of
`rackray planner validate`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STEPS = 40
SHAPES = {
    "small": {"layers": 2, "d_model": 256, "heads": 4, "d_ff": 1024, "vocabulary": 1024, "positions": 128},
    "wide": {"layers": 2, "d_model": 512, "heads": 8, "d_ff": 2048, "vocabulary": 1024, "positions": 128},
    "deep": {"layers": 4, "d_model": 256, "heads": 4, "d_ff": 1024, "vocabulary": 1024, "positions": 128},
}
RUNS: tuple[tuple[str, dict[str, int], int], ...] = (
    ("small", {"data": 1, "zero": 0}, 8),
    ("small", {"data": 2, "zero": 1}, 4),
    ("small", {"data": 2, "zero": 3}, 4),
    ("small", {"pipeline": 2, "data": 1, "zero": 1}, 4),
    ("wide", {"data": 2, "zero": 1}, 4),
    ("wide", {"data": 2, "zero": 2}, 8),
    ("deep", {"pipeline": 2, "data": 1, "zero": 1}, 2),
    ("deep", {"data": 1, "zero": 1}, 4),
)
"""Shape, layout, sequences per micro-batch; every run has 16 sequences of 128 tokens a step."""
COLUMNS = (
    *("id", "source", "gpu", "framework", "model", "layers", "hidden", "heads", "ffn_hidden", "vocab", "seq_len", "gated_mlp"),
    *("n_gpus", "gpus_per_node", "dp", "tp", "pp", "cp", "zero_stage", "micro_batch", "global_batch", "act_ckpt", "precision"),
    *("step_time_s", "mem_gb_per_gpu", "mem_kind", "notes"),
)


def main() -> None:
    """Train, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    asked = parser.parse_args()
    rows = [_row(index, *run, asked.machine) for index, run in enumerate(RUNS, start=1)]
    with asked.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _row(index: int, name: str, layout: dict[str, int], micro: int, machine: str) -> dict[str, object]:
    shape = SHAPES[name]
    pipeline, data = layout.get("pipeline", 1), layout["data"]
    with tempfile.TemporaryDirectory() as folder:
        run: dict[str, Any] = {
            "run_id": f"own-{index}",
            "seed": 7,
            "model": shape,
            "data": {"corpus": "python-stdlib", "directory": str(Path(folder) / "corpus")},
            "layout": layout,
            "batch": {"global_sequences": 16, "micro_sequences": micro, "sequence_tokens": 128},
            "optimizer": {"lr": 0.001, "warmup_steps": 10},
            "steps": STEPS,
            "checkpoint": {"directory": str(Path(folder) / "checkpoints"), "every_steps": STEPS},
            "output_directory": str(Path(folder) / "out"),
        }
        path = Path(folder) / "RUN.json"
        path.write_text(json.dumps(run), encoding="utf-8")
        launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={pipeline * data}")
        subprocess.run((*launch, "-m", "model.train", str(path)), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [
            json.loads(line) for line in (Path(folder) / "out" / "progress-0.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    steps = [line for line in lines if "event" not in line]
    times = sorted(float(line["step_s"]) for line in steps[len(steps) // 5 :])
    today = datetime.now(UTC).date().isoformat()
    return {
        **{"id": f"own-{index}", "source": "own runs", "gpu": "CPU", "framework": "rackray", "model": name},
        **{"layers": shape["layers"], "hidden": shape["d_model"], "heads": shape["heads"], "ffn_hidden": shape["d_ff"]},
        **{
            "vocab": shape["vocabulary"],
            "seq_len": 128,
            "gated_mlp": 0,
            "n_gpus": pipeline * data,
            "gpus_per_node": pipeline * data,
        },
        **{"dp": data, "tp": 1, "pp": pipeline, "cp": 1, "zero_stage": layout["zero"], "micro_batch": micro, "global_batch": 16},
        **{"act_ckpt": "none", "precision": "fp32", "step_time_s": f"{times[0]:.4f}"},
        **{"mem_gb_per_gpu": "", "mem_kind": "", "notes": f"{machine}, {today}; {STEPS} steps, the fastest"},
    }


if __name__ == "__main__":
    main()
