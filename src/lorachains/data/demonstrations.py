"""In-context learning: training rows with their answers before the prompt, as Malladi et al. 2023 (arXiv 2305.17333,
MeZO) do it, on whose setup COLA's tables rest (arXiv 2401.04151, App. A.1).

Every prompt of a task gets the same demonstrations in the same order. Where they don't all fit, the first ones are left
out: whole ones here, while MeZO cuts the text itself from the left.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from lorachains.data.module import TaskDataModule
from lorachains.data.tasks import Example
from lorachains.data.tokens import Encoded, encode_eval
from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)

SEPARATOR = "\n\n"
"""Between two demonstrations, and before the prompt (MeZO's `train_sep`)."""


def check_number(key: str, number: object) -> None:
    """Raises `LorachainsError` where the config value is no whole number of at least 0."""
    if type(number) is not int or number < 0:
        raise LorachainsError(f"{key} is {number!r}: give a whole number, 0 or more")


def demonstrated(data: TaskDataModule, number: int, seed: int, positions: int | None) -> tuple[TaskDataModule, float]:
    """The same data with demonstrations before each validation and test prompt.

    As many as fit into `data.max_length` tokens together with the prompt and its longest answer, and into the model
    with what may be generated. They are training rows of the prompt's own task. A free answer ends where the next
    demonstration would begin, if its task doesn't end it before.

    Args:
        data: set up.
        number: demonstrations of a prompt, if as many fit.
        seed: which rows are drawn.
        positions: the model's longest text in tokens; `None` where it knows no limit.

    Returns:
        The data, and how many demonstrations a test prompt has in the mean.
    """
    if number == 0:
        return data, 0.0
    rows: dict[str, list[Encoded]] = {"val": [], "test": []}
    counts: dict[str, list[int]] = {"val": [], "test": []}
    for index, (task, splits) in enumerate(zip(data.tasks, data.splits, strict=True)):
        drawn = draw_demonstrations(splits.train, number, f"{seed}/{task.name}/demonstrations")
        for split in rows:
            found = _fitting(data, getattr(splits, split), index, drawn, positions)
            rows[split] += [row for row, _ in found]
            counts[split] += [count for _, count in found]
    every = counts["val"] + counts["test"]
    log.info(
        "demonstrations before a prompt: %.1f in the mean, %d to %d (asked for %d)",
        fmean(every), min(every), max(every), number,
    )  # fmt: skip
    if not any(every):
        raise LorachainsError(
            "not one demonstration fits before any prompt: raise data.max_length (and the model's context), or ask "
            "for none: method=zero_shot, or demonstrations=0 of lorachains.evaluate"
        )
    tasks = [replace(task, stop=task.stop or SEPARATOR) for task in data.tasks]
    return data.with_rows(rows, tasks), fmean(counts["test"])


def draw_demonstrations(train: Sequence[Example], number: int, seed: str) -> list[str]:
    """The texts of so many training rows with their answers; all rows where there are fewer."""
    drawn = random.Random(seed).sample(list(train), min(number, len(train)))
    return [(example.prompt + example.answer).strip() for example in drawn]


def with_demonstrations(example: Example, demonstrations: Sequence[str]) -> Example:
    """The example with demonstrations before its prompt."""
    return replace(example, prompt=SEPARATOR.join([*demonstrations, example.prompt]))


def _fitting(
    data: TaskDataModule, examples: Sequence[Example], task: int, drawn: Sequence[str], positions: int | None
) -> list[tuple[Encoded, int]]:
    """Each example with the last ones of `drawn`, as many as fit, and their number.

    Tried out from one more than the sum of their lengths lets expect: pieces may have other tokens than the whole.
    """
    limit = min(data.max_length, positions or data.max_length)
    sizes = [len(ids) for ids in data.tokenizer([d + SEPARATOR for d in drawn], add_special_tokens=False).input_ids]
    alone = encode_eval(data.tokenizer, examples, task, data.max_length)
    counts = [min(_last_within(sizes, limit - row.length) + 1, len(drawn)) for row in alone]
    found, left = list(alone), list(range(len(examples)))
    while left:
        texts = [with_demonstrations(examples[i], drawn[len(drawn) - counts[i] :]) for i in left]
        tried = dict(zip(left, encode_eval(data.tokenizer, texts, task, data.max_length), strict=True))
        for i, row in tried.items():
            if counts[i] == 0 or _fits(row, data.max_new_tokens, positions):
                found[i] = row
            else:
                counts[i] -= 1
        left = [i for i in left if found[i] is not tried[i]]
    return list(zip(found, counts, strict=True))


def _last_within(sizes: Sequence[int], room: int) -> int:
    """How many of the last sizes add up to at most `room`."""
    count = 0
    while count < len(sizes) and sum(sizes[len(sizes) - count - 1 :]) <= room:
        count += 1
    return count


def _fits(row: Encoded, new_tokens: int, positions: int | None) -> bool:
    length = row.length + (0 if row.prompt is None else new_tokens)
    return not row.cut and (positions is None or length <= positions)
