"""Answers by rule: a table of texts, and the right outputs of the MoA exam data."""

import json
from pathlib import Path

import pytest

from lorachains.errors import LorachainsError
from lorachains.exam import ExamScore, answer_letters, exam_score

CASES = [
    ("B", "B"),
    (" (C) ", "C"),
    ("d", "D"),
    ("**B**", "B"),
    ("Ｂ．", "B"),
    ("【A】", "A"),
    ("BD", "BD"),
    ("DB", "BD"),
    ("A, C", "AC"),
    ("B. 有丝分裂中期", "B"),
    ("C) The cell\nbecause it is one", "C"),
    ("答案：B\n解析：A、正确；C错误。故选：B。", "B"),
    ("答案是B", "B"),
    ("答案为（C）。", "C"),
    ("正确答案应该是 D，因为A项错误", "D"),
    ("正确的选项是C", "C"),
    ("选C", "C"),
    ("故选：Ｃ．", "C"),
    ("我选择 A", "A"),
    ("所以应选BD。", "BD"),
    ("答案：A、C和D", "ACD"),
    ("故选: $A B$", "AB"),
    ("A错误，B错误，D错误。本题选C。", "C"),
    ("The answer is (C)", "C"),
    ("The answer is c.", "C"),
    ("So the answer is **B**, since A can't be.", "B"),
    ("Answer: D\nExplanation: A is too small", "D"),
    ("**Answer:** B", "B"),
    ("The correct option is A.", "A"),
    ("The correct answer is option E", "E"),
    (r"The answer is $\boxed{B}$.", "B"),
    (r"Answer: $\text{D}$", "D"),
    ("I would choose B because it fits", "B"),
    ("The answer is H: electrolytes", "H"),
    ("Answer: B. The answer is B.", "B"),
    ("", None),
    ("I don't know.", None),
    ("A good question, but hard.", None),
    ("A and B are wrong", None),
    ("The answer is a good one", None),
    ("The answer is Apple", None),
    ("答案是DNA", None),
    ("答案不是A", None),
    ("The answer is not B", None),
    ("不选A", None),
    ("选项A错误", None),
    ("A. one\nB. two\nC. three\nD. four", None),
    ("The answer is A. No, the answer is B.", None),
    ("答案：A\n故选：AB", None),
    ("答案是42", None),
    ("the answer is I", None),
    ("有丝分裂", None),
    ("The answer is A or B", None),
    ("The answer is A, B or C", None),
    ("选B还是C", None),
    ("The answer is either B", None),
    ("I see why answer B is wrong", None),
    ("Let's see each answer choice: (A) is too big", None),
    ("Answer B", "B"),
]


@pytest.mark.parametrize(("text", "letters"), CASES)
def test_the_table(text: str, letters: str | None) -> None:
    assert answer_letters(text) == letters


def test_only_the_options_that_there_are_answer() -> None:
    assert answer_letters("The answer is E", "ABCD") is None
    assert answer_letters("E", "ABCD") is None
    assert answer_letters("The answer is E", "ABCDE") == "E"


@pytest.mark.parametrize(
    ("folder", "contradictory"),
    [("moa", 3), ("moa_en", 2)],  # their explanations announce another answer than their first line
)
def test_gold_outputs_give_the_gold_answer(folder: str, contradictory: int, data_root: Path) -> None:
    rows = [json.loads(line) for line in (data_root / folder / "EXAM.jsonl").read_text().splitlines()]
    score = exam_score([row["output"] for row in rows], [row["answer"] for row in rows])
    assert score.unparsable == contradictory
    assert score.right == score.questions - contradictory
    heads = [row["output"].splitlines()[0] for row in rows]
    assert exam_score(heads, [row["answer"] for row in rows]).accuracy == 1


def test_unreadable_answers_are_counted_and_not_right() -> None:
    score = exam_score(["选A", "no idea", "C", "BA"], ["A", "B", "D", "AB"])
    assert score == ExamScore(questions=4, right=2, unparsable=1)
    assert score.accuracy == 0.5


@pytest.mark.parametrize(
    ("golds", "says"), [([], "no exam question"), (["A", "X"], "question 1: the right answer is 'X'"), ([""], "is ''")]
)
def test_right_answers_that_can_not_be(golds: list[str], says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        exam_score(["A"] * len(golds), golds)
