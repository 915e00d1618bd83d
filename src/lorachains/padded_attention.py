"""Attention of a stream's segments where no kernel takes them as they lie: those of similar length side by side."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

LEAST = 16
"""Segments of up to so many tokens are one group; above, each power of two ends one."""
PAIRS = 1 << 24
"""No group has more pairs of a query and a key, unless one segment has: masks take memory."""


@dataclass(frozen=True)
class Group:
    """Segments side by side, each as long as the longest; what is missing repeats its last token.

    Attributes:
        queries, keys: where their tokens, and what they attend to, are in the stream.
        behind: how many tokens each key is behind each query; negative if it is no key of this query.
        kept: which of the queries, counted through, are the segments' own.
    """

    queries: Int64[Tensor, "segments longest"]
    keys: Int64[Tensor, "segments most"]
    behind: Int32[Tensor, "segments longest most"]
    kept: Int64[Tensor, " tokens"]


@dataclass(frozen=True)
class Groups:
    """All segments of a stream.

    Attributes:
        order: where each token of the stream is among what the groups keep, one group after the other.
    """

    groups: tuple[Group, ...]
    order: Int64[Tensor, " tokens"]


def grouped(
    lengths: Sequence[int], key_lengths: Sequence[int], keys: Int64[Tensor, " keys"] | None, device: torch.device
) -> Groups:
    """The segments of a stream, by length.

    Args:
        lengths, key_lengths: of the segments, and of what each attends to, the last of which is the segment itself.
        keys: where in the stream that is, segment by segment; `None` if the segments themselves.
    """
    starts, key_starts = (np.array([0, *accumulate(of)]) for of in (lengths, key_lengths))
    by_length: dict[int, list[int]] = defaultdict(list)
    for segment, length in enumerate(lengths):
        if length:
            by_length[size_class(length)].append(segment)
    found, places = [], []
    for members in (part for alike in by_length.values() for part in _parts(alike, lengths, key_lengths)):
        own, read = np.array(lengths)[members], np.array(key_lengths)[members]
        queries, there = _rows(starts[:-1][members], own)
        of_keys, _ = _rows(key_starts[:-1][members], read)
        step = np.minimum(np.arange(queries.shape[1]), own[:, None] - 1)
        behind = (read - own)[:, None, None] + step[:, :, None] - np.arange(of_keys.shape[1])
        kept = np.flatnonzero(there)
        places.append(queries.reshape(-1)[kept])
        rows = torch.from_numpy(of_keys).to(device)
        found.append(
            Group(
                torch.from_numpy(queries).to(device), rows if keys is None else keys[rows],
                torch.from_numpy(behind.astype(np.int32)).to(device), torch.from_numpy(kept).to(device),
            )
        )  # fmt: skip
    order = np.argsort(np.concatenate(places), kind="stable")
    return Groups(tuple(found), torch.from_numpy(order).to(device))


def size_class(length: int) -> int:
    """Up to how many tokens a segment's group has."""
    return max(LEAST, 1 << (length - 1).bit_length())


def _parts(segments: list[int], lengths: Sequence[int], key_lengths: Sequence[int]) -> list[list[int]]:
    """Segments in parts of at most so many pairs."""
    each = max(lengths[i] for i in segments) * max(key_lengths[i] for i in segments)
    size = max(1, PAIRS // each)
    return [segments[start : start + size] for start in range(0, len(segments), size)]


def _rows(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of each segment's tokens, `(segments, longest)`, and whether it has so many."""
    place = np.arange(lengths.max())
    return starts[:, None] + np.minimum(place, lengths[:, None] - 1), place < lengths[:, None]


def attend(
    query: Float[Tensor, "heads tokens dim"],
    key: Float[Tensor, "heads read dim"],
    value: Float[Tensor, "heads read dim"],
    groups: Groups,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Float[Tensor, "tokens heads dim"]:
    """Causal attention of each segment to its keys, group by group.

    Args:
        window: how many tokens each attends to at most, itself included; `None` for no limit.
    """
    outs = []
    for group in groups.groups:
        seen = group.behind >= 0
        if window is not None:
            seen &= group.behind < window
        q, k, v = query[:, group.queries], key[:, group.keys], value[:, group.keys]
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), seen.unsqueeze(1), dropout, scale=scale
        )
        outs.append(out.transpose(1, 2).flatten(0, 1)[group.kept])
    return torch.cat(outs)[groups.order]
