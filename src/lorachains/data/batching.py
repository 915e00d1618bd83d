"""Which rows make a batch: of similar length, in an order that the seed gives and a resumed run takes up again."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from lorachains.batch import TokenBatch
from lorachains.data.tokens import Encoded
from lorachains.errors import LorachainsError

_BUCKET = 50  # batches that are sorted by length together: enough to save padding, few enough to stay random


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """All rows once, in batches of rows of similar length, at random; the same for the same seed and epoch."""
    rng = random.Random(f"{seed}/{epoch}")
    order = rng.sample(range(len(lengths)), len(lengths))
    batches = []
    for bucket in _chunks(order, _BUCKET * batch_size):
        batches += _chunks(sorted(bucket, key=lengths.__getitem__), batch_size)
    rng.shuffle(batches)
    return batches


def evaluation_batches(rows: Sequence[Encoded], batch_size: int) -> list[list[int]]:
    """All examples once, the longest first, with at most `batch_size` texts a batch (but at least one example).

    Examples with candidates and free answers never share a batch.
    """
    batches: list[list[int]] = []
    for free in (False, True):
        texts = batch_size  # so that the first example opens a batch
        of_kind = (index for index, row in enumerate(rows) if (not row.example.candidates) is free)
        for index in sorted(of_kind, key=lambda index: -rows[index].length):
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

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
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

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Begins when the first batch is asked for: Lightning makes an iterator before it calls `set_epoch`."""
        if self._begun:
            self.epoch, self._given = self.epoch + 1, 0
        self._begun = True
        batches = epoch_batches(self.lengths, self.batch_size, self.seed, self.epoch)
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


class TrainLoader(DataLoader[TokenBatch]):
    """A loader that Lightning saves in its checkpoints and resumes at the very next batch, also mid-epoch."""

    def __init__(
        self, rows: list[Encoded], batches: EpochBatches, collate: Callable[[list[Encoded]], TokenBatch]
    ) -> None:
        # its own generator: a DataLoader draws a number for each epoch, which must not move the run's random state
        super().__init__(rows, batch_sampler=batches, collate_fn=collate, generator=torch.Generator())  # type: ignore[arg-type]
        self._batches = batches

    def state_dict(self) -> dict[str, Any]:
        """See `EpochBatches.state_dict`."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `EpochBatches.load_state_dict`."""
        self._batches.load_state_dict(state)
