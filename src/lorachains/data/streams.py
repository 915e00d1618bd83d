"""Several streams of training rows side by side: those of several runs, or those of one run's adapters.

Each stream goes through its own rows in its own batches (`EpochBatches`), and they share the batches that the model
sees; several devices share each of these.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lorachains.batch import TokenBatch
from lorachains.data.batching import EpochBatches
from lorachains.data.tokens import Encoded

Item = TypeVar("Item")

KEPT = 1 << 28
"""So many bytes of evaluation batches are kept at most, of each split."""


@dataclass
class Since:
    """The epoch from which on something is done."""

    epoch: float = 0


@dataclass(frozen=True)
class Beside:
    """Rows that stand beside the batches of a stream, spread evenly over an epoch's, in another order in each.

    Args:
        rows: their places among the run's rows.
        most: rows beside one batch. Where there are too many, an epoch has some of them.
        seed: of the order.
        since: in epochs before they are left out.
    """

    rows: range
    most: int
    seed: int
    since: Since

    def batch(self, epoch: int, place: int, batches: int) -> list[int]:
        """The rows beside one of so many batches of an epoch."""
        if not self.rows or epoch < self.since.epoch:
            return []
        order = _shuffled(self.rows, f"{self.seed}/beside/{epoch}")
        return order[place * len(order) // batches : (place + 1) * len(order) // batches][: self.most]


@dataclass(frozen=True)
class Stream:
    """Training rows that share batches, gone through in an order of their own.

    Args:
        run: whose rows they are.
        rows: their places among the run's rows.
        batches: of places in `rows`.
        beside: rows of the run beside them.
    """

    run: int
    rows: Sequence[int]
    batches: EpochBatches
    beside: Beside | None = None

    def take(self, batch: Iterator[list[int]]) -> list[tuple[int, int]]:
        """The next batch, with what stands beside it, as (run, row) pairs."""
        rows = [self.rows[row] for row in next(batch)]
        if self.beside is not None:
            rows += self.beside.batch(self.batches.epoch, self.batches.place, len(self.batches))
        return [(self.run, row) for row in rows]


@lru_cache(maxsize=1)
def _shuffled(rows: range, seed: str) -> list[int]:
    return random.Random(seed).sample(rows, len(rows))


def turns(lengths: Sequence[int], accumulate: int = 1) -> list[list[int]]:
    """Which streams give their next batch to each batch of an epoch that they go through side by side.

    The epoch has as many optimizer steps as the longest stream's own. A shorter one makes its own steps, each of as
    many batches as alone, evenly spread, its last one in the last step: so all end together.

    Args:
        lengths: batches of each stream's epoch; 0 for one that is never trained on.
        accumulate: batches of an optimizer step; the last one of an epoch may have fewer.
    """
    own = [-(-length // accumulate) for length in lengths]
    steps = max(own)
    last = max(length - (count - 1) * accumulate for length, count in zip(lengths, own, strict=True) if count)
    found: list[list[int]] = []
    for step in range(steps):
        size = accumulate if step < steps - 1 else last
        parts = [0] * len(own)  # of the step's batches, the last ones: its last batch has rows of all that make it
        for stream, count in enumerate(own):
            done = step * count // steps
            if (step + 1) * count // steps > done:
                parts[stream] = min(accumulate, lengths[stream] - done * accumulate)
        found += [[stream for stream, part in enumerate(parts) if place >= size - part] for place in range(size)]
    return found


class RunsBatches(Sampler[list[tuple[int, int]]]):
    """The batches of several streams side by side, as (run, row) pairs.

    Args:
        streams: of the runs.
        accumulate: see `turns`.
    """

    def __init__(self, streams: Sequence[Stream], accumulate: int = 1) -> None:
        self.streams = streams
        self._turns = turns([len(stream.batches) for stream in streams], accumulate)
        self._longest = max((stream.batches for stream in streams), key=len)  # gives a batch at each turn but the last

    @property
    def sampler(self) -> "RunsBatches":
        """Itself, where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes first."""
        for stream in self.streams:
            stream.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start, batches = self._longest.start, [iter(stream.batches) for stream in self.streams]
        for turn in self._turns[start:]:
            yield [row for i in turn for row in self.streams[i].take(batches[i])]


class RunsRows(Dataset[tuple[int, Encoded]]):
    """The rows of several runs by (run, row)."""

    def __init__(self, rows: Sequence[Sequence[Encoded]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Encoded]:
        run, row = place
        return run, self.rows[run][row]


class TrainLoader(DataLoader[Any]):
    """A loader that Lightning saves in its checkpoints and resumes at the very next batch, also mid-epoch."""

    def __init__(self, rows: RunsRows, batches: RunsBatches, collate: Callable[[Any], TokenBatch]) -> None:
        # its own generator: a DataLoader draws a number for each epoch, which must not move the run's random state
        super().__init__(rows, batch_sampler=batches, collate_fn=collate, generator=torch.Generator())
        self.rows, self.batches = rows, batches

    def state_dict(self) -> dict[str, Any]:
        """See `EpochBatches.state_dict`."""
        return {"streams": [stream.batches.state_dict() for stream in self.batches.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `EpochBatches.load_state_dict`."""
        for stream, saved in zip(self.batches.streams, state["streams"], strict=True):
            stream.batches.load_state_dict(saved)


class MadeOnce(Dataset[Item]):
    """Items that are gone through again and again, in the same order: each is made at its first time, and kept.

    Args:
        make: each item's maker.
        size: of an item; while the sum is at most `KEPT`, items are kept.
    """

    def __init__(self, make: Sequence[Callable[[], Item]], size: Callable[[Item], int]) -> None:
        self._make, self._size = make, size
        self._kept: dict[int, Item] = {}
        self._room = KEPT

    def __len__(self) -> int:
        return len(self._make)

    def __getitem__(self, place: int) -> Item:
        if place in self._kept:
            return self._kept[place]
        item = self._make[place]()
        if (size := self._size(item)) <= self._room:
            self._kept[place] = item
            self._room -= size
        return item


@dataclass(frozen=True)
class Share:
    """What this process takes of what several share: every `of`-th, from the `rank`-th on."""

    rank: int = 0
    of: int = 1

    def take(self, items: list[Item]) -> list[Item]:
        """This process's items."""
        return items[self.rank :: self.of]


ALL = Share()
"""Where nothing is shared."""
