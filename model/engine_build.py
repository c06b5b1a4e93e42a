"""Builds a model on a rank that has no room for all of it: each matrix goes to its place as soon as it is drawn.

A first value follows from the run's seed and its parameter's name (`tensor_parallel.normal`), so one can be drawn, kept in
the form in which the rank trains it, and forgotten before the next: under ZeRO-3 as this rank's partition, else in the run's
precision on this rank's device.  While it builds, a rank's host memory holds what it keeps and one parameter in fp32.

DeepSpeed's own way, `with deepspeed.zero.Init():` around the model, makes every tensor in the run's precision, so that in
bf16 other values would be drawn, and partitions a parameter at the end of its module's constructor, where a constructor
around it may still mean to change it.  torch's hook at the registration of a parameter has neither trouble.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from model.contract import RunSpec
from model.engine_config import deepspeed_config, is_matrix
from model.engine_ranks import Grid, this_device
from model.layers import NUMBER_TYPES

Model = TypeVar("Model", bound=nn.Module)


def build_in_place(make: Callable[[], Model], spec: RunSpec, grid: Grid) -> Model:
    """What `make` makes, its matrices where they train.  Under ZeRO-3 collective; norms and biases stay whole."""
    place = _Partition(spec, grid) if spec.layout.zero == 3 else _Move(spec)

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and is_matrix(parameter):
            place(parameter)

    handle = register_module_parameter_registration_hook(registered)
    try:
        # DeepSpeed's pipeline broadcasts a tied weight as soon as it is built, which is nothing to derive.
        with torch.no_grad():
            return make().to(NUMBER_TYPES[spec.precision])
    finally:
        handle.remove()


class _Move:
    """To the device and the precision that it trains in."""

    def __init__(self, spec: RunSpec) -> None:
        self._device, self._type = this_device(), NUMBER_TYPES[spec.precision]

    def __call__(self, parameter: nn.Parameter) -> None:
        parameter.data = parameter.data.to(self._device, self._type)


class _Partition:
    """Cut over the ranks that ZeRO-3 spreads the state over; what is left of the parameter itself is empty."""

    def __init__(self, spec: RunSpec, grid: Grid) -> None:
        self._config, self._type = deepspeed_config(spec), NUMBER_TYPES[spec.precision]
        self._ranks = grid.process_groups
        self._group = self._ranks.get_data_parallel_group() if self._ranks else None
        self._first: Any = None

    def __call__(self, parameter: nn.Parameter) -> None:
        # DeepSpeed puts it into a list of its own to convert it, where it is registered once more.
        if is_zero_param(parameter) or self._first is parameter:
            return
        parameter.data = parameter.data.to(self._type)
        if self._first is None:
            self._first = parameter
            alone = nn.ParameterList([parameter])
            deepspeed.zero.Init(module=alone, config_dict_or_path=self._config, mpu=self._ranks, data_parallel_group=self._group)
        else:
            # What DeepSpeed's first conversion leaves behind for parameters that come later.
            self._first.convert_to_zero_parameters(param_list=[parameter])
