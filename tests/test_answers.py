"""Predictions are read as they stand in the file, all or some drawn by a seed."""

import json
from pathlib import Path

import pytest

from lorachains.answers import Answer, read_answers
from lorachains.errors import LorachainsError


def test_rows_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": f"p{i}", "prediction": "", "task": "t", "answer": "gold", "score": 1} for i in range(9)]
    file.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "last", "prediction": "x"}])))
    answers = read_answers(file)
    assert answers[0] == Answer("t", "p0", "", "gold", f"{file}:1")
    assert answers[-1] == Answer("", "last", "x", None, f"{file}:10")
    some = read_answers(file, rows=4, seed=1)
    assert some == read_answers(file, rows=4, seed=1)
    assert [answer for answer in answers if answer in some] == some
    assert len({tuple(a.prompt for a in read_answers(file, 4, seed)) for seed in range(9)}) > 1
    assert read_answers(file, rows=99) == answers


@pytest.mark.parametrize(
    ("text", "rows", "says"),
    [
        ('{"prompt": "a", "prediction": "b"}\n{"prompt": "a"}', None, "p.jsonl:2: field 'prediction' is missing"),
        ('{"prompt": "a", "prediction": 1}', None, "p.jsonl:1: field 'prediction' is 1, expected text"),
        ('{"prompt": "a", "prediction": null}', None, "p.jsonl:1: no answer was generated"),
        ('{"prompt": "a"', None, "p.jsonl:1: not JSON"),
        ("", None, "p.jsonl is empty"),
        (None, None, "p.jsonl is no file"),
        ("{}", 0, "rows is 0"),
        ("{}", "all", "rows is 'all'"),
    ],
)
def test_a_file_that_can_not_be_rated(text: str | None, rows: int | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(LorachainsError, match=says):
        read_answers(tmp_path / "p.jsonl", rows)


def test_a_chains_own_answers_and_those_that_generate_prints(tmp_path: Path) -> None:
    """The selector's rows are nobody's answers."""
    chain = [
        {"task": "selector", "prompt": "2 + 2? The task is", "prediction": "sums", "answer": "sums"},
        {"task": "sums", "prompt": "2 + 2?", "prediction": "5", "answer": "4"},
    ]
    printed = [{"prompt": "2 + 2?", "task": "sums", "answer": "5", "tokens": 1, "seconds": {}}]
    for name, rows, reference in (("chain", chain, "4"), ("printed", printed, None)):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        [answer] = read_answers(tmp_path / f"{name}.jsonl")
        assert (answer.task, answer.prediction, answer.reference) == ("sums", "5", reference)
