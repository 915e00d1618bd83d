"""How the tasks of a run share an epoch, and its batches.

An epoch has as many rows as all tasks together. Of them a task with n rows gets a part in proportion to n^(1/T), T
being the temperature (Arivazhagan et al. 2019, arXiv 1907.05019): at 1 each of its rows once, at greater ones a small
task's rows several times and a large one's not all, another choice in each epoch.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorachains.errors import LorachainsError


@dataclass(frozen=True)
class Mixture:
    """Which rows an epoch has, and which may share a batch.

    Args:
        temperature: above 0; infinite for as many rows of each task.
        mix: "rows" for batches of rows of any tasks, "batches" for batches of one task each.

    Raises:
        LorachainsError: another value.
    """

    temperature: float = 1.0
    mix: str = "rows"

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise LorachainsError(f"data.temperature is {self.temperature!r}: give a number above 0")
        if self.mix not in ("rows", "batches"):
            raise LorachainsError(f"data.mix is {self.mix!r}: choose rows or batches")

    def quotas(self, counts: Sequence[int]) -> list[int]:
        """Rows of each task in an epoch, given those it has; the sum is the same, and none gets none."""
        if self.temperature == 1:
            return list(counts)
        weights = [count ** (1 / self.temperature) for count in counts]
        shares = [sum(counts) * weight / sum(weights) for weight in weights]
        quotas = [max(1, math.floor(share)) for share in shares]
        while sum(quotas) > sum(counts):
            quotas[quotas.index(max(quotas))] -= 1
        for index in sorted(range(len(counts)), key=lambda i: quotas[i] - shares[i])[: sum(counts) - sum(quotas)]:
            quotas[index] += 1
        return quotas

    def pools(self, tasks: Sequence[int], rng: random.Random) -> list[list[int]]:
        """The rows of an epoch in random order: of each task by itself where batches are of one task, else of all.

        Args:
            tasks: of each row.
        """
        if self == ALIKE:
            return [rng.sample(range(len(tasks)), len(tasks))]
        rows = [[row for row, of in enumerate(tasks) if of == task] for task in sorted(set(tasks))]
        quotas = self.quotas([len(of_task) for of_task in rows])
        pools = [list(_drawn(of_task, quota, rng)) for of_task, quota in zip(rows, quotas, strict=True)]
        if self.mix == "batches":
            return pools
        together = [row for pool in pools for row in pool]
        return [rng.sample(together, len(together))]

    def batches(self, tasks: Sequence[int], batch_size: int) -> int:
        """How many an epoch has."""
        counts = self.quotas(list(Counter(tasks).values())) if self.mix == "batches" else [len(tasks)]
        return sum(-(-count // batch_size) for count in counts)


ALIKE = Mixture()
"""Each row once, in batches of any tasks."""


def _drawn(rows: list[int], quota: int, rng: random.Random) -> Iterator[int]:
    """So many of the rows, none a second time before all were there once."""
    while quota > 0:
        yield from rng.sample(rows, min(quota, len(rows)))
        quota -= len(rows)
