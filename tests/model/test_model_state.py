"""Fragments on disk: whatever cut wrote them, whatever cut reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from model.cut import Cut
from model.state import KINDS, STATE_NAME, Fragment, StateError, StateReader, state_text, tensor_name

WHOLE = {"matrix": (12, 6), "fused": (14, 4), "vector": (6,), "vocabulary": (13, 5)}
CUTS = {"matrix": (1, (6,)), "fused": (0, (8, 4, 2)), "vocabulary": (0, (13,))}
"""name -> (dim, parts); the vector is whole on every tensor rank."""


def values(name: str, kind: str) -> torch.Tensor:
    shape = WHOLE[name]
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape) + 1000 * KINDS.index(kind) + len(name)


def fragments(tensor_size: int, owners: int) -> list[list[Fragment]]:
    """By rank: each of `tensor_size` tensor ranks has `owners` ranks that share its shards."""
    ranks: list[list[Fragment]] = []
    for tensor_rank in range(tensor_size):
        for owner in range(owners):
            mine = []
            for name, shape in WHOLE.items():
                is_cut = name in CUTS and tensor_size > 1
                if is_cut or tensor_rank == 0:
                    cut = Cut(*CUTS[name], tensor_rank, tensor_size) if is_cut else None
                    shard = Fragment(name, shape, cut, 0, math.prod(cut.shape(shape) if cut else shape))
                    mine.append(shard.part(owner, owners))
            ranks.append([fragment for fragment in mine if fragment.numel])
    return ranks


def content(fragment: Fragment, kind: str) -> torch.Tensor:
    whole = values(fragment.name, kind)
    shard = fragment.cut.of(whole) if fragment.cut else whole
    return shard.flatten()[fragment.start : fragment.start + fragment.numel].clone()


def write(folder: Path, ranks: list[list[Fragment]]) -> None:
    files = {f"rank-{number}": mine for number, mine in enumerate(ranks)}
    for file, mine in files.items():
        save_file({tensor_name(f.name, kind): content(f, kind) for f in mine for kind in KINDS}, folder / file)
    (folder / STATE_NAME).write_text(state_text(files, adam_steps=7, notes={"a": 1}))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3]), st.integers(1, 4), st.sampled_from([1, 2, 3, 4]), st.integers(1, 4))
def test_what_one_cut_wrote_any_other_reads(
    tmp_path_factory: pytest.TempPathFactory, wrote: int, wrote_owners: int, reads: int, read_owners: int
) -> None:
    folder = tmp_path_factory.mktemp("state")
    write(folder, fragments(wrote, wrote_owners))
    reader = StateReader(folder)
    assert (reader.adam_steps, reader.notes) == (7, {"a": 1})
    for name in WHOLE:
        for kind in KINDS:
            assert torch.equal(reader.whole(name, kind), values(name, kind))
    for fragment in (fragment for mine in fragments(reads, read_owners) for fragment in mine):
        for kind in KINDS:
            assert torch.equal(reader.read(fragment, kind), content(fragment, kind)), fragment


def test_a_checkpoint_with_a_hole_or_an_overlap_is_refused_when_written_and_when_read(tmp_path: Path) -> None:
    ranks = fragments(2, 2)
    with pytest.raises(StateError, match=r"vector: elements 0 to 3 are missing"):
        state_text({"a": [f for f in ranks[1] if f.name == "vector"]}, adam_steps=0, notes={})
    with pytest.raises(StateError, match="are there twice"):
        state_text({"a": ranks[0], "b": ranks[0], "c": ranks[1]}, adam_steps=0, notes={})
    with pytest.raises(StateError, match=r"matrix: 1 shards that are not the 2 of one cut"):
        state_text({"a": ranks[0], "b": ranks[1]}, adam_steps=0, notes={})
    write(tmp_path, ranks)
    path = tmp_path / STATE_NAME
    path.write_text(path.read_text().replace('"whole_shape":[6]', '"whole_shape":[7]'))
    with pytest.raises(StateError, match="vector: ends at element 6"):
        StateReader(tmp_path)


def test_a_parameter_that_is_not_there_or_has_another_shape_is_refused(tmp_path: Path) -> None:
    write(tmp_path, fragments(1, 1))
    reader = StateReader(tmp_path)
    with pytest.raises(StateError, match="no parameter bias"):
        reader.whole("bias")
    with pytest.raises(StateError, match=r"matrix has shape \(12, 6\) in .*, not \(6, 12\)"):
        reader.read(Fragment("matrix", (6, 12), None, 0, 72), "fp32")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 9}', '{"format": 1, "parameters": {"a": {}}}'])
def test_a_state_that_is_not_readable_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE_NAME).write_text(text)
    with pytest.raises(StateError, match=r"state\.json"):
        StateReader(tmp_path)
