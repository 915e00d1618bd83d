"""How long work on a device takes, without waiting for the device in between."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch


@dataclass
class Clock:
    """Moments on the device's own time line."""

    device: torch.device
    marks: list[Any] = field(default_factory=list)

    def mark(self) -> None:
        """Takes the moment when the device will have done all that it was asked so far."""
        if self.device.type == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next."""
        if self.device.type != "cuda":
            return [after - before for before, after in pairwise(self.marks)]
        torch.cuda.synchronize(self.device)
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self.marks)]


def median_seconds(step: Callable[[], Any], device: str, warmup: int, times: int) -> float:
    """Seconds of one of so many steps, after others that don't count."""
    clock = Clock(torch.device(device))
    for _ in range(warmup):
        step()
    clock.mark()
    for _ in range(times):
        step()
        clock.mark()
    return median(clock.seconds())
