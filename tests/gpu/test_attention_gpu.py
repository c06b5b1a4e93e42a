"""FlexAttention compiled for a GPU beside the chunks that a CPU uses."""

from __future__ import annotations

import pytest
import torch

from model.attention import Pattern, attend
from model.shape import Sparse

PATTERNS = {
    "window": Pattern(window=256),
    "strided": Pattern(window=64, sparse=Sparse.STRIDED),
    "fixed": Pattern(window=64, sparse=Sparse.FIXED, summary_tokens=8),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_block_masks_give_what_chunks_give_with_their_gradients(pattern: Pattern) -> None:
    drawn = [torch.randn(1, heads, 2048, 64, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2)]
    results = []
    for device in ("cpu", "cuda"):
        inputs = [each.to(device).requires_grad_() for each in drawn]
        mixed = attend(*inputs, pattern=pattern)
        slopes = torch.autograd.grad(mixed.square().sum(), inputs)
        results.append([each.cpu() for each in (mixed, *slopes)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_a_mask_for_a_long_text_is_made_without_its_square() -> None:
    tokens = 65_536
    inputs = [torch.randn(1, heads, tokens, 64, dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2)]
    torch.cuda.reset_peak_memory_stats()
    before_bytes = torch.cuda.memory_allocated()
    attend(*inputs, pattern=Pattern(window=1024))
    # Of one byte each, tokens x tokens are 4.3 GB.
    assert torch.cuda.max_memory_allocated() - before_bytes < tokens**2 / 4
