"""What systems answered, read from their predictions to be rated by a judge or by people."""

import random
from dataclasses import dataclass
from pathlib import Path

from lorachains.data.rows import read_file
from lorachains.data.tasks import SELECTOR
from lorachains.errors import LorachainsError


@dataclass(frozen=True)
class Answer:
    """What a system answered to a prompt.

    Attributes:
        reference: a right answer; `None` if there is none.
        source: file and line it was read from.
    """

    task: str
    prompt: str
    prediction: str
    reference: str | None
    source: str


def read_answers(path: Path, rows: int | None = None, seed: int = 0) -> list[Answer]:
    """The answers in a JSON Lines file with the fields `prompt` and `prediction`, as a run's `predictions.jsonl`.

    Or with `prompt`, `answer` and `tokens`, as `lorachains.generate` prints them. The rows in which a chain's selector
    names tasks are left out: they answer nobody.

    Args:
        rows: so many, drawn by `seed`, in file order; all if there are fewer.

    Raises:
        LorachainsError: there is no such file, it holds no row, or a field is missing or no text: with file and line.
    """
    if rows is not None and (type(rows) is not int or rows < 1):
        raise LorachainsError(f"rows is {rows!r}: give a whole number of at least 1, or null for all")
    if not path.is_file():
        raise LorachainsError(f"{path} is no file: give a JSON Lines file with the fields prompt and prediction")
    answers = []
    for row in read_file(path):
        if row.values.get("task") == SELECTOR:
            continue
        if "prediction" not in row.values and {"answer", "tokens"} <= row.values.keys():
            answers.append(Answer(row.text("task"), row.text("prompt"), row.text("answer"), None, row.source))
            continue
        if row.values.get("prediction", "") is None:
            raise LorachainsError(
                f"{row.source}: no answer was generated: rate a run with data.generate=true, or of a task with metrics"
            )
        task, reference = (row.text(field) if field in row.values else None for field in ("task", "answer"))
        answers.append(Answer(task or "", row.text("prompt"), row.text("prediction"), reference, row.source))
    if not answers:
        raise LorachainsError(f"{path} is empty: give a file with predictions")
    if rows is None or rows >= len(answers):
        return answers
    return [answers[i] for i in sorted(random.Random(seed).sample(range(len(answers)), rows))]
