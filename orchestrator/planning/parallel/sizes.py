"""How much of the model a rank holds: layers per stage and parameters, for many layouts at once.

The counts are those of `model/shape.py` (its formulas over columns instead of one shape); a test holds the two together.
"""

from dataclasses import dataclass

import numpy as np

from orchestrator.planning.parallel.cases import Cases, Floats


@dataclass(frozen=True, slots=True)
class Stages:
    """What the pipeline's stages hold."""

    mean_layers: Floats
    first_layers: Floats
    middle_layers: Floats
    last_layers: Floats
    parameters: Floats
    """Of the fullest rank, after tensor parallelism."""
    first_parameters: Floats
    middle_parameters: Floats
    last_parameters: Floats


def block_parameters(cases: Cases) -> Floats:
    """Parameters of one layer: attention, feed-forward, norms; biases where the feed-forward is not gated."""
    h = cases.hidden
    kv = h * cases.kv_heads / cases.heads
    plain = 1.0 - cases.gated
    attention = 2.0 * h * h + 2.0 * h * kv + plain * (2.0 * h + 2.0 * kv)
    feed_forward = (2.0 + cases.gated) * h * cases.ffn + plain * (cases.ffn + h)
    return attention + feed_forward + 2.0 * h * (1.0 + plain)


def embedding_parameters(cases: Cases) -> Floats:
    """Token embedding, and learned positions where the family has them."""
    return cases.vocab * cases.hidden + (1.0 - cases.gated) * cases.seq * cases.hidden


def model_parameters(cases: Cases) -> Floats:
    """All parameters; a tied head counts once."""
    head = (1.0 - cases.tied) * cases.vocab * cases.hidden
    return cases.layers * block_parameters(cases) + embedding_parameters(cases) + head + cases.hidden * (2.0 - cases.gated)


def stage_layers(layers: int, pipeline: int) -> int:
    """Layers of a stage, embedding and head counted as one each where only so they divide; 0 where they do not."""
    return next((count // pipeline for count in (layers, layers + 2) if count % pipeline == 0), 0)


def stages_of(cases: Cases) -> Stages:
    """Layers and parameters of first, middle and last stage.

    Where the layers do not divide but layers + 2 do, embedding and head count as a layer each, as Llama 3 405B and BLOOM are cut;
    not in an engine that cuts by blocks alone, as ours does.
    """
    chunks = cases.pp * cases.vpp
    even = cases.layers % chunks == 0
    as_layers = ~even & ((cases.layers + 2.0) % chunks == 0) & (cases.pp > 1) & (cases.whole_blocks <= 0)
    middle = np.where(
        even, cases.layers / cases.pp, np.where(as_layers, (cases.layers + 2.0) / cases.pp, np.ceil(cases.layers / cases.pp))
    )
    edge = np.where(
        as_layers,
        middle - 1.0,
        np.where(even, middle, np.minimum(middle, np.maximum(cases.layers - middle * (cases.pp - 1.0), 1.0))),
    )
    edge = np.where(cases.whole_blocks > 0, np.floor(cases.layers / cases.pp), edge)
    block, embedding = block_parameters(cases) / cases.tp, embedding_parameters(cases) / cases.tp
    head = cases.vocab * cases.hidden / cases.tp
    alone = model_parameters(cases) / cases.tp
    piped = cases.pp > 1
    first = np.where(piped, np.where(as_layers, edge, middle) * block + embedding, alone)
    last = np.where(piped, edge * block + head + cases.hidden, alone)
    inner = np.where(cases.pp > 2, middle * block, 0.0)
    return Stages(
        mean_layers=cases.layers / cases.pp,
        first_layers=np.where(as_layers, edge, middle),
        middle_layers=middle,
        last_layers=edge,
        parameters=np.maximum(np.maximum(first, last), inner),
        first_parameters=first,
        middle_parameters=inner,
        last_parameters=last,
    )
