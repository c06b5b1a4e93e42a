"""Makes a trained model smaller and says what that costs: `python -m model.compress CHECKPOINT --run RUN.json -o FOLDER`.

Each method is applied to the checkpoint's weights; each row tells bytes on disk and in memory, held-out loss and speed beside
the model as it was.  Files go to FOLDER as METHOD.safetensors and are read back before they are told of.  Speeds are taken in
turns, every model once in each round, so that other work on the machine favours none; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.compression import LAYERS, CannotCompress, Method, compress, load, make_permanent, memory_bytes, save, train_pruned
from model.contract import ContractError, ExitCode, RunSpec
from model.corpus import DataError, prepare_corpus
from model.data import Batch, Batches
from model.generate import chooser, continue_tokens
from model.resumption import CheckpointError
from model.transformer import Transformer
from model.weights import load_model

_ROUNDS, _MADE_TOKENS, _PROMPT_TOKENS = 3, 32, 8


@dataclass(frozen=True, slots=True)
class Row:
    """One method, measured."""

    method: str
    disk_bytes: int
    memory_bytes: int
    heldout_loss: float
    """In nat per token, over the run's held-out batches."""
    read_tokens_per_s: float
    """Of held-out text, by the clock."""
    read_tokens_per_cpu_s: float
    made_tokens_per_s: float
    """Generated, one text at a time."""
    made_tokens_per_cpu_s: float


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code."""
    given = _arguments(arguments)
    try:
        spec = RunSpec.from_json(given.run.read_text(encoding="utf-8"))
        whole = load_model(given.checkpoint)
        if not isinstance(whole, Transformer):
            raise CannotCompress("only decoder-only models are made smaller; this checkpoint's has an encoder")
        batches = Batches(prepare_corpus(spec), spec, replica=0)
        models = {"none": whole}
        for name in given.method:
            models |= _made(whole, Method(name), given, spec, batches)
        if given.recover_steps and any(Method(name).is_pruning for name in given.method):
            # What the same training does to a model that was not pruned.
            models |= _made(whole, Method.NONE, given, spec, batches)
        rows = _measured(models, batches.heldout(), given.output)
    except (ContractError, CannotCompress, CheckpointError, DataError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_CHECKPOINT if isinstance(error, CheckpointError) else ExitCode.BAD_RUN
    if given.json:
        sys.stdout.write(
            json.dumps({"checkpoint": str(given.checkpoint), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    else:
        sys.stdout.write(as_table(rows))
    return ExitCode.DONE


def _made(
    whole: Transformer, method: Method, given: argparse.Namespace, spec: RunSpec, batches: Batches
) -> dict[str, Transformer]:
    """The model made smaller; of a pruned one also after its recovery."""

    def fresh() -> Transformer:
        model = Transformer(replace(whole.recipe, dropout=0.0))
        model.load_state_dict(whole.state_dict())
        compress(model, method, layers=tuple(given.layers), group=given.group, share=given.share)
        return model.eval()

    made = {str(method): fresh()}
    if given.recover_steps and (method.is_pruning or method is Method.NONE):
        recovered = fresh()
        train_pruned(recovered, _text(batches, spec.steps), steps=given.recover_steps, lr=given.recover_lr)
        made[f"{method}, {given.recover_steps} steps later"] = recovered
    for model in made.values():
        make_permanent(model)
    return made


def _text(batches: Batches, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches that come after the run's own."""
    step = done
    while True:
        step += 1
        yield from (_tensors(batch) for batch in batches.of_step(step))


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.tokens_BT.copy()), torch.from_numpy(batch.targets_BT.copy())


def _measured(models: dict[str, Transformer], heldout: list[Batch], output: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: _written(model, name, folder, heldout[0]) for name, model in models.items()}
    losses: dict[str, float] = {}
    reading: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    making: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(_ROUNDS):
        for name, model in models.items():
            with _Stopwatch() as read, torch.inference_mode():
                losses[name] = statistics.fmean(model(*_tensors(batch)).item() for batch in heldout)
            positions = model.recipe.shape.positions
            made = min(_MADE_TOKENS, positions - _PROMPT_TOKENS)
            with _Stopwatch() as make:
                prompt = heldout[0].tokens_BT[0, :_PROMPT_TOKENS].tolist()
                continue_tokens(model, prompt, limit=made, choose=chooser(0.0, 1.0, 0), end=-1)
            tokens = sum(batch.tokens_BT.size for batch in heldout)
            reading[name].append((tokens / read.wall_s, tokens / read.cpu_s))
            making[name].append((made / make.wall_s, made / make.cpu_s))
    return [
        Row(
            *(name, sizes[name], memory_bytes(model), losses[name]),
            *(statistics.median(speeds) for speeds in zip(*reading[name], strict=True)),
            *(statistics.median(speeds) for speeds in zip(*making[name], strict=True)),
        )
        for name, model in models.items()
    ]


def _written(model: Transformer, name: str, folder: Path, batch: Batch) -> int:
    """Bytes of the model's file, which gives the same logits when it is read back."""
    path = folder / f"{name.replace(', ', '-').replace(' ', '-').replace(':', '-')}.safetensors"
    save(model, path, Method(name.partition(",")[0]))
    tokens_BT, _ = _tensors(batch)
    with torch.inference_mode():
        if not torch.equal(load(path).logits(tokens_BT), model.logits(tokens_BT)):
            raise CheckpointError(f"{path} does not give back the model that was written to it")
    return path.stat().st_size


class _Stopwatch:
    """Seconds by the clock and of this process's CPUs."""

    wall_s = cpu_s = 0.0

    def __enter__(self) -> _Stopwatch:
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]


def as_table(rows: list[Row]) -> str:
    """The rows for people; shares are of the first row's."""
    lines = [f"{'method':<28} {'disk MB':>16} {'memory MB':>16} {'held-out loss':>17} {'read tok/s':>12} {'made tok/s':>12}"]
    first = rows[0]
    for row in rows:
        disk = f"{row.disk_bytes / 1e6:.2f} ({row.disk_bytes / first.disk_bytes:.0%})"
        memory = f"{row.memory_bytes / 1e6:.2f} ({row.memory_bytes / first.memory_bytes:.0%})"
        loss = f"{row.heldout_loss:.4f} ({row.heldout_loss - first.heldout_loss:+.4f})"
        speeds = f"{row.read_tokens_per_s:>12,.0f} {row.made_tokens_per_s:>12,.1f}"
        lines.append(f"{row.method:<28} {disk:>16} {memory:>16} {loss:>17} {speeds}")
    return "\n".join(lines) + "\n"


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.compress", description="Quantize and prune a trained model.")
    parser.add_argument(
        "checkpoint", type=Path, help="a step-… folder, or a directory of them (the newest complete one is taken)"
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN.json", help="whose held-out text measures the loss")
    methods = [str(method) for method in Method if method is not Method.NONE]
    parser.add_argument("--method", nargs="+", choices=methods, default=methods, help="default: all of them")
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help=f"of {', '.join(LAYERS)} (default: both)")
    parser.add_argument("--group", type=int, default=32, help="inputs that share a scale in int4 (default 32)")
    parser.add_argument("--share", type=float, default=0.5, help="of each matrix that prune sets to zero (default 0.5)")
    parser.add_argument("--recover-steps", type=int, default=50, help="updates after pruning (default 50; 0: none)")
    parser.add_argument("--recover-lr", type=float, default=3e-4, help="first rate of the recovery (default 3e-4)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="where the files go; measured and dropped if not given"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args(arguments)
    if given.group < 2 or not 0 < given.share < 1 or given.recover_steps < 0 or given.recover_lr <= 0:
        parser.error("--group must be at least 2, --share between 0 and 1, --recover-steps at least 0, --recover-lr above 0")
    return given


if __name__ == "__main__":
    sys.exit(main())
