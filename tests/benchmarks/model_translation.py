"""Trains three translators on the same batches and compares them: `python -m tests.benchmarks.model_translation FOLDER`.

Ours, torch.nn.Transformer of the same shape and an LSTM with attention of as many parameters see the same micro-batch one after
the other, step by step, so that a loaded machine favours none; CPU seconds are each one's own.  Then rows of table 3 of Vaswani
et al. 2017, small.  Writes translation.json and translation.png into FOLDER, after every evaluation.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.contract import RunSpec
from model.encoder_decoder import PairLoss
from model.layers import Recipe
from model.shape import EncoderDecoderShape, Family, Position, shape_of_family
from model.translation.batches import PairBatch, PairBatches
from model.translation.beam_search import EXTRA_TOKENS, beam_search
from model.translation.corpus import ParallelCorpus, decode_sentence, encode_sentences, prepare_parallel
from model.translation.decoding import padded
from model.translation.scores import bleu_difference_interval, compare
from model.translation.special_tokens import END
from tests.benchmarks.translation_picture import draw
from tests.benchmarks.translation_systems import Ours, System, TorchTransformer, lstm_of_size

SEED = 7
DROPOUT = SMOOTHING = 0.1
NUMBERS = {"layers": 2, "encoder_layers": 2, "d_model": 128, "heads": 4, "d_ff": 512, "vocabulary": 2000, "positions": 160}
SMALL = {**NUMBERS, "d_model": 64, "d_ff": 256}
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "A: 1 head": {"heads": 1},
    "A: 16 heads": {"heads": 16},
    "B: d_k 4": {"d_key": 4},
    "D: dropout 0": {"dropout": 0.0},
    "D: dropout 0.3": {"dropout": 0.3},
    "D: smoothing 0": {"smoothing": 0.0},
    "D: smoothing 0.3": {"smoothing": 0.3},
    "E: learned positions": {"position": Position.LEARNED},
}
"""Rows of the paper's table 3 and what they change; base has 4 heads of 16, sinusoids, dropout and smoothing 0.1."""


def a_spec(folder: Path, text: str, micro_tokens: int) -> RunSpec:
    run = {
        "run_id": "translation",
        "seed": SEED,
        "model": {**NUMBERS, "family": "vaswani"},
        "data": {"corpus": text, "directory": str(folder), "source_language": "en", "target_language": "de"},
        "layout": {},
        "batch": {"sequence_tokens": 80, "global_tokens": micro_tokens, "micro_tokens": micro_tokens},
        "optimizer": {"lr": 1.0},
        "steps": 1,
        "checkpoint": {"directory": str(folder)},
        "output_directory": str(folder),
    }
    return RunSpec.from_json(json.dumps(run))


class Training:
    """One system, its optimizer, and what it cost so far."""

    def __init__(
        self, name: str, system: System, shape: EncoderDecoderShape, smoothing: float, peak_lr: float, warmup: int
    ) -> None:
        self.name, self.system, self.peak_lr, self.warmup = name, system, peak_lr, warmup
        self.optimizer = torch.optim.Adam(system.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9)
        self.loss = PairLoss(Recipe(shape, SEED, label_smoothing=smoothing))
        self.cpu_s = self.wall_s = 0.0
        self.curve: list[tuple[int, float, float, float]] = []
        """(step, CPU seconds, wall seconds, loss on dev in nat/token)"""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.system.parameters())

    def step(self, step: int, batch: PairBatch) -> None:
        begun, begun_cpu = time.monotonic(), time.process_time()
        self.system.train()
        self.loss.train()
        self.system.at_step(step)
        # The paper's schedule, written by its peak: linear warm-up, then 1/√step.
        rate = self.peak_lr * min(step / self.warmup, (self.warmup / step) ** 0.5)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self._loss_of(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.system.parameters(), 1.0)
        self.optimizer.step()
        self.cpu_s += time.process_time() - begun_cpu
        self.wall_s += time.monotonic() - begun

    @torch.inference_mode()
    def evaluate(self, step: int, batches: list[PairBatch]) -> float:
        self.system.eval()
        self.loss.eval()
        loss = sum(float(self._loss_of(batch)) for batch in batches) / len(batches)
        self.curve.append((step, self.cpu_s, self.wall_s, loss))
        return loss

    def _loss_of(self, batch: PairBatch) -> Tensor:
        source_BS, target_in_BT = (torch.from_numpy(each) for each in batch.inputs)
        labels = tuple(torch.from_numpy(each) for each in batch.labels)
        return self.loss(self.system.logits(source_BS, target_in_BT), labels)

    @torch.inference_mode()
    def translate(self, corpus: ParallelCorpus, sources: list[str], beams: int = 4) -> list[str]:
        self.system.eval()
        tokenizer = corpus.tokenizer()
        ids = encode_sentences(tokenizer, sources)
        found: dict[int, str] = {}
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for chosen in (order[i : i + 32] for i in range(0, len(order), 32)):
            source_BS = padded([[*ids[i], END] for i in chosen])
            limits = [min(len(ids[i]) + 1 + EXTRA_TOKENS, NUMBERS["positions"]) for i in chosen]
            decoder = self.system.decoder(source_BS, beams, max(limits))
            for i, each in zip(chosen, beam_search(decoder, limits, beams=beams, alpha=0.6), strict=True):
                found[i] = decode_sentence(tokenizer, each.tokens)
        return [found[i] for i in range(len(ids))]


def the_three(peak_lr: float, warmup: int, dropout: float) -> list[Training]:
    shape = _shape(NUMBERS)
    ours = Ours(Recipe(shape, SEED, dropout=dropout))
    size = shape.parameters().total
    torch.manual_seed(SEED)
    systems = {"ours": ours, "torch.nn.Transformer": TorchTransformer(shape, dropout)}
    systems["LSTM with attention"] = lstm_of_size(shape.vocabulary, size, dropout)
    return [Training(name, system, shape, SMOOTHING, peak_lr, warmup) for name, system in systems.items()]


def table_rows(peak_lr: float, warmup: int) -> list[Training]:
    rows = []
    for name, changes in ROWS.items():
        options = {key: value for key, value in changes.items() if key in ("d_key", "position")}
        numbers = {**SMALL, **{key: value for key, value in changes.items() if key == "heads"}}
        shape = _shape(numbers, **options)
        system = Ours(Recipe(shape, SEED, dropout=changes.get("dropout", DROPOUT)))
        rows.append(Training(name, system, shape, changes.get("smoothing", SMOOTHING), peak_lr, warmup))
    return rows


def _shape(numbers: dict[str, int], **options: Any) -> EncoderDecoderShape:
    shape = shape_of_family(Family.VASWANI, numbers, options)
    assert isinstance(shape, EncoderDecoderShape)
    return shape


def train(
    trainings: list[Training], batches: PairBatches, steps: int, every: int, wall_s: float, told: Callable[[int], None]
) -> None:
    """Every system does every step, in turn, until `steps` or `wall_s` are over; `told` after each evaluation."""
    dev = batches.heldout()
    begun_s = time.monotonic()
    for step in range(1, steps + 1):
        (batch,) = batches.of_step(step)
        for training in trainings[step % len(trainings) :] + trainings[: step % len(trainings)]:
            training.step(step, batch)
        is_last = step == steps or time.monotonic() - begun_s > wall_s
        if step % every == 0 or is_last:
            losses = ", ".join(f"{each.name} {each.evaluate(step, dev):.3f} ({each.cpu_s:.0f} s)" for each in trainings)
            print(f"step {step}: {losses}", flush=True)
            told(step)
        if is_last:
            return


def facts_of(trainings: list[Training]) -> list[dict[str, Any]]:
    return [
        {"name": each.name, "parameters": each.parameters, "cpu_s": each.cpu_s, "wall_s": each.wall_s, "curve": each.curve}
        for each in trainings
    ]


def seconds_to(loss: float, curve: list[tuple[int, float, float, float]]) -> tuple[float, float] | None:
    """CPU and wall seconds at the first evaluation that reached the loss."""
    return next(((cpu, wall) for _, cpu, wall, reached in curve if reached <= loss), None)


def scored(trainings: list[Training], corpus: ParallelCorpus, longest: int, most: int) -> dict[str, Any]:
    """BLEU and chrF on the test sentences that fit (the first `most` of them), with intervals; ours first."""
    tokenizer = corpus.tokenizer()
    sources, references = corpus.sentences("test")
    fits = [i for i, ids in enumerate(encode_sentences(tokenizer, sources)) if len(ids) < longest][:most]
    chosen, wanted = [sources[i] for i in fits], [references[i] for i in fits]
    translations = {each.name: each.translate(corpus, chosen) for each in trainings}
    first = next(iter(translations))
    rows = compare(translations, wanted)
    differences = {
        name: bleu_difference_interval(translations[first], other, wanted)
        for name, other in translations.items()
        if name != first
    }
    examples = [
        {"source": chosen[i], "reference": wanted[i], **{n: t[i] for n, t in translations.items()}}
        for i in range(0, len(fits), 20)
    ]
    return {
        "sentences": len(fits),
        "rows": [{name: getattr(row, name) for name in row.__dataclass_fields__} for row in rows],
        f"BLEU of {first} minus": differences,
        "examples": examples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--table-steps", type=int, default=2000)
    parser.add_argument("--wall-s", type=float, default=float("inf"), help="longest training of each part, in seconds")
    parser.add_argument("--test-sentences", type=int, default=1000, help="score this many of the test sentences")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--peak-lr", type=float, default=0.003)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--dropout", type=float, default=DROPOUT, help="of the three; the rows of table 3 have their own")
    parser.add_argument("--only", choices=("three", "table"))
    parser.add_argument("--text", default="gettext", help="the run's data.corpus, such as a folder of wheels (default gettext)")
    parser.add_argument(
        "--data", type=Path, default=Path("parallel-text"), help="where prepared tokens lie (default ./parallel-text)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    spec = a_spec(given.data, given.text, given.micro_tokens)
    corpus = prepare_parallel(spec)
    batches = PairBatches(corpus, spec, 0)
    path = given.folder / "translation.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def write() -> None:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draw(report, given.folder / "translation.png")

    report["machine"] = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    report["data"] = {"catalogues": [vars_of(use) for use in corpus.facts.catalogues], "pairs": corpus.facts.pairs}
    report["unigram dev loss"] = corpus.facts.unigram_heldout_nats
    if given.only != "table":
        three = the_three(given.peak_lr, given.warmup, given.dropout)
        names = ("steps", "micro_tokens", "peak_lr", "warmup", "dropout")
        setting = {name: getattr(given, name) for name in names}

        def told(step: int) -> None:
            report["three"] = {"setting": {**setting, "done": step}, "systems": facts_of(three)}
            write()

        train(three, batches, given.steps, given.every, given.wall_s, told)
        report["three"]["test"] = scored(three, corpus, spec.batch.sequence_tokens, given.test_sentences)
        write()
    if given.only != "three":
        rows = table_rows(given.peak_lr, given.warmup)

        def told_rows(step: int) -> None:
            report["table"] = {"setting": {"steps": given.table_steps, "done": step, **SMALL}, "systems": facts_of(rows)}
            write()

        train(rows, batches, given.table_steps, given.every, given.wall_s, told_rows)
        report["table"]["test"] = scored(rows, corpus, spec.batch.sequence_tokens, given.test_sentences)
        write()
    print(tell(report))


def vars_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def tell(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines: list[str] = []
    for part in ("three", "table"):
        if part not in report:
            continue
        systems, test = report[part]["systems"], report[part].get("test", {"rows": []})
        # The loss that all of them reached, so that each has a time for it.
        common = max(min(loss for *_, loss in each["curve"]) for each in systems)
        lines += [
            "",
            f"| {part} | parameters | dev loss | BLEU | chrF | CPU s | CPU s to {common:.2f} |",
            "|---|---|---|---|---|---|---|",
        ]
        for each in systems:
            scores = {
                row["metric"]: f"{row['value']:.1f} ± {row['interval']:.1f}"
                for row in test["rows"]
                if row["system"] == each["name"]
            }
            reached = seconds_to(common, each["curve"])
            lines.append(
                f"| {each['name']} | {each['parameters']:,} | {each['curve'][-1][-1]:.3f} | {scores.get('BLEU', '')} | "
                f"{scores.get('chrF2', '')} | {each['cpu_s']:.0f} | {reached[0] if reached else float('nan'):.0f} |"
            )
        for name, value in test.items():
            if name.startswith("BLEU"):
                lines += [f"{name} {other}: {low:+.1f} to {high:+.1f} (95 %)" for other, (low, high) in value.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
