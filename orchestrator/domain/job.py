"""A training job as an operator declares it: cluster_specs/jobs/*.yaml.

A job says what to train and what it may use; a run (`domain/run.py`) is one go at it. Every field carries its unit in its
name and its explanation under it; unknown keys are refused. What depends on several fields together (degrees that must
multiply, batches that must divide) is checked in `planning/job_check.py`.
"""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.domain.spec import Form, Strict

JobName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9-]{0,39}$"),
    Form("a lower-case letter, then at most 39 lower-case letters, digits or hyphens"),
]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class JobModel(Strict):
    """A Transformer: a published shape by name, or numbers; options that are left out are the family's."""

    preset: str | None = None
    """A published shape, such as `llama-8b` (`python -m model.describe` lists them); what stands beside it replaces its own."""
    layers: Count | None = None
    """Required, as the next five are, unless `preset` is given."""
    d_model: Count | None = None
    """Width of the residual stream."""
    heads: Count | None = None
    """Attention heads; they divide `d_model`."""
    d_ff: Count | None = None
    """Width of the feed-forward layer."""
    vocabulary: Count | None = None
    """Tokens of the byte-level BPE: at least 257."""
    positions: Count | None = None
    """Longest sequence, in tokens."""
    kv_heads: Count | None = None
    """Key/value heads (grouped-query attention); as many as `heads` if left out. They divide `heads`."""
    encoder_layers: Count | None = None
    """An encoder of so many layers before the decoder, for translation; none if left out."""
    d_key: Count | None = None
    """Width of one head's query and key; d_model / heads if left out."""
    family: str | None = None
    """`gpt` (if left out), `llama` or `vaswani`: what the options below are where they are left out."""
    tied: bool | None = None
    """One matrix for embedding and output."""
    norm: str | None = None
    """`layer` or `rms`; `none` with simplified blocks."""
    block: str | None = None
    """`pre-ln`, `post-ln`, or a simplified block: `sas` or `sas-p`."""
    position: str | None = None
    """`learned`, `sinusoidal` or `rotary`."""
    activation: str | None = None
    """`relu`, `gelu` or `swiglu`."""
    biases: bool | None = None
    """Biases in the linear layers."""
    attention_biases: bool | None = None
    """Of attention's matrices, where there are biases at all."""
    scaled_embedding: bool | None = None
    """Embeddings are multiplied by the root of `d_model`."""
    rotary_base: Number | None = None
    """Base of the rotary angles; larger for longer sequences."""
    norm_eps: Number | None = None
    """Added to a variance before its root is taken."""
    window: Count | None = None
    """Tokens that each token sees, itself included; all before it if left out."""
    window_block: Count | None = None
    """Queries worked on together, a divisor of `window`; as many as `window` if left out."""
    sparse: str | None = None
    """`strided` or `fixed`, with `window` as stride: every token sees some far before it, too."""
    summary_tokens: Count | None = None
    """Of each block of `fixed` attention that later blocks see; 1 if left out."""
    dropout: Number | None = None
    """On sub-layer outputs and embeddings; 0 if left out."""
    label_smoothing: Number | None = None
    """Share of the target spread over the vocabulary while training; 0 if left out."""


class JobData(Strict):
    """The text."""

    corpus: str = "python-stdlib"
    """`python-stdlib`: the sources of the Python standard library of the nodes' interpreter; or the path of a folder of UTF-8
    text files as the nodes see it, with a slash in it. With an encoder: `gettext`, the message catalogues of installed packages,
    or the path of a folder with train.en and train.de, and dev and test of both beside them, or with wheels that have some."""
    name: JobName = "python-stdlib"
    """Folder of the prepared tokens, under rackray/data/ on the shared storage; runs with equal data share it."""
    heldout_fraction: Number = 0.03
    """Share of the corpus's files that training never sees; of pairs, for each of dev and test that has no files of its own."""
    source_language: str = ""
    """With an encoder: what is translated, such as `en`, the ending of its files."""
    target_language: str = ""
    """With an encoder: what it is translated into, such as `de`."""


class JobLayout(Strict):
    """Degrees of parallelism; their product is nodes x ranks_per_node."""

    pipeline: Count = 1
    """Stages the layers are cut into."""
    tensor: Count = 1
    """Ranks that share each layer; best on one node. It divides the heads, the key/value heads and `d_ff`."""
    sequence: Count = 1
    """Ranks that each hold a part of every sequence (Ulysses). It divides the heads and `sequence_tokens`."""
    data: Count = 1
    """Replicas that each see their share of the batch."""
    least_data: Count | None = None
    """Fewest replicas a run that lost nodes may go on with instead of waiting for others; unset: always `data`. The global batch
    stays, so those degrees are used that it divides by."""
    zero: Annotated[int, Field(ge=0, le=3)] = 1
    """ZeRO stage; with a pipeline, 1."""

    @property
    def ranks_per_replica(self) -> int:
        """All stages, with the ranks that share their layers and their sequences."""
        return self.pipeline * self.tensor * self.sequence


class JobBatch(Strict):
    """What one optimizer step sees."""

    sequence_tokens: Count
    """Tokens of one sequence; at most `model.positions`. With an encoder: longest side of a pair."""
    global_sequences: Count | None = None
    """Sequences of all replicas together. Required, unless the model has an encoder."""
    micro_sequences: Count | None = None
    """Sequences in one forward pass of one replica. Required, unless the model has an encoder."""
    global_tokens: Count | None = None
    """With an encoder: most source and target tokens of all replicas together, padding included."""
    micro_tokens: Count | None = None
    """With an encoder: the same in one forward pass of one replica; at least twice `sequence_tokens`."""


class JobOptimizer(Strict):
    """AdamW, or Adam."""

    lr: Number
    """Peak learning rate; under `noam` a factor of the paper's formula."""
    kind: str = "adamw"
    """`adamw`, or `adam`, whose weight decay is part of the gradient."""
    betas: Annotated[tuple[Number, Number], Field(strict=False)] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    eps: Number = 1e-8
    """Added to the root of the mean square before dividing by it."""
    weight_decay: Number = 0.1
    """Decoupled with `adamw`; of matrices alone."""
    clip: Number = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which `lr` is reached, linearly."""
    schedule: str = "cosine"
    """After the warm-up: `cosine`, `linear`, `constant`, or `noam`, which falls as 1/root(step)."""
    final_share: Number = 0.1
    """Share of `lr` that `cosine` and `linear` end at."""
    fused: bool = False
    """DeepSpeed's fused Adam: needs GPUs, and is compiled on each node on first use."""
    offload: bool = False
    """Optimizer state in the host's memory (ZeRO-Offload); with ZeRO 1, 2 or 3."""


class JobCheckpoint(Strict):
    """When the whole state is written to the shared storage."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """0: only at the end or at a stop."""
    keep: Count = 2
    """Complete checkpoints kept; older ones are deleted."""
    background: bool = True
    """Written while training goes on, from a copy in the nodes' memory; false waits for the storage."""


class JobGuard(Strict):
    """What happens to a step whose numbers are wrong; its update is never applied, unless it is ignored."""

    on_nan: Literal["stop", "skip"] = "stop"
    """Loss or gradient norm is no number."""
    on_spike: Literal["ignore", "stop", "skip"] = "ignore"
    """The loss jumped: `ignore` applies the step and tells of it."""
    spike_deviations: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 8.0
    """A jump is a loss so many robust standard deviations above the median of the window."""
    window_steps: Count = 100
    """Steps that are looked back at."""
    most_skips_in_row: Annotated[int, Field(ge=0)] = 5
    """One more ends the run."""


class JobSpec(Strict):
    """One training job."""

    rackray_job: Literal[1]
    """Version of this format."""
    name: JobName
    """Runs are called NAME-1, NAME-2, ..."""
    nodes: Count
    """Nodes the run needs, all at once."""
    ranks_per_node: Annotated[int, Field(ge=1, le=128)] = 1
    """Training processes on each node: one per GPU."""
    spares: Annotated[int, Field(ge=0, le=1000)] = 0
    """Ready nodes kept aside for this run: as many as there are, up to this number. A run starts without them too."""
    model: JobModel | None = None
    """Required, unless `command` is given."""
    data: JobData = JobData()
    layout: JobLayout = JobLayout()
    batch: JobBatch | None = None
    """Required, unless `command` is given."""
    optimizer: JobOptimizer | None = None
    """Required, unless `command` is given."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps. Required, unless `command` is given."""
    evaluate_every_steps: Annotated[int, Field(ge=0)] = 0
    """Held-out loss every so many steps; 0: only at the end."""
    checkpoint: JobCheckpoint = JobCheckpoint()
    guard: JobGuard = JobGuard()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`fp16` needs GPUs."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass works out again instead of keeping it: nothing, the feed-forward's activations, or whole layers."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Weights, data order and dropout follow from it."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Of two waiting runs the one with the higher priority is placed first."""
    start_limit_s: Seconds = 600.0
    """Longest time from a rank's start to its first heartbeat, in seconds."""
    heartbeat_limit_s: Seconds = 180.0
    """A rank whose last heartbeat is older, in seconds, hangs. Longer than the longest step, evaluation or checkpoint."""
    stop_limit_s: Seconds = 120.0
    """How long a rank may take to write its checkpoint and end when it is asked to stop, in seconds; then it is killed."""
    attempts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Restarts in a row without a new checkpoint before the run is given up."""
    command: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Any other program, as a list of arguments, started once per rank with the same environment (RANK, WORLD_SIZE, ...)."""

    @property
    def ranks(self) -> int:
        """Training processes in all."""
        return self.nodes * self.ranks_per_node
