"""A small parallel text of our own, and runs on it: reversed words in upper case stand for a translation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from training_launch import tiny_spec

from model.contract import RunSpec

WORDS = (
    *("node", "rack", "power", "feed", "leaf", "spine", "cable", "disk", "fan", "image"),
    *("boot", "probe", "drain", "cell", "rank", "step", "batch", "layer", "head", "token"),
)


def write_lines(folder: Path, part: str, sides: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for language, lines in sides.items():
        (folder / f"{part}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_parallel_text(folder: Path, *, pairs: int = 400, longest: int = 9, seed: int = 3) -> Path:
    """train.en and train.xx; the sentences are drawn from the seed."""
    draw = random.Random(seed)
    sources = [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(pairs)]
    write_lines(folder, "train", {"en": sources, "xx": [translated(source) for source in sources]})
    return folder


def translated(source: str) -> str:
    return " ".join(reversed(source.upper().split()))


def tiny_translation(folder: Path, text: Path | str, **changes: Any) -> RunSpec:
    """The tiny run of an encoder-decoder of one layer each on that text; `changes` as in `tiny_spec`."""
    given: dict[str, Any] = {
        "model": {"layers": 1, "encoder_layers": 1, "vocabulary": 340, "positions": 64},
        "data": {
            "corpus": str(text),
            "directory": str(folder.parent / "parallel"),
            "heldout_fraction": 0.1,
            "source_language": "en",
            "target_language": "xx",
        },
        "batch": {"global_sequences": 0, "micro_sequences": 0, "sequence_tokens": 60, "global_tokens": 512, "micro_tokens": 128},
        **{name: change for name, change in changes.items() if name not in ("model", "data", "batch")},
    }
    for name in ("model", "data", "batch"):
        given[name] = {**given[name], **changes.get(name, {})}
    return tiny_spec(folder, **given)
