"""Triton kernels for the LoRAs of a stream of tokens, in which each block of tokens belongs to one adapter.

A LoRA's products are all memory: its weights are few, and each token is read or written once. So a program takes a few
blocks of tokens, mostly of one adapter; where they aren't, one after the other. Weights' gradients are sums over an
adapter's tokens, in parts where one has many, so that the card is filled; a sum's order is always the same. A number
that isn't finite stays with its adapter: what another one makes of a token is left out, not multiplied by zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FEATURES = 64
"""A program's, or of each of its steps."""
DOWN, UP = (32, 4), (64, 4)
"""A program's tokens and warps."""
SUMMED_TOKENS, SUMMED_FEATURES = 128, 64
"""A program's, of the weights' gradients."""
PROGRAMS, PART = 128, 256
"""With fewer programs than this, sums are made in parts, of at least so many tokens in the mean of adapters."""
TOTAL = 512
"""A program's elements, of the sum of parts."""
FEW, ADDED_FEATURES = 16, 128
"""A program's tokens, and features of its steps and its output, where a LoRA is added in one launch."""


def down(x: Tensor, weight: Tensor, adapters: Tensor) -> Tensor:
    """`(tokens, ranks)`: each token times its adapter's weight, `(experts, ranks, features)`."""
    return _times(x, weight.mT, adapters, *DOWN, FEATURES, _ranks(weight.shape[1]))


def up(hidden: Tensor, weight: Tensor, adapters: Tensor) -> Tensor:
    """`(tokens, features)`: each token's ranks times its adapter's weight, `(experts, features, ranks)`."""
    return _times(hidden, weight.mT, adapters, *UP, _ranks(weight.shape[2]), FEATURES)


def _times(x: Tensor, weight: Tensor, adapters: Tensor, size: int, warps: int, inner: int, outer: int) -> Tensor:
    """`(tokens, out)`: each token of `x`, `(tokens, in)`, times its adapter's weight, `(experts, in, out)`.

    Args:
        size, warps: a program's tokens and warps.
        inner, outer: of `in` in a step of a program, and of `out` in a program.
    """
    tokens, (_, width, height) = len(x), weight.shape
    block = tokens // len(adapters)
    assert tokens == block * len(adapters)
    size = max(size, block)
    out = x.new_empty(tokens, height)
    _product[(triton.cdiv(tokens, size), triton.cdiv(height, outer))](
        x, weight, adapters, out, tokens, width, height, x.stride(0), *weight.stride(), size // block, block, inner,
        outer, num_warps=warps,
    )  # fmt: skip
    return out


def summed(hidden: Tensor, features: Tensor, ends: Tensor, ranks_last: bool) -> Tensor:
    """The sum over each adapter's tokens of `hidden × features`: `(experts, ranks, features)`.

    Args:
        ranks_last: `(experts, features, ranks)` instead.
    """
    experts, ranks, width = len(ends), hidden.shape[1], features.shape[1]
    grid = experts, triton.cdiv(width, SUMMED_FEATURES), triton.cdiv(ranks, _ranks(ranks))
    parts = max(1, min(PROGRAMS // (grid[0] * grid[1] * grid[2]), len(hidden) // (experts * PART)))
    shape = (parts, experts, width, ranks) if ranks_last else (parts, experts, ranks, width)
    out = hidden.new_empty(shape, dtype=hidden.dtype if parts == 1 else torch.float32)
    part, adapter, *within = out.stride()
    rank, feature = reversed(within) if ranks_last else within
    _summed[(experts * parts, *grid[1:])](
        hidden, features, ends, out, experts, ranks, width, features.stride(0), part, adapter, rank, feature, parts,
        SUMMED_TOKENS, _ranks(ranks), SUMMED_FEATURES,
    )  # fmt: skip
    return out[0] if parts == 1 else _together(out, hidden.dtype)


def add(out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds `B A x` to `out`, `(groups, tokens, out_features)`, in one launch: made for few tokens, as decoding has.

    Args:
        x: `(groups, tokens, in_features)`, each group's of one adapter.
        a, b: the groups' adapters, `(groups, ranks, in_features)` and `(groups, out_features, ranks)`, of at most 64
            ranks.
    """
    (groups, tokens, width), (_, height, ranks) = x.shape, b.shape
    assert all(tensor.is_contiguous() for tensor in (out, x, a, b))
    assert ranks <= 64
    _add[(groups, triton.cdiv(tokens, FEW), triton.cdiv(height, ADDED_FEATURES))](
        out, x, a, b, tokens, width, height, ranks, FEW, _ranks(ranks), ADDED_FEATURES
    )


def _together(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the parts, along the first dimension."""
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    _total[(triton.cdiv(out.numel(), TOTAL),)](parts, out, len(parts), out.numel(), TOTAL)
    return out


def _ranks(ranks: int) -> int:
    """A program's."""
    return min(64, max(16, triton.next_power_of_2(ranks)))


@triton.jit
def _product(
    x, weight, adapters, out, tokens, width, height, x_token, weight_adapter, weight_in, weight_out,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr,
):  # fmt: skip
    first, blocks = tl.program_id(0) * BLOCKS, tokens // BLOCK
    token = first.to(tl.int64) * BLOCK + tl.arange(0, BLOCKS * BLOCK)[:, None]
    column = tl.program_id(1) * OUTER + tl.arange(0, OUTER)[None, :]
    last = tl.minimum(first + BLOCKS, blocks) - 1
    times = tl.where(tl.load(adapters + first) == tl.load(adapters + last), 1, BLOCKS)  # adapters ascend
    total = tl.zeros([BLOCKS * BLOCK, OUTER], tl.float32)
    for i in range(times):
        block = tl.minimum(first + i, blocks - 1)
        own = (token < tokens) & ((times == 1) | (token // BLOCK == first + i))
        factor = weight + tl.load(adapters + block) * weight_adapter + column * weight_out
        for start in range(0, width, INNER):
            inner = start + tl.arange(0, INNER)
            of_x, of_weight = inner[None, :], inner[:, None]
            some = tl.load(x + token * x_token + of_x, mask=own & (of_x < width), other=0.0)
            there = (of_weight < width) & (column < height)
            product = tl.dot(some, tl.load(factor + of_weight * weight_in, mask=there, other=0.0))
            total += tl.where(own, product, 0.0)  # 0 times what isn't finite isn't 0
    there = (token < tokens) & (column < height)
    tl.store(out + token * height + column, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def _summed(
    hidden, features, ends, out, experts, ranks, width, features_token, out_part, out_adapter, out_rank, out_feature,
    parts, TOKENS: tl.constexpr, RANKS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    adapter, part = tl.program_id(0) % experts, tl.program_id(0) // experts
    begin = tl.load(ends + adapter - 1, mask=adapter > 0, other=0)
    end = tl.load(ends + adapter)
    each = tl.cdiv(tl.cdiv(end - begin, parts), TOKENS) * TOKENS
    begin += part * each
    end = tl.minimum(begin + each, end)
    rank = tl.program_id(2) * RANKS + tl.arange(0, RANKS)[:, None]
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)[None, :]
    total = tl.zeros([RANKS, FEATURES], tl.float32)
    for start in range(begin, end, TOKENS):
        token = start + tl.arange(0, TOKENS).to(tl.int64)
        row, column = token[None, :], token[:, None]
        left = tl.load(hidden + row * ranks + rank, mask=(row < end) & (rank < ranks), other=0.0)
        right = tl.load(
            features + column * features_token + feature, mask=(column < end) & (feature < width), other=0.0
        )
        total += tl.dot(left, right)
    out += part.to(tl.int64) * out_part + adapter.to(tl.int64) * out_adapter
    there = (rank < ranks) & (feature < width)
    tl.store(out + rank * out_rank + feature * out_feature, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def _total(parts, out, number, size, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros([SIZE], tl.float32)
    for _ in range(number):
        total += tl.load(parts + place, mask=place < size, other=0.0)
        parts += size
    tl.store(out + place, total.to(out.dtype.element_ty), mask=place < size)


@triton.jit
def _add(out, x, a, b, tokens, width, height, ranks, TOKENS: tl.constexpr, RANKS: tl.constexpr, FEATURES: tl.constexpr):
    group, feature = tl.program_id(0).to(tl.int64), tl.arange(0, FEATURES)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[:, None]
    own, of_token = token < tokens, group * tokens + token
    column = (tl.program_id(2) * FEATURES + feature)[None, :]
    place = out + of_token * height + column
    rank, hidden = tl.arange(0, RANKS), tl.zeros([TOKENS, RANKS], tl.float32)
    for start in range(0, width, FEATURES):
        inner = start + feature
        some = tl.load(x + of_token * width + inner[None, :], mask=own & (inner[None, :] < width), other=0.0)
        there = (rank[None, :] < ranks) & (inner[:, None] < width)
        factor = a + (group * ranks + rank[None, :]) * width + inner[:, None]
        hidden += tl.dot(some, tl.load(factor, mask=there, other=0.0))
    there = (rank[:, None] < ranks) & (column < height)
    factor = tl.load(b + (group * height + column) * ranks + rank[:, None], mask=there, other=0.0)
    total = tl.load(place, mask=own & (column < height), other=0.0) + tl.dot(hidden.to(factor.dtype), factor)
    tl.store(place, total.to(out.dtype.element_ty), mask=own & (column < height))
