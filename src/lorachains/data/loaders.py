"""The loaders of one run's data, or of several runs' that are trained side by side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import DataLoader

from lorachains.batch import TokenBatch
from lorachains.data.batching import evaluation_batches
from lorachains.data.streams import ALL, MadeOnce, RunsBatches, RunsRows, Share, Stream, TrainLoader
from lorachains.data.tokens import Encoded, EvalBatch, Serving, collate_eval, collate_train, padding_token
from lorachains.errors import LorachainsError
from lorachains.loads import loads_of

if TYPE_CHECKING:
    from lorachains.data.module import TaskDataModule

SPLITS = ("train", "val", "test")

Numbers = Callable[[Sequence[Encoded]], Sequence[int] | None]
"""Gives the numbers of training rows that their batch is to bring along; `None` for none."""


class Loaders:
    """Makes loaders.

    Args:
        runs: their data, set up.
        serving: which adapter serves which row.
        by_length: whether rows of similar length share a batch, since texts are padded; if not, texts to be scored that
            begin alike share their beginning.
        share: this process's, if several train the runs together: of each training batch's rows, and of the evaluation
            batches.
        accumulate: training batches of an optimizer step.
    """

    def __init__(
        self, runs: "Sequence[TaskDataModule]", serving: Serving, by_length: bool, share: Share = ALL,
        accumulate: int = 1,
    ) -> None:  # fmt: skip
        self.runs, self.serving, self.by_length = runs, serving, by_length
        self.share, self.accumulate = share, accumulate
        self.numbers: Numbers = lambda _: None

    def train(self) -> TrainLoader:
        """Each stream's next batch, as one (see `turns`); resumable.

        Raises:
            LorachainsError: a batch can't be shared.
        """
        if (rows_each := min(run.batch_size for run in self.runs)) < self.share.of:
            raise LorachainsError(
                f"data.batch_size is {rows_each}, shared by {self.share.of} devices: give each of them a row at least"
            )
        streams = self._streams()
        rows = RunsRows([run.rows("train") for run in self.runs])
        return TrainLoader(rows, RunsBatches(streams, self.accumulate), self._train_batch)

    def even(self) -> bool:
        """Whether it is plain that all adapters have rows in each batch: one each, of streams of one length."""
        lengths = {len(stream.batches) for stream in self._streams()}
        return self.serving.bank == 1 or (self.serving.experts == 1 and len(lengths) == 1)

    def presence(self, steps: int, batches: int) -> Bool[Tensor, "steps adapters"]:
        """Which adapters have rows in each optimizer step from the first on: all, where a row is of no adapter.

        Args:
            steps: so many.
            batches: of an epoch.
        """
        bank = self.serving.bank
        if self.even():
            return torch.ones(steps, bank, dtype=torch.bool)
        loader, found = self.train(), torch.zeros(steps, bank, dtype=torch.bool)
        step = 0
        while step < steps:
            epoch = islice(loader.batches, batches)
            while step < steps and (of_step := list(islice(epoch, self.accumulate))):
                rows = [loader.rows[place] for batch in of_step for place in batch]
                owners = set(self.serving.adapters(rows) or ())
                found[step, [owner for owner in range(bank) if owner in owners or bank in owners]] = True
                step += 1
        return found

    def largest(self, epochs: int) -> tuple[TokenBatch, EvalBatch]:
        """The batches with the most tokens: of so many epochs of training, and of all evaluation.

        Without rows of no adapter, with which no training begins.
        """
        loader, best, most = self.train(), [(0, 0)], 0
        sizes = [[row.length for row in run.rows("train")] for run in self.runs]
        free = {(i, place) for i, run in enumerate(self.runs) for place, row in enumerate(run.rows("train"))
                if self.serving.adapters([(i, row)]) == [self.serving.bank]}  # fmt: skip
        for _ in range(epochs):
            for given in loader.batches:
                batch = [place for place in given if place not in free]
                if (size := sum(sizes[run][row] for run, row in self.share.take(batch))) > most:
                    best, most = batch, size
        splits = [
            (RunsRows([run.rows(s) for run in self.runs]), batch) for s in SPLITS[1:] for batch in self._batches(s)
        ]
        rows, batch = max(
            splits, key=lambda found: sum(len(c.input_ids) for place in found[1] for c in found[0][place][1].choices)
        )
        return (
            self._train_batch([loader.rows[place] for place in best]),
            collate_eval([rows[place] for place in batch], self.serving, self._pad(), not self.by_length),
        )

    def evaluation(self, split: str) -> DataLoader[EvalBatch]:
        """All rows of the split, for all runs. Each of several processes gets as many batches, maybe an idle one."""
        rows, batches = RunsRows([run.rows(split) for run in self.runs]), list(self._batches(split))
        batches += [[]] * (-len(batches) % self.share.of)
        idle = [rows[batches[0][0]]]
        made = [partial(self._eval_batch, rows, batch, idle) for batch in self.share.take(batches)]
        return DataLoader(
            MadeOnce(made, lambda batch: sum(tensor.nbytes for tensor in batch.scored.tensors().values())),
            batch_size=None,  # they are batches already
            collate_fn=lambda batch: batch,
            generator=torch.Generator(),  # see TrainLoader
        )

    def _streams(self) -> list[Stream]:
        return [stream for i, run in enumerate(self.runs) for stream in run.streams(i, self.by_length)]

    def _train_batch(self, rows: list[tuple[int, Encoded]]) -> TokenBatch:
        """This process's share of a batch; if that is empty, a row that doesn't count."""
        own = self.share.take(rows)
        batch = collate_train(own or rows[:1], self.serving, self._pad())
        if (numbers := self.numbers([row for _, row in own])) is not None:
            batch = batch.numbered(numbers)
        if self.share.of == 1:
            return batch
        shares = self._answers(own) / self._answers(rows).clip(1)
        loads = loads_of([row.choices[0] for _, row in rows], self.serving.adapters(rows), self.serving.bank)
        return replace(batch, shares=torch.from_numpy(shares), loads=loads)

    def _answers(self, rows: Sequence[tuple[int, Encoded]]) -> np.ndarray:
        """How many answer tokens the rows have for each adapter."""
        sizes = [len(row.choices[0].answer) for _, row in rows]
        owners = self.serving.adapters(rows) or [0] * len(rows)
        return np.bincount(np.array(owners, dtype=int), np.array(sizes, dtype=float), self.serving.bank)

    def _eval_batch(self, rows: RunsRows, places: list[tuple[int, int]], idle: list[tuple[int, Encoded]]) -> EvalBatch:
        """The batch of the rows there; without any one that keeps the process busy, and answers nothing."""
        given = [rows[place] for place in places]
        batch = collate_eval(given or idle, self.serving, self._pad(), share=not self.by_length)
        return batch if given else EvalBatch([], [], batch.scored, batch.prompts, batch.adapters, batch.starts)

    def _batches(self, split: str) -> Iterator[list[tuple[int, int]]]:
        """Runs with the same rows go through them together."""
        sharing: dict[int, list[int]] = {}
        for number, run in enumerate(self.runs):
            sharing.setdefault(id(run.rows(split)), []).append(number)
        for numbers in sharing.values():
            first = self.runs[numbers[0]]
            for batch in evaluation_batches(first.rows(split), first.eval_batch_size, self.by_length):
                yield [(number, row) for number in numbers for row in batch]

    def _pad(self) -> int:
        return padding_token(self.runs[0].tokenizer)
