"""Exam questions among the rows of an instruction set: answered freely, graded by letters (MoA, Tab. 5).

The domain EXAM has the letters of the right options in a field of their own, beside outputs that explain them.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorachains.data.tasks import Example, Metric
from lorachains.exam import answer_letters

log = logging.getLogger(__name__)


def right_letters(value: Any) -> str:
    """The letters of a field, from A to H, in their order; "" where it holds anything else."""
    text = value.strip() if isinstance(value, str) else ""
    return "".join(sorted(set(text))) if re.fullmatch("[A-H]+", text) else ""


def exam_accuracy(prediction: str, example: Example) -> float:
    """1.0 where the text gives the right letters, all and no other; a text that can't be read as letters is wrong."""
    return float(answer_letters(prediction) == example.letters)


def unparsable(prediction: str, example: Example) -> float:
    """1.0 where the text can't be read as letters; the mean is the share of such answers."""
    return float(answer_letters(prediction) is None)


def exam_metrics(task: str, letters: Sequence[str]) -> Mapping[str, Metric]:
    """The metrics of a task whose rows are all exam questions; none for another.

    Args:
        letters: of the task's rows.
    """
    if all(letters):
        return {"exam_accuracy": exam_accuracy, "unparsable": unparsable}
    if any(letters):
        missing = sum(not of_row for of_row in letters)
        log.warning("%s: no exam accuracy, since %d of %d rows have no right letters", task, missing, len(letters))
    return {}
