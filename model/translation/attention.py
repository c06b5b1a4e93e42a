"""What each head of each layer attends to, for one sentence, and its picture.

Weights are worked out beside the model from the inputs its attention layers were given: training and decoding never hold them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.encoder_decoder import CrossAttention, DecoderBlock, EncoderBlock, EncoderDecoder

KINDS: Final = ("encoder", "decoder", "cross")
"""Source to source, target to target before it, target to source."""


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(QKᵀ/√d_k) by layer: each (heads, queries, keys), rows summing to 1."""

    encoder: list[Tensor]
    decoder: list[Tensor]
    cross: list[Tensor]


@torch.no_grad()
def attention_of(model: EncoderDecoder, source_ids: list[int], target_ids: list[int]) -> Attention:
    """Of one source (ended) and one target (begun)."""
    kept = Attention([], [], [])
    was_training = model.training
    model.eval()
    with _watched(model, kept):
        device = next(model.parameters()).device
        model.logits(torch.tensor([source_ids], device=device), torch.tensor([target_ids], device=device))
    model.train(was_training)
    return kept


@contextmanager
def _watched(model: EncoderDecoder, kept: Attention) -> Iterator[None]:
    def watch(module: nn.Module, into: list[Tensor], causal: bool) -> Any:
        def see(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            hidden_BTD = arguments[0]
            if isinstance(module, CrossAttention):
                q_BHTK, k_BGSK = module.queries(hidden_BTD, 1), arguments[1]
            else:
                q_BHTK, k_BGSK, _ = module.queries_keys_values(hidden_BTD)
            into.append(_weights(q_BHTK, k_BGSK, causal)[0].float().cpu())

        return module.register_forward_pre_hook(see, with_kwargs=True)

    handles = []
    for module, _ in model.layers():
        if isinstance(module, EncoderBlock):
            handles.append(watch(module.attention, kept.encoder, False))
        elif isinstance(module, DecoderBlock):
            handles.append(watch(module.attention, kept.decoder, True))
            handles.append(watch(module.cross, kept.cross, False))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weights(q_BHTK: Tensor, k_BGSK: Tensor, causal: bool) -> Tensor:
    k_BHSK = k_BGSK.repeat_interleave(q_BHTK.size(1) // k_BGSK.size(1), dim=1)
    scores_BHTS = q_BHTK @ k_BHSK.mT / math.sqrt(q_BHTK.size(-1))
    if causal:
        later_TS = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(later_TS, -math.inf)
    return scores_BHTS.softmax(-1)


def draw_attention(attention: Attention, source: list[str], target: list[str], path: Path) -> None:
    """A PNG with a block for each kind: a row per layer, a column per head; dark is much.  Queries run down, keys across."""
    # late: matplotlib takes a second to import, and only this picture needs it
    from matplotlib.figure import Figure

    words = {"encoder": (source, source), "decoder": (target, target), "cross": (target, source)}
    titles = {"encoder": "encoder: source to source", "decoder": "decoder: target to target", "cross": "decoder to source"}
    heads, longest = len(attention.cross[0]), max(len(source), len(target))
    side = 1.1 + 0.16 * longest
    rows = sum(len(getattr(attention, kind)) for kind in KINDS)
    figure = Figure(figsize=(side * heads + 0.6, side * rows + 1.0), layout="constrained")
    blocks = figure.subfigures(len(KINDS), 1, height_ratios=[len(getattr(attention, kind)) for kind in KINDS], squeeze=False)
    for kind, block in zip(KINDS, blocks[:, 0], strict=True):
        layers: list[Tensor] = getattr(attention, kind)
        block.suptitle(titles[kind])
        grid = block.subplots(len(layers), heads, squeeze=False)
        queries, keys = words[kind]
        for layer, weights_HTS in enumerate(layers):
            for head in range(heads):
                axes = grid[layer][head]
                axes.imshow(weights_HTS[head].numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
                axes.set_yticks(range(len(queries)), queries if head == 0 else [""] * len(queries), fontsize=7)
                bottom = layer == len(layers) - 1
                axes.set_xticks(range(len(keys)), keys if bottom else [""] * len(keys), fontsize=7, rotation=90)
                axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7, pad=2)
    draft = path.with_name(f"{path.name}.draft")
    figure.savefig(draft, dpi=110, format="png")
    draft.replace(path)
