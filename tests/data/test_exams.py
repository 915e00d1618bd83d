"""Exam questions are graded by their letters, where each row of a task has them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lorachains.data.exams import right_letters
from tests.data.test_instruction_sets import _module


@pytest.mark.parametrize(
    ("value", "letters"),
    [("B", "B"), (" DB ", "BD"), ("AA", "A"), ("b", ""), ("42", ""), ("", ""), (None, ""), (3, "")],
)
def test_letters_of_a_field(value: Any, letters: str) -> None:
    assert right_letters(value) == letters


def rows_of(path: Path, *answers: str | None) -> list[str]:
    rows = [
        {"domain": "EXAM", "input": f"question {i}", "output": f"Answer: {answer}, since", "answer": answer}
        for i, answer in enumerate(answers)
    ]
    more = [{"domain": "CHAT", "input": f"hello {i}", "output": "hi", "answer": None} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    return ["+data=instructions", f"data.path={path}"]


def test_a_task_of_exam_questions_is_graded_by_letters(tmp_path: Path) -> None:
    source = rows_of(tmp_path / "rows.jsonl", *"ABCDA")
    data = _module(*source, "data.generate=true")
    data.setup()
    chat, exam = data.tasks
    assert list(chat.metrics) == ["rougeL", "exact_match"]
    assert list(exam.metrics) == ["rougeL", "exact_match", "exam_accuracy", "unparsable"]
    assert list(exam.corpus_metrics) == ["bleu"]
    splits = data.splits[1]
    example = next(e for e in splits.train + splits.val + splits.test if e.letters == "A")
    told = {
        text: [exam.metrics[m](text, example) for m in ("exam_accuracy", "unparsable")]
        for text in ("答案：A", "B", "?")
    }
    assert told == {"答案：A": [1, 0], "B": [0, 0], "?": [0, 1]}
    quiet = _module(*source)
    quiet.setup()
    assert not any(task.metrics or task.corpus_metrics for task in quiet.tasks)


def test_rows_without_letters_are_no_exam(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lorachains"):
        data = _module(*rows_of(tmp_path / "rows.jsonl", "A", "B", None, "C", "D"), "data.generate=true")
        data.setup()
    assert "exam_accuracy" not in data.tasks[1].metrics
    assert "EXAM: no exam accuracy, since 1 of 5 rows have no right letters" in caplog.text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_domain_exam_of_moas_data(language: str, data_root: Path) -> None:
    """Its own outputs answer with the right letters, but for three whose explanations contradict them."""
    data = _module(
        "+data=moa", f"data.root={data_root}", f"data.language={language}", "data.generate=true", "data.task=EXAM"
    )
    data.setup()
    [task], [splits] = data.tasks, data.splits
    every = [*splits.train, *splits.val, *splits.test]
    wrong = sum(1 - task.metrics["exam_accuracy"](example.answer, example) for example in every)
    assert wrong == sum(task.metrics["unparsable"](example.answer, example) for example in every) <= 3
