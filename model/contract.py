"""The contract between the training and whoever starts it: RUN.json in, progress lines and checkpoints out.

Standard library only, so that a planner or an orchestrator can read and write it without torch.

In:   `RunSpec.from_json(text)`, every problem at once in `ContractError.problems`.
Out:  in `output_directory`, `progress-RANK.jsonl` (rank 0: `ProgressLine` and `EventLine`; other ranks: their own
      step timings) and `heartbeat-RANK` (`Heartbeat`, replaced whole at every step);
      in `checkpoint.directory`, `step-000123/` with a manifest (`model/manifest.py`, re-exported here).
Exit: the codes in `ExitCode`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from model.manifest import (
    CheckpointChoice,
    FileRecord,
    Manifest,
    ManifestError,
    SkippedCheckpoint,
    newest_complete,
    verify_manifest,
    write_manifest,
)
from model.shape import TransformerShape
from model.strict_json import build, parse_object

__all__ = [
    "CheckpointChoice",
    "ContractError",
    "EventLine",
    "ExitCode",
    "FileRecord",
    "Heartbeat",
    "Manifest",
    "ManifestError",
    "ProgressLine",
    "RunSpec",
    "SkippedCheckpoint",
    "newest_complete",
    "read_progress",
    "verify_manifest",
    "write_manifest",
]


class ExitCode(IntEnum):
    """What `python -m model.train` ends with."""

    DONE = 0
    """All steps done, or a clean stop after SIGTERM with its checkpoint complete; the last event tells which."""
    CRASHED = 1
    """Anything not listed here; the traceback is on stderr."""
    BAD_RUN = 2
    """RUN.json or the rank environment is not acceptable; nothing was started."""
    NOT_A_NUMBER = 3
    """The loss or the gradient norm was NaN or infinite; no checkpoint of that step is written."""
    BAD_CHECKPOINT = 4
    """A checkpoint is there but cannot be continued: another layout or model, or a fresh run over an old one."""
    BAD_DATA = 5
    """The corpus is missing, too small or not the same on every rank."""
    PEER_LOST = 6
    """Another rank went away during a collective; look at that one first."""


class ContractError(Exception):
    """RUN.json cannot be run; `problems` holds every reason found, each with a way out."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A GPT-family decoder; the counts are in `shape`."""

    layers: int
    d_model: int
    heads: int
    d_ff: int
    vocabulary: int
    """Tokens of the byte-level BPE; 256 bytes and one end-of-text token are the least."""
    positions: int
    tied: bool = True
    dropout: float = 0.0

    def shape(self) -> TransformerShape:
        """The same numbers as `model.shape` counts them."""
        return TransformerShape(
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            d_ff=self.d_ff,
            vocabulary=self.vocabulary,
            positions=self.positions,
            tied=self.tied,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Where the text comes from and where its tokens are kept."""

    corpus: str
    """`python-stdlib`: the sources of the running interpreter's standard library."""
    directory: str
    """Prepared once and reused; the prepared folder's name tells corpus, vocabulary and split."""
    heldout_fraction: float = 0.05
    """Share of the corpus's files that training never sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSpec:
    """Degrees of parallelism; their product is the number of ranks. Ranks run pipeline-major, data-minor."""

    pipeline: int = 1
    tensor: int = 1
    data: int = 1
    zero: int = 1
    """ZeRO stage, 0 to 3; with a pipeline, 1."""

    @property
    def ranks(self) -> int:
        return self.pipeline * self.tensor * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """How many sequences of how many tokens make one step."""

    global_sequences: int
    micro_sequences: int
    """Sequences in one forward pass of one replica."""
    sequence_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); weight decay on matrices only."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    warmup_steps: int = 0
    schedule: str = "cosine"
    """After warm-up: `cosine` or `linear` to a tenth of `lr`, or `constant`."""

    def lr_at(self, step: int, steps: int) -> float:
        """The rate of step 1 … `steps`: linear warm-up, then the schedule.  A function of the step alone."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        gone = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}[self.schedule]
        return self.lr * (0.1 + 0.9 * shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """Where checkpoints go; every rank must see the same directory."""

    directory: str
    every_steps: int = 0
    """0: only at the end or at a stop."""
    keep: int = 2
    """Complete checkpoints kept; older ones are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """RUN.json: one training run, whole.  Relative paths are relative to the working directory."""

    run_id: str
    seed: int
    model: ModelSpec
    data: DataSpec
    layout: LayoutSpec
    batch: BatchSpec
    optimizer: OptimizerSpec
    steps: int
    checkpoint: CheckpointSpec
    output_directory: str
    evaluate_every_steps: int = 0
    """0: only at the end."""
    evaluate_batches: int = 2
    """Global batches of held-out text in one evaluation; always the same ones."""
    resume: bool = False
    """Continue from the newest complete checkpoint if there is one."""
    precision: str = "fp32"
    """`fp32`, or `bf16` weights and gradients with an fp32 copy in the optimizer."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses and checks.  Raises ContractError with every problem."""
        value, problems = parse_object(text)
        spec = build(cls, value, "", problems) if value or not problems else None
        if spec is not None:
            problems.extend(problems_of(spec))
        if spec is None or problems:
            raise ContractError(tuple(problems))
        return spec

    def to_json(self) -> str:
        """The text that `from_json` reads back to an equal value."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def check_world(self, world_size: int) -> None:
        """Raises ContractError unless the layout's degrees multiply to the number of ranks that were started."""
        layout = self.layout
        if layout.ranks != world_size:
            product = f"pipeline {layout.pipeline} x tensor {layout.tensor} x data {layout.data} = {layout.ranks}"
            group = layout.pipeline * layout.tensor
            way_out = (
                f"set layout.data to {world_size // group}, or start {layout.ranks} ranks"
                if world_size % group == 0
                else f"start {layout.ranks} ranks, or {_nearest_multiples(world_size, group)} with another layout.data"
            )
            raise ContractError((f"layout: {product} ranks, but {world_size} were started; {way_out}",))

    @property
    def micro_batches(self) -> int:
        """Forward passes of one replica in one step."""
        return self.batch.global_sequences // (self.batch.micro_sequences * self.layout.data)

    @property
    def tokens_per_step(self) -> int:
        return self.batch.global_sequences * self.batch.sequence_tokens

    def progress_path(self, rank: int) -> Path:
        return Path(self.output_directory) / f"progress-{rank}.jsonl"

    def heartbeat_path(self, rank: int) -> Path:
        return Path(self.output_directory) / f"heartbeat-{rank}"


def problems_of(spec: RunSpec) -> list[str]:
    """Everything about a RUN.json of the right form that could not be run, each with the nearest legal choice.

    A rule is left out where one of its values is None, that is, missing or of a wrong type and reported as such.
    """
    problems = list(_single_problems(spec))
    for names, rule in _CROSS_RULES:
        values = [_get(spec, name) for name in names.split()]
        if None not in values and (problem := rule(*values)):
            problems.append(problem)
    return problems


_AT_LEAST = {
    1: (
        "steps evaluate_batches model.layers model.d_model model.heads model.d_ff model.positions layout.pipeline "
        "layout.tensor layout.data batch.global_sequences batch.micro_sequences batch.sequence_tokens checkpoint.keep"
    ),
    0: (
        "seed evaluate_every_steps layout.zero optimizer.weight_decay optimizer.clip optimizer.warmup_steps "
        "checkpoint.every_steps model.dropout"
    ),
    257: "model.vocabulary",
}
_CHOICES = {
    "data.corpus": ("python-stdlib",),
    "optimizer.schedule": ("cosine", "linear", "constant"),
    "precision": ("fp32", "bf16"),
    "layout.zero": (0, 1, 2, 3),
}
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer.lr": (lambda lr: 0 < lr < math.inf, "must be above 0; 0.001 is a usual start"),
    "optimizer.eps": (lambda eps: 0 < eps < 1, "must lie between 0 and 1; 1e-8 is usual"),
    "optimizer.betas": (lambda betas: all(b is None or 0 <= b < 1 for b in betas), "must lie in [0, 1); [0.9, 0.95] is usual"),
    "model.dropout": (lambda dropout: dropout < 1, "must be below 1"),
    "data.heldout_fraction": (lambda share: 0 < share <= 0.5, "must be above 0 and at most 0.5; 0.05 is usual"),
    "seed": (lambda seed: seed < 2**63, "must be below 2^63"),
}
_TEXTS = ("run_id", "data.directory", "checkpoint.directory", "output_directory")


def _single_problems(spec: RunSpec) -> Iterator[str]:
    """What is wrong with one value whatever the others are."""
    for least, names in _AT_LEAST.items():
        for name in names.split():
            value = _get(spec, name)
            if value is not None and value < least:
                yield f"{name}: is {value}; it must be at least {least}"
    for name, choices in _CHOICES.items():
        value = _get(spec, name)
        if value is not None and value not in choices:
            yield f"{name}: is {value!r}; choose {' or '.join(map(str, choices))}"
    for name, (holds, rule) in _RULES.items():
        value = _get(spec, name)
        if value is not None and not holds(value):
            yield f"{name}: is {value}; it {rule}"
    for name in _TEXTS:
        value = _get(spec, name)
        if value is not None and not value.strip():
            yield f"{name}: is empty"


def _warmup_fits(warmup: int, steps: int) -> str | None:
    if warmup <= steps:
        return None
    return f"optimizer.warmup_steps: is {warmup}, more than the run's {steps} steps; at most {steps}"


def _heads_divide(heads: int, d_model: int) -> str | None:
    if heads < 1 or d_model < 1 or d_model % heads == 0:
        return None
    divisors = [d for d in range(1, d_model + 1) if d_model % d == 0]
    return f"model.heads: {heads} heads do not divide d_model {d_model}; nearest: {_nearest(heads, divisors)}"


def _sequence_fits(tokens: int, positions: int) -> str | None:
    if tokens <= positions:
        return None
    return f"batch.sequence_tokens: {tokens} tokens, but the model has {positions} positions; at most {positions}"


def _batch_divides(sequences: int, micro: int, data: int) -> str | None:
    each = micro * data
    if micro < 1 or data < 1 or sequences % each == 0:
        return None
    return (
        f"batch.global_sequences: {sequences} sequences do not divide into micro-batches of {micro} on {data} "
        f"data-parallel replicas; nearest: {_nearest_multiples(sequences, each)}"
    )


def _no_tensor_parallelism(tensor: int) -> str | None:
    if tensor <= 1:
        return None
    return f"layout.tensor: {tensor}-way tensor parallelism is not in this version; choose 1"


def _stages_fit(pipeline: int, layers: int) -> str | None:
    if layers < 1 or pipeline <= layers:
        return None
    return f"layout.pipeline: {pipeline} stages, but the model has {layers} layers; at most {layers}"


def _zero_fits_pipeline(zero: int, pipeline: int) -> str | None:
    if pipeline <= 1 or zero == 1:
        return None
    if zero == 0:
        reason = "DeepSpeed then leaves every stage but the first out of the gradient norm and clips wrongly"
    else:
        reason = "the pipeline keeps whole gradients over its micro-batches, which stages 2 and 3 would have split"
    return f"layout.zero: ZeRO-{zero} with {pipeline} pipeline stages: {reason}; choose 1, or layout.pipeline 1"


def _zero_fits_precision(zero: int, precision: str) -> str | None:
    if zero != 0 or precision != "bf16":
        return None
    return (
        "layout.zero: ZeRO-0 with bf16: DeepSpeed then updates the bf16 weights without an fp32 copy, and small updates "
        "are lost; choose 1, which needs no more memory, or precision fp32"
    )


_CROSS_RULES: tuple[tuple[str, Callable[..., str | None]], ...] = (
    ("optimizer.warmup_steps steps", _warmup_fits),
    ("model.heads model.d_model", _heads_divide),
    ("batch.sequence_tokens model.positions", _sequence_fits),
    ("batch.global_sequences batch.micro_sequences layout.data", _batch_divides),
    ("layout.tensor", _no_tensor_parallelism),
    ("layout.pipeline model.layers", _stages_fit),
    ("layout.zero layout.pipeline", _zero_fits_pipeline),
    ("layout.zero precision", _zero_fits_precision),
)


def _get(spec: RunSpec, name: str) -> Any:
    """The value at a dotted name; None where it, or what should hold it, is not there."""
    value: Any = spec
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _nearest(wanted: int, legal: list[int]) -> str:
    below = [choice for choice in legal if choice < wanted]
    above = [choice for choice in legal if choice > wanted]
    return " or ".join(map(str, below[-1:] + above[:1]))


def _nearest_multiples(wanted: int, unit: int) -> str:
    multiples = [unit * (wanted // unit), unit * (wanted // unit + 1)]
    return _nearest(wanted, [multiple for multiple in multiples if multiple > 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """One optimizer step, as rank 0 saw it.  A resumed run repeats steps: the last line of a step counts."""

    step: int
    """Steps completed, this one included; the first line says 1."""
    loss: float
    """Training loss of the global batch before the update, in nat per token."""
    lr: float
    grad_norm: float
    """Euclidean norm of the whole gradient before clipping."""
    step_s: float
    tokens_per_s: float
    tflops_per_s: float
    """Of all ranks together: counted FLOPs of the model (`model/shape.py`), not measured ones."""
    time_left_s: float
    memory_bytes: int
    """Highest so far on this rank: of the GPU, or of the process where there is none."""
    at: float
    """Unix time in seconds."""
    heldout_loss: float | None = None
    """After this step, in nat per token, where it was evaluated."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine:
    """Something that is not a step: started, checkpoint, heldout, stopping, stopped, finished, nan."""

    event: str
    step: int
    """Steps completed when it happened."""
    at: float
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"event": self.event, "step": self.step, "at": self.at, **self.detail})


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Where one rank's main loop last was; a stale one means a hang, for nothing else writes it."""

    rank: int
    pid: int
    step: int
    """Steps completed."""
    phase: str
    """starting, data, engine, resume, step, evaluate, checkpoint or ended."""
    monotonic_s: float
    """The machine's monotonic clock, comparable on one machine within one boot only."""
    at: float

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError or TypeError where the text is no heartbeat."""
        return cls(**json.loads(text))


def read_progress(text: str) -> list[ProgressLine | EventLine]:
    """The lines of rank 0's progress file in the order written; an unfinished or unreadable line is left out.

    Lenient, because the writer may have died in the middle of a line: keys that are not known are ignored.
    """
    known = {field.name for field in dataclasses.fields(ProgressLine)}
    lines: list[ProgressLine | EventLine] = []
    for raw in text.splitlines():
        try:
            value = json.loads(raw)
            if "event" in value:
                detail = {k: v for k, v in value.items() if k not in ("event", "step", "at")}
                lines.append(EventLine(event=value["event"], step=value["step"], at=value["at"], detail=detail))
            else:
                lines.append(ProgressLine(**{k: v for k, v in value.items() if k in known}))
        except (ValueError, TypeError, KeyError):
            continue
    return lines
