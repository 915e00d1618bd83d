"""Triton kernels for causal attention of a stream's segments, each to itself: forward, and both parts of the backward.

A program takes a tile of one segment and one head, and leaves where the segment ends before its tile. Tiles are small,
since the texts of a batch are: of 128 × 128, as FlashAttention has, 70 tokens fill a third. The algorithm
is FlashAttention-2's (Dao 2023, arXiv 2307.08691, Algorithms 1 and 2), in base 2; the gradients of keys and values are
summed over the heads that share them, without copies. Nothing is read beyond a segment, so a number that isn't finite
stays in its own text.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
TILE_QUERIES, TILE_KEYS = 64, 32
"""Of the forward pass and the queries' gradients; for those of keys and values it is the other way round. The fastest
of those tried on an H200 with RTE's texts."""


def forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """See `segment_attention.segment_attention`."""
    tokens, heads, dim = query.shape
    out, total = query.new_empty(tokens, heads, dim), query.new_empty(heads, tokens, dtype=torch.float32)
    _forward[(len(bounds) - 1, triton.cdiv(longest, TILE_QUERIES), heads)](
        query, key, value, out, total, bounds, scale * LOG2_E, tokens, window, *_strides(query, key, value),
        heads // key.shape[1], dim, TILE_QUERIES, TILE_KEYS,
    )  # fmt: skip
    return out, total


def backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, grad: Tensor, bounds: Tensor, longest: int,
    scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values, given the output's."""
    (tokens, heads, dim), sharing = query.shape, key.shape[1]
    of_query, of_key, of_value = (t.new_empty(t.shape) for t in (query, key, value))
    mean = torch.empty_like(total)
    given = (scale * LOG2_E, scale, tokens, window, *_strides(query, key, value, grad), heads // sharing, dim)
    segments, tiles = len(bounds) - 1, triton.cdiv(longest, TILE_QUERIES)
    _of_queries[(segments, tiles, heads)](
        query, key, value, out, total, grad, of_query, mean, bounds, *given, TILE_QUERIES, TILE_KEYS
    )
    _of_keys[(segments, tiles, sharing)](
        query, key, value, total, grad, of_key, of_value, mean, bounds, *given, TILE_KEYS, TILE_QUERIES
    )
    return of_query, of_key, of_value


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:2])


@triton.jit
def _seen(rows, columns, length, window):
    return (columns <= rows) & (rows < columns + window) & (rows < length)


@triton.jit(do_not_specialize=["tokens", "window"])
def _forward(
    query, key, value, out, total, bounds, scale, tokens, window, query_token, query_head, key_token, key_head,
    value_token, value_head, SHARE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    segment, head = tl.program_id(0), tl.program_id(2)
    begin = tl.load(bounds + segment).to(tl.int64)
    length = (tl.load(bounds + segment + 1) - begin).to(tl.int32)
    first = tl.program_id(1) * ROWS
    if first >= length:
        return
    rows, dims = first + tl.arange(0, ROWS)[:, None], tl.arange(0, DIM)[None, :]
    query += begin * query_token + head * query_head
    key += begin * key_token + head // SHARE * key_head
    value += begin * value_token + head // SHARE * value_head
    q = tl.load(query + rows * query_token + dims, mask=rows < length, other=0.0)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    summed = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(tl.maximum(first - window + 1, 0), tl.minimum(first + ROWS, length), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)[:, None]
        k = tl.load(key + columns * key_token + dims, mask=columns < length, other=0.0)
        v = tl.load(value + columns * value_token + dims, mask=columns < length, other=0.0)
        seen = _seen(rows, tl.trans(columns), length, window)
        scores = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(now == float("-inf"), 0.0, now)  # a row that sees nothing yet
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(most - base)
        summed = summed * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        most = now
    out += (begin * tl.num_programs(2) + head) * DIM + rows * (tl.num_programs(2) * DIM) + dims
    tl.store(out, (mixed / summed[:, None]).to(out.dtype.element_ty), mask=rows < length)
    own = first + tl.arange(0, ROWS)
    tl.store(total + head * tokens + begin + own, most + tl.log2(summed), mask=own < length)


@triton.jit(do_not_specialize=["tokens", "window"])
def _of_queries(
    query, key, value, out, total, grad, of_query, mean, bounds, scale, factor, tokens, window, query_token, query_head,
    key_token, key_head, value_token, value_head, grad_token, grad_head, SHARE: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    segment, head = tl.program_id(0), tl.program_id(2)
    begin = tl.load(bounds + segment).to(tl.int64)
    length = (tl.load(bounds + segment + 1) - begin).to(tl.int32)
    first = tl.program_id(1) * ROWS
    if first >= length:
        return
    rows, dims = first + tl.arange(0, ROWS)[:, None], tl.arange(0, DIM)[None, :]
    own = first + tl.arange(0, ROWS)
    query += begin * query_token + head * query_head
    key += begin * key_token + head // SHARE * key_head
    value += begin * value_token + head // SHARE * value_head
    grad += begin * grad_token + head * grad_head
    places = (begin * tl.num_programs(2) + head) * DIM + rows * (tl.num_programs(2) * DIM) + dims
    q = tl.load(query + rows * query_token + dims, mask=rows < length, other=0.0)
    g = tl.load(grad + rows * grad_token + dims, mask=rows < length, other=0.0)
    o = tl.load(out + places, mask=rows < length, other=0.0)
    means = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(mean + head * tokens + begin + own, means, mask=own < length)
    totals = tl.load(total + head * tokens + begin + own, mask=own < length, other=0.0)
    gathered = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(tl.maximum(first - window + 1, 0), tl.minimum(first + ROWS, length), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)[:, None]
        k = tl.load(key + columns * key_token + dims, mask=columns < length, other=0.0)
        v = tl.load(value + columns * value_token + dims, mask=columns < length, other=0.0)
        seen = _seen(rows, tl.trans(columns), length, window)
        weights = tl.where(seen, tl.exp2(tl.dot(q, tl.trans(k)) * scale - totals[:, None]), 0.0)
        of_scores = weights * (tl.dot(g, tl.trans(v)) - means[:, None])
        gathered += tl.dot(of_scores.to(k.dtype), k)
    tl.store(of_query + places, (gathered * factor).to(of_query.dtype.element_ty), mask=rows < length)


@triton.jit(do_not_specialize=["tokens", "window"])
def _of_keys(
    query, key, value, total, grad, of_key, of_value, mean, bounds, scale, factor, tokens, window, query_token,
    query_head, key_token, key_head, value_token, value_head, grad_token, grad_head, SHARE: tl.constexpr,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    segment, shared = tl.program_id(0), tl.program_id(2)
    begin = tl.load(bounds + segment).to(tl.int64)
    length = (tl.load(bounds + segment + 1) - begin).to(tl.int32)
    first = tl.program_id(1) * COLUMNS
    if first >= length:
        return
    columns, dims = first + tl.arange(0, COLUMNS)[:, None], tl.arange(0, DIM)[None, :]
    key += begin * key_token + shared * key_head
    value += begin * value_token + shared * value_head
    k = tl.load(key + columns * key_token + dims, mask=columns < length, other=0.0)
    v = tl.load(value + columns * value_token + dims, mask=columns < length, other=0.0)
    keys = tl.zeros([COLUMNS, DIM], tl.float32)
    values = tl.zeros([COLUMNS, DIM], tl.float32)
    for head in range(shared * SHARE, shared * SHARE + SHARE):
        queries, grads = query + begin * query_token + head * query_head, grad + begin * grad_token + head * grad_head
        for start in range(first, tl.minimum(first + COLUMNS + window - 1, length), ROWS):
            own = start + tl.arange(0, ROWS)
            rows = own[:, None]
            q = tl.load(queries + rows * query_token + dims, mask=rows < length, other=0.0)
            g = tl.load(grads + rows * grad_token + dims, mask=rows < length, other=0.0)
            totals = tl.load(total + head * tokens + begin + own, mask=own < length, other=0.0)
            means = tl.load(mean + head * tokens + begin + own, mask=own < length, other=0.0)
            seen = _seen(own[None, :], columns, length, window)
            weights = tl.where(seen, tl.exp2(tl.dot(k, tl.trans(q)) * scale - totals[None, :]), 0.0)
            values += tl.dot(weights.to(g.dtype), g)
            of_scores = weights * (tl.dot(v, tl.trans(g)) - means[None, :])
            keys += tl.dot(of_scores.to(q.dtype), q)
    places = (begin * tl.num_programs(2) + shared) * DIM + columns * (tl.num_programs(2) * DIM) + dims
    tl.store(of_key + places, (keys * factor).to(of_key.dtype.element_ty), mask=columns < length)
    tl.store(of_value + places, values.to(of_value.dtype.element_ty), mask=columns < length)
