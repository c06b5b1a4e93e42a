"""A training step of ours, through DeepSpeed, beside a plain torch loop of the same shape; on one rank of a CPU.

    python -m tests.benchmarks.model_step -o model/bench --machine "2 shared x86 cores"

The plain loop is torch.nn.TransformerEncoderLayer (pre-norm, GELU, causal) between an embedding and a tied head, with
clip_grad_norm_ and AdamW. Both see the same batches. Their steps alternate, and each pair gives a ratio, so that what else
the machine does falls on both; the median of the ratios and its 95% interval (by the order of the ratios) are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.contract import GuardSpec
from model.data import Batch
from model.guard import Guard
from model.ranks import RankEnvironment
from model.shape import TransformerShape
from model.transformer import Recipe, Transformer
from tests.benchmarks.ranks import a_spec

SHAPES = {
    "small": {"layers": 4, "d_model": 256, "heads": 4, "d_ff": 1024, "vocabulary": 2048, "positions": 128},
    "wide": {"layers": 4, "d_model": 512, "heads": 8, "d_ff": 2048, "vocabulary": 4096, "positions": 128},
}
SEQUENCES, TOKENS, CLIP, LR, SEED = 4, 128, 1.0, 1e-4, 1
MOST = 1.05
"""What the issue of speed was settled at: ours takes at most this many times the plain loop's time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for model_step.json")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="of torch; more than free cores would only measure the waiting")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    os.environ.update(RankEnvironment.from_environment({}).as_environment())
    from model.engine_ranks import join_ranks, leave_ranks  # late: deepspeed reads the rank environment

    join_ranks(60.0)
    found = {"machine": asked.machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
    found["shapes"] = {name: compare(SHAPES[name], asked.pairs) for name in asked.shapes}
    leave_ranks()
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "model_step.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def compare(shape: dict[str, int], pairs: int) -> dict[str, Any]:
    """Alternating steps of both; warm-up steps are left out."""
    ours, plain = our_step(shape), plain_step(shape)
    draw = np.random.default_rng(0)
    losses: list[tuple[float, float]] = []
    walls: list[tuple[float, float]] = []
    cpus: list[tuple[float, float]] = []
    for number in range(1, pairs + 4):
        ids = draw.integers(0, shape["vocabulary"], (SEQUENCES, TOKENS + 1))
        batch = Batch(ids[:, :-1], ids[:, 1:])
        # The one that goes first changes, for what it leaves in the caches helps the other.
        order = (ours, plain) if number % 2 else (plain, ours)
        told = {step: timed(step, number, batch) for step in order}
        if number > 3:
            losses.append((told[ours][0], told[plain][0]))
            walls.append((told[ours][1], told[plain][1]))
            cpus.append((told[ours][2], told[plain][2]))
    assert max(abs(a - b) for a, b in losses) < 1e-3, "the two do not train the same model"
    return {
        **shape,
        "sequences": SEQUENCES,
        "sequence_tokens": TOKENS,
        "pairs": pairs,
        "wall": summary(walls),
        "cpu": summary(cpus),
        "most": MOST,
    }


def summary(seconds: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = sorted(ours / plain for ours, plain in seconds)
    # Order statistics of a median: about 0.98·√n ranks to each side (Conover 1999, section 3.2).
    spread = math.ceil(0.98 * math.sqrt(len(ratios)))
    middle = len(ratios) // 2
    return {
        "ours_s": round(statistics.median(ours for ours, _ in seconds), 4),
        "plain_s": round(statistics.median(plain for _, plain in seconds), 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_95": [round(ratios[max(0, middle - spread)], 4), round(ratios[min(len(ratios) - 1, middle + spread)], 4)],
    }


def timed(step: Callable[[int, Batch], float], number: int, batch: Batch) -> tuple[float, float, float]:
    """(loss, wall seconds, CPU seconds)."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    loss = step(number, batch)
    return loss, time.perf_counter() - wall_s, time.process_time() - cpu_s


def our_step(shape: dict[str, int]) -> Callable[[int, Batch], float]:
    from model.engine import build_engine  # late: deepspeed reads the rank environment

    batch = {"global_sequences": SEQUENCES, "micro_sequences": SEQUENCES, "sequence_tokens": TOKENS}
    optimizer = {"lr": LR, "clip": CLIP, "schedule": "constant", "weight_decay": 0.1}
    spec = a_spec(shape, {"zero": 0}, batch, seed=SEED, optimizer=optimizer)
    engine, guard = build_engine(spec), Guard(GuardSpec())
    return lambda number, batch: engine.train_step(number, [batch], guard).loss


def same_weights(ours: Transformer) -> dict[str, Tensor]:
    """Our first values under torch's names."""
    parts = {
        **{"attention.qkv.": "self_attn.in_proj_", "attention.output.": "self_attn.out_proj."},
        **{"feed_forward.widen.": "linear1.", "feed_forward.narrow.": "linear2."},
        **{"attention_norm.": "norm1.", "feed_forward_norm.": "norm2."},
    }
    there = {"tied_modules.embedding.weight": "embedding.weight", "1.weight": "positions.weight"}
    for name in ours.state_dict():
        layer, _, rest = name.partition(".")
        for here, torchs in parts.items():
            if rest.startswith(here):
                there[name] = f"layers.{int(layer) - 2}.{torchs}{rest.removeprefix(here)}"
    return {there[name]: value for name, value in ours.state_dict().items() if name in there}


class Plain(nn.Module):
    """What one would write with torch alone."""

    def __init__(self, shape: dict[str, int], tokens: int) -> None:
        super().__init__()
        width = shape["d_model"]
        self.embedding = nn.Embedding(shape["vocabulary"], width)
        self.positions = nn.Embedding(shape["positions"], width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                *(width, shape["heads"], shape["d_ff"], 0.0), activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(shape["layers"])
        )
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(tokens))
        self.register_buffer("places", torch.arange(tokens))

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_BTD = self.embedding(tokens_BT) + self.positions(self.places)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, src_mask=self.mask, is_causal=True)
        logits_BTV = functional.linear(self.norm(hidden_BTD), self.embedding.weight)
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def plain_step(shape: dict[str, int]) -> Callable[[int, Batch], float]:
    model = Plain(shape, TOKENS)
    model.load_state_dict(same_weights(Transformer(Recipe(TransformerShape(**shape), SEED))), strict=False)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))

    def step(number: int, batch: Batch) -> float:
        loss = model(torch.from_numpy(batch.tokens_BT.copy()), torch.from_numpy(batch.targets_BT.copy()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
