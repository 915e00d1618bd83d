"""A source of made-up examples, for tests that aren't about where rows come from."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorachains.data.module import TaskDataModule
from lorachains.data.protocol import Sizes, Splits, draw
from lorachains.data.tasks import Example, Task


def examples(n: int, *, name: str = "stub", candidates: tuple[str, ...] = (" yes", " no")) -> list[Example]:
    """`n` examples with prompts of different texts and lengths."""
    answers = candidates or (" 1", " 22")
    return [
        Example(name, f"{name} {i} {'x' * (i * 7 % 31)}?", answers[i % len(answers)], f"{name}:{i}", candidates)
        for i in range(n)
    ]


class StubSource:
    """Tasks whose name begins with "free" have free answers, and those with "few" a third of the training rows."""

    def load(self, name: str, sizes: Sizes, seed: int) -> tuple[Task, Splits]:
        candidates = () if name.startswith("free") else (" yes", " no")
        made = examples(sizes.train + sizes.val + sizes.test, name=name, candidates=candidates)
        task = Task(name, lambda row: made[0])
        splits = draw(name, made[sizes.test :], made[: sizes.test], sizes, seed)
        few = sizes.train // 3 if name.startswith("few") else sizes.train
        return task, replace(splits, train=splits.train[:few])


def stub_module(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> TaskDataModule:
    """A data module of 27 training, 5 validation and 6 test rows."""
    settings: dict[str, Any] = {
        "tasks": ["stub"],
        "batch_size": 4,
        "eval_batch_size": None,
        "train_size": 27,
        "val_size": 5,
        "test_size": 6,
        "seed": 0,
        "order_seed": 0,
        "max_length": 64,
    }
    return TaskDataModule(tokenizer, StubSource(), **{**settings, **changes})


def score(task: Task, prediction: str, example: Example) -> float:
    """By the metric that counts."""
    return next(iter(task.metrics.values()))(prediction, example)
