"""What a RUN.json of the right form must also fulfil: ranges, choices, and numbers that must fit each other.

Every rule is told by the dotted name of its field and ends with the nearest legal choice.  Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

from model.shape import FAMILY_OPTIONS, Activation, BlockKind, Family, Norm, Position, Sparse

STANDARD_LIBRARY: Final = "python-stdlib"
"""The corpus that is on every machine."""
CATALOGUES: Final = "gettext"
"""The parallel text that installed packages carry."""


def problems_of(spec: object) -> list[str]:
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
        "steps evaluate_batches model.layers model.d_model model.heads model.d_ff model.positions model.summary_tokens "
        "layout.pipeline layout.tensor layout.sequence layout.data batch.sequence_tokens checkpoint.keep guard.window_steps"
    ),
    0: (
        "seed evaluate_every_steps layout.zero optimizer.weight_decay optimizer.clip optimizer.warmup_steps "
        "checkpoint.every_steps model.dropout model.kv_heads model.label_smoothing optimizer.final_share "
        "guard.most_skips_in_row model.encoder_layers model.d_key batch.global_sequences batch.micro_sequences "
        "batch.global_tokens batch.micro_tokens model.window model.window_block"
    ),
    257: "model.vocabulary",
}
_CHOICES = {
    "model.family": tuple(Family),
    "model.norm": tuple(Norm),
    "model.block": tuple(BlockKind),
    "model.position": tuple(Position),
    "model.activation": tuple(Activation),
    "model.sparse": tuple(Sparse),
    "optimizer.kind": ("adamw", "adam"),
    "optimizer.schedule": ("cosine", "linear", "constant", "noam"),
    "precision": ("fp32", "bf16", "fp16"),
    "activation_checkpointing": ("none", "selective", "full"),
    "layout.zero": (0, 1, 2, 3),
    "guard.on_nan": ("stop", "skip"),
    "guard.on_spike": ("ignore", "stop", "skip"),
}
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer.lr": (lambda lr: 0 < lr < math.inf, "must be above 0; 0.001 is a usual start"),
    "optimizer.eps": (lambda eps: 0 < eps < 1, "must lie between 0 and 1; 1e-8 is usual"),
    "optimizer.betas": (lambda betas: all(b is None or 0 <= b < 1 for b in betas), "must lie in [0, 1); [0.9, 0.95] is usual"),
    "model.dropout": (lambda dropout: dropout < 1, "must be below 1"),
    "model.label_smoothing": (lambda smoothing: smoothing < 1, "must be below 1; 0.1 is usual"),
    "model.rotary_base": (lambda base: 1 < base < math.inf, "must be above 1; 10000 is usual"),
    "model.norm_eps": (lambda eps: 0 < eps < 1, "must lie between 0 and 1; 1e-5 is usual"),
    "optimizer.final_share": (lambda share: share <= 1, "must be at most 1; 0.1 is usual"),
    "data.corpus": (
        lambda corpus: corpus in (STANDARD_LIBRARY, CATALOGUES) or "/" in corpus,
        f"must be {STANDARD_LIBRARY}, {CATALOGUES}, or the path of a folder of text files with a slash in it: ./texts",
    ),
    "data.heldout_fraction": (lambda share: 0 < share <= 0.5, "must be above 0 and at most 0.5; 0.05 is usual"),
    "guard.spike_deviations": (lambda number: 1 <= number < math.inf, "must be at least 1; 8 is usual"),
    "seed": (lambda seed: seed < 2**63, "must be below 2^63"),
}
_TEXTS = ("run_id", "data.directory", "checkpoint.directory", "output_directory")


def _single_problems(spec: object) -> Iterator[str]:
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


def _warmup_fits(warmup: int, steps: int, schedule: str) -> str | None:
    if warmup <= steps or schedule == "noam":
        return None
    return f"optimizer.warmup_steps: is {warmup}, more than the run's {steps} steps; at most {steps}"


def _heads_divide(heads: int, d_model: int) -> str | None:
    if heads < 1 or d_model < 1 or d_model % heads == 0:
        return None
    return f"model.heads: {heads} heads do not divide d_model {d_model}; nearest: {_nearest(heads, _divisors(d_model))}"


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
        f"data-parallel replicas; nearest: {nearest_multiples(sequences, each)}"
    )


def _corpus_fits(corpus: str, encoder_layers: int) -> str | None:
    if encoder_layers > 0 and corpus == STANDARD_LIBRARY:
        return f"data.corpus: {corpus} has no translations; choose {CATALOGUES}, or a folder with train.en and train.de: ./texts"
    if encoder_layers < 1 and corpus == CATALOGUES:
        return f"data.corpus: {corpus} is pairs, for a model with an encoder; choose {STANDARD_LIBRARY}, or a folder: ./texts"
    return None


def _languages_fit(encoder_layers: int, source: str, target: str) -> str | None:
    if encoder_layers < 1:
        if source or target:
            return "data.source_language: languages are for a model with an encoder; set model.encoder_layers, or leave them out"
        return None
    if not source or not target or source == target:
        return (
            f"data.target_language: {source!r} into {target!r} is no pair of languages; an encoder-decoder needs two different "
            "ones, en and de for example"
        )
    return None


def _matrix_is_shared(model: Any) -> str | None:
    if not model.encoder_layers or model.encoder_layers < 1 or model.family not in tuple(Family):
        return None
    tied = FAMILY_OPTIONS[Family(model.family)].get("tied", True) if model.tied is None else model.tied
    return None if tied else "model.tied: an encoder-decoder shares one matrix between source, target and output; set it to true"


def _batch_is_counted(encoder_layers: int, sequences: int, micro_sequences: int, tokens: int, micro_tokens: int) -> str | None:
    counts = {"sequences": (sequences, micro_sequences), "tokens": (tokens, micro_tokens)}
    wanted, other = ("tokens", "sequences") if encoder_layers > 0 else ("sequences", "tokens")
    if min(counts[wanted]) < 1:
        given = " and ".join(map(str, counts[wanted]))
        kind = "with an encoder" if encoder_layers > 0 else "of a decoder-only model"
        return f"batch.global_{wanted}: global and micro are {given}; the batch {kind} is counted in {wanted}, at least 1"
    if any(counts[other]):
        return f"batch.global_{other}: {other} stand beside {wanted}; count the batch of this model in {wanted}"
    return None


def _tokens_divide(tokens: int, micro: int, data: int) -> str | None:
    each = micro * data
    if micro < 1 or data < 1 or tokens % each == 0:
        return None
    return (
        f"batch.global_tokens: {tokens} tokens do not divide into micro-batches of {micro} on {data} data-parallel "
        f"replicas; nearest: {nearest_multiples(tokens, each)}"
    )


def _longest_pair_fits(sequence: int, micro: int) -> str | None:
    if micro < 1 or micro >= 2 * sequence:
        return None
    return (
        f"batch.micro_tokens: {micro} tokens hold no pair of {sequence} + {sequence} tokens (batch.sequence_tokens); "
        f"at least {2 * sequence}"
    )


def _key_value_heads_divide(kv_heads: int, heads: int) -> str | None:
    if heads < 1 or kv_heads < 1 or heads % kv_heads == 0:
        return None
    choices = _nearest(kv_heads, _divisors(heads))
    return f"model.kv_heads: {heads} heads cannot share {kv_heads} key/value heads evenly; nearest: {choices}"


def _positions_are_pairs(model: Any) -> str | None:
    d_model, heads = model.d_model, model.heads
    if not d_model or not heads or heads < 1 or d_model % heads or model.family not in tuple(Family):
        return None
    position = model.position or FAMILY_OPTIONS[Family(model.family)].get("position")
    if position == Position.ROTARY and model.d_key and model.d_key % 2:
        return f"model.d_key: rotary positions turn pairs of numbers, and a head has {model.d_key}; nearest: {model.d_key + 1}"
    if position == Position.ROTARY and not model.d_key and d_model // heads % 2:
        choices = _nearest(heads, [count for count in _divisors(d_model) if d_model // count % 2 == 0])
        way_out = f"nearest heads: {choices}" if choices else f"nearest d_model: {d_model - heads} or {d_model + heads}"
        return f"model.position: rotary positions turn pairs of numbers, and a head has {d_model // heads}; {way_out}"
    if position == Position.SINUSOIDAL and d_model % 2:
        return f"model.position: sinusoidal positions are pairs, and d_model {d_model} is odd; nearest: {d_model + 1}"
    return None


def _block_fits(model: Any) -> str | None:
    if model.family not in tuple(Family) or model.kv_heads is None or model.heads is None:
        return None
    options = FAMILY_OPTIONS[Family(model.family)]
    block = model.block or options.get("block", BlockKind.PRE_LN)
    if block not in tuple(BlockKind):
        return None
    simple = BlockKind(block).is_simplified
    if model.norm == Norm.NONE and not simple:
        return f"model.norm: none, but {block} blocks need one; choose layer or rms, or model.block sas or sas-p"
    if simple and model.kv_heads not in (0, model.heads):
        return f"model.kv_heads: {block} blocks have no values that heads could share; choose 0 or {model.heads}"
    if simple and model.d_key not in (0, None) and model.d_key * model.heads != model.d_model:
        return f"model.d_key: {block} blocks have no values of another width; choose 0"
    if model.encoder_layers and (simple or model.window):
        return "model.encoder_layers: an encoder-decoder sees whole sentences; choose block pre-ln or post-ln, and window 0"
    if simple and model.sparse is not None:
        return f"model.sparse: {block} blocks see everything or a window; choose null, or model.block pre-ln or post-ln"
    return None


def _window_fits(window: int, block: int, summary: int) -> str | None:
    if min(window, block) < 0 or summary < 1:
        return None
    if block and window % block:
        return f"model.window: {window} is not a multiple of window_block {block}; nearest: {nearest_multiples(window, block)}"
    if summary > max(1, window):
        return f"model.summary_tokens: is {summary}, more than a block of {window} tokens; at most {max(1, window)}"
    return None


def _stride_is_told(sparse: str, window: int) -> str | None:
    if window:
        return None
    return f"model.window: is 0, and it is the stride of {sparse} attention; about the root of the sequence is usual, 32 for 1024"


def _tensor_divides(tensor: int, heads: int, kv_heads: int, d_ff: int, vocabulary: int) -> str | None:
    if min(tensor, heads, d_ff, vocabulary) < 1 or kv_heads < 0:
        return None
    common = math.gcd(heads, kv_heads or heads, d_ff)
    # Rows are dealt in equal shares; a degree that leaves the last rank without any is no choice.
    legal = [degree for degree in _divisors(common) if (degree - 1) * -(-vocabulary // degree) < vocabulary]
    if tensor in legal:
        return None
    numbers = f"{heads} heads, {kv_heads or heads} key/value heads, d_ff {d_ff} and {vocabulary} tokens"
    return f"layout.tensor: {numbers} do not divide over {tensor} tensor ranks; nearest: {_nearest(tensor, legal)}"


def _sequence_divides(sequence: int, tensor: int, heads: int, kv_heads: int, tokens: int, encoder_layers: int) -> str | None:
    if min(sequence, tensor, heads, tokens) < 1 or kv_heads < 0:
        return None
    shared = math.gcd(heads, kv_heads or heads)
    if sequence == 1 or shared % tensor:
        return None
    if encoder_layers > 0:
        return f"layout.sequence: an encoder-decoder's sentences stay on one rank, and {sequence} are asked for; choose 1"
    legal = _divisors(math.gcd(shared // tensor, tokens))
    if sequence in legal:
        return None
    each = f"{shared // tensor} heads (or key/value heads) of a tensor rank and {tokens} tokens of a sequence"
    return f"layout.sequence: {each} do not divide over {sequence} sequence ranks; nearest: {_nearest(sequence, legal)}"


def _noam_warms_up(schedule: str, warmup: int) -> str | None:
    if schedule != "noam" or warmup >= 1:
        return None
    return "optimizer.warmup_steps: is 0, and noam is defined by its warm-up; at least 1, 4000 in the paper"


def _stages_fit(pipeline: int, layers: int, encoder_layers: int) -> str | None:
    every = layers + max(encoder_layers, 0)
    if layers < 1 or pipeline <= every:
        return None
    return f"layout.pipeline: {pipeline} stages, but the model has {every} layers; at most {every}"


def _zero_fits_pipeline(zero: int, pipeline: int) -> str | None:
    if pipeline <= 1 or zero == 1:
        return None
    if zero == 0:
        reason = "DeepSpeed then leaves every stage but the first out of the gradient norm and clips wrongly"
    else:
        reason = "the pipeline keeps whole gradients over its micro-batches, which stages 2 and 3 would have split"
    return f"layout.zero: ZeRO-{zero} with {pipeline} pipeline stages: {reason}; choose 1, or layout.pipeline 1"


def _zero_fits_precision(zero: int, precision: str) -> str | None:
    if zero != 0 or precision == "fp32":
        return None
    return (
        f"layout.zero: ZeRO-0 with {precision}: DeepSpeed then updates the {precision} weights without an fp32 copy, and "
        "small updates are lost; choose 1, which needs no more memory, or precision fp32"
    )


def _offload_fits(zero: int, offload: bool, fused: bool) -> str | None:
    if offload and zero == 0:
        return "optimizer.offload: ZeRO-0 keeps the optimizer's state with the weights; choose layout.zero 1, 2 or 3"
    if offload and fused:
        return "optimizer.fused: the fused Adam runs on the GPU, an offloaded optimizer on the host; choose one of them"
    return None


_CROSS_RULES: tuple[tuple[str, Callable[..., str | None]], ...] = (
    ("optimizer.warmup_steps steps optimizer.schedule", _warmup_fits),
    ("model.heads model.d_model", _heads_divide),
    ("batch.sequence_tokens model.positions", _sequence_fits),
    ("data.corpus model.encoder_layers", _corpus_fits),
    ("model.encoder_layers data.source_language data.target_language", _languages_fit),
    (
        "model.encoder_layers batch.global_sequences batch.micro_sequences batch.global_tokens batch.micro_tokens",
        _batch_is_counted,
    ),
    ("batch.global_sequences batch.micro_sequences layout.data", _batch_divides),
    ("batch.global_tokens batch.micro_tokens layout.data", _tokens_divide),
    ("batch.sequence_tokens batch.micro_tokens", _longest_pair_fits),
    ("model.kv_heads model.heads", _key_value_heads_divide),
    ("model", _positions_are_pairs),
    ("model", _matrix_is_shared),
    ("model", _block_fits),
    ("model.window model.window_block model.summary_tokens", _window_fits),
    ("model.sparse model.window", _stride_is_told),
    ("layout.tensor model.heads model.kv_heads model.d_ff model.vocabulary", _tensor_divides),
    ("layout.sequence layout.tensor model.heads model.kv_heads batch.sequence_tokens model.encoder_layers", _sequence_divides),
    ("optimizer.schedule optimizer.warmup_steps", _noam_warms_up),
    ("layout.pipeline model.layers model.encoder_layers", _stages_fit),
    ("layout.zero layout.pipeline", _zero_fits_pipeline),
    ("layout.zero precision", _zero_fits_precision),
    ("layout.zero optimizer.offload optimizer.fused", _offload_fits),
)


def _get(spec: object, name: str) -> Any:
    """The value at a dotted name; None where it, or what should hold it, is not there."""
    value: Any = spec
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(wanted: int, legal: list[int]) -> str:
    below = [choice for choice in legal if choice < wanted]
    above = [choice for choice in legal if choice > wanted]
    return " or ".join(map(str, below[-1:] + above[:1]))


def nearest_multiples(wanted: int, unit: int) -> str:
    multiples = [unit * (wanted // unit), unit * (wanted // unit + 1)]
    return _nearest(wanted, [multiple for multiple in multiples if multiple > 0])
