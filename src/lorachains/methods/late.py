"""Numbers that reach the host later than they are computed, so that the GPU never waits for them to be read."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Sent:
    """A tensor on its way to the host, beside the steps that follow."""

    def __init__(self, values: Tensor):
        self._event = None
        if values.device.type == "cuda":
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        self._values = values

    def tolist(self) -> Any:
        """The numbers; waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


class Late:
    """One number of each optimizer step: the mean over its batches, handed out so many optimizer steps later.

    Args:
        lag: how many, at least 1.
    """

    def __init__(self, lag: int):
        self.lag = lag
        self._batches: list[Tensor] = []
        self._waiting: list[tuple[int, Sent]] = []

    def note(self, number: Tensor) -> None:
        """Notes a batch's number, of the optimizer step that is being made."""
        self._batches.append(number)

    def close(self, step: int) -> None:
        """To be called when so many optimizer steps are done; once more does no harm."""
        closed = self._waiting[-1][0] if self._waiting else 0
        if self._batches and step > closed:
            self._waiting.append((step, Sent(torch.stack(self._batches).double().mean())))
            self._batches = []

    def arrived(self, step: int) -> Iterator[float]:
        """The numbers of the steps up to `step - lag` that were not handed out yet, in order."""
        while self._waiting and self._waiting[0][0] <= step - self.lag:
            yield self._waiting.pop(0)[1].tolist()

    def state(self) -> list[tuple[int, float]]:
        """What was not handed out yet, by step; for `load`."""
        return [(step, sent.tolist()) for step, sent in self._waiting]

    def load(self, state: list[tuple[int, float]]) -> None:
        """Goes on from a `state()`."""
        self._batches = []
        self._waiting = [(step, Sent(torch.tensor(number, dtype=torch.float64))) for step, number in state]
