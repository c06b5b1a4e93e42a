"""The encoder-decoder of "Attention Is All You Need" (Vaswani et al. 2017, arXiv 1706.03762), as a list of layers.

Shapes stand in the names as in `transformer.py`, whose layers these are made of: B sentences, S source tokens, T target tokens,
R rows of a beam search (some per sentence), D model width, H heads of this rank, G key/value heads of this rank, K head width.

What travels from layer to layer, and from stage to stage of a pipeline:
    encoder   (hidden (B, S, D), target vectors (B, T, D), source ids (B, S))
    decoder   (hidden (B, T, D), memory (B, S, D), source ids (B, S)); after the last layer hidden alone
The mask is reckoned from the ids where it is needed.  Every float that crosses a boundary is used behind it, because DeepSpeed's
pipeline sends a gradient back for each; and the two triples have the same types in the same places, because it receives
activations and gradients in the same buffers, one per place, whatever their type (DeepSpeed 0.19).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from model.attention import attend
from model.dropout import Dropout, Moment
from model.kv_cache import LayerCache
from model.layers import FeedForward, Recipe, SelfAttention, heads, norm, residual
from model.recompute import Recompute, recomputed
from model.shape import BlockKind, EncoderDecoderShape
from model.tensor_parallel import ColumnLinear, CrossEntropy, RowLinear
from model.transformer import (
    Call,
    Embedding,
    LayerPlan,
    LayerStack,
    Positions,
    Transformer,
    layer_plans,
    next_token_loss,
    to_logits,
)
from model.translation.special_tokens import PAD

Carried = tuple[Tensor, Tensor, Tensor]


def plans_of(recipe: Recipe) -> list[LayerPlan]:
    """The layers of a recipe's model, with an encoder or without."""
    return encoder_decoder_plans(recipe) if isinstance(recipe.shape, EncoderDecoderShape) else layer_plans(recipe)


def model_of(recipe: Recipe) -> Transformer | EncoderDecoder:
    """A recipe's model whole."""
    return EncoderDecoder(recipe) if isinstance(recipe.shape, EncoderDecoderShape) else Transformer(recipe)


def loss_of(recipe: Recipe) -> nn.Module:
    """The loss over the last layer's logits."""
    return PairLoss(recipe) if isinstance(recipe.shape, EncoderDecoderShape) else next_token_loss(recipe)


def encoder_decoder_plans(recipe: Recipe) -> list[LayerPlan]:
    """Embedding and positions of both sides, encoder, decoder, head; with pre-norm a norm after each half.

    One matrix is both embeddings and the head (section 3.4).
    """
    shape = _shape(recipe)
    pre = shape.block is BlockKind.PRE_LN
    return [
        _embedding(recipe, embed_pair),
        LayerPlan(PairPositions, (recipe,)),
        *(LayerPlan(EncoderBlock, (recipe, index)) for index in range(shape.encoder_layers)),
        *([LayerPlan(EncoderNorm, (recipe,))] if pre else []),
        LayerPlan(ToDecoder),
        *(LayerPlan(DecoderBlock, (recipe, index, index == shape.layers - 1)) for index in range(shape.layers)),
        *([LayerPlan(DecoderNorm, (recipe,))] if pre else []),
        _embedding(recipe, to_logits),
    ]


def _embedding(recipe: Recipe, call: Call) -> LayerPlan:
    return LayerPlan(Embedding, (recipe,), tied_key="embedding", call=call)


def _shape(recipe: Recipe) -> EncoderDecoderShape:
    if not isinstance(recipe.shape, EncoderDecoderShape):
        raise TypeError(f"{recipe.shape} has no encoder")
    return recipe.shape


class EncoderDecoder(LayerStack):
    """The model whole; also the parts of it that a translation runs one after the other."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, encoder_decoder_plans(recipe))
        self.loss = PairLoss(recipe)

    def logits(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        """Source ids, ended, and target ids, begun -> logits (B, T, W) of the token after each target token."""
        carried: Any = (source_BS, target_BT)
        for module, call in self.layers():
            carried = call(module, carried) if call else module(carried)
        return carried

    def forward(self, source_BS: Tensor, target_in_BT: Tensor, target_out_BT: Tensor, tokens_per_micro_batch: Tensor) -> Tensor:
        """This micro-batch's share of the step's mean cross-entropy (`PairLoss`), a scalar."""
        return self.loss(self.logits(source_BS, target_in_BT), (target_out_BT, tokens_per_micro_batch))

    def encode(self, source_BS: Tensor) -> Tensor:
        """Source ids -> memory (B, S, D)."""
        carried: Any = (source_BS, source_BS[:, :0])
        for module, call in self.layers():
            if isinstance(module, ToDecoder):
                break
            carried = call(module, carried) if call else module(carried)
        return carried[0]

    def decoder(self) -> Iterator[DecoderBlock]:
        """The decoder's layers in order."""
        return (module for module, _ in self.layers() if isinstance(module, DecoderBlock))

    def decode(self, tokens_RT: Tensor, first: int, run_block: Any) -> Tensor:
        """Target ids, the first at position `first` -> logits (R, T, W); `run_block(block, hidden)` runs a decoder layer."""
        hidden: Any = tokens_RT
        for module, call in self.layers():
            if call is embed_pair:
                hidden = module(hidden)
            elif isinstance(module, PairPositions):
                hidden = module.target(hidden, first)
            elif isinstance(module, DecoderBlock):
                hidden = run_block(module, hidden)
            elif isinstance(module, DecoderNorm) or call is to_logits:
                hidden = call(module, hidden) if call else module(hidden)
        return hidden


class PairLoss(CrossEntropy):
    """Sum of cross-entropies over the targets that are not PAD, divided by the step's tokens per micro-batch.

    Averaged over the micro-batches of a step, as data parallelism, accumulation and pipeline all do, this is the step's mean
    per token, although micro-batches differ in tokens.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.shape.vocabulary, recipe.label_smoothing, recipe.group)

    def forward(self, logits_BTW: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        targets_BT, tokens_per_micro_batch = targets
        losses_N = self.of_tokens(logits_BTW, targets_BT)
        return losses_N.masked_fill(targets_BT.flatten() == PAD, 0.0).sum() / tokens_per_micro_batch


# ---------------------------------------------------------------------- what is between the blocks
def embed_pair(embedding: nn.Module, ids: tuple[Tensor, Tensor]) -> Carried:
    """Source and target ids -> the vectors of both, and the source ids."""
    source_BS, target_BT = ids
    return embedding(source_BS), embedding(target_BT), source_BS


class PairPositions(nn.Module):
    """`Positions` for each side."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.source = Positions(recipe, "encoder.positions")
        self.target = Positions(recipe, "decoder.positions")

    def forward(self, carried: Carried) -> Carried:
        vectors_BSD, target_BTD, source_BS = carried
        return self.source(vectors_BSD), self.target(target_BTD), source_BS


class ToDecoder(nn.Module):
    """What the encoder gave becomes the memory, and the target's vectors what is worked on."""

    def forward(self, carried: Carried) -> Carried:
        memory_BSD, target_BTD, source_BS = carried
        return target_BTD, memory_BSD, source_BS


class EncoderNorm(nn.Module):
    """The norm after a pre-norm encoder."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.norm = norm(recipe.shape)

    def forward(self, carried: Carried) -> Carried:
        hidden_BSD, target_BTD, source_BS = carried
        return self.norm(hidden_BSD), target_BTD, source_BS


class DecoderNorm(EncoderNorm):
    """The norm after a pre-norm decoder."""

    def forward(self, hidden_BTD: Tensor) -> Tensor:  # type: ignore[override]
        return self.norm(hidden_BTD)


# ---------------------------------------------------------------------- blocks
class EncoderBlock(nn.Module):
    """Self-attention over the whole source, then feed-forward, each with its norm, dropout and residual."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        super().__init__()
        name = f"encoder.block.{index}"
        self.kind, self.recompute, self.clock = recipe.shape.block, recipe.recompute, recipe.clock
        self.attention_norm = norm(recipe.shape)
        self.attention = SelfAttention(recipe, f"{name}.attention")
        self.attention_dropout = Dropout(recipe.dropout, f"{name}.attention", recipe.clock)
        self.feed_forward_norm = norm(recipe.shape)
        self.feed_forward = FeedForward(recipe, f"{name}.feed_forward")
        self.feed_forward_dropout = Dropout(recipe.dropout, f"{name}.feed_forward", recipe.clock)

    def forward(self, carried: Carried) -> Carried:
        hidden_BSD, target_BTD, source_BS = carried
        arguments = (hidden_BSD, visible(source_BS), self.clock.now)
        hidden_BSD = recomputed(self._run, *arguments) if self.recompute is Recompute.FULL else self._run(*arguments)
        return hidden_BSD, target_BTD, source_BS

    def _run(self, hidden_BSD: Tensor, visible_B11S: Tensor, moment: Moment) -> Tensor:
        hidden_BSD = residual(
            hidden_BSD,
            lambda x: self.attention(x, visible_B1TS=visible_B11S),
            self.attention_norm,
            self.attention_dropout,
            moment,
            self.kind,
        )
        return residual(hidden_BSD, self.feed_forward, self.feed_forward_norm, self.feed_forward_dropout, moment, self.kind)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the memory, feed-forward, each with its norm, dropout and residual."""

    def __init__(self, recipe: Recipe, index: int, last: bool) -> None:
        super().__init__()
        name = f"decoder.block.{index}"
        self.index, self.last = index, last
        self.kind, self.recompute, self.clock = recipe.shape.block, recipe.recompute, recipe.clock
        self.attention_norm = norm(recipe.shape)
        self.attention = SelfAttention(recipe, f"{name}.attention")
        self.attention_dropout = Dropout(recipe.dropout, f"{name}.attention", recipe.clock)
        self.cross_norm = norm(recipe.shape)
        self.cross = CrossAttention(recipe, f"{name}.cross")
        self.cross_dropout = Dropout(recipe.dropout, f"{name}.cross", recipe.clock)
        self.feed_forward_norm = norm(recipe.shape)
        self.feed_forward = FeedForward(recipe, f"{name}.feed_forward")
        self.feed_forward_dropout = Dropout(recipe.dropout, f"{name}.feed_forward", recipe.clock)

    def forward(self, carried: Carried) -> Carried | Tensor:
        hidden_BTD, memory_BSD, source_BS = carried
        arguments = (hidden_BTD, memory_BSD, visible(source_BS), self.clock.now)
        hidden_BTD = recomputed(self._run, *arguments) if self.recompute is Recompute.FULL else self._run(*arguments)
        return hidden_BTD if self.last else (hidden_BTD, memory_BSD, source_BS)

    def _run(self, hidden_BTD: Tensor, memory_BSD: Tensor, visible_B11S: Tensor, moment: Moment) -> Tensor:
        return self.run(hidden_BTD, self.cross.keys_and_values(memory_BSD), visible_B11S, None, moment)

    def run(
        self,
        hidden_RTD: Tensor,
        keys_and_values: tuple[Tensor, Tensor],
        visible_B11S: Tensor,
        cache: LayerCache | None,
        moment: Moment,
    ) -> Tensor:
        """One layer, given the memory's keys and values; with a cache, the tokens follow those that it holds."""
        hidden_RTD = residual(
            hidden_RTD, lambda x: self.attention(x, cache), self.attention_norm, self.attention_dropout, moment, self.kind
        )
        hidden_RTD = residual(
            hidden_RTD,
            lambda x: self.cross(x, *keys_and_values, visible_B11S),
            self.cross_norm,
            self.cross_dropout,
            moment,
            self.kind,
        )
        return residual(hidden_RTD, self.feed_forward, self.feed_forward_norm, self.feed_forward_dropout, moment, self.kind)


class CrossAttention(nn.Module):
    """Queries from the decoder, keys and values from the encoder's output (section 3.2.3); rotary positions do not apply."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        super().__init__()
        shape = recipe.shape
        self.d_key, self.d_head = shape.d_query_key, shape.d_head
        queries, keys, values = shape.attention_widths
        self.kv_widths = [width // recipe.group.size for width in (keys, values)]
        common: dict[str, Any] = {
            "bias": shape.biases and shape.attention_biases,
            "seed": recipe.seed,
            "group": recipe.group,
        }
        inputs, deviation = shape.d_model, recipe.matrix_deviation(shape.d_model, sum(shape.attention_widths))
        self.query = ColumnLinear(inputs, (queries,), name=f"{name}.query", deviation=deviation, **common)
        self.key_value = ColumnLinear(inputs, (keys, values), name=f"{name}.key_value", deviation=deviation, **common)
        deviation = recipe.matrix_deviation(inputs, inputs, residual=True)
        self.output = RowLinear(inputs, inputs, name=f"{name}.output", deviation=deviation, **common)

    def keys_and_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Of the memory, by head: (B, G, S, K) each."""
        k_BSE, v_BSE = self.key_value(memory_BSD).split(self.kv_widths, dim=-1)
        return heads(k_BSE, self.d_key), heads(v_BSE, self.d_head)

    def forward(self, hidden_RTD: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B11S: Tensor) -> Tensor:
        """(R, T, D) -> (R, T, D); the R rows are B sentences times beams, which share their sentence's keys and values."""
        seen_BHQK = attend(self.queries(hidden_RTD, len(k_BGSK)), k_BGSK, v_BGSK, visible_B11S)
        return self.output(seen_BHQK.transpose(1, 2).flatten(2).view(*hidden_RTD.shape[:2], -1))

    def queries(self, hidden_RTD: Tensor, sentences: int) -> Tensor:
        """By sentence and head, the tokens of a sentence's rows one after the other: (B, H, R/B·T, K)."""
        return heads(self.query(hidden_RTD).view(sentences, -1, self.query.weight.size(0)), self.d_key)


def visible(source_BS: Tensor) -> Tensor:
    """Which source tokens may be attended to: (B, 1, 1, S), bool."""
    return (source_BS != PAD)[:, None, None, :]
