"""The ranks of a run: how they meet, what they tell each other, and where each stands in the layout."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

# Before deepspeed is imported: it chooses its accelerator then, and without a GPU would look for one.
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from deepspeed.utils import logger as deepspeed_logger

from model.contract import LayoutSpec
from model.sequence_parallel import WHOLE, SequenceGroup
from model.tensor_parallel import ALONE, TensorGroup


@dataclass(frozen=True, slots=True)
class Grid:
    """Stages x replicas x sequence ranks x tensor ranks: where this rank stands among them, and the groups that follow."""

    topology: PipeModelDataParallelTopology
    """DeepSpeed's: to it every sequence rank is a replica."""
    replica: int
    zero_rank: int
    """Among the ranks that ZeRO spreads the state over: replicas x sequence ranks."""
    tensor_group: TensorGroup
    sequence_group: SequenceGroup
    process_groups: PipelineParallelGrid | None
    """As DeepSpeed's flat engine asks for them; None where it needs none, or its pipeline makes its own."""


def grid_of(layout: LayoutSpec) -> Grid:
    """The run's grid; makes the process groups of tensor and sequence ranks.  Collective; `join_ranks` comes first."""
    zero_ranks = layout.data * layout.sequence
    topology = PipeModelDataParallelTopology(num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=zero_ranks)
    here = topology.get_coord(dist.get_rank())
    tensor_group = ALONE
    if layout.tensor > 1:
        for ranks in topology.get_axis_comm_lists("model"):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                tensor_group = TensorGroup(here.model, layout.tensor, group)
    replica, part = divmod(here.data, layout.sequence)
    sequence_group = WHOLE
    if layout.sequence > 1:
        for ranks in topology.get_axis_comm_lists("data"):
            for first in range(0, zero_ranks, layout.sequence):
                members = ranks[first : first + layout.sequence]
                group = dist.new_group(members)
                if dist.get_rank() in members:
                    sequence_group = SequenceGroup(part, layout.sequence, group)
    is_flat = layout.pipeline == 1 and layout.tensor > 1
    process_groups = PipelineParallelGrid(topology) if is_flat else None
    return Grid(topology, replica, here.data, tensor_group, sequence_group, process_groups)


def join_ranks(timeout_s: float) -> None:
    """Meets the other ranks (gloo without a GPU, nccl with one); the environment says who and where.

    Raises torch.distributed's errors where the ranks do not meet within `timeout_s`, which also bounds every later
    collective.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 wants to rename; nobody who runs this can act on it.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*deprecated", category=FutureWarning)
    # DeepSpeed would compile a shared-memory all-reduce with the system's C++ compiler into every HOME, a minute or
    # more the first time; gloo does the same work, and no switch turns the compiling off.
    # By name, because the attribute `deepspeed.comm.torch` is torch itself, not this module.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )


class PeerLost(Exception):
    """Another rank ended or cannot be reached; that rank's own log says why."""


@contextmanager
def as_peer_lost() -> Iterator[None]:
    """Turns the backends' many ways of saying that a peer is gone into PeerLost."""
    try:
        yield
    except dist.DistError as error:
        raise PeerLost(f"the other ranks cannot be reached: {error}") from error
    except RuntimeError as error:
        # gloo has no error type of its own, but begins its messages with its source file.
        if "gloo" not in str(error):
            raise
        raise PeerLost(f"another rank went away: {error}") from error


def leave_ranks() -> None:
    """Ends the process group; the other ranks may still be working."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_zero(value: Any) -> Any:
    """Rank 0's value on every rank.  Collective; for small things only, they are pickled."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=this_device())
    return box[0]


def from_every_rank(value: Any) -> list[Any]:
    """The ranks' values in rank order, on every rank.  Collective; for small things only, they are pickled."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def to_rank_zero(value: Any) -> list[Any]:
    """The ranks' values in rank order on rank 0, nothing on the others.  Collective; they are pickled."""
    values = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []


def this_device() -> torch.device:
    """Where this rank computes: its GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
