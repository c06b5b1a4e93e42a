"""Smaller weights: quantized by torchao, pruned by torch.nn.utils.prune, kept as safetensors and read back.

Quantized are the matrices of attention and feed-forward; embeddings, norms and a tied head stay as they are.  What is written
is what is small: quantized numbers with their scales, 4-bit ones two to a byte, and of pruned matrices the numbers that are left
with a bit for each place.  Reading runs no code and unpickles nothing.

Weight-only int8: W ≈ s·round(W/s) with s = max|W|/127.5 per output; dynamic int8: activations too, per token, when they come.
2:4: of each four neighbours along the inputs, the two smallest are zero (Mishra et al. 2021, arXiv 2104.08378).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from model.contract import ModelSpec, model_of_shape
from model.layers import Recipe
from model.resumption import CheckpointError
from model.strict_json import build
from model.tensor_parallel import ColumnLinear, RowLinear
from model.transformer import Transformer

# Before torchao is imported, which then says of each of its CUDA libraries that it is not there.
if not torch.cuda.is_available():
    for talkative in ("torchao", "torch.utils._pytree"):
        logging.getLogger(talkative).setLevel(logging.ERROR)

# isort: split
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup


class Method(StrEnum):
    """What is done to the weights."""

    NONE = "none"
    INT8 = "int8"
    """Weights in 8 bits."""
    INT8_DYNAMIC = "int8-dynamic"
    """Weights and activations in 8 bits."""
    INT4 = "int4"
    """Weights in 4 bits, by groups of inputs; on disk, for a CPU works on them in 8."""
    PRUNE = "prune"
    """The smallest half of each matrix is zero."""
    PRUNE_2_4 = "prune-2:4"
    """Two of each four neighbours are zero."""

    @property
    def is_pruning(self) -> bool:
        return self in (Method.PRUNE, Method.PRUNE_2_4)


LAYERS: Final = ("attention", "feed_forward")
"""Parts of a block whose matrices can be made smaller."""


class CannotCompress(Exception):
    """A layer or a file that the method does not fit; the message names the legal choices."""


def matrices(model: nn.Module, layers: tuple[str, ...] = LAYERS) -> dict[str, nn.Module]:
    """Name -> layer, of those that are made smaller.  Raises CannotCompress for parts that cannot be."""
    for name in layers:
        if name not in LAYERS:
            reason = "an embedding is looked up, norms and gains are no matrices, and a tied head is the embedding"
            raise CannotCompress(f"{name} cannot be made smaller: {reason}; choose {' or '.join(LAYERS)}")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, ColumnLinear | RowLinear)}
    return {name: module for name, module in linear.items() if name.split(".")[1] in layers}


def compress(
    model: Transformer, method: Method, *, layers: tuple[str, ...] = LAYERS, group: int = 32, share: float = 0.5
) -> None:
    """Makes the model's matrices smaller in place.  `group`: inputs with one scale (int4); `share`: zeros (prune).

    Pruned matrices stay pruned while the model is trained, until `make_permanent`.  Raises CannotCompress, with nothing changed.
    """
    chosen = matrices(model, layers)
    weights = {name: module.get_parameter("weight") for name, module in chosen.items()}
    unit = group if method is Method.INT4 else 4 if method is Method.PRUNE_2_4 else 1
    for name, weight in weights.items():
        if weight.size(1) % unit:
            divisors = [str(d) for d in (128, 64, 32, 16, 8, 4, 2) if weight.size(1) % d == 0]
            choices = f"--group {' or '.join(divisors)}" if method is Method.INT4 and divisors else "int8 or prune"
            raise CannotCompress(
                f"{name} cannot be made {method}: groups of {unit} do not divide its {weight.size(1)} inputs; choose {choices}"
            )
    if method is Method.PRUNE:
        for module in chosen.values():
            prune.l1_unstructured(module, "weight", amount=share)
    elif method is Method.PRUNE_2_4:
        for module in chosen.values():
            _TwoOfFour.apply(module, "weight")
    elif method is not Method.NONE:
        config: Any = {
            Method.INT8: Int8WeightOnlyConfig,
            Method.INT8_DYNAMIC: Int8DynamicActivationInt8WeightConfig,
            Method.INT4: lambda: IntxWeightOnlyConfig(
                weight_dtype=torch.int4,  # type: ignore[attr-defined]
                granularity=PerGroup(group),
            ),
        }[method]()
        wanted = set(chosen)
        quantize_(model, config, filter_fn=lambda module, name: name in wanted)


class _TwoOfFour(prune.BasePruningMethod):
    """Keeps the two largest of each four neighbours along the inputs."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        fours = t.abs().unflatten(1, (-1, 4))
        kept = torch.zeros_like(fours).scatter_(-1, fours.topk(2, dim=-1).indices, 1.0)
        return default_mask * kept.flatten(1)


def make_permanent(model: nn.Module) -> None:
    """Pruned matrices become plain ones with zeros."""
    for module in model.modules():
        if prune.is_pruned(module) and hasattr(module, "weight_orig"):
            prune.remove(module, "weight")


def train_pruned(
    model: Transformer, batches: Iterator[tuple[Tensor, Tensor]], *, steps: int, lr: float, clip: float = 1.0
) -> None:
    """A short recovery: `steps` updates of AdamW at a falling rate; zeros stay zeros (Zhu & Gupta 2017, arXiv 1710.01878)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss = model(*next(batches))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    model.eval()


def memory_bytes(model: nn.Module) -> int:
    """What the model's tensors hold, masks and scales included."""
    state = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(_bytes(tensor) for tensor in state.values())


def _bytes(tensor: Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


# ------------------------------------------------------------------ on disk
def save(model: Transformer, path: Path, method: Method) -> None:
    """Writes the model whole or not at all.  Raises OSError."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tensors, about = flatten_tensor_state_dict(state)
    packed: dict[str, Tensor] = {}
    pruned = {f"{name}.weight" for name in matrices(model)} if method.is_pruning else set()
    for name, tensor in tensors.items():
        if method is Method.INT4 and name.endswith("_qdata"):
            packed[f"{name}:nibbles"] = _pack_nibbles(tensor)
        elif name in pruned:
            packed |= _only_what_is_left(name, tensor)
        else:
            packed[name] = tensor.contiguous()
    model_text = json.dumps(asdict(model_of_shape(model.recipe.shape)))
    draft = path.with_name(f"{path.name}.draft")
    try:
        save_file(packed, draft, metadata={**about, "method": str(method), "model": model_text})
        draft.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path) -> Transformer:
    """The model of a file that `save` wrote.  Raises CheckpointError where it is none."""
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        problems: list[str] = []
        spec = build(ModelSpec, json.loads(about["model"]), "model", problems)
        if spec is None or problems:
            raise CheckpointError(f"{path} holds a model that this program does not know: {'; '.join(problems)}")
        plain = {name: tensor for name, tensor in tensors.items() if ":" not in name}
        plain |= {name.removesuffix(":nibbles"): _unpack(tensors[name]) for name in tensors if name.endswith(":nibbles")}
        for name in (name for name in tensors if name.endswith(":places")):
            plain[name.removesuffix(":places")] = _with_zeros(name.removesuffix(":places"), tensors)
        state, _ = unflatten_tensor_state_dict(plain, about)
        with torch.device("meta"):
            model = Transformer(Recipe(spec.shape(), seed=0))
        model.load_state_dict(state, strict=True, assign=True)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no compressed model that can be read: {error}") from error
    return model.eval()


def _pack_nibbles(numbers: Tensor) -> Tensor:
    """(R, C) int8 of 4 bits -> (R, C/2) uint8."""
    bits = numbers.view(torch.uint8) & 15
    return bits[:, ::2] | (bits[:, 1::2] << 4)


def _unpack(packed: Tensor) -> Tensor:
    bits = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).view(torch.int8)
    return torch.where(bits > 7, bits - 16, bits)


def _only_what_is_left(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The numbers that are not zero, a bit for each place, and the shape."""
    is_left = (weight != 0).flatten()
    bits = nn.functional.pad(is_left, (0, -len(is_left) % 8)).view(-1, 8).to(torch.uint8)
    powers = 2 ** torch.arange(8, dtype=torch.uint8)
    places = (bits * powers).sum(-1, dtype=torch.uint8)
    return {f"{name}:left": weight.flatten()[is_left], f"{name}:places": places, f"{name}:shape": torch.tensor(weight.shape)}


def _with_zeros(name: str, tensors: dict[str, Tensor]) -> Tensor:
    rows, columns = tensors[f"{name}:shape"].tolist()
    bits = tensors[f"{name}:places"].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
    weight = torch.zeros(rows * columns, dtype=tensors[f"{name}:left"].dtype)
    weight[bits.flatten()[: len(weight)].bool()] = tensors[f"{name}:left"]
    return weight.view(rows, columns)
