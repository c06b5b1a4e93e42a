"""Layers whose weights are split over tensor ranks (Shoeybi et al. 2019, Megatron-LM, arXiv 1909.08053, section 3).

A column-parallel layer followed by a row-parallel one costs one all-reduce forward and one backward; embedding and loss
are split over the vocabulary, and no rank ever holds the logits of all of it.  On one rank every layer is the plain one.

Shapes: B sequences, T tokens, N = B·T, D model width, V vocabulary, W this rank's part of the vocabulary.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from model.cut import Cut


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """The ranks that share each layer of one stage of one replica, and which of them this is."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """torch.distributed's process group; None on one rank."""


ALONE: Final = TensorGroup()


@dataclass(frozen=True, slots=True)
class Shard:
    """How a parameter is split over tensor ranks: along `dim`, each of its `parts` by itself.

    A fused matrix has several parts (queries, keys and values), so that each rank gets its heads of each.  Parts that do
    not divide are split as torch.chunk does: the last rank has fewer.  Checkpoints keep it as a `model.cut.Cut`.
    """

    dim: int
    parts: tuple[int, ...]
    """Sizes along `dim` of the whole parameter's parts."""

    def split(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """The part of `rank` among `size` ranks."""
        return Cut(self.dim, self.parts, rank, size).of(whole)


def shards_of(module: nn.Module) -> dict[str, Shard]:
    """Name -> how it is split, of every parameter that is; all others are whole on each rank."""
    return {name: p.tensor_shard for name, p in module.named_parameters() if hasattr(p, "tensor_shard")}


def normal(size: tuple[int, ...], seed: int | None, name: str, deviation: float) -> Tensor:
    """First values N(0, deviation²), drawn from the run's seed and the parameter's own name.

    So a parameter starts the same in every layout, whichever rank builds it and in whatever order.  Without a seed, for a model
    that is to take a checkpoint's values: NaN, so that one that got none cannot pass for trained.
    """
    if torch.get_default_device().type == "meta":
        return torch.empty(size)
    if seed is None:
        return torch.full(size, math.nan, device="cpu")
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return torch.empty(size, device="cpu").normal_(0.0, deviation, generator=generator)


def shared_parameter(whole: Tensor, shard: Shard, group: TensorGroup) -> nn.Parameter:
    """This rank's part of a parameter, with its Shard, marked so that DeepSpeed counts every part in the gradient norm."""
    if group.size == 1:
        parameter = nn.Parameter(whole)
    else:
        parameter = nn.Parameter(shard.split(whole, group.rank, group.size).contiguous())
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.tensor_shard = shard  # type: ignore[attr-defined]
    return parameter


class ColumnLinear(nn.Module):
    """xA + b with A's output columns split: (…, D) whole -> (…, outputs / ranks)."""

    def __init__(
        self,
        inputs: int,
        outputs: tuple[int, ...],
        *,
        bias: bool,
        seed: int | None,
        name: str,
        deviation: float,
        group: TensorGroup,
        zero: tuple[int, ...] = (),
    ) -> None:
        """`zero`: numbers of the parts of `outputs` whose columns begin as 0."""
        super().__init__()
        self.group = group
        shard = Shard(0, outputs)
        whole = normal((sum(outputs), inputs), seed, name, deviation)
        for number, columns in enumerate(whole.split(outputs)):
            if number in zero:
                columns.zero_()
        self.weight = shared_parameter(whole, shard, group)
        self.bias = shared_parameter(torch.zeros(sum(outputs)), shard, group) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(to_ranks(hidden, self.group), self.weight, self.bias)


class RowLinear(nn.Module):
    """xA + b with A's input rows split: (…, inputs / ranks) -> (…, D) whole; the bias is added once, after the sum."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, seed: int | None, name: str, deviation: float, group: TensorGroup
    ) -> None:
        super().__init__()
        self.group = group
        self.weight = shared_parameter(normal((outputs, inputs), seed, name, deviation), Shard(1, (inputs,)), group)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.group.size == 1:
            return functional.linear(hidden, self.weight, self.bias)
        whole = sum_over_ranks(functional.linear(hidden, self.weight), self.group)
        return whole if self.bias is None else whole + self.bias


class VocabularyMatrix(nn.Module):
    """One vector per token, the tokens split over ranks: an embedding, a head, or both where they are tied."""

    def __init__(
        self, vocabulary: int, d_model: int, *, seed: int | None, name: str, deviation: float, group: TensorGroup
    ) -> None:
        super().__init__()
        self.group = group
        self.first = -(-vocabulary // group.size) * group.rank
        """Id of the first token that lies here."""
        whole_VD = normal((vocabulary, d_model), seed, name, deviation)
        self.weight = shared_parameter(whole_VD, Shard(0, (vocabulary,)), group)

    def forward(self, inputs: Tensor, to_logits: bool = False) -> Tensor:
        """Ids (B, T) -> vectors (B, T, D), or vectors (B, T, D) -> this rank's logits (B, T, W)."""
        # Both uses go through forward: ZeRO-3 gathers a weight only around its own module's call.
        if to_logits:
            return functional.linear(to_ranks(inputs, self.group), self.weight)
        if self.group.size == 1:
            return functional.embedding(inputs, self.weight)
        here_BT = inputs - self.first
        elsewhere_BT = (here_BT < 0) | (here_BT >= len(self.weight))
        vectors_BTD = functional.embedding(here_BT.masked_fill(elsewhere_BT, 0), self.weight)
        return sum_over_ranks(vectors_BTD.masked_fill(elsewhere_BT.unsqueeze(-1), 0.0), self.group)


def to_ranks(hidden: Tensor, group: TensorGroup) -> Tensor:
    """The same values going into every rank's part of a layer; backward, the parts' gradients are summed."""
    return hidden if group.size == 1 else _ToRanks.apply(hidden, group)


def sum_over_ranks(partial: Tensor, group: TensorGroup) -> Tensor:
    """The sum of the ranks' partial results, on each of them; backward, each gets the whole gradient."""
    return partial if group.size == 1 else _SumOverRanks.apply(partial, group)


def own_columns(hidden: Tensor, group: TensorGroup) -> Tensor:
    """(…, D) whole -> (…, D / ranks): the columns of this rank's heads; backward, every rank gets all ranks' gradients."""
    return hidden if group.size == 1 else _OwnColumns.apply(hidden, group)


def all_columns(part: Tensor, group: TensorGroup) -> Tensor:
    """(…, D / ranks) -> (…, D) whole, the ranks' columns side by side; backward, each gets its own columns' gradient."""
    return part if group.size == 1 else _AllColumns.apply(part, group)


def _gathered(part: Tensor, group: TensorGroup) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(group.size)]
    dist.all_gather(parts, part.contiguous(), group=group.group)
    return torch.cat(parts, dim=-1)


class _OwnColumns(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, group: TensorGroup) -> Tensor:
        context.tensor_group = group
        return hidden.chunk(group.size, dim=-1)[group.rank].contiguous()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return _gathered(gradients[0].contiguous(), context.tensor_group), None


class _AllColumns(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, group: TensorGroup) -> Tensor:
        context.tensor_group = group
        return _gathered(part.contiguous(), group)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        group = context.tensor_group
        return gradients[0].chunk(group.size, dim=-1)[group.rank].contiguous(), None


class _ToRanks(torch.autograd.Function):
    """f of Megatron-LM, figure 3: identity forward, all-reduce backward."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, group: TensorGroup) -> Tensor:
        context.tensor_group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=context.tensor_group.group)
        return total, None


class _SumOverRanks(torch.autograd.Function):
    """g of Megatron-LM, figure 3: all-reduce forward, identity backward."""

    @staticmethod
    def forward(context: Any, partial: Tensor, group: TensorGroup) -> Tensor:
        total = partial.contiguous().clone()
        dist.all_reduce(total, group=group.group)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class CrossEntropy(nn.Module):
    """Cross-entropy in nat per token, in fp32 whatever the precision, over logits split by vocabulary.

    While training, the target is (1 - smoothing)·one-hot + smoothing/V (label smoothing, Szegedy et al. 2016; Vaswani et
    al. 2017, section 5.4); an evaluation measures the plain loss.
    """

    def __init__(self, vocabulary: int, smoothing: float, group: TensorGroup) -> None:
        super().__init__()
        self.vocabulary, self.smoothing, self.group = vocabulary, smoothing, group

    def forward(self, logits_BTW: Tensor, targets_BT: Tensor) -> Tensor:
        """This rank's logits (B, T, W) and target ids (B, T) -> their mean, a scalar, the same on every rank."""
        return self.of_tokens(logits_BTW, targets_BT).mean()

    def of_tokens(self, logits_BTW: Tensor, targets_BT: Tensor) -> Tensor:
        """The same by token: (B·T,)."""
        smoothing = self.smoothing if self.training else 0.0
        logits_NW, targets_N = logits_BTW.flatten(0, -2), targets_BT.flatten()
        if self.group.size == 1:
            return functional.cross_entropy(logits_NW.float(), targets_N, label_smoothing=smoothing, reduction="none")
        first = -(-self.vocabulary // self.group.size) * self.group.rank
        return _SplitCrossEntropy.apply(logits_NW, targets_N - first, self.vocabulary, smoothing, self.group)


class _SplitCrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits whose columns lie on several ranks; what travels is three numbers per token."""

    @staticmethod
    def forward(context: Any, logits_NW: Tensor, here_N: Tensor, vocabulary: int, smoothing: float, group: TensorGroup) -> Tensor:
        logits_NW = logits_NW.float()
        elsewhere_N = (here_N < 0) | (here_N >= logits_NW.size(1))
        here_N = here_N.masked_fill(elsewhere_N, 0)
        largest_N = logits_NW.amax(dim=1)
        dist.all_reduce(largest_N, op=dist.ReduceOp.MAX, group=group.group)
        shifted_NW = logits_NW - largest_N.unsqueeze(1)
        target_N = shifted_NW.gather(1, here_N.unsqueeze(1)).squeeze(1).masked_fill(elsewhere_N, 0.0)
        exponents_NW = shifted_NW.exp()
        sums_3N = torch.stack([exponents_NW.sum(dim=1), target_N, shifted_NW.sum(dim=1)])
        dist.all_reduce(sums_3N, group=group.group)
        normaliser_N, target_N, total_N = sums_3N
        expected_N = (1.0 - smoothing) * target_N + smoothing / vocabulary * total_N
        context.save_for_backward(exponents_NW.div_(normaliser_N.unsqueeze(1)), here_N, elsewhere_N)
        context.target_share, context.every_share = 1.0 - smoothing, smoothing / vocabulary
        return normaliser_N.log() - expected_N

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        probabilities_NW, here_N, elsewhere_N = context.saved_tensors
        gradient_NW = probabilities_NW - context.every_share
        wanted_N1 = (~elsewhere_N).to(gradient_NW.dtype).mul_(context.target_share).unsqueeze(1)
        gradient_NW.scatter_add_(1, here_N.unsqueeze(1), -wanted_N1)
        return gradient_NW * gradients[0].unsqueeze(1), None, None, None, None
