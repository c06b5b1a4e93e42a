"""Writes a checkpoint's weights as one safetensors file: `python -m model.export CHECKPOINT -o FILE`.

CHECKPOINT is a `step-…` folder or a directory of them (the newest complete one is taken).  Names are the model's own
(`2.attention.qkv.weight`); a tied matrix is written once, as `tied_modules.embedding.weight`.  The file's metadata holds the
model, the run and the step, so that `safetensors.safe_open(FILE, "pt").metadata()` says what it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from model.layers import NUMBER_TYPES
from model.resumption import CheckpointError
from model.weights import open_weights


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code: 0, or 2 where there is nothing to export or nowhere to."""
    parser = argparse.ArgumentParser(prog="python -m model.export", description="Write a checkpoint's weights as safetensors.")
    parser.add_argument("checkpoint", type=Path, help="a step-… folder, or a directory of them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--type", choices=sorted(NUMBER_TYPES), default="fp32", help="of the numbers (default fp32, as trained)")
    given = parser.parse_args(arguments)
    try:
        said = export(given.checkpoint, given.output, given.type)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(said, file=sys.stderr)
    return 0


def export(checkpoint: Path, output: Path, number_type: str = "fp32") -> str:
    """Writes the file, whole or not at all, and says what it did.

    Raises CheckpointError where no complete checkpoint is there, and OSError where the file cannot be written.
    """
    weights = open_weights(checkpoint)
    tensors = {name: tensor.to(NUMBER_TYPES[number_type]) for name, tensor in weights}
    manifest = weights.manifest
    facts = {
        "run_id": manifest.run_id,
        "step": str(manifest.step),
        "model": json.dumps(manifest.model),
        "format": "pt",
    }
    draft = output.with_name(f"{output.name}.draft")
    try:
        with draft.open("wb"):
            # Where nothing can be written, this says so in the operating system's words.
            pass
        save_file(tensors, draft, metadata=facts)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return f"{output}: {len(tensors)} tensors, {numbers:,} numbers in {number_type}, step {manifest.step} of {manifest.run_id}"


if __name__ == "__main__":
    sys.exit(main())
