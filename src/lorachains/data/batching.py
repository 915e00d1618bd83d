"""Which rows make a batch, in an order that the seed gives and a resumed run takes up again."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from lorachains.data.mixing import ALIKE, Mixture
from lorachains.data.tokens import Encoded
from lorachains.errors import LorachainsError

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

    @property
    def place(self) -> int:
        """That of the last batch given among those of its epoch."""
        return self._given - 1

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
