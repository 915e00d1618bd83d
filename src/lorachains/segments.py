"""How the stream of a batch is put together: segments, and which places each of them attends to."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from lorachains.prefixes import Family


class Segments:
    """Segments, one after the other.

    Attributes:
        size: tokens so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._segments: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []  # of each segment
        self._texts: list[int] = []

    def add_family(self, texts: Sequence[np.ndarray], family: Family) -> list[np.ndarray]:
        """Adds the texts' common beginning, and what follows it in each; returns each text's places in the stream."""
        own, none = family.prefix, np.arange(0)
        begin = self._add(texts[family.members[0]][:own], none, is_text=True)
        rests = [texts[member][own:] for member in family.members]
        return [self._add(rest, begin, is_text=True) if len(rest) else begin for rest in rests]

    def add_padding(self, size: int, token: int) -> None:
        """Adds so many tokens that are no text."""
        if size:
            self._add(np.full(size, token), np.arange(0), is_text=False)

    def _add(self, tokens: np.ndarray, before: np.ndarray, is_text: bool) -> np.ndarray:
        """Adds a segment that attends to itself and to what is `before` it; returns where all of that is."""
        if is_text:
            self._texts.append(len(self._segments))
        self._segments.append(tokens)
        self._keys.append(np.concatenate([before, np.arange(self.size, self.size + len(tokens))]))
        self.size += len(tokens)
        return self._keys[-1]

    def tensors(self) -> dict[str, Any]:
        """What a batch holds of its stream."""
        lengths, key_lengths = ([len(piece) for piece in pieces] for pieces in (self._segments, self._keys))
        places = [np.arange(keys - own, keys) for own, keys in zip(lengths, key_lengths, strict=True)]
        found = {
            "input_ids": torch.from_numpy(np.concatenate(self._segments)),
            "position_ids": torch.from_numpy(np.concatenate(places)),
            "bounds": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            "lengths": tuple(lengths),
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
