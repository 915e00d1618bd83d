"""How many rows and tokens the tasks of a data module have, as in Tab. 1 of MoA (arXiv 2403.03432)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lorachains.data.loaders import SPLITS
from lorachains.data.module import TaskDataModule
from lorachains.data.tokens import Encoded


@dataclass(frozen=True)
class TokenCounts:
    """One task's rows and tokens, as they are read: in the template, cut to `data.max_length`.

    Attributes:
        rows: of training, validation and test.
        tokens: of the same, prompts and gold answers together.
        prompt, answer: the mean and the largest number of tokens over the rows of all three.
    """

    task: str
    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    prompt: tuple[float, int]
    answer: tuple[float, int]


def token_counts(data: TaskDataModule) -> list[TokenCounts]:
    """Each task's, once `data.setup` is done."""
    return [
        _counts(task.name, [[row for row in data.rows(split) if row.task == index] for split in SPLITS])
        for index, task in enumerate(data.tasks)
    ]


def told(counts: Sequence[TokenCounts]) -> dict[str, float]:
    """`data/<task>/…` of each task, and `data/…`, the means over tasks; evaluation is validation and test."""
    found: dict[str, float] = {}
    for of in counts:
        numbers = {
            "train_rows": of.rows[0], "test_rows": of.rows[2], "train_tokens": of.tokens[0],
            "eval_tokens": sum(of.tokens[1:]),
        }  # fmt: skip
        found |= {f"data/{of.task}/{key}": number for key, number in numbers.items()}
    means = {key: fmean(found[f"data/{of.task}/{key}"] for of in counts) for key in numbers}
    return found | {f"data/{key}": mean for key, mean in means.items()}


def _counts(name: str, splits: Sequence[Sequence[Encoded]]) -> TokenCounts:
    texts = [[row.choices[row.example.gold if len(row.choices) > 1 else 0] for row in split] for split in splits]
    answers = [len(text.answer) for split in texts for text in split]
    prompts = [len(text.input_ids) - len(text.answer) for split in texts for text in split]
    return TokenCounts(
        name,
        rows=tuple(map(len, splits)),
        tokens=tuple(sum(len(text.input_ids) for text in split) for split in texts),
        prompt=(fmean(prompts), max(prompts)),
        answer=(fmean(answers), max(answers)),
    )
