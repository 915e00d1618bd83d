"""Batches of few sizes: filled up with padding, so that a CUDA graph or a compiled model serves many of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lorachains.batch import BLOCK, IGNORED, TokenBatch

FILLING = 64
"""What fills a batch up is divided into segments of at least so many tokens, which keeps their attention cheap."""
PIECES = 8
"""And into so many segments at most, so that their number varies little."""
SEGMENTS = 32
"""The number of segments of a filled batch is a multiple of this."""


@dataclass(frozen=True)
class Size:
    """What a batch is filled up to: tokens of the stream, answer tokens, and keys (0 if there are none)."""

    tokens: int
    answers: int
    keys: int

    def fits(self, batch: TokenBatch) -> bool:
        """Whether the batch can have this size without much waste: answers cost least."""
        tokens, answers, keys = _needed(batch, self.tokens)
        return (
            tokens <= self.tokens <= tokens * 9 / 8
            and answers <= self.answers <= max(64, answers * 2)
            and keys <= self.keys <= keys * 5 / 4
        )


class Sizes:
    """The sizes of a kind of batches, as few as can be.

    Those of texts of many lengths vary in both tokens and answers: if each batch had but the next size of a fine grid,
    hardly one would be of a size that was seen before, and recording one takes as long as replaying it ten times. So a
    batch takes a size that was seen before, if that isn't much larger.
    """

    def __init__(self) -> None:
        self._known: list[Size] = []

    def of(self, batch: TokenBatch, largest: bool = False) -> Size:
        """The batch's.

        Args:
            largest: whether no batch to come is larger, so that all that are nearly as large can have its size.
        """
        if fitting := [size for size in self._known if size.fits(batch)]:
            return min(fitting, key=lambda size: (size.tokens, size.answers, size.keys))
        tokens = _round(len(batch.input_ids), 64 if largest else 8)
        _, answers, keys = _needed(batch, tokens)
        size = Size(tokens, _round(answers, 2), _round(keys, 4))
        if size not in self._known:  # a small batch wastes more of its own than another would
            self._known.append(size)
        return size


def filled(batch: TokenBatch, longest: int, size: Size | None = None) -> TokenBatch:
    """The same batch with more padding, empty segments and ignored targets.

    Args:
        longest: of all batches to come, as `TokenBatch.longest`.
        size: by default the next one.
    """
    size = size or Sizes().of(batch)
    longest = max(longest, FILLING)
    assert batch.longest <= longest  # what is beyond isn't attended to
    padding = _pieces(size.tokens - len(batch.input_ids), longest)
    lengths = [*batch.lengths, *padding]
    segments = max(len(lengths), len(batch.lengths) + PIECES)  # the same, whatever is filled up
    lengths += [0] * (segments - len(lengths) + -segments % SEGMENTS)
    places = [batch.position_ids, *(torch.arange(n) for n in padding)]
    return replace(
        batch,
        input_ids=_fill(batch.input_ids, size.tokens),
        active=None if batch.active is None else _fill(batch.active, size.tokens),
        position_ids=torch.cat(places),
        bounds=_bounds(batch, lengths),
        adapters=None if batch.adapters is None else _fill(batch.adapters, size.tokens // BLOCK, len(batch.loads) - 1),
        ends=None if batch.ends is None else torch.cat([batch.ends[:-1], batch.ends.new_tensor([size.tokens])]),
        positions=_fill(batch.positions, size.answers),
        targets=_fill(batch.targets, size.answers, IGNORED),
        candidate=_fill(batch.candidate, size.answers),
        served=_fill(batch.served, size.answers),
        lengths=tuple(lengths),
        padding=(*batch.padding, *[0] * (len(lengths) - len(batch.lengths))),
        longest=longest,
        numbers=None if batch.numbers is None else _fill(batch.numbers, len(lengths)),
        own=torch.tensor(len(batch.input_ids)),
        **_filled_keys(batch, lengths[len(batch.lengths) :], size.keys),
    )


def _needed(batch: TokenBatch, tokens: int) -> tuple[int, int, int]:
    """The batch's tokens, answer tokens, and the keys that it has once it is filled up to so many tokens."""
    own = len(batch.input_ids)
    return own, len(batch.positions), 0 if batch.keys is None else len(batch.keys) + tokens - own


def _filled_keys(batch: TokenBatch, added: Sequence[int], size: int) -> dict[str, Any]:
    """The keys with those of the added segments, which attend to themselves."""
    if batch.keys is None:
        return {}
    lengths, start = (*batch.key_lengths, *added), len(batch.input_ids)
    keys = torch.cat([batch.keys, torch.arange(start, start + sum(added))])
    return {"keys": _fill(keys, size), "key_bounds": _bounds(batch, lengths), "key_lengths": lengths}


def _bounds(batch: TokenBatch, lengths: Sequence[int]) -> Tensor:
    return batch.bounds.new_tensor([0, *accumulate(lengths)])


def _fill(tensor: Tensor, size: int, value: int = 0) -> Tensor:
    return torch.cat([tensor, tensor.new_full((size - len(tensor),), value)])


def _pieces(tokens: int, longest: int) -> list[int]:
    size = min(longest, max(FILLING, -(-tokens // PIECES)))
    return [min(size, tokens - start) for start in range(0, tokens, size)]


def _round(size: int, parts: int) -> int:
    """Up to a multiple of 64, and of that part of the power of two below."""
    step = max(64, (1 << max(0, size.bit_length() - 1)) // parts)
    return -(-size // step) * step
