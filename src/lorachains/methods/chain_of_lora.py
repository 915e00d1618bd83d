"""Chain-of-LoRA: a task-selection LoRA and one LoRA for each task (Qiu et al., IEEE Signal Processing Letters 2024).

The selector P names the task of an instruction, and that task's expert M_t answers it (§II-A). All n + 1 are one bank,
trained in one pass over mixed batches: since each makes its own optimizer steps, at its own rates, each is the adapter
that it would be alone. Each is kept at its own best epoch.

The paper trains "the two separately" (§II-B) and gives no hyper-parameters; that is the same for every adapter.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from peft import LoraConfig

from lorachains.answering.folder import BASE, ChainFile, check_invoked, check_settings, read_chain
from lorachains.answering.prompts import prompts_of
from lorachains.data.activation import check_activated, invocation, shared_part
from lorachains.data.loaders import SPLITS
from lorachains.data.module import TaskDataModule
from lorachains.data.runs import RunsDataModule
from lorachains.data.selector import Decoys, RowsOnce, selector_rows, selector_task
from lorachains.data.tasks import SELECTOR
from lorachains.data.tokens import Encoded, encode_eval, encode_train
from lorachains.errors import LorachainsError, check_positive
from lorachains.inject import scaling
from lorachains.methods.lora import Lora
from lorachains.methods.routed_answers import routed_metrics
from lorachains.methods.selectors import check_tasks, question_of
from lorachains.models import LanguageModel
from lorachains.optim import Optim, check_rate
from lorachains.parallel import writes
from lorachains.peft_format import check_base, read_config
from lorachains.run_folder import RunFolder
from lorachains.transfer import load_adapter


class ChainOfLora(Lora):
    """Trains the selector and the experts.

    Args:
        names: the experts': those of the data's tasks, in their order, two at least.
        task_prompt: what the selector is asked, with `{instruction}` in it.
        task_names: task to the name by which the selector knows it, where that isn't the task's own.
        selector_batch_size: rows of the selector's batches; `None` for so many that its epoch has as many batches as
            the longest expert's.
        selector_lr: the selector's peak learning rate, with the schedule of the experts'; `None` for theirs.
        decoys: the share of the selector's training rows that say what task they are of, at random: see `Decoys`.
        selection, threshold, fallback, activated: see `ChainFile`.
        start: the run folder of a finished chain: its experts are taken over, but for those in `train`.
        train: the tasks whose experts are trained, beside the selector; `None` for those that `start` doesn't have.
        others: see `Lora`.

    Raises:
        LorachainsError: a setting that can't be followed.
    """

    def __init__(
        self, base: LanguageModel, adapter: LoraConfig | Sequence[LoraConfig], optim: Optim | Sequence[Optim],
        seed: int | Sequence[int], names: Sequence[str], task_prompt: str, task_names: Mapping[str, str] | None = None,
        selector_batch_size: int | None = None, selector_lr: float | None = None, decoys: float = 0.0,
        select: str = "metric", selection: str = "exact", threshold: float = 0.0, fallback: str = BASE,
        activated: str = "none", start: str | None = None, train: Sequence[str] | None = None,
        start_from: str | None = None, start_links: int | None = None,
    ):  # fmt: skip
        train = [train] if isinstance(train, str) else train
        self.question = question_of(names, task_prompt, task_names)
        _check(names, train, start)
        check_settings(selection, threshold, fallback, names, "method.")
        check_activated(activated, task_prompt)
        if selector_batch_size is not None:
            check_positive("method.selector_batch_size", selector_batch_size)
        if selector_lr is not None:
            optims = [optim] if isinstance(optim, Optim) else optim
            optim = [_with_selectors(recipe, selector_lr, len(names)) for recipe in optims]
        super().__init__(base, adapter, optim, seed, [SELECTOR, *names], select, start_from, start_links)
        self.decoys = decoys
        self.tasks, self.selector_batch_size = list(names), selector_batch_size
        self.selection, self.threshold, self.fallback = selection, float(threshold), fallback
        self.activated = activated
        self.start = Path(start) if start else None
        self.kept = self._kept(train)
        for expert, name in enumerate(self.names * len(self.seeds)):
            if name in self.kept:
                self._take_over(expert, self.kept[name])

    def _kept(self, train: Sequence[str] | None) -> dict[str, Path]:
        """The folders of the experts that are taken over as they are."""
        if self.start is None:
            return {}
        before = read_chain(self.start)
        anew = set(self.tasks) - set(before.tasks) if train is None else set(train)
        if missing := [task for task in self.tasks if task not in {*anew, *before.tasks}]:
            raise LorachainsError(f"method.start={self.start} has no expert for {missing[0]!r}: add it to method.train")
        kept = {task: RunFolder(self.start).adapters / task for task in self.tasks if task not in anew}
        if not kept:
            raise LorachainsError(
                f"method.start={self.start} is of no use: of its tasks ({', '.join(before.tasks)}) none is kept: "
                "leave it out, or name fewer in method.train, or some of them in data.tasks"
            )
        return kept

    def _take_over(self, expert: int, folder: Path) -> None:
        check_base(folder, self.base.name, self._fingerprint)
        load_adapter(self.chain, folder, expert, activated=True)
        saved, config = read_config(folder), self.chain.configs[expert]
        if scaling(saved, saved.r) != scaling(config, config.r):
            raise LorachainsError(
                f"{folder} was trained with lora_alpha={saved.lora_alpha} at rank {saved.r}, this run has "
                f"{config.lora_alpha} at {config.r}: give the adapter settings of method.start"
            )

    # -- data ----------------------------------------------------------------------------------------------------------

    def reads(self, data: RunsDataModule) -> RunsDataModule:
        """The selector's rows beside the experts', each adapter's in training batches of their own."""
        data.setup()
        asked, answered = RowsOnce(self._asked), RowsOnce(self._answered)
        return RunsDataModule([self._beside(run, asked, answered) for run in data.runs])

    def _beside(self, run: TaskDataModule, asked: RowsOnce, answered: RowsOnce) -> TaskDataModule:
        check_tasks(self.question, run)
        invoked = {name: self.invocation_of(name, run) for name in self.names}
        for name, folder in self.kept.items():
            check_invoked(folder, invoked[name], f"method.activated={self.activated}")
        prompts_of(run.tokenizer, self._settings(run))  # refuses what leaves no room for a request
        decoys = {"train": Decoys(self.decoys, run.template, run.order_seed)}
        rows = {s: asked(run, s, decoys.get(s)) + answered(run, s, decoys.get(s)) for s in SPLITS}
        counts = [sum(row.task == task for row in rows["train"]) for task in range(len(self.names))]
        longest = max((-(-count // run.batch_size) for count in counts[1:]), default=0)
        selectors = self.selector_batch_size or (-(-counts[0] // longest) if longest else run.batch_size)
        sizes = [selectors] + [run.batch_size] * len(self.tasks)
        return run.with_rows(rows, [selector_task(run.tasks), *run.tasks], sizes)

    def _asked(self, run: TaskDataModule, rows: Sequence[Encoded], decoys: Decoys | None) -> list[Encoded]:
        """The selector's rows; decoys are among those that train."""
        shared = partial(shared_part, run.template) if self.activated != "none" else lambda _: 0
        return selector_rows(run.tokenizer, rows, self.question, run.max_length, decoys, shared)

    def _answered(self, run: TaskDataModule, rows: Sequence[Encoded], decoys: Decoys | None) -> list[Encoded]:
        """The experts' rows, which have no decoys; to train, of those that aren't taken over."""
        train = decoys is not None
        trained = [row for row in rows if not (train and self.tasks[row.task] in self.kept)]
        return [replace(row, task=row.task + 1) for row in self._activated(run, trained, train)]

    def _activated(self, run: TaskDataModule, rows: Sequence[Encoded], train: bool) -> list[Encoded]:
        """The experts' rows, encoded anew where the base alone is to read the request."""
        if self.activated != "all":
            return list(rows)
        found: list[Encoded] = []
        for (task, free), some in groupby(rows, lambda row: (row.task, row.prompt is not None)):
            examples = [replace(r.example, shared=shared_part(run.template, r.example.prompt)) for r in some]
            told = (run.tokenizer, examples, task, run.max_length, run.long_answers == "drop")
            found += encode_train(*told) if train else encode_eval(*told, prompts=free)
        return found

    def invocation(self, expert: int) -> list[int] | None:
        return self.invocation_of(self.names[expert % len(self.names)], self.data.runs[expert // len(self.names)])

    def invocation_of(self, name: str, run: TaskDataModule) -> list[int] | None:
        """See `lorachains.data.activation.invocation`."""
        return invocation(run.tokenizer, self.activated, run.template, self.question, name)

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _settings(self, data: TaskDataModule) -> ChainFile:
        return ChainFile(
            self.base.name, dict(self.question.names), self.question.prompt, data.template, data.max_length,
            self.selection, self.threshold, self.fallback, data.tasks[0].stop, self.activated,
        )  # fmt: skip

    def save(self, run: int, folder: RunFolder) -> dict[str, float]:
        """Writes a run's adapters and `chain.json`."""
        metrics = super().save(run, folder)
        if writes():
            self._settings(self.data.runs[run]).write(folder.path)
        return metrics

    def report(self, run: int, folder: Path | None) -> dict[str, float]:
        """What `routed_metrics` tells, and the confusion of tasks."""
        found, confusion = routed_metrics(self, run, self._settings(self.data.runs[run]))
        if folder is not None and writes():
            confusion.write(folder)
        return found

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.kept = {name: folder / name for name in self.names}

    def write(self, expert: int, path: Path) -> int:
        """Writes one adapter; one that was taken over byte for byte."""
        kept = self.kept.get(self.names[expert % len(self.names)])
        if kept is None:
            return super().write(expert, path)
        if kept.resolve() != path.resolve():
            shutil.copytree(kept, path, dirs_exist_ok=True)
        return read_config(path).r


def _with_selectors(recipe: Optim, selector_lr: float, experts: int) -> Optim:
    """A run's optimizer recipe with a learning rate of the selector's own."""
    check_rate("method.selector_lr", selector_lr)
    if len(recipe.peak()) > 1:
        raise LorachainsError(
            f"method.selector_lr is {selector_lr}, but optim.lr gives each adapter a rate, the selector the first: "
            "give one for all experts, or no method.selector_lr"
        )
    return replace(recipe, lr=[selector_lr, *recipe.peak() * experts])


def _check(tasks: Sequence[str], train: Sequence[str] | None, start: str | None) -> None:
    if unknown := sorted(set(train or ()) - set(tasks)):
        raise LorachainsError(f"method.train names {', '.join(unknown)}: the tasks are {', '.join(tasks)}")
    if train is not None and start is None:
        raise LorachainsError("method.train trains some experts of a finished chain: give its folder as method.start")
