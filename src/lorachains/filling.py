"""Batches of few sizes: filled up with padding, so that a CUDA graph or a compiled model serves many of them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lorachains.batch import BLOCK, IGNORED, TokenBatch

FILLING = 64
"""What fills a batch up is divided into segments of so many tokens, whose attention costs little."""
SEGMENTS = 32
"""The number of segments of a filled batch is a multiple of this."""


def filled(batch: TokenBatch, longest: int) -> TokenBatch:
    """The same batch with more padding, empty segments and ignored targets, so that few sizes are left.

    Args:
        longest: of all batches to come.
    """
    tokens, answers = _round(len(batch.input_ids), 8), _round(len(batch.positions), 4)
    padding = _pieces(tokens - len(batch.input_ids))
    lengths = [*batch.lengths, *padding]
    lengths += [0] * (-len(lengths) % SEGMENTS)
    places = [batch.position_ids, *(torch.arange(n) for n in padding)]
    return replace(
        batch,
        input_ids=_fill(batch.input_ids, tokens),
        active=None if batch.active is None else _fill(batch.active, tokens),
        position_ids=torch.cat(places),
        bounds=_bounds(batch, lengths),
        adapters=None if batch.adapters is None else _fill(batch.adapters, tokens // BLOCK, len(batch.loads) - 1),
        ends=None if batch.ends is None else torch.cat([batch.ends[:-1], batch.ends.new_tensor([tokens])]),
        positions=_fill(batch.positions, answers),
        targets=_fill(batch.targets, answers, IGNORED),
        candidate=_fill(batch.candidate, answers),
        served=_fill(batch.served, answers),
        lengths=tuple(lengths),
        longest=max(longest, FILLING),
        **_filled_keys(batch, lengths[len(batch.lengths) :]),
    )


def _filled_keys(batch: TokenBatch, added: Sequence[int]) -> dict[str, Any]:
    """The keys with those of the added segments, which attend to themselves."""
    if batch.keys is None:
        return {}
    lengths, start = (*batch.key_lengths, *added), len(batch.input_ids)
    keys = torch.cat([batch.keys, torch.arange(start, start + sum(added))])
    return {"keys": _fill(keys, _round(len(keys), 8)), "key_bounds": _bounds(batch, lengths), "key_lengths": lengths}


def _bounds(batch: TokenBatch, lengths: Sequence[int]) -> Tensor:
    return batch.bounds.new_tensor([0, *accumulate(lengths)])


def _fill(tensor: Tensor, size: int, value: int = 0) -> Tensor:
    return torch.cat([tensor, tensor.new_full((size - len(tensor),), value)])


def _pieces(tokens: int) -> list[int]:
    return [min(FILLING, tokens - start) for start in range(0, tokens, FILLING)]


def _round(size: int, parts: int) -> int:
    """Up to a multiple of 64, and of that part of the power of two below.

    Two sizes vary by themselves in texts of many lengths: finer ones would leave hardly any batch of a size that was
    seen before, and recording one takes as long as replaying it ten times.
    """
    step = max(64, (1 << size.bit_length() - 1) // parts) if size else 64
    return -(-size // step) * step
