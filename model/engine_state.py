"""The training state inside a DeepSpeed engine as fragments of named parameters: read, and put back.

DeepSpeed keeps Adam's state in another form for each ZeRO stage.  Here each is a list of `Span`s, so that a checkpoint
knows names and numbers only.  What is used of DeepSpeed: parameters' `_hp_mapping` (stages 1 and 2; what its
`safe_get_full_fp32_param` reads), `safe_get_local_*` and `safe_set_local_*` (stage 3; deepspeed.readthedocs.io,
"Debugging"), and `update_lp_params`, which its own loading of universal checkpoints ends with.  Tested with 0.19.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from model.cut import Cut
from model.state import KINDS, Fragment, StateError, StateReader

_MOMENTS = KINDS[1:]
_SCALER_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of DeepSpeed's DynamicLossScaler."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands among those that hold the same stage."""

    replica: int
    replicas: int
    tensor_rank: int = 0
    tensor_size: int = 1


@dataclass(frozen=True, slots=True)
class Span:
    """What this rank holds of one parameter's state."""

    fragment: Fragment
    tensors: dict[str, Tensor]
    """kind -> (numel,) fp32, views into the optimizer's own memory."""


class EngineState:
    """One DeepSpeed engine's training state; every method that says so is collective."""

    def __init__(self, engine: Any, place: Place) -> None:
        self._engine, self._place = engine, place
        self._base: torch.optim.Optimizer = engine.basic_optimizer
        self._names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        self._stage = int(engine.zero_optimization_stage())

    def owned(self) -> list[Span]:
        """The spans that this rank writes: together with the other ranks' they are every parameter exactly once."""
        self._make_state()
        return [span for parameter in self._parameters() if (span := self._owned(parameter)) and span.fragment.numel]

    def adam_steps(self) -> int:
        """Optimizer updates done.  Raises StateError where they differ between parameters."""
        self._make_state()
        counts = {int(state["step"]) for state in self._base.state.values()}
        if len(counts) > 1:
            raise StateError(f"parameters of one run have had different numbers of updates: {sorted(counts)}")
        return counts.pop() if counts else 0

    def loss_scale(self) -> dict[str, float]:
        """The state of fp16's dynamic loss scale; empty in other precisions."""
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {name: getattr(scaler, name) for name in _SCALER_NUMBERS} if getattr(scaler, "dynamic", False) else {}

    def restore_loss_scale(self, numbers: Mapping[str, float]) -> None:
        """Takes what `loss_scale` gave; nothing where the run or the checkpoint has none."""
        if self.loss_scale():
            for name in numbers.keys() & set(_SCALER_NUMBERS):
                setattr(self._engine.optimizer.loss_scaler, name, numbers[name])

    def restore(self, reader: StateReader) -> None:
        """Puts a checkpoint's state into the engine, whatever layout wrote it.  Collective.

        Raises StateError, before anything is changed, where the checkpoint's parameters are not the model's.
        """
        self._check(reader)
        self._make_state()
        for parameter in self._parameters():
            if self._stage == 3:
                self._restore_partition(parameter, reader)
            elif (span := self._held(parameter)) is not None:
                for kind, tensor in span.tensors.items():
                    tensor.copy_(reader.read(span.fragment, kind))
        for state in self._base.state.values():
            if isinstance(state["step"], Tensor):
                state["step"].fill_(float(reader.adam_steps))
            else:
                state["step"] = reader.adam_steps
        if self._stage in (1, 2) or hasattr(self._engine.optimizer, "update_lp_params"):
            self._engine.optimizer.update_lp_params()

    def _check(self, reader: StateReader) -> None:
        mine: dict[str, tuple[int, ...] | str] = {}
        for parameter in self._parameters():
            try:
                whole = self._whole_shape(parameter)
                mine[self._name(parameter)] = whole
            except StateError as error:
                mine[self._name(parameter)] = str(error)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        wanted = {name: shape for each in everyone for name, shape in each.items()}
        there = {name: stored.whole_shape for name, stored in reader.parameters.items()}
        faults = [f"{name} is not in the checkpoint" for name in wanted.keys() - there.keys()]
        faults += [f"{name} is not in the model" for name in there.keys() - wanted.keys()]
        both = wanted.keys() & there.keys()
        faults += [f"{name} is {there[name]} there and {wanted[name]} here" for name in both if there[name] != wanted[name]]
        if faults:
            raise StateError(f"{reader.folder} does not fit the model: {'; '.join(sorted(faults)[:10])}")

    def _parameters(self) -> Iterable[nn.Parameter]:
        return (parameter for parameter in self._engine.module.parameters() if parameter.requires_grad)

    def _name(self, parameter: nn.Parameter) -> str:
        return self._names[id(parameter)]

    def _owned(self, parameter: nn.Parameter) -> Span | None:
        whole_everywhere = self._cut(parameter) is None and self._place.tensor_rank > 0
        # A tied weight lies on several stages; DeepSpeed marks all but the first.
        if whole_everywhere or getattr(parameter, "ds_pipe_replicated", False):
            return None
        span = self._partition(parameter) if self._stage == 3 else self._held(parameter)
        if span is None or self._stage != 0 or hasattr(parameter, "_hp_mapping"):
            return span
        # Without ZeRO every replica holds everything: each writes its share.
        share = span.fragment.part(self._place.replica, self._place.replicas)
        return Span(share, {kind: t[share.start : share.start + share.numel] for kind, t in span.tensors.items()})

    def _held(self, parameter: nn.Parameter) -> Span | None:
        """Stages 0 to 2: None where this rank's partition has nothing of the parameter."""
        name, whole, cut = self._name(parameter), self._whole_shape(parameter), self._cut(parameter)
        if not hasattr(parameter, "_hp_mapping"):
            state = self._base.state[parameter]
            flat = {"fp32": parameter.data, **{kind: state[kind] for kind in _MOMENTS}}
            return Span(Fragment(name, whole, cut, 0, parameter.numel()), {kind: t.view(-1) for kind, t in flat.items()})
        mapping: Any = parameter._hp_mapping
        if mapping is None:
            return None
        (partition,) = self._base.param_groups[mapping.param_group_index]["params"]
        at, here = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
        state = self._base.state[partition]
        tensors = {"fp32": partition.data, **{kind: state[kind] for kind in _MOMENTS}}
        fragment = Fragment(name, whole, cut, at.start, at.numel)
        return Span(fragment, {kind: t.narrow(0, here.start, here.numel) for kind, t in tensors.items()})

    def _partition(self, parameter: Any) -> Span:
        """Stage 3: this rank's part, without the padding of the last one."""
        size = parameter.partition_numel()
        start = size * dist.get_rank(parameter.ds_process_group)
        numel = max(0, min(size, parameter.ds_numel - start))
        tensors = {"fp32": safe_get_local_fp32_param(parameter)}
        tensors |= {kind: safe_get_local_optimizer_state(parameter, kind) for kind in _MOMENTS}
        fragment = Fragment(self._name(parameter), self._whole_shape(parameter), self._cut(parameter), start, numel)
        return Span(fragment, {kind: tensor.view(-1)[:numel] for kind, tensor in tensors.items()})

    def _restore_partition(self, parameter: Any, reader: StateReader) -> None:
        span = self._partition(parameter)
        padded = {}
        for kind in KINDS:
            padded[kind] = torch.zeros(parameter.partition_numel())
            padded[kind][: span.fragment.numel] = reader.read(span.fragment, kind)
        device = parameter.ds_tensor.device
        safe_set_local_fp32_param(parameter, padded["fp32"].to(device))
        for kind in _MOMENTS:
            safe_set_local_optimizer_state(parameter, padded[kind].to(device), kind)
        parameter.ds_tensor.data.copy_(padded["fp32"])
        # Small parameters are kept whole on every rank.
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:
            whole = Fragment(span.fragment.name, span.fragment.whole_shape, span.fragment.cut, 0, parameter.ds_numel)
            parameter.data.copy_(reader.read(whole, "fp32").view(parameter.shape))

    def _cut(self, parameter: nn.Parameter) -> Cut | None:
        shard = getattr(parameter, "tensor_shard", None)
        if shard is None or self._place.tensor_size == 1:
            return None
        return Cut(shard.dim, tuple(shard.parts), self._place.tensor_rank, self._place.tensor_size)

    def _whole_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        local = tuple(getattr(parameter, "ds_shape", parameter.shape))
        cut = self._cut(parameter)
        if cut is None:
            return local
        whole = (*local[: cut.dim], sum(cut.parts), *local[cut.dim + 1 :])
        if cut.shape(whole) != local:
            raise StateError(f"{self._name(parameter)} has shape {local}, which is not shard {cut} of {whole}")
        return whole

    def _make_state(self) -> None:
        """Adam's state is made in its first update; a checkpoint may be read before, or written when all were skipped."""
        if self._stage == 3:
            held = list(self._engine.optimizer.fp32_partitioned_groups_flat)
        else:
            held = [parameter for group in self._base.param_groups for parameter in group["params"]]
        for parameter in held:
            state = self._base.state[parameter]
            if not state:
                # torch counts updates in a tensor (its fused Adam on the device), DeepSpeed's own Adams in a number.
                is_torch = type(self._base).__module__.startswith("torch.")
                device = parameter.device if self._base.defaults.get("fused") else None
                state["step"] = torch.zeros((), device=device) if is_torch else 0
                for kind in _MOMENTS:
                    state[kind] = torch.zeros_like(parameter)
