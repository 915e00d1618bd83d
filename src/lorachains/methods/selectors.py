"""A selector trained by itself: Chain-of-LoRA's P as a LoRA ("Bloomz-LoRA") or as a whole model ("Bloomz-SFT") (IEEE
SPL 2024, Table III).

That rows ask for their task and not for their answer is the method's, as it is with the chain: `reads` makes the
selector's rows of whatever the data has, so that all ways to train one see the same instructions in the same splits,
and the data's settings mean the same. Such a run is judged by its names' exact likelihoods and, as in the paper, by
what it generates, searched by Knuth–Morris–Pratt; and it can select for a chain (`lorachains.load(…, selector=RUN)`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from lorachains.answering.folder import SelectorFile
from lorachains.answering.generated import generated_names
from lorachains.batch import Tokens
from lorachains.data.loaders import SPLITS
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.selector import Decoys, Question, RowsOnce, selector_rows, selector_task
from lorachains.data.tasks import SELECTOR
from lorachains.data.tokens import Encoded, prompt_tokens
from lorachains.errors import LorachainsError
from lorachains.evaluation import Prediction
from lorachains.methods.full import Full
from lorachains.methods.lora import Lora
from lorachains.methods.method import NEED_LABELS, Method
from lorachains.parallel import writes
from lorachains.run_folder import RunFolder
from lorachains.selection.report import Confusion, figures
from lorachains.selection.trie import probabilities, select


class Selecting(Method):
    """What a method adds that trains a selector alone. It stands before the method's class.

    Args:
        names: of the data's tasks, two at least.
        task_prompt: what the selector is asked, with `{instruction}` in it.
        task_names: task to the name by which the selector knows it, where that isn't the task's own.
        decoys: the share of training rows that say what task they are of, at random: see `Decoys`.
        others: the method's.

    Raises:
        LorachainsError: a setting that can't be followed.
    """

    def __init__(
        self, *, names: Sequence[str], task_prompt: str, task_names: Mapping[str, str] | None = None,
        decoys: float = 0.0, **kwargs: Any,
    ):  # fmt: skip
        self.question = question_of(names, task_prompt, task_names)
        super().__init__(**kwargs)
        self.decoys = decoys

    # -- what a kind of selector overrides -----------------------------------------------------------------------------

    def asked(self, run: TaskDataModule, rows: Sequence[Encoded], decoys: Decoys | None) -> list[Encoded]:
        """The selector's row of each of a run's rows; with decoys, of training rows."""
        return selector_rows(run.tokenizer, rows, self.question, run.max_length, decoys)

    def reach(self, run: TaskDataModule) -> int:
        """The most tokens of a text that the selector reads."""
        return run.max_length

    def generated(self, run: int, rows: Sequence[Encoded]) -> dict[str, float]:
        """What is told of selecting by generated text."""
        data, gold = self.data.runs[run], [row.example.gold for row in rows]
        prompts = [prompt_tokens(data.tokenizer, row.example.prompt, data.max_length) for row in rows]
        chosen = generated_choices(self, run, self.question, prompts)
        accuracy = Confusion(list(self.question.names), gold, chosen).accuracy
        return {"generated_accuracy": accuracy, "generated_fallbacks": chosen.count(-1)}

    # -- data and figures ----------------------------------------------------------------------------------------------

    def reads(self, data: RunsDataModule) -> RunsDataModule:
        """The selector's row of each row of the data."""
        data.setup()
        asked = RowsOnce(self.asked)
        return RunsDataModule([self._reads(run, asked) for run in data.runs])

    def _reads(self, run: TaskDataModule, asked: RowsOnce) -> TaskDataModule:
        check_tasks(self.question, run)
        decoys = {"train": Decoys(self.decoys, run.template, run.order_seed)}
        rows = {split: asked(run, split, decoys.get(split)) for split in SPLITS}
        return run.with_rows(rows, [selector_task(run.tasks)])

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes what was learned, and `selector.json`; returns `val/selector/…`."""
        metrics, data = super().save(run, folder), self.data.runs[run]
        if writes():
            about = (dict(self.question.names), self.question.prompt, data.template, self.reach(data))
            SelectorFile(self.base.name, *about).write(folder.path)
        return metrics | {f"val/{SELECTOR}/{key}": value for key, value in self.best.best[run].summary.items()}

    def report(self, run: int, folder: Path | None) -> dict[str, float]:
        """`test/selector/…`, and the confusion of tasks."""
        rows = self.data.runs[run].rows("test")
        scores = scores_of(self.predictions["test"][run], rows)
        chosen = [best.names[0] for best in select(probabilities(scores))]
        confusion = Confusion(list(self.question.names), [row.example.gold for row in rows], chosen)
        found = {"accuracy": confusion.accuracy, **figures(confusion, scores), **self.generated(run, rows)}
        if folder is not None and writes():
            confusion.write(folder)
        return {f"test/{SELECTOR}/{key}": value for key, value in found.items()}


class SelectorLora(Selecting, Lora):
    """P as a LoRA, by itself; see `Selecting` and `Lora`."""


class SelectorFull(Selecting, Full):
    """P as a whole model; see `Selecting` and `Full`."""


def question_of(tasks: Sequence[str], prompt: str, names: Mapping[str, str] | None) -> Question:
    """What a selector is asked about tasks.

    Raises:
        LorachainsError: there is nothing to select, or names are of other tasks; and see `Question`.
    """
    if len(tasks) < 2:
        raise LorachainsError(f"there is no task to select, data.tasks is {list(tasks)}: give two at least")
    if unknown := sorted(set(names or ()) - set(tasks)):
        raise LorachainsError(f"method.task_names names {', '.join(unknown)}: the tasks are {', '.join(tasks)}")
    return Question(prompt, {task: (names or {}).get(task, task) for task in tasks})


def check_tasks(question: Question, run: TaskDataModule) -> None:
    """Raises a LorachainsError unless the data's tasks are those that are selected among, in their order, and of each
    row."""
    if run.unlabelled:
        raise LorachainsError(f"{run.unlabelled} training rows {NEED_LABELS}")
    names, tasks = list(question.names), [task.name for task in run.tasks]
    if names != tasks:
        raise LorachainsError(f"what is selected among is {names}, but the data's tasks are {tasks}: give these alike")


def scores_of(predictions: Sequence[Prediction], rows: Sequence[Encoded]) -> Float64[Tensor, "rows tasks"]:
    """What the selector's predictions give each task's name, in nats, of rows that have their sources."""
    by_source = {p.source: p for p in predictions if p.task == SELECTOR}
    return torch.tensor([by_source[row.example.source].candidates for row in rows], dtype=torch.float64)


def generated_choices(method: Method, run: int, question: Question, prompts: Sequence[Tokens]) -> list[int]:
    """The task that a run's selector names in generated text, of each of its prompts; -1 for none."""
    data, tasks, found = method.data.runs[run], list(question.names), list[int]()
    adapter, generator = run * len(method.names), method.passes.generator()
    for start in range(0, len(prompts), data.eval_batch_size):
        some = prompts[start : start + data.eval_batch_size]
        names = generated_names(generator, method.base.tokenizer, question, some, adapter)
        found += [-1 if name is None else tasks.index(name) for name in names]
    return found
