"""The data module: tasks, their rows, tokens and batches for one run."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy

from transformers import PreTrainedTokenizerBase

from lorachains.data.batching import EpochBatches
from lorachains.data.mixing import Mixture
from lorachains.data.protocol import Sizes, Source, Splits
from lorachains.data.runs import Served
from lorachains.data.streams import Beside, Since, Stream
from lorachains.data.tasks import Task
from lorachains.data.tokens import NO_TASK, Encoded, Serving, encode_eval, encode_train
from lorachains.errors import LorachainsError, check_positive

log = logging.getLogger(__name__)


class TaskDataModule(Served):
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
        temperature, mix: see `Mixture`.
        long_answers: what becomes of a row whose answer doesn't fit into `max_length`: "refuse" (it is an error) or
            "drop" (it is left out, and counted in a warning).

    Attributes, after `setup`:
        tasks: the tasks, in the order of the names; the index of a batch's `task`.
        splits: each task's examples.
        counts: split to task name to number of examples.
        truncated: split to the number of examples whose prompt was cut.
        since: from which epoch on training has rows of no task.
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
        long_answers: str = "refuse",
        temperature: float = 1.0,
        mix: str = "rows",
    ) -> None:
        super().__init__()
        check_positive("data.batch_size", batch_size)
        check_positive("data.max_length", max_length)
        check_positive("data.max_new_tokens", max_new_tokens)
        for key, value in {"data.seed": seed, "data.order_seed": order_seed}.items():
            if type(value) is not int:
                raise LorachainsError(f"{key} is {value!r}: give a whole number")
        if eval_batch_size is not None:
            check_positive("data.eval_batch_size", eval_batch_size)
        if long_answers not in ("refuse", "drop"):
            raise LorachainsError(f"data.long_answers is {long_answers!r}: choose refuse or drop")
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
        self.long_answers = long_answers
        self.mixture = Mixture(temperature, mix)
        self.tasks: list[Task] = []
        self.splits: list[Splits] = []
        self.counts: dict[str, dict[str, int]] = {}
        self.truncated: dict[str, int] = {}
        self._rows: dict[str, list[Encoded]] = {}
        self._apart: list[int] = []
        self.since = Since()
        self.serve(Serving(), by_length=False)

    def setup(self, stage: str | None = None) -> None:
        """Reads and tokenises all splits, once. Raises `LorachainsError` for an unknown task or a bad row."""
        if self._rows:
            return
        loaded = [self.source.load(name, self.sizes, self.seed) for name in self.task_names]
        self.tasks, self.splits = [task for task, _ in loaded], [splits for _, splits in loaded]
        rows = {split: self._encode(split) for split in ("train", "val", "test")}
        for split, encoded in rows.items():
            self._report(split, encoded)
        rows["train"] += self._encode_unlabelled()
        self._rows = rows

    def _encode_unlabelled(self) -> list[Encoded]:
        """Training rows of no task, behind all others; of a source that has some."""
        examples = self.source.unlabelled(self.sizes, self.seed) if hasattr(self.source, "unlabelled") else []
        rows = encode_train(self.tokenizer, examples, NO_TASK, self.max_length, self.long_answers == "drop")
        if examples:
            log.info("train rows without a label: %d", len(rows))
        return rows

    def _encode(self, split: str) -> list[Encoded]:
        rows: list[Encoded] = []
        for index, (task, splits) in enumerate(zip(self.tasks, self.splits, strict=True)):
            shared = (self.tokenizer, getattr(splits, split), index, self.max_length, self.long_answers == "drop")
            rows += encode_train(*shared) if split == "train" else encode_eval(*shared, prompts=bool(task.metrics))
        return rows

    @property
    def template(self) -> str:
        """How a request becomes a prompt, with `{instruction}` in its place; just that if the source doesn't say."""
        return getattr(self.source, "template", "{instruction}")

    def check_fits(self, positions: int | None) -> None:
        """Raises `LorachainsError` where a text, with its generated answer, is longer than what the model can read.

        Args:
            positions: the model's longest text in tokens; `None` where it knows no limit.
        """
        rows = [row for split in self._rows.values() for row in split]
        longest = max(row.length if row.prompt is None else row.length + self.max_new_tokens for row in rows)
        if positions is not None and longest > positions:
            if positions <= self.max_new_tokens:
                raise LorachainsError(
                    f"data.max_new_tokens is {self.max_new_tokens}, but the model reads {positions} tokens: lower it"
                )
            raise LorachainsError(
                f"the longest text has {longest} tokens, with what may be generated, but the model reads {positions}: "
                f"set data.max_length={positions - self.max_new_tokens}"
            )

    def _report(self, split: str, rows: list[Encoded]) -> None:
        kept = Counter(row.task for row in rows)
        self.counts[split] = {task.name: kept[index] for index, task in enumerate(self.tasks)}
        self.truncated[split] = sum(row.cut for row in rows)
        given = sum(len(getattr(splits, split)) for splits in self.splits)
        log.info("%s rows: %s", split, ", ".join(f"{name} {count}" for name, count in self.counts[split].items()))
        if self.truncated[split]:
            log.warning(
                "%s: %d of %d prompts cut to %d tokens", split, self.truncated[split], len(rows), self.max_length
            )

        if given > len(rows):
            log.warning(
                "%s: %d of %d rows left out: their answers don't fit into data.max_length=%d tokens",
                split, given - len(rows), given, self.max_length,
            )  # fmt: skip
        if empty := [name for name, count in self.counts[split].items() if not count]:
            raise LorachainsError(f"no {split} row of {', '.join(empty)} fits into data.max_length: raise it")

    def rows(self, split: str) -> list[Encoded]:
        """A split's rows, once `setup` is done."""
        return self._rows[split]

    def batches(self, by_length: bool = False) -> EpochBatches:
        """The training batches of one epoch after another, of the rows with a task.

        Args:
            by_length: whether rows of similar length share a batch.
        """
        rows = self._rows["train"][: self._labelled]
        lengths, tasks = [row.length for row in rows], [row.task for row in rows]
        return EpochBatches(lengths, self.batch_size, self.order_seed, by_length, tasks, self.mixture)

    @property
    def _labelled(self) -> int:
        return sum(row.task != NO_TASK for row in self._rows["train"])

    @property
    def unlabelled(self) -> int:
        """How many training rows have no task."""
        return len(self._rows["train"]) - self._labelled

    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(row.length for split in self._rows.values() for row in split)

    def streams(self, run: int, by_length: bool) -> list[Stream]:
        """The training rows that share batches: all, or each task's (`with_rows`). Those of no task stand beside all.

        Args:
            run: its number.
            by_length: whether rows of similar length share a batch.
        """
        if not self._apart:
            free = range(self._labelled, len(self._rows["train"]))
            beside = Beside(free, self.batch_size, self.order_seed, self.since)
            return [Stream(run, range(self._labelled), self.batches(by_length), beside)]
        rows = self._rows["train"]
        places = [[i for i, row in enumerate(rows) if row.task == task] for task in range(len(self._apart))]
        return [
            Stream(run, own, EpochBatches([rows[i].length for i in own], size, self.order_seed, by_length))
            for own, size in zip(places, self._apart, strict=True)
        ]

    def with_rows(
        self, rows: Mapping[str, list[Encoded]], tasks: Sequence[Task], apart: Sequence[int] = ()
    ) -> "TaskDataModule":
        """The same data, but for these splits' rows, and for what its tasks add to them.

        Args:
            apart: each task's batch size, if each is to have training batches of its own.
        """
        other = self.in_order(self.order_seed)
        other._rows, other.tasks, other._apart = self._rows | dict(rows), list(tasks), list(apart)
        return other

    def in_order(self, order_seed: int) -> "TaskDataModule":
        """The same rows, gone through in another order."""
        other = copy(self)
        other.order_seed = order_seed
        other.serve(Serving(), by_length=False)  # its loaders are still the other's
        return other

    @property
    def runs(self) -> "Sequence[TaskDataModule]":  # type: ignore[override]
        """Itself: the data of one run."""
        return [self]


def _names(tasks: Sequence[str]) -> list[str]:
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or len(set(names)) < len(names):
        raise LorachainsError(f"data.tasks is {names}: give one or more names, each once")
    return names
