"""The data module: tasks, their rows, tokens and batches for one run."""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lorachains.data.batching import EpochBatches, TrainLoader, evaluation_batches
from lorachains.data.protocol import Sizes, Source, Splits, positive
from lorachains.data.tasks import Task
from lorachains.data.tokens import (
    Encoded,
    EvalBatch,
    collate_eval,
    collate_train,
    encode_eval,
    encode_train,
    padding_token,
)
from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)


class TaskDataModule(LightningDataModule):
    """One or several tasks; training batches mix them at random.

    Args:
        tasks: names that `source` knows.
        batch_size: rows of a training batch.
        eval_batch_size: texts (candidates) of an evaluation batch; None for four times `batch_size`.
        train_size, val_size, test_size: rows per task, fewer where the official sets are smaller.
        seed: which rows are drawn.
        order_seed: the order in which training goes through them.
        max_length: tokens of a text; longer prompts lose their beginning.
        max_new_tokens: the longest free answer that is generated.

    Attributes, after `setup`:
        tasks: the tasks, in the order of the names; the index of a batch's `task`.
        splits: each task's examples.
        counts: split to task name to number of examples.
        truncated: split to the number of examples whose prompt was cut.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: Source,
        tasks: Sequence[str],
        *,
        batch_size: int,
        eval_batch_size: int | None,
        train_size: int,
        val_size: int,
        test_size: int,
        seed: int,
        order_seed: int,
        max_length: int,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__()
        positive("data.batch_size", batch_size)
        positive("data.max_length", max_length)
        positive("data.max_new_tokens", max_new_tokens)
        if eval_batch_size is not None:
            positive("data.eval_batch_size", eval_batch_size)
        self.tokenizer = tokenizer
        self.source = source
        self.task_names = _names(tasks)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 4 * batch_size
        self.sizes = Sizes(train_size, val_size, test_size)
        self.seed = seed
        self.order_seed = order_seed
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.tasks: list[Task] = []
        self.splits: list[Splits] = []
        self.counts: dict[str, dict[str, int]] = {}
        self.truncated: dict[str, int] = {}
        self._rows: dict[str, list[Encoded]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads and tokenises all splits, once. Raises `LorachainsError` for an unknown task or a bad row."""
        if self._rows:
            return
        loaded = [self.source.load(name, self.sizes, self.seed) for name in self.task_names]
        self.tasks, self.splits = [task for task, _ in loaded], [splits for _, splits in loaded]
        rows = {split: self._encode(split) for split in ("train", "val", "test")}
        for split, encoded in rows.items():
            self._report(split, encoded)
        self._rows = rows

    def _encode(self, split: str) -> list[Encoded]:
        encode = encode_train if split == "train" else encode_eval
        return [
            row
            for index, splits in enumerate(self.splits)
            for row in encode(self.tokenizer, getattr(splits, split), index, self.max_length)
        ]

    def check_fits(self, positions: int | None) -> None:
        """Raises `LorachainsError` where a text, with its generated answer, is longer than what the model can read.

        Args:
            positions: the model's longest text in tokens; `None` where it knows no limit.
        """
        rows = [row for split in self._rows.values() for row in split]
        longest = max(row.length if row.prompt is None else row.length + self.max_new_tokens for row in rows)
        if positions is not None and longest > positions:
            raise LorachainsError(
                f"the longest text has {longest} tokens, with what may be generated, but the model reads {positions}: "
                f"set data.max_length={max(1, positions - self.max_new_tokens)}"
            )

    def _report(self, split: str, rows: list[Encoded]) -> None:
        self.counts[split] = {
            task.name: len(getattr(s, split)) for task, s in zip(self.tasks, self.splits, strict=True)
        }
        self.truncated[split] = sum(row.cut for row in rows)
        log.info("%s rows: %s", split, ", ".join(f"{name} {count}" for name, count in self.counts[split].items()))
        if self.truncated[split]:
            log.warning(
                "%s: %d of %d prompts cut to %d tokens", split, self.truncated[split], len(rows), self.max_length
            )

    def train_dataloader(self) -> TrainLoader:
        """Training batches, each row once an epoch; resumable."""
        rows = self._rows["train"]
        batches = EpochBatches([row.length for row in rows], self.batch_size, self.order_seed)
        return TrainLoader(rows, batches, partial(collate_train, pad=padding_token(self.tokenizer)))

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        """Evaluation batches of the rows that training leaves out."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[EvalBatch]:
        """Evaluation batches of the test rows."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[EvalBatch]:
        rows = self._rows[split]
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=evaluation_batches(rows, self.eval_batch_size),
            collate_fn=partial(collate_eval, pad=padding_token(self.tokenizer)),
            generator=torch.Generator(),  # see TrainLoader
        )


def _names(tasks: Sequence[str]) -> list[str]:
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or len(set(names)) < len(names):
        raise LorachainsError(f"data.tasks is {names}: give one or more names, each once")
    return names
