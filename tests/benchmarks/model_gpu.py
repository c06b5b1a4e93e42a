"""MFU and tokens per second on one GPU, beside a plain torch GPT with torch.compile and SDPA. Needs an NVIDIA GPU.

    python -m tests.benchmarks.model_gpu -o model/bench

bf16, sequences of 2,048 tokens, about 355 M and 1.3 B parameters. The plain loop is `tests.benchmarks.model_step.Plain` in
autocast, compiled. Both run in one process, one after the other, and give their median step after ten for warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model.contract import GuardSpec
from model.data import Batch
from model.guard import Guard
from model.peak import peak_tflops
from model.ranks import RankEnvironment
from model.shape import TransformerShape
from tests.benchmarks.model_step import Plain
from tests.benchmarks.ranks import a_spec

TOKENS, WARM_UP, STEPS = 2048, 10, 20
SHAPES = {
    "355m": ({"layers": 24, "d_model": 1024, "heads": 16, "d_ff": 4096, "vocabulary": 50_304, "positions": TOKENS}, 8),
    "1.3b": ({"layers": 24, "d_model": 2048, "heads": 16, "d_ff": 8192, "vocabulary": 50_304, "positions": TOKENS}, 4),
}
"""Model, and sequences of one micro-batch; a step has four of them. The vocabulary is a multiple of 64, for tensor cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU")
    os.environ.update(RankEnvironment.from_environment({}).as_environment())
    from model.engine_ranks import join_ranks, leave_ranks  # late: deepspeed reads the rank environment

    join_ranks(600.0)
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": []}
    for name in asked.shapes:
        model, micro = SHAPES[name]
        for who, build in (("rackray", our_step), ("plain torch, compiled", plain_step)):
            found["rows"].append({"model": name, "who": who, **measure(build(model, micro), model, micro)})
            torch.cuda.empty_cache()
    leave_ranks()
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "model_gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(step: Callable[[list[Batch]], float], model: dict[str, int], micro: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(0, model["vocabulary"], (micro, TOKENS + 1))
    batches = [Batch(ids[:, :-1], ids[:, 1:])] * 4
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UP + STEPS):
        torch.cuda.synchronize()
        begun_s = time.perf_counter()
        step(batches)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun_s)
    step_s = statistics.median(seconds[WARM_UP:])
    tokens = len(batches) * micro * TOKENS
    flops = 3 * TransformerShape(**model).forward_flops_per_token(TOKENS) * tokens
    peak = peak_tflops(torch.cuda.get_device_name(), "bf16")
    return {
        "step_s": round(step_s, 4),
        "tokens_per_s": round(tokens / step_s),
        "mfu": round(flops / step_s / 1e12 / peak, 4) if peak else None,
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
    }


def our_step(model: dict[str, int], micro: int) -> Callable[[list[Batch]], float]:
    from model.engine import build_engine  # late: deepspeed reads the rank environment

    batch = {"global_sequences": 4 * micro, "micro_sequences": micro, "sequence_tokens": TOKENS}
    optimizer = {"lr": 1e-4, "clip": 1.0, "schedule": "constant", "fused": True}
    spec = a_spec(model, {"zero": 1}, batch, precision="bf16", optimizer=optimizer)
    engine, guard, steps = build_engine(spec), Guard(GuardSpec()), iter(range(1, 10_000))
    return lambda batches: engine.train_step(next(steps), batches, guard).loss


def plain_step(model: dict[str, int], micro: int) -> Callable[[list[Batch]], float]:
    plain = Plain(model, TOKENS).cuda()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(plain)

    def step(batches: list[Batch]) -> float:
        total = torch.zeros((), device="cuda")
        for batch in batches:
            tokens, targets = (torch.from_numpy(ids.copy()).cuda() for ids in (batch.tokens_BT, batch.targets_BT))
            with torch.autocast("cuda", torch.bfloat16):
                loss = compiled(tokens, targets) / len(batches)
            loss.backward()
            # Asked for once a step, as ours does: each look would wait for the GPU.
            total += loss.detach()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return step


if __name__ == "__main__":
    main()
