"""Says how big a model is without building it: `python -m model.describe --preset gpt3-175b --json`.

Standard library only; the counts are those of `model/shape.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model.contract import ContractError, ExitCode, RunSpec
from model.options import BlockKind, Norm
from model.shape import PRESETS, TransformerShape, state_bytes_per_rank


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.describe", description="Count a model without building it.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=sorted(PRESETS), help="a published shape")
    which.add_argument("--run", type=Path, metavar="RUN.json", help="the model of a run, in the run's layout and precision")
    parser.add_argument("--sequence-tokens", type=int, help="tokens per sequence; the model's positions if not given")
    parser.add_argument("--data-ranks", type=int, help="ranks that share the state under ZeRO (8 for a preset)")
    parser.add_argument("--pipeline", type=int, help="stages that the layers are cut into (1 for a preset)")
    parser.add_argument("--tensor", type=int, help="ranks that share each layer (1 for a preset)")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), help="bf16 for a preset")
    parser.add_argument("--block", choices=[str(kind) for kind in BlockKind], help="in place of the preset's blocks")
    parser.add_argument("--norm", choices=[str(kind) for kind in Norm], help="in place of the preset's; none with sas and sas-p")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    given = parser.parse_args(arguments)
    numbers = (given.data_ranks, given.sequence_tokens, given.pipeline, given.tensor)
    if any(number is not None and number < 1 for number in numbers):
        parser.error("--data-ranks, --sequence-tokens, --pipeline and --tensor must be at least 1")
    if given.run and (given.block or given.norm):
        parser.error("--block and --norm go with --preset; a run has its own")
    try:
        facts = _of_run(given) if given.run else _of_preset(given)
    except (ContractError, ValueError, OSError) as error:
        print(f"{given.run or given.preset}: {error}", file=sys.stderr)
        return ExitCode.BAD_RUN
    sys.stdout.write((json.dumps(facts, indent=2) if given.json else _as_lines(facts)) + "\n")
    return ExitCode.DONE


def _of_preset(given: argparse.Namespace) -> dict[str, Any]:
    preset = PRESETS[given.preset]
    shape = replace(preset, block=BlockKind(given.block or preset.block), norm=Norm(given.norm or preset.norm))
    return {
        "preset": given.preset,
        "block": str(shape.block),
        **describe(
            shape,
            sequence_tokens=given.sequence_tokens or shape.positions,
            data_ranks=given.data_ranks or 8,
            pipeline=given.pipeline or 1,
            tensor=given.tensor or 1,
            precision=given.precision or "bf16",
        ),
    }


def _of_run(given: argparse.Namespace) -> dict[str, Any]:
    spec = RunSpec.from_json(given.run.read_text(encoding="utf-8"))
    return {
        "run": spec.run_id,
        **describe(
            spec.model.shape(),
            sequence_tokens=given.sequence_tokens or spec.batch.sequence_tokens,
            data_ranks=given.data_ranks or spec.layout.data * spec.layout.sequence,
            pipeline=given.pipeline or spec.layout.pipeline,
            tensor=given.tensor or spec.layout.tensor,
            precision=given.precision or spec.precision,
        ),
    }


def describe(
    shape: TransformerShape, *, sequence_tokens: int, data_ranks: int, precision: str, pipeline: int = 1, tensor: int = 1
) -> dict[str, Any]:
    """Parameters by part, FLOPs per token at this sequence length, and bytes of state on the fullest rank by ZeRO stage.

    Raises ValueError for degrees that the shape cannot be spread over.
    """
    fullest = shape.largest_stage_parameters(pipeline, tensor)
    states = {
        f"zero_{stage}": state_bytes_per_rank(fullest, zero_stage=stage, data_ranks=data_ranks, precision=precision)
        for stage in range(4)
    }
    return {
        "parameters": shape.parameters().as_dict(),
        "sequence_tokens": sequence_tokens,
        "flops_per_token": {
            "forward": shape.forward_flops_per_token(sequence_tokens),
            "backward": shape.backward_flops_per_token(sequence_tokens),
        },
        "precision": precision,
        "layout": {"data_ranks": data_ranks, "pipeline": pipeline, "tensor": tensor},
        "parameters_of_the_fullest_rank": fullest,
        "state_bytes_per_rank": {stage: state.total_bytes for stage, state in states.items()},
        "state_bytes_per_rank_by_part": {stage: asdict(state) for stage, state in states.items()},
    }


def _as_lines(facts: dict[str, Any], prefix: str = "") -> str:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines.append(_as_lines(value, f"{prefix}{name}."))
        else:
            lines.append(f"{prefix + name:<44} {value:,}" if isinstance(value, int) else f"{prefix + name:<44} {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
