"""The contract between the training and whoever starts it: RUN.json in, progress lines and checkpoints out.

Standard library only, so that a planner or an orchestrator can read and write it without torch.

In:   `RunSpec.from_json(text)`, every problem at once in `ContractError.problems`.
Out:  in `output_directory`, `progress-RANK.jsonl` (rank 0: `ProgressLine` and `EventLine`; other ranks: their own
      step timings) and `heartbeat-RANK` (`Heartbeat`, replaced whole at every step);
      in `checkpoint.directory`, `step-000123/` with a manifest (`model/manifest.py`, re-exported here).
Exit: the codes in `ExitCode`.
Environment: the five variables of `model/ranks.py`, and nothing else.  What differs from rank to rank or from attempt to attempt
and does not change the numbers, such as a cap on a GPU's watts, is the launcher's (rackray sets RACKRAY_GPU_POWER_CAP_W) and not
the run's: a RUN.json is one for all ranks, and the same after a move to other machines.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from enum import IntEnum, StrEnum
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
from model.run_rules import STANDARD_LIBRARY, problems_of
from model.shape import Activation, BlockKind, Family, Norm, Position, Sparse, TransformerShape, shape_of_family
from model.strict_json import build, parse_object

__all__ = [
    "STANDARD_LIBRARY",
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
    "model_of_shape",
    "newest_complete",
    "problems_of",
    "read_progress",
    "verify_manifest",
    "write_manifest",
]


class ExitCode(IntEnum):
    """What `python -m model.train` ends with."""

    DONE = 0
    """All steps done, or a clean stop after SIGTERM with its checkpoint complete; the last event tells which."""
    CRASHED = 1
    """Anything not listed here, such as progress that can no longer be written; stderr tells what."""
    BAD_RUN = 2
    """RUN.json, the rank environment or `output_directory` is not acceptable; nothing was started."""
    NOT_A_NUMBER = 3
    """A loss or gradient norm was NaN or infinite; the step's update was not applied, no checkpoint of it is written."""
    BAD_CHECKPOINT = 4
    """A checkpoint is there but cannot be continued (another model or vocabulary, a fresh run over an old one, fewer steps than
    it has), or one could not be written."""
    BAD_DATA = 5
    """The corpus is missing, too small or not the same on every rank, or `data.directory` cannot be written."""
    PEER_LOST = 6
    """Another rank went away during a collective; look at that one first."""
    LOSS_SPIKE = 7
    """The loss jumped and `guard.on_spike` says stop; the step's update was not applied, no checkpoint of it is written."""


class ContractError(Exception):
    """RUN.json cannot be run; `problems` holds every reason found, each with a way out."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only Transformer, or one with an encoder: numbers, a family, and options; the counts are in `shape`."""

    layers: int
    d_model: int
    heads: int
    d_ff: int
    vocabulary: int
    """Tokens of the byte-level BPE; 256 bytes and one end-of-text token are the least."""
    positions: int
    kv_heads: int = 0
    """Key/value heads of grouped-query attention; 0: as many as `heads`."""
    encoder_layers: int = 0
    """Above 0: an encoder of so many layers before the decoder, and parallel text as data."""
    family: str = "gpt"
    """`gpt`, `llama` or `vaswani`: what the options below are where they are null (`shape.FAMILY_OPTIONS`)."""
    tied: bool | None = None
    """One matrix for embedding and head."""
    norm: str | None = None
    """`layer` or `rms`; `none` with simplified blocks."""
    block: str | None = None
    """`pre-ln`, `post-ln`, or simplified: `sas`, `sas-p` (He & Hofmann 2024)."""
    position: str | None = None
    """`learned`, `sinusoidal` or `rotary`."""
    activation: str | None = None
    """`relu`, `gelu` or `swiglu`."""
    biases: bool | None = None
    attention_biases: bool | None = None
    """Of attention's matrices, where there are biases at all."""
    d_key: int = 0
    """Width of one head's query and key; 0: d_model / heads, as its value's."""
    scaled_embedding: bool | None = None
    rotary_base: float | None = None
    norm_eps: float | None = None
    window: int = 0
    """Tokens that each token sees, itself included; 0: all before it."""
    window_block: int = 0
    """Queries worked on together, a divisor of `window`; 0: as many as `window`."""
    sparse: str | None = None
    """`fixed` or `strided` with `window` as stride (Child et al. 2019)."""
    summary_tokens: int = 1
    """Of each block of `fixed` attention that later blocks see."""
    dropout: float = 0.0
    """On sub-layer outputs and embeddings."""
    label_smoothing: float = 0.0
    """Share of the target spread over the whole vocabulary while training; held-out losses are without it."""

    def shape(self) -> TransformerShape:
        """The same numbers as `model.shape` counts them.  Raises ValueError where they do not fit together."""
        sizes = ("layers", "d_model", "heads", "d_ff", "vocabulary", "positions", "kv_heads", "encoder_layers", "d_key")
        numbers = (*sizes, "window", "window_block", "summary_tokens")
        enums = {"norm": Norm, "block": BlockKind, "position": Position, "activation": Activation, "sparse": Sparse}
        plain = ("tied", "biases", "attention_biases", "scaled_embedding", "rotary_base", "norm_eps")
        options = {name: getattr(self, name) for name in plain}
        options |= {name: kind(getattr(self, name)) for name, kind in enums.items() if getattr(self, name) is not None}
        return shape_of_family(Family(self.family), {name: getattr(self, name) for name in numbers}, options)


def model_of_shape(shape: TransformerShape) -> ModelSpec:
    """The model section that builds `shape`, such as one of `model.shape.PRESETS`."""
    values: dict[str, Any] = {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape)}
    plain: dict[str, Any] = {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}
    return ModelSpec(**plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Where the text comes from and where its tokens are kept."""

    corpus: str
    """`python-stdlib`: the sources of the running interpreter's standard library; or the path of a folder of UTF-8 text files,
    with a slash in it.  With an encoder: `gettext`, the message catalogues of installed packages, or the path of a folder with
    line files such as train.en and train.de, or with wheels, whose catalogues are read."""
    directory: str
    """Prepared once and reused; the prepared folder's name tells corpus, vocabulary and split."""
    heldout_fraction: float = 0.05
    """Share of the corpus's files that training never sees; of a parallel text's sentences, once for dev and once for test."""
    source_language: str = ""
    """With an encoder: what is translated, for example `en`; the ending of its line files."""
    target_language: str = ""
    """With an encoder: what it is translated into, for example `de`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSpec:
    """Degrees of parallelism; their product is the number of ranks.

    The tensor ranks of a layer are neighbours, then come the ranks of a sequence, then replicas, then stages:
    rank = ((stage·data + replica)·sequence + part of the tokens)·tensor + part of the layer.
    """

    pipeline: int = 1
    """Stages that the layers are cut into."""
    tensor: int = 1
    """Ranks that share each layer."""
    sequence: int = 1
    """Ranks that each hold their part of every sequence's tokens (DeepSpeed-Ulysses, arXiv 2309.14509)."""
    data: int = 1
    """Replicas that each see their share of the batch."""
    zero: int = 1
    """ZeRO stage, 0 to 3; with a pipeline, 1."""

    @property
    def ranks(self) -> int:
        return self.pipeline * self.tensor * self.sequence * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """How much makes one step: sequences of equal length, or, with an encoder, tokens of pairs of like length."""

    sequence_tokens: int
    """Length of a sequence; with an encoder, the longest a side of a training pair may be, its end included."""
    global_sequences: int = 0
    micro_sequences: int = 0
    """Sequences in one forward pass of one replica."""
    global_tokens: int = 0
    """With an encoder: source and target tokens of a step at the most, padding included."""
    micro_tokens: int = 0
    """The same in one forward pass of one replica; at least twice `sequence_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); weight decay on matrices only."""

    lr: float
    """The highest rate; under `noam` a factor of the paper's formula, 1 being the paper's."""
    kind: str = "adamw"
    """`adamw`, or `adam`, whose weight decay is part of the gradient."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    warmup_steps: int = 0
    schedule: str = "cosine"
    """After warm-up: `cosine` or `linear` to `final_share` of `lr`, `constant`, or `noam`: falling as 1/√step."""
    final_share: float = 0.1
    """Share of `lr` that `cosine` and `linear` end at."""
    fused: bool = False
    """torch's fused Adam: one kernel for many parameters.  DeepSpeed's own is not used, for it must be compiled on every node."""
    offload: bool = False
    """Optimizer state and its update in the host's memory (ZeRO-Offload, Ren et al. 2021); needs ZeRO 1, 2 or 3."""

    def lr_at(self, step: int, steps: int, d_model: int) -> float:
        """The rate of step 1 … `steps`: linear warm-up, then the schedule.  A function of the step alone.

        `noam` is d_model^-0.5 · min(step^-0.5, step · warmup^-1.5) (Vaswani et al. 2017, equation 3), times `lr`.
        """
        if self.schedule == "noam":
            return self.lr * d_model**-0.5 * min(step**-0.5, step * self.warmup_steps**-1.5)
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        gone = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}[self.schedule]
        return self.lr * (self.final_share + (1 - self.final_share) * shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """Where checkpoints go; every rank must see the same directory."""

    directory: str
    every_steps: int = 0
    """0: only at the end or at a stop."""
    keep: int = 2
    """Complete checkpoints kept; older ones are deleted."""
    background: bool = True
    """Written while training goes on, from a copy in host memory; false waits for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSpec:
    """What happens to a step whose numbers are wrong; its update is never applied, unless it is ignored."""

    on_nan: str = "stop"
    """Loss or gradient norm is no number: `stop` ends the run, `skip` goes on with the next batch."""
    on_spike: str = "ignore"
    """The loss jumped: `stop`, `skip`, or `ignore`, which applies the step and tells of it."""
    spike_deviations: float = 8.0
    """A jump is a loss so many robust standard deviations above the median of the window."""
    window_steps: int = 100
    """Steps that are looked back at."""
    most_skips_in_row: int = 5
    """One more ends the run."""


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
    guard: GuardSpec = GuardSpec()
    evaluate_every_steps: int = 0
    """0: only at the end."""
    evaluate_batches: int = 2
    """Global batches of held-out text in one evaluation; always the same ones."""
    resume: bool = False
    """Continue from the newest complete checkpoint if there is one."""
    precision: str = "fp32"
    """`fp32`; or `bf16` or `fp16` weights and gradients with an fp32 copy in the optimizer.  fp16 scales the loss, skips
    steps that overflow, and needs a GPU."""
    activation_checkpointing: str = "none"
    """What the backward pass works out again: `none`, `selective` (the feed-forward's activations) or `full` (whole layers)."""

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
            sequence = f" x sequence {layout.sequence}" if layout.sequence > 1 else ""
            product = f"pipeline {layout.pipeline} x tensor {layout.tensor}{sequence} x data {layout.data} = {layout.ranks}"
            group = layout.pipeline * layout.tensor * layout.sequence
            way_out = f"start {layout.ranks} ranks, or set layout.data to {world_size // group}"
            if below := world_size % group:
                others = [ranks for ranks in (world_size - below, world_size - below + group) if ranks not in (0, layout.ranks)]
                choices = (f"{ranks} with layout.data {ranks // group}" for ranks in others)
                way_out = ", or ".join([f"start {layout.ranks} ranks", *choices])
            raise ContractError((f"layout: {product} ranks, but {world_size} were started; {way_out}",))

    def lr_at(self, step: int) -> float:
        """The learning rate of step 1 … `steps`."""
        return self.optimizer.lr_at(step, self.steps, self.model.d_model)

    @property
    def micro_batches(self) -> int:
        """Forward passes of one replica in one step."""
        if self.model.encoder_layers:
            return self.batch.global_tokens // (self.batch.micro_tokens * self.layout.data)
        return self.batch.global_sequences // (self.batch.micro_sequences * self.layout.data)

    @property
    def tokens_per_step(self) -> int:
        """With an encoder: at the most."""
        return self.batch.global_tokens or self.batch.global_sequences * self.batch.sequence_tokens

    def progress_path(self, rank: int) -> Path:
        return Path(self.output_directory) / f"progress-{rank}.jsonl"

    def heartbeat_path(self, rank: int) -> Path:
        return Path(self.output_directory) / f"heartbeat-{rank}"


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
    """Forward, backward and update."""
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
    mfu: float | None = None
    """Counted FLOPs over what the ranks' GPUs could do at their data sheets' peak (Chowdhery et al. 2022, appendix B), a power
    cap or not, so that runs compare; null where the peak is not known, as on a CPU."""
    phases_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds of this rank since the line before: data, forward_backward, update, evaluate, and checkpoint, which is how long
    the training stood still for one."""
    is_applied: bool = True
    """False: the guard skipped the step, weights and optimizer are as before it."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine:
    """Something that is not a step: started, layout_changed, checkpoint, heldout, nan, spike, overflow, stopped, finished."""

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
