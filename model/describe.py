"""Says how big a model is without building it: `python -m model.describe --preset gpt3-175b --json`.

Standard library only; the counts are those of `model/shape.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from model.shape import PRESETS, TransformerShape, state_bytes_per_rank


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.describe", description="Count a model without building it.")
    parser.add_argument("--preset", required=True, choices=sorted(PRESETS))
    parser.add_argument("--sequence-tokens", type=int, help="tokens per sequence; the preset's positions if not given")
    parser.add_argument("--data-ranks", type=int, default=8, help="ranks that share the state under ZeRO (default 8)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    given = parser.parse_args(arguments)
    if given.data_ranks < 1 or (given.sequence_tokens is not None and given.sequence_tokens < 1):
        parser.error("--data-ranks and --sequence-tokens must be at least 1")
    shape = PRESETS[given.preset]
    facts = {
        "preset": given.preset,
        **describe(
            shape,
            sequence_tokens=given.sequence_tokens or shape.positions,
            data_ranks=given.data_ranks,
            precision=given.precision,
        ),
    }
    sys.stdout.write((json.dumps(facts, indent=2) if given.json else _as_lines(facts)) + "\n")
    return 0


def describe(shape: TransformerShape, *, sequence_tokens: int, data_ranks: int, precision: str) -> dict[str, Any]:
    """Parameters by part, FLOPs per token at this sequence length, and bytes of state per rank by ZeRO stage."""
    count = shape.parameters()
    states = {
        f"zero_{stage}": state_bytes_per_rank(
            count.total, zero_stage=stage, data_ranks=data_ranks, precision=precision
        ).total_bytes
        for stage in range(4)
    }
    return {
        "parameters": count.as_dict(),
        "sequence_tokens": sequence_tokens,
        "flops_per_token": {
            "forward": shape.forward_flops_per_token(sequence_tokens),
            "backward": shape.backward_flops_per_token(sequence_tokens),
        },
        "precision": precision,
        "data_ranks": data_ranks,
        "state_bytes_per_rank": states,
    }


def _as_lines(facts: dict[str, Any], prefix: str = "") -> str:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines.append(_as_lines(value, f"{prefix}{name}."))
        else:
            lines.append(f"{prefix + name:<40} {value:,}" if isinstance(value, int) else f"{prefix + name:<40} {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
