"""The kernels' attention is that of a float64 formula, segment by segment, and so are its gradients."""

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from lorachains.segment_attention import LONGEST, _attention, _backward, segment_attention, takes

SEGMENTS = [70, 5, 0, 130, 64, 1, 17, 33]


def reference(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None) -> Tensor:
    sharing = query.shape[1] // key.shape[1]
    query, key, value = query.double(), *(t.double().repeat_interleave(sharing, 1) for t in (key, value))
    outs = []
    for begin, end in pairwise([0, *accumulate(lengths)]):
        q, k, v = (t[begin:end].transpose(0, 1) for t in (query, key, value))
        behind = torch.arange(end - begin, device=q.device)[:, None] - torch.arange(end - begin, device=q.device)
        seen = (behind >= 0) & (behind < (window or LONGEST))
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outs)


def drawn(heads: int, kv_heads: int, dim: int, empty: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    sizes = [(sum(SEGMENTS), n, dim) for n in (heads, kv_heads, kv_heads)]
    bounds = torch.tensor([0, *accumulate(SEGMENTS)], dtype=torch.int32, device=empty.device)
    return *(torch.randn(size).to(empty).requires_grad_() for size in sizes), bounds


@pytest.mark.parametrize("window", [None, 1, 20, 100, 2**31 - 1])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 64), (1, 1, 128), (4, 1, 32), (2, 2, 16)])
def test_the_kernels_compute_the_formula(
    heads: int, kv_heads: int, dim: int, window: int | None, empty: Tensor
) -> None:
    """Of queries that lie head by head, too, as they do where positions are rotary."""
    query, key, value, bounds = drawn(heads, kv_heads, dim, empty)
    apart = query.transpose(0, 1).contiguous().transpose(0, 1)
    out = segment_attention(apart, key, value, bounds, max(SEGMENTS), window=window)
    right = reference(query, key, value, SEGMENTS, window)
    given = torch.randn(right.shape).to(empty)
    ours = (out, *torch.autograd.grad(out, (query, key, value), given))
    theirs = (right, *torch.autograd.grad(right, (query, key, value), given.double()))
    for name, one, other in zip(("out", "query", "key", "value"), ours, theirs, strict=True):
        # With a window of one token all weights are 1, and have no gradient.
        of = given if window == 1 and name in ("query", "key") else other
        tolerance = 1e-5 if empty.dtype == torch.float32 else 1e-2
        assert (one.double() - other.double()).norm() < tolerance * of.double().norm(), name


def test_what_is_not_finite_stays_in_its_segment(empty: Tensor) -> None:
    query, key, value, bounds = drawn(4, 2, 64, empty)
    with torch.no_grad():
        for tensor in (query, key, value):
            tensor[75:205] = float("nan")  # all of the fourth segment
    out = segment_attention(query, key, value, bounds, max(SEGMENTS))
    for tensor in (out, *torch.autograd.grad(out.sum(), (query, key, value))):
        spoilt = ~tensor.isfinite().flatten(1).all(1)
        assert spoilt[75:205].all()
        assert not spoilt[:75].any()
        assert not spoilt[205:].any()


def test_the_operations_are_what_they_say_of_themselves(empty: Tensor) -> None:
    """To the compiler: shapes, strides and gradients."""
    query, key, value, bounds = drawn(2, 1, 16, empty)
    given = (query, key, value, bounds, max(SEGMENTS), 0.25, 1 << 30)
    torch.library.opcheck(_attention, given)
    out, total = (tensor.detach() for tensor in _attention(*given))
    tensors = (tensor.detach() for tensor in (query, key, value))
    torch.library.opcheck(_backward, (*tensors, out, total, torch.randn_like(out), *given[3:]))


def test_a_cpu_does_without() -> None:
    half = torch.empty(4, 2, 64, dtype=torch.bfloat16)
    assert not takes(half, half, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_the_kernels_take() -> None:
    half, wide, odd = (torch.empty(4, 2, width, dtype=torch.bfloat16, device="cuda") for width in (64, 128, 80))
    assert takes(half, half, LONGEST)
    for query, value, longest in ((half, half, LONGEST + 1), (half, wide, 4), (odd, odd, 4), (half.float(), half, 4)):
        assert not takes(query, value, longest)
