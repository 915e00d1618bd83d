"""Which rows make a batch, in an order that the seed gives and a resumed run takes up again."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lorachains.batch import TokenBatch
from lorachains.data.mixing import ALIKE, Mixture
from lorachains.data.tokens import Encoded
from lorachains.errors import LorachainsError

Item = TypeVar("Item")

_BUCKET = 50  # batches that are sorted by length together: enough to save padding, few enough to stay random


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, by_length: bool = False,
    tasks: Sequence[int] | None = None, mixture: Mixture = ALIKE,
) -> list[list[int]]:  # fmt: skip
    """An epoch's rows, all once unless the mixture says otherwise, in batches at random.

    The same for the same seed and epoch.

    Args:
        by_length: whether rows of similar length share a batch, which saves a model that pads them some of its work.
        tasks: of the rows; one if `None`.
    """
    rng = random.Random(f"{seed}/{epoch}")
    pools, batches = mixture.pools(tasks or [0] * len(lengths), rng), []
    for pool in pools:
        for bucket in _chunks(pool, _BUCKET * batch_size) if by_length else [pool]:
            rows = sorted(bucket, key=lengths.__getitem__) if by_length else bucket
            batches += _chunks(rows, batch_size)
    if by_length or len(pools) > 1:
        rng.shuffle(batches)
    return batches


def evaluation_batches(rows: Sequence[Encoded], batch_size: int, by_length: bool = False) -> list[list[int]]:
    """All examples once, with at most `batch_size` texts a batch (but at least one example).

    Examples with candidates and free answers never share a batch. Free answers come the longest first, since prompts
    are padded for generation; with `by_length`, the others too.
    """
    batches: list[list[int]] = []
    for free in (False, True):
        texts = batch_size  # so that the first example opens a batch
        of_kind = (index for index, row in enumerate(rows) if (not row.example.candidates) is free)
        for index in sorted(of_kind, key=lambda index: -rows[index].length) if free or by_length else of_kind:
            texts += len(rows[index].choices)
            if texts > batch_size:
                batches.append([])
                texts = len(rows[index].choices)
            batches[-1].append(index)
    return batches


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


class EpochBatches(Sampler[list[int]]):
    """The batches of one epoch after another, one epoch for each iteration, with its place in them as state.

    Lightning restores that state, except where a checkpoint was taken at the end of an epoch: then it only says by
    `set_epoch`, of a batch sampler's `sampler`, which epoch comes first. Where it does restore the state, the epoch
    that it says may be one too many (with `max_steps`), so it doesn't count then, nor later.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, by_length: bool = False,
        tasks: Sequence[int] | None = None, mixture: Mixture = ALIKE,
    ) -> None:  # fmt: skip
        self.lengths = lengths
        self.tasks = tasks
        self.mixture = mixture
        self.batch_size = batch_size
        self.seed = seed
        self.by_length = by_length
        self.epoch = 0
        self._given = 0
        self._loaded = False
        self._begun = False

    @property
    def sampler(self) -> "EpochBatches":
        """Itself, where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes first."""
        if not (self._loaded or self._begun):
            self.epoch = epoch

    @property
    def start(self) -> int:
        """How many batches of the epoch that comes next were given already."""
        return 0 if self._begun else self._given

    def __len__(self) -> int:
        return self.mixture.batches(self.tasks or [0] * len(self.lengths), self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Begins when the first batch is asked for: Lightning makes an iterator before it calls `set_epoch`."""
        if self._begun:
            self.epoch, self._given = self.epoch + 1, 0
        self._begun = True
        batches = epoch_batches(
            self.lengths, self.batch_size, self.seed, self.epoch, self.by_length, self.tasks, self.mixture
        )
        while self._given < len(batches):
            self._given += 1
            yield batches[self._given - 1]

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches were given, and what the order was made from."""
        return {"epoch": self.epoch, "given": self._given, **self._made_from()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on behind the last batch given. Raises `LorachainsError` where that order came from other settings."""
        for key, value in self._made_from().items():
            if state[key] != value:
                raise LorachainsError(
                    f"the checkpoint was trained with {key}={state[key]}, this run has {value}: "
                    "resume with the same data settings"
                )
        finished = state["given"] == len(self)
        self.epoch, self._given = (state["epoch"] + 1, 0) if finished else (state["epoch"], state["given"])
        self._loaded = True

    def _made_from(self) -> dict[str, int]:
        return {"data.order_seed": self.seed, "data.batch_size": self.batch_size, "training rows": len(self.lengths)}


@dataclass(frozen=True)
class Stream:
    """Training rows that share batches, gone through in an order of their own.

    Args:
        run: whose rows they are.
        rows: their places among the run's rows.
        batches: of places in `rows`.
    """

    run: int
    rows: Sequence[int]
    batches: EpochBatches


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
            yield [(self.streams[i].run, self.streams[i].rows[row]) for i in turn for row in next(batches[i])]


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
