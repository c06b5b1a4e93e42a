"""Time and memory of attention from 1k to 32k tokens: `python -m tests.benchmarks.model_attention`.

One head of 32, forward and backward, each measurement in a process of its own: CPU seconds, and how much its memory rose.  The
n × n matrix stops where it would need gigabytes.  Exponents are fitted to the longer half.  Writes model_attention.json
and .png into model/bench.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from model.attention import Pattern, attend
from model.shape import Sparse

mpl.use("Agg")

D_HEAD, WINDOW = 32, 256
LONGEST_MATRIX = 8192
HERE = Path(__file__).parents[2] / "model" / "bench"


def matrix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(q.size(2), q.size(2), dtype=torch.bool).triu(1)
    return (q @ k.mT / math.sqrt(D_HEAD)).masked_fill_(later, -math.inf).softmax(-1) @ v


def with_root(sparse: Sparse) -> Callable[..., Tensor]:
    """A pattern whose stride is the root of the tokens, a power of two."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stride = 2 ** round(math.log2(q.size(2)) / 2)
        return attend(q, k, v, pattern=Pattern(window=stride, sparse=sparse))

    return run


SYSTEMS: dict[str, Callable[..., Tensor]] = {
    "exact, n × n matrix": matrix,
    "exact, torch SDPA": attend,
    f"window of {WINDOW}": lambda q, k, v: attend(q, k, v, pattern=Pattern(window=WINDOW)),
    "strided, l = √n": with_root(Sparse.STRIDED),
    "fixed, l = √n": with_root(Sparse.FIXED),
}


def measured(system: str, tokens: int) -> tuple[float, int]:
    """(CPU seconds, bytes that memory rose by) of one forward and backward pass, in a child process."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            q, k, v = (torch.randn(1, 1, tokens, D_HEAD, requires_grad=True) for _ in range(3))
            cpu_s = time.process_time()
            SYSTEMS[system](q, k, v).sum().backward()
            spent_s = time.process_time() - cpu_s
            rose = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            os.write(write_end, json.dumps([spent_s, max(rose, 0)]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    seconds, rose = json.loads(os.read(read_end, 1000))
    os.close(read_end)
    os.close(write_end)
    return seconds, rose


def exponent(points: list[dict[str, float]], name: str) -> float:
    """Of a power law through the longer half of the points."""
    longer = points[len(points) // 2 :]
    logs = np.log([[point["tokens"], max(point[name], 1e-9)] for point in longer])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longest", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    points: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    tokens = 1024
    while tokens <= given.longest:
        names = [name for name in SYSTEMS if tokens <= LONGEST_MATRIX or "matrix" not in name]
        rounds = {name: [] for name in names}
        for _ in range(given.rounds if tokens < 16_384 else 1):
            for name in names:
                rounds[name].append(measured(name, tokens))
        for name in names:
            seconds, rose = (min(values) for values in zip(*rounds[name], strict=True))
            points[name].append({"tokens": tokens, "cpu_s": seconds, "memory_bytes": rose})
            print(f"{name:<22} {tokens:>6} tokens {seconds:8.3f} CPU s {rose / 1e6:10.1f} MB", flush=True)
        tokens *= 2
    systems = [
        {"system": name, "points": own, "time_exponent": exponent(own, "cpu_s"), "memory_exponent": exponent(own, "memory_bytes")}
        for name, own in points.items()
    ]
    report = {"machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}", "d_head": D_HEAD, "systems": systems}
    for row in systems:
        print(f"{row['system']:<22} time ~ n^{row['time_exponent']:.2f}, memory ~ n^{row['memory_exponent']:.2f}")
    given.output.mkdir(exist_ok=True)
    (given.output / "model_attention.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, given.output / "model_attention.png")


def draw(report: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    parts = (("cpu_s", "time_exponent", "CPU seconds, forward and backward"), ("memory_bytes", "memory_exponent", "MB of memory"))
    for axes, (name, fitted, label) in zip(panels, parts, strict=True):
        for row in report["systems"]:
            scale = 1e-6 if name == "memory_bytes" else 1.0
            axes.plot(
                [point["tokens"] for point in row["points"]],
                [point[name] * scale for point in row["points"]],
                marker="o",
                label=f"{row['system']}: n^{row[fitted]:.2f}",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="tokens n", ylabel=label)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle("Attention of one head of 32, exponents fitted to the longer half")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
