"""The selector reads the instruction in the task prompt, and answers with one of the names."""

from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lorachains.data.selector import Decoys, Question, selector_rows, selector_task
from lorachains.data.tasks import Task
from lorachains.errors import LorachainsError
from tests.data.stub import stub_module

QUESTION = Question("Q: {instruction}\nTask:", {"one": "uno", "two": "uno dos"})


def test_training_rows_end_in_the_right_name(tokenizer: PreTrainedTokenizerFast) -> None:
    data = stub_module(tokenizer, tasks=["one", "two"])
    data.setup()
    given = data.rows("train")
    rows = selector_rows(tokenizer, given, QUESTION, 99, Decoys(0.0, "{instruction}", 0))
    for row, of in zip(rows, given, strict=True):
        [text] = row.choices
        name = ["uno", "uno dos"][of.task]
        assert tokenizer.decode(text.input_ids[:-1]) == f"Q: {of.example.prompt}\nTask: {name}"
        assert text.answer.tolist() == [*tokenizer.encode(f" {name}"), tokenizer.eos_token_id]
        assert (row.task, row.example.source) == (0, of.example.source)


def test_other_rows_have_all_names_each_closed(tokenizer: PreTrainedTokenizerFast) -> None:
    data = stub_module(tokenizer, tasks=["one", "two"])
    data.setup()
    for row, of in zip(selector_rows(tokenizer, data.rows("val"), QUESTION, 99), data.rows("val"), strict=True):
        assert row.example.gold == of.task
        assert [tokenizer.decode(text.answer[:-1]) for text in row.choices] == [" uno", " uno dos"]
        assert {text.input_ids[-1] for text in row.choices} == {tokenizer.eos_token_id}


def test_a_long_instruction_loses_its_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in QUESTION.texts(tokenizer, "x" * 99, 40):
        assert len(text.input_ids) == 40
        assert "x\nTask: uno" in tokenizer.decode(text.input_ids)


def test_names_compare_by_their_whole_likelihoods() -> None:
    assert selector_task([Task("one", lambda row: None, stop="\n")]).total  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("prompt", "names", "says"),
    [
        ("Task:", {"a": "a"}, "method.task_prompt is 'Task:': put {instruction} in it"),
        ("{instruction} Task: ", {"a": "a"}, "no white space at its end"),
        (None, {"a": "a"}, "method.task_prompt is None: put {instruction} in it"),
        (["{instruction}:"], {"a": "a"}, "method.task_prompt is ['{instruction}:']: put {instruction} in it"),
        ("{instruction}:", {"a": "x", "b": " x"}, "method.task_names gives the names ['x', ' x']"),
        ("{instruction}:", {"a": 1, "b": "1"}, "method.task_names gives the names [1, '1']: give each task a text"),
        ("{instruction}:", {"a": "x", "b": " "}, "method.task_names gives the names ['x', ' ']"),
    ],
)
def test_what_can_not_be_asked(prompt: Any, names: dict[str, Any], says: str) -> None:
    with pytest.raises(LorachainsError) as error:
        Question(prompt, names)
    assert says in str(error.value)


def test_decoys_stand_in_the_request_and_say_nothing_of_the_task() -> None:
    """All names as often, whatever the task is; and the rest of the instruction stays."""
    decoys, claimed = Decoys(0.5, "<{instruction}>", 0), Counter[str]()
    for i in range(800):
        text = decoys.put("<what is asked>", QUESTION, f"row:{i}")
        assert text == decoys.put("<what is asked>", QUESTION, f"row:{i}")
        assert text[0] + text[-1] == "<>"
        assert "what is asked" in text
        said = text[1:-1].replace("what is asked", "").strip()
        claimed["dos" if "dos" in said else "uno" if said else "nothing"] += 1
    assert claimed["nothing"] == pytest.approx(400, abs=60)
    assert claimed["uno"] == pytest.approx(200, abs=50)


def test_a_share_of_decoys_is_a_share() -> None:
    with pytest.raises(LorachainsError, match=r"method.decoys is 1.5"):
        Decoys(1.5, "{instruction}", 0)
