"""Instruction sets with a task or domain label in each row: Firefly, Super-NaturalInstructions, MoA's, a user's own.

Their answers are free: they are judged by their likelihood (loss, perplexity), which costs one pass, and with
`data.generate=true` also by what is generated for each prompt.
"""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorachains.data import templates
from lorachains.data.exams import exam_metrics
from lorachains.data.files import files_in, read_rows
from lorachains.data.hub import HubSet
from lorachains.data.instructions import UNLABELLED, Columns, Record, records, superni_rows
from lorachains.data.module import TaskDataModule
from lorachains.data.overlap import bleu, rouge_l
from lorachains.data.partition import Parts, partition, unseen
from lorachains.data.protocol import Sizes, Splits
from lorachains.data.rows import Row
from lorachains.data.tasks import Example, Metric, Task, matches
from lorachains.errors import LorachainsError, check_switch

log = logging.getLogger(__name__)

FIREFLY = HubSet(
    "YeungNLP/firefly-train-1.1M", "default",
    instead="set data.root=DIR, a folder with the official files (DIR/firefly/NLI.jsonl, …)",
)  # fmt: skip


class Instructions:
    """The tasks of an instruction set.

    Args:
        found: all its records. Tasks that aren't asked for count too where texts must not be in two splits.
        shares: see `partition`.
        generate: whether answers are generated and compared with the references.

    Attributes:
        template: a prompt, with `{instruction}` in its request's place.
    """

    def __init__(
        self, found: Iterable[Record], prompt: templates.Template, shares: Sequence[float], generate: bool
    ) -> None:
        listed = list(found)
        self.records = [record for record in listed if record.task != UNLABELLED]
        self._without = [record for record in listed if record.task == UNLABELLED]
        self.prompt, self.shares = prompt, shares
        self.template = prompt("{instruction}")
        self.generate = generate
        self.names = sorted({record.task for record in self.records})
        self._parts: dict[int, dict[str, Parts]] = {}

    def choose(self, tasks: Sequence[str] | None, exclude: Sequence[str]) -> list[str]:
        """The tasks asked for, all if None, without the excluded ones. Raises `LorachainsError` for unknown ones."""
        if not self.names:
            raise LorachainsError("the data set has no rows: give files that hold some")
        if unknown := sorted({*(tasks or ()), *exclude} - set(self.names)):
            raise LorachainsError(
                f"there is no task {', '.join(unknown)}: choose data.tasks and data.exclude of {', '.join(self.names)}"
            )
        if not (chosen := [name for name in tasks or self.names if name not in exclude]):
            raise LorachainsError("data.exclude leaves out all tasks: keep one")
        return chosen

    def load(self, name: str, sizes: Sizes, seed: int) -> tuple[Task, Splits]:
        """See `Source.load`."""
        caps = (sizes.train, sizes.val, sizes.test)
        parts = [
            [self.example(record) for record in part[:cap]]
            for part, cap in zip(self._partition(seed)[name], caps, strict=True)
        ]
        return self._task(name), Splits(*parts)

    def unlabelled(self, sizes: Sizes, seed: int) -> list[Example]:
        """Training rows without a label: those whose text is in no other split."""
        if not self._without:
            return []
        chosen = unseen(self._without, self._partition(seed).values(), seed)
        return [self.example(record) for record in chosen[: sizes.train]]

    def _partition(self, seed: int) -> dict[str, Parts]:
        if seed not in self._parts:
            self._parts[seed] = partition(self.records, self.shares, seed)
        return self._parts[seed]

    def _task(self, name: str) -> Task:
        """With its metrics, if answers are generated."""
        read, metrics = Columns().record, dict[str, Metric]()
        if self.generate:
            letters = [record.letters for record in self.records if record.task == name]
            metrics = {"rougeL": rouge_l, "exact_match": matches, **exam_metrics(name, letters)}
        of_all = {"bleu": bleu} if self.generate else {}
        return Task(name, lambda row: self.example(read(row)), metrics, of_all, perplexity=True)

    def example(self, record: Record) -> Example:
        """The record's prompt and answers."""
        prompt, answers = self.prompt(record.request), record.answers
        return Example(record.task, prompt, answers[0], record.source, references=answers, letters=record.letters)


def instructions(
    tokenizer: PreTrainedTokenizerBase, *, path: str | None, columns: Mapping[str, str | None],
    hub: str | Sequence[str] | None = None, unlabelled: bool = False, **settings: Any,
) -> TaskDataModule:  # fmt: skip
    """A user's own rows, of a file or of a folder's files, or the training rows of sets of the hub.

    Where no row of a file or of a set has a label, its name is one.

    Args:
        hub: sets by their names, "owner/name" or "owner/name:config".
        unlabelled: whether rows may lack the label that others of their file have, for training.

    Raises:
        LorachainsError: there is no such file or set, or a bad row in it.
    """
    if (path is None) == (hub is None):
        raise LorachainsError("give data.path, a file or a folder of rows, or data.hub, sets of the hub by their names")
    check_switch("data.unlabelled", unlabelled)
    sources: list[tuple[Iterable[Row], str, str]]
    if path is not None:
        sources = [(read_rows(file), file.stem, str(file)) for file in files_in(Path(path), "data.path")]
    else:
        names = [hub] if isinstance(hub, str) else hub
        if not (isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names)):
            raise LorachainsError(f"data.hub is {hub!r}: give a set's name, or several as [owner/one,owner/two]")
        sources = [_of_hub(name) for name in names]
    found = (r for rows, label, source in sources for r in records(rows, columns, label, source, unlabelled))
    return _module(tokenizer, found, **settings)


def _of_hub(name: str) -> tuple[Iterable[Row], str, str]:
    """A set's training rows, the label of those that have none, and where they are from."""
    repository, _, config = name.partition(":")
    of = HubSet(repository, config or "default", instead="save its rows as a file and give data.path=FILE")
    return of.rows("train"), repository.rpartition("/")[2], f"hub:{name}"


def firefly(tokenizer: PreTrainedTokenizerBase, *, root: str | None, **settings: Any) -> TaskDataModule:
    """Firefly (`kind`, `input`, `target`) of `root`/firefly/*.jsonl, or of the hub where `root` is None."""
    columns = Columns(task="kind", instruction=None, output="target")
    rows = FIREFLY.rows("train") if root is None else _rows(root, "firefly")
    return _module(tokenizer, map(columns.record, rows), **settings)


def superni(
    tokenizer: PreTrainedTokenizerBase, *, root: str | None, superni: Mapping[str, bool], **settings: Any
) -> TaskDataModule:
    """Super-NaturalInstructions (Wang et al. 2022): the task files `root`/superni/*.json.

    Args:
        superni: `definition`: whether the task's definition is in the prompt, or the instance alone.
    """
    check_switch("data.superni.definition", superni["definition"])
    files = files_in(_folder(root, "superni"), "data.root")
    rows = (row for file in files for row in superni_rows(file, superni["definition"]))
    return _module(tokenizer, map(Columns().record, rows), **settings)


def moa(
    tokenizer: PreTrainedTokenizerBase, *, root: str | None, language: str, unlabelled: bool = False, **settings: Any
) -> TaskDataModule:
    """MoA's eight domains (Tab. 1): `root`/moa/*.jsonl, or `root`/moa_en/*.jsonl for the English ones.

    Args:
        language: "zh" for Chinese and English mixed, as in the paper, or "en".
        unlabelled: whether rows may lack their domain, for training.
    """
    if language not in ("zh", "en"):
        raise LorachainsError(f"data.language is {language!r}: choose zh (mixed, as in the paper) or en")
    check_switch("data.unlabelled", unlabelled)
    rows = _rows(root, "moa" if language == "zh" else "moa_en")
    return _module(tokenizer, map(Columns(task="domain", unlabelled=unlabelled).record, rows), **settings)


def _folder(root: str | None, name: str) -> Path:
    if root is None:
        raise LorachainsError(f"data.root is null: give the folder that holds {name}/")
    return Path(root) / name


def _rows(root: str | None, name: str) -> Iterable[Row]:
    return (row for file in files_in(_folder(root, name), "data.root") for row in read_rows(file))


def _module(
    tokenizer: PreTrainedTokenizerBase, found: Iterable[Record], *, task: str | None, tasks: Sequence[str] | None,
    exclude: Sequence[str], split: Sequence[float], template: str, generate: bool,
    train_size: int | None, val_size: int | None, test_size: int | None, **settings: Any,
) -> TaskDataModule:  # fmt: skip
    check_switch("data.generate", generate)
    source = Instructions(found, templates.template(template, tokenizer), split, generate)
    if tasks is not None and not tasks:
        raise LorachainsError(f"data.tasks is {tasks!r}: give one name or more, or null")
    wanted = [tasks] if isinstance(tasks, str) else tasks or ([task] if task else None)
    sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
    caps = {key: sys.maxsize if size is None else size for key, size in sizes.items()}
    left_out = [exclude] if isinstance(exclude, str) else exclude or []
    return TaskDataModule(tokenizer, source, source.choose(wanted, left_out), **{**caps, **settings})
