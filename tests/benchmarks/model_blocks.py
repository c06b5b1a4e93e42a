"""Trains the usual block and the simplified ones on the same batches: `python -m tests.benchmarks.model_blocks`.

Every system sees the same micro-batch one after the other, step by step, in an order that turns, so that a loaded machine
favours none; CPU seconds are each one's own, and speeds are those of the median update.  The setting is that of He & Hofmann
2024 (arXiv 2311.01906, section 5: AdamW, 1e-3, 5% warm-up, linear decay, weight decay 0.1, clip 1, ReLU, context 128) on the
Python standard library, smaller: `--size authors` is their 18 x 768, for a GPU.  Writes model_blocks.json and .png into
model/bench.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from model.contract import RunSpec
from model.corpus import prepare_corpus
from model.data import Batch, Batches
from model.dropout import DropoutClock
from model.engine_config import parameter_groups, recipe_of
from model.generate import chooser, continue_tokens
from model.shape import PRESETS, BlockKind, Norm, TransformerShape
from model.transformer import Transformer

mpl.use("Agg")

SYSTEMS: dict[str, dict[str, str]] = {
    "pre-LN": {"block": "pre-ln"},
    "SAS": {"block": "sas"},
    "SAS-P": {"block": "sas-p"},
    "SAS-P without norms": {"block": "sas-p", "norm": "none"},
}
SIZES: dict[str, dict[str, int]] = {
    "small": {"layers": 6, "d_model": 384, "heads": 6, "d_ff": 1536, "vocabulary": 1024, "batch": 4},
    "authors": {"layers": 18, "d_model": 768, "heads": 12, "d_ff": 3072, "vocabulary": 16_384, "batch": 128},
}
CONTEXT = 128
HERE = Path(__file__).parents[2] / "model" / "bench"


class System:
    """One model in training, with what it has cost so far."""

    def __init__(self, name: str, spec: RunSpec, device: torch.device) -> None:
        self.name, self.device = name, device
        self.spec = replace(spec, model=replace(spec.model, **{"norm": "rms", **SYSTEMS[name]}))
        self.model = Transformer(replace(recipe_of(self.spec), clock=DropoutClock(spec.seed))).to(device)
        optimizer = self.spec.optimizer
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, self.spec), lr=optimizer.lr, betas=optimizer.betas)
        self.steps: list[tuple[float, float]] = []
        """(CPU, wall) seconds of each update."""
        self.losses: list[float] = []
        self.curve: list[tuple[int, float, float, float]] = []

    def train(self, step: int, batches: list[Batch]) -> None:
        """One update, timed."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr_at(step)
        self.model.train()
        total = 0.0
        for batch in batches:
            loss = self.model(*self.tensors(batch)) / len(batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(total)
        self.steps.append((time.process_time() - cpu_s, time.perf_counter() - wall_s))

    @torch.inference_mode()
    def evaluate(self, step: int, batches: list[Batch]) -> None:
        self.model.eval()
        loss = statistics.fmean(self.model(*self.tensors(batch)).item() for batch in batches)
        cpu_s, wall_s = map(sum, zip(*self.steps, strict=True))
        self.curve.append((step, cpu_s, wall_s, loss))

    def tensors(self, batch: Batch) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(array.copy()).to(self.device) for array in (batch.tokens_BT, batch.targets_BT))

    def generate(self, prompt: list[int], tokens: int) -> tuple[float, float]:
        """(CPU, wall) seconds for that many tokens more."""
        self.model.eval()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        continue_tokens(self.model, prompt, limit=tokens, choose=chooser(0.0, 1.0, 0), end=-1, samples=8)
        return time.process_time() - cpu_s, time.perf_counter() - wall_s

    def row(self, rounds: list[tuple[float, float]], tokens_per_step: int, made: int) -> dict[str, Any]:
        parameters = self.spec.model.shape().parameters()
        # The median, for the first update allocates and any may be disturbed.
        step_cpu_s, step_wall_s = (statistics.median(times) for times in zip(*self.steps, strict=True))
        return {
            "system": self.name,
            "parameters": parameters.total,
            "parameters_in_layers": parameters.attention + parameters.feed_forward + parameters.norms,
            "train_tokens_per_cpu_s": tokens_per_step / step_cpu_s,
            "train_tokens_per_wall_s": tokens_per_step / step_wall_s,
            "generate_tokens_per_cpu_s": made / statistics.median(cpu for cpu, _ in rounds),
            "generate_tokens_per_wall_s": made / statistics.median(wall for _, wall in rounds),
            "heldout_loss": self.curve[-1][3],
            "train_loss_last_tenth": statistics.fmean(self.losses[-max(1, len(self.losses) // 10) :]),
            "curve": self.curve,
        }


def a_spec(size: dict[str, int], steps: int, folder: Path) -> RunSpec:
    numbers = {name: number for name, number in size.items() if name != "batch"}
    run = {
        "run_id": "blocks",
        "seed": 1,
        "model": {**numbers, "positions": CONTEXT, "activation": "relu", "norm": "rms"},
        "data": {"corpus": "python-stdlib", "directory": str(folder)},
        "layout": {},
        "batch": {"global_sequences": size["batch"], "micro_sequences": min(size["batch"], 32), "sequence_tokens": CONTEXT},
        "optimizer": {"lr": 0.001, "betas": [0.9, 0.999], "warmup_steps": max(1, steps // 20), "schedule": "linear"},
        "steps": steps,
        "evaluate_batches": 4,
        "checkpoint": {"directory": "none"},
        "output_directory": "none",
    }
    run["optimizer"]["final_share"] = 0.0  # type: ignore[index]
    return RunSpec.from_json(json.dumps(run))


def saved_at_175b() -> list[dict[str, Any]]:
    """What a simplified block saves at GPT-3's shape, counted."""
    rows = []
    whole = PRESETS["gpt3-175b"]
    for name, changes in {"pre-LN": {}, "SAS": {"block": BlockKind.SAS}, "SAS-P": {"block": BlockKind.SAS_P}}.items():
        shape: TransformerShape = replace(whole, norm=Norm.LAYER, **changes)
        total = shape.parameters().total
        rows.append(
            {
                "system": name,
                "parameters": total,
                "saved": whole.parameters().total - total,
                "weights_16_bit_gb": total * 2 / 1e9,
                "training_state_gb": total * 16 / 1e9,
                "forward_gflops_per_token": shape.forward_flops_per_token(2048) / 1e9,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--batch", type=int, help="sequences a step, where the size's own are too many for the machine")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--data", type=Path, default=Path("shared/corpus"))
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    given = parser.parse_args()
    size = {**SIZES[given.size], **({"batch": given.batch} if given.batch else {})}
    spec = a_spec(size, given.steps, given.data)
    batches = Batches(prepare_corpus(spec), spec, replica=0)
    heldout = batches.heldout()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    systems = [System(name, spec, device) for name in SYSTEMS]
    for step in range(1, given.steps + 1):
        micro_batches = batches.of_step(step)
        for system in systems[step % len(systems) :] + systems[: step % len(systems)]:
            system.train(step, micro_batches)
        if step % max(1, given.steps // 12) == 0 or step == given.steps:
            for system in systems:
                system.evaluate(step, heldout)
            print(step, {system.name: round(system.curve[-1][3], 4) for system in systems}, flush=True)
    prompt = batches.heldout()[0].tokens_BT[0, :16].tolist()
    rounds: dict[str, list[tuple[float, float]]] = {system.name: [] for system in systems}
    for _ in range(5):
        for system in systems:
            rounds[system.name].append(system.generate(prompt, 96))
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {device}",
        "size": size,
        "steps": given.steps,
        "systems": [system.row(rounds[system.name], spec.tokens_per_step, 96 * 8) for system in systems],
        "gpt3-175b": saved_at_175b(),
    }
    first = report["systems"][0]
    for row in report["systems"]:
        row["compared"] = {name: row[name] / first[name] - 1 for name, value in first.items() if isinstance(value, int | float)}
        print(row["system"], {name: f"{change:+.1%}" for name, change in row["compared"].items()})
    given.output.mkdir(exist_ok=True)
    (given.output / "model_blocks.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, given.output / "model_blocks.png")


def draw(report: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    by_step, by_second, bars = figure.subplots(1, 3)
    for row in report["systems"]:
        steps, cpu_s, _, losses = zip(*row["curve"], strict=True)
        by_step.plot(steps, losses, label=row["system"])
        by_second.plot(cpu_s, losses, label=row["system"])
    by_step.set(xlabel="updates", ylabel="held-out loss, nat/token", title="Loss per update")
    by_second.set(xlabel="CPU seconds", ylabel="held-out loss, nat/token", title="Loss per CPU second")
    by_step.legend(loc="lower left", fontsize="small")
    names = {
        "parameters": "parameters",
        "train_tokens_per_cpu_s": "training\ntokens/CPU s",
        "generate_tokens_per_cpu_s": "generated\ntokens/CPU s",
    }
    others = report["systems"][1:]
    for index, row in enumerate(others):
        places = [place + 0.25 * index for place in range(len(names))]
        bars.bar(places, [100 * row["compared"][name] for name in names], width=0.22, label=row["system"], color=f"C{index + 1}")
    bars.set_xticks([place + 0.25 for place in range(len(names))], list(names.values()))
    bars.axhline(0, color="black", linewidth=0.8)
    bars.set(ylabel="% against pre-LN", title="What simplified blocks save")
    bars.legend(fontsize="small")
    for axes in (by_step, by_second, bars):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
