"""Windows and sparse patterns beside a masked n × n reference in float64, what generation keeps of them, and long sequences."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from model.attention import ALL_BEFORE, Pattern, attend, flex_attend
from model.kv_cache import KeyValueCache
from model.layers import Recipe
from model.sequence_parallel import SequenceGroup, heads_of_my_tokens, tokens_of_my_heads
from model.shape import BlockKind, Norm, Position, Sparse, TransformerShape
from model.transformer import Transformer

CPU = torch.device("cpu")
PATTERNS = {
    "window": Pattern(window=6),
    "window in chunks": Pattern(window=6, window_block=2),
    "strided": Pattern(window=4, sparse=Sparse.STRIDED),
    "fixed": Pattern(window=4, sparse=Sparse.FIXED, summary_tokens=2),
}


def a_shape(**changes: Any) -> TransformerShape:
    numbers: dict[str, Any] = {"layers": 2, "d_model": 24, "heads": 4, "d_ff": 40, "vocabulary": 300, "positions": 400}
    return TransformerShape(**{**numbers, **changes})


def drawn(*size: int, seed: int = 3) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """One n × n matrix, its mask asked cell by cell."""
    n = q.size(2)
    mask = torch.tensor([[bool(pattern.sees(i, j)) for j in range(n)] for i in range(n)])
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    return (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(~mask, -math.inf).softmax(-1) @ v


def gradients(attention: Callable[..., Tensor], pattern: Pattern, tokens: int, kv_heads: int) -> list[Tensor]:
    """The result, and the gradients of queries, keys and values."""
    q, k, v = (drawn(2, heads, tokens, 6, seed=heads + i).requires_grad_() for i, heads in enumerate((4, kv_heads, kv_heads)))
    mixed = attention(q, k, v, pattern=pattern)
    return [mixed, *torch.autograd.grad((mixed * drawn(*mixed.shape, seed=9)).sum(), (q, k, v))]


def test_a_pattern_sees_what_its_paper_says() -> None:
    def seen(pattern: Pattern, query: int) -> list[int]:
        return [key for key in range(16) if pattern.sees(query, key)]

    assert seen(ALL_BEFORE, 3) == [0, 1, 2, 3]
    assert seen(Pattern(window=3), 7) == [5, 6, 7]
    assert seen(PATTERNS["strided"], 14) == [2, 6, 10, 11, 12, 13, 14]
    assert seen(PATTERNS["fixed"], 13) == [2, 3, 6, 7, 10, 11, 12, 13]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@given(tokens=some.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_a_pattern_in_parts_is_a_masked_matrix_forward_and_backward(pattern: Pattern, kv_heads: int, tokens: int) -> None:
    found, wanted = (gradients(how, pattern, tokens, kv_heads) for how in (attend, masked_attention))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_flex_attention_is_given_the_same_pattern(pattern: Pattern) -> None:
    q, k, v = drawn(1, 4, 130, 8), drawn(1, 2, 130, 8, seed=4), drawn(1, 2, 130, 8, seed=5)
    torch.testing.assert_close(flex_attend(q, k, v, pattern=pattern), attend(q, k, v, pattern=pattern), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_no_tensor_of_a_pattern_grows_as_the_square_of_the_tokens(pattern: Pattern) -> None:
    def largest(tokens: int) -> int:
        sizes: list[int] = []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.untyped_storage().nbytes()) or t, lambda t: t)
        root = int(math.sqrt(tokens)) if pattern.sparse else pattern.window
        with keep:
            part = replace(pattern, window=root, summary_tokens=1)
            attend(*(drawn(1, 1, tokens, 4).float().requires_grad_() for _ in range(3)), pattern=part)
        return max(sizes)

    # Four times the tokens: sixteen times the matrix, but only 4 times n·w, and 8 times n·√n.
    assert largest(1024) / largest(256) < (9 if pattern.sparse else 5)


# ------------------------------------------------------------------ generation
WINDOWS = {
    "gpt": {},
    "llama": {"position": Position.ROTARY, "norm": Norm.RMS, "kv_heads": 2},
    "sas": {"block": BlockKind.SAS},
    "sas-p without norms": {"block": BlockKind.SAS_P, "norm": Norm.NONE},
}


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [3, 9, 1, 1, 20, 6], [25, 15]], ids=str)
@pytest.mark.parametrize("options", [*WINDOWS.values(), {"sparse": "strided"}, {"sparse": "fixed"}], ids=str)
def test_a_bounded_cache_gives_the_logits_of_the_whole_text(options: dict[str, Any], pieces: list[int]) -> None:
    sparse = Sparse(options["sparse"]) if "sparse" in options else None
    shape = a_shape(window=6, **{**options, "sparse": sparse})
    model = Transformer(Recipe(shape, seed=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Simplified blocks begin without attention; here it must matter.
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        tokens_BT = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
        cache = KeyValueCache(shape, sequences=2, tokens=40, dtype=torch.float32, device=CPU)
        found = torch.cat([model.logits(piece, cache) for piece in tokens_BT.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(found, model.logits(tokens_BT), rtol=1e-3, atol=1e-3)


def test_a_windows_cache_does_not_grow_with_the_text_and_writes_the_same_text() -> None:
    shape = a_shape(window=8)
    model = Transformer(Recipe(shape, seed=1)).eval()
    cache = KeyValueCache(shape, sequences=1, tokens=400, dtype=torch.float32, device=CPU)
    text_BT, sizes = torch.tensor([[5, 7, 11]]), []
    with torch.no_grad():
        logits = model.logits(text_BT, cache)
        for _ in range(60):
            text_BT = torch.cat([text_BT, logits[:, -1:].argmax(-1)], dim=1)
            logits = model.logits(text_BT[:, -1:], cache)
            sizes.append(cache.size_bytes())
        unbounded = torch.tensor([[5, 7, 11]])
        for _ in range(60):
            unbounded = torch.cat([unbounded, model.logits(unbounded)[:, -1:].argmax(-1)], dim=1)
    assert text_BT.tolist() == unbounded.tolist()
    # Keys and values of 8 tokens of 24 numbers of 4 bytes in 2 layers.
    assert set(sizes) == {2 * 8 * 24 * 4 * 2}


# ------------------------------------------------------------------ one sequence over several ranks
def _sequence_rank(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    group = SequenceGroup(rank, ranks, dist.group.WORLD)
    parts = [group.part(drawn(2, 4, 16, 6, seed=seed), 2).clone().requires_grad_() for seed in range(3)]
    mixed = heads_of_my_tokens(attend(*(tokens_of_my_heads(part, group) for part in parts), pattern=PATTERNS["window"]), group)
    slopes = torch.autograd.grad((mixed * group.part(drawn(2, 4, 16, 6, seed=9), 2)).sum(), parts)
    torch.save([mixed.detach(), *slopes], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sequence_over_ranks_is_the_sequence_on_one_with_its_gradients(ranks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_sequence_rank, (ranks, folder), nprocs=ranks)
        parts = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]
    q, k, v = (drawn(2, 4, 16, 6, seed=seed).requires_grad_() for seed in range(3))
    mixed = attend(q, k, v, pattern=PATTERNS["window"])
    wanted = [mixed, *torch.autograd.grad((mixed * drawn(2, 4, 16, 6, seed=9)).sum(), (q, k, v))]
    for index, whole in enumerate(wanted):
        torch.testing.assert_close(torch.cat([part[index] for part in parts], dim=2), whole, rtol=1e-12, atol=1e-12)
