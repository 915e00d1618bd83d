"""Texts that begin alike, such as one prompt with each of its candidates: their beginning need be read only once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 16
"""Fewer tokens in common aren't worth the gathering of keys and values in each layer."""


@dataclass(frozen=True)
class Family:
    """Neighbouring texts with a common beginning.

    Attributes:
        members: their indices.
        prefix: how many tokens they have in common; all of them if there is one text.
    """

    members: tuple[int, ...]
    prefix: int


def families(streams: Sequence[np.ndarray]) -> list[Family]:
    """All texts in their order; one joins its neighbours where that leaves fewer tokens to read."""
    found: list[Family] = []
    for i, stream in enumerate(streams):
        if found:
            last = found[-1]
            common = _common(streams[last.members[0]][: last.prefix], stream)
            if common >= LEAST and len(last.members) * common > (len(last.members) - 1) * last.prefix:
                found[-1] = Family((*last.members, i), common)
                continue
        found.append(Family((i,), len(stream)))
    return found


def in_common(streams: Sequence[np.ndarray]) -> int:
    """How many tokens all texts have in common from the beginning on."""
    return min(_common(streams[0], stream) for stream in streams)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens are the same from the beginning on."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
