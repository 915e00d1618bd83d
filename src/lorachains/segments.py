"""How the stream of a batch is put together: segments, and which places each of them attends to."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from lorachains.prefixes import Family

NOTHING = np.arange(0)
"""No places in a stream."""


def marked(tokens: np.ndarray, start: int) -> np.ndarray:
    """Tokens that are the same only if both are served by an adapter or both aren't: of two, the odd one is.

    Args:
        start: the first one that is.
    """
    twice = 2 * tokens
    twice[start:] += 1
    return twice


class Segments:
    """Segments, one after the other.

    Args:
        read: how many tokens a model has read already (`prefill`), to which segments may attend.

    Attributes:
        size: tokens so far, those too.
    """

    def __init__(self, read: int = 0) -> None:
        self.size = read
        self._segments: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []  # of each segment
        self._padding: list[int] = []  # of each segment, at its end
        self._texts: list[int] = []

    def add_family(self, texts: Sequence[np.ndarray], family: Family, before: np.ndarray = NOTHING) -> list[np.ndarray]:
        """Adds the texts' common beginning, and what follows it in each; returns each text's places in the stream.

        Args:
            texts: the tokens as `Tokens.marked` gives them.
            before: where what they follow is.
        """
        own = family.prefix
        begin = self._add(texts[family.members[0]][:own], before, is_text=True)
        rests = [texts[member][own:] for member in family.members]
        return [self._add(rest, begin, is_text=True) if len(rest) else begin for rest in rests]

    def add_padding(self, size: int, token: int) -> None:
        """Adds a segment of so many tokens that are no text."""
        self._add(marked(np.full(size, token), 0), NOTHING, is_text=False)

    def fill_up(self, size: int, token: int) -> None:
        """Makes the last segment so many tokens longer. They attend to it, and nothing to them.

        As a segment of their own they would cost attention as much as a text does.
        """
        self._segments[-1] = np.concatenate([self._segments[-1], marked(np.full(size, token), 0)])
        self._keys[-1] = np.concatenate([self._keys[-1], np.arange(self.size, self.size + size)])
        self._padding[-1] += size
        self.size += size

    def _add(self, tokens: np.ndarray, before: np.ndarray, is_text: bool) -> np.ndarray:
        """Adds a segment that attends to itself and to what is `before` it; returns where all of that is."""
        if is_text:
            self._texts.append(len(self._segments))
        self._segments.append(tokens)
        self._padding.append(0)
        self._keys.append(np.concatenate([before, np.arange(self.size, self.size + len(tokens))]))
        self.size += len(tokens)
        return self._keys[-1]

    def tensors(self) -> dict[str, Any]:
        """What a batch holds of its stream."""
        lengths, key_lengths = ([len(piece) for piece in pieces] for pieces in (self._segments, self._keys))
        places = [np.arange(keys - own, keys) for own, keys in zip(lengths, key_lengths, strict=True)]
        for place, more in zip(places, self._padding, strict=True):
            place[len(place) - more :] = 0
        tokens = np.concatenate(self._segments)
        active = tokens % 2 > 0
        found = {
            "input_ids": torch.from_numpy(tokens // 2),
            "active": None if active.all() else torch.from_numpy(active),
            "position_ids": torch.from_numpy(np.concatenate(places)),
            "bounds": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            "lengths": tuple(lengths),
            "padding": tuple(self._padding),
            "texts": tuple(self._texts),
            "longest": max(key_lengths),
        }
        if lengths == key_lengths:
            return found
        return found | {
            "keys": torch.from_numpy(np.concatenate(self._keys)),
            "key_bounds": torch.tensor([0, *accumulate(key_lengths)], dtype=torch.int32),
            "key_lengths": tuple(key_lengths),
        }
