import json
from pathlib import Path
from typing import Any

import pytest

from lorachains.data.instructions import Columns, find_columns, records, superni_rows
from lorachains.data.rows import Row
from lorachains.errors import LorachainsError

_ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
_TURNS = [("system", "s"), ("human", " hi "), ("gpt", "ho"), ("human", "more")]


@pytest.mark.parametrize(
    ("values", "task", "request_", "answers"),
    [
        (_ALPACA, "stem", "Add.\n1 2", ("3",)),
        ({**_ALPACA, "input": None}, "stem", "Add.", ("3",)),
        ({"kind": "NLI", "input": "a?", "target": " b "}, "NLI", "a?", ("b",)),
        ({"domain": "EXAM", **_ALPACA, "answer": "B"}, "EXAM", "Add.\n1 2", ("3",)),
        ({"instruction": "q", "context": "c", "response": "r", "category": "k"}, "k", "q\nc", ("r",)),
        ({"task": "t", "prompt": "p", "completion": ["x", "y", "x"]}, "t", "p", ("x", "y")),
        ({"conversations": [{"from": f, "value": v} for f, v in _TURNS]}, "stem", "hi", ("ho",)),
    ],
)
def test_usual_columns_are_known(values: dict[str, Any], task: str, request_: str, answers: tuple[str, ...]) -> None:
    [record] = records([Row(values, "f:1")], {}, "stem", "f")
    assert (record.task, record.request, record.answers, record.source) == (task, request_, answers, "f:1")


def test_given_columns_come_before_usual_ones() -> None:
    row = Row({"task": "no", "sort": "yes", "input": "no", "text": {"body": "yes"}, "output": "a"}, "f:1")
    [record] = records([row], {"task": "sort", "input": "text.body", "output": None}, "stem", "f")
    assert (record.task, record.input, record.answers) == ("yes", "yes", ("a",))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"kind": "a", "input": "x"}, "f:7: field 'target' is missing"),
        ({"kind": "a", "input": "x", "target": None}, "f:7: field 'target' is null"),
        ({"kind": "a", "input": "x", "target": "  "}, "f:7: an answer is empty"),
        ({"kind": "a", "input": "x", "target": []}, r"f:7: field 'target' is \[\], expected a list of texts"),
        (
            {"kind": "a", "input": "x", "target": ["y", 3]},
            r"f:7: field 'target' is \['y', 3\], expected a list of texts",
        ),
        ({"kind": "a", "input": " ", "target": "y"}, "f:7: instruction and input are empty"),
        ({"kind": "a", "input": 3, "target": "y"}, "f:7: field 'input' is 3, expected text"),
        ({"input": "x", "target": "y"}, "f:7: field 'kind' is missing"),
        *(
            ({"kind": label, "input": "x", "target": "y"}, "f:7: the task label is")
            for label in ("", " ", ".", "..", "a/b", "a\\b", "a\0b", "a\nb")
        ),
    ],
)
def test_bad_rows_are_named(values: dict[str, Any], fault: str) -> None:
    columns = Columns(task="kind", instruction=None, output="target")
    with pytest.raises(LorachainsError, match=fault):
        columns.record(Row(values, "f:7"))


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ("hi", "no list of turns"),
        ([{"from": "human", "value": "hi"}], "no turn of 'human' is followed by one of 'gpt'"),
        ([{"from": "human", "value": 1}, {"from": "gpt", "value": "x"}], "field 'human' is 1"),
    ],
)
def test_bad_conversations_are_named(turns: object, fault: str) -> None:
    with pytest.raises(LorachainsError, match=f"f:7: .*{fault}"):
        list(records([Row({"conversations": turns}, "f:7")], {}, "stem", "f"))


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(LorachainsError, match=r"f: the columns are text, .* name them with data.columns.instruction"):
        find_columns(["text"], {}, "stem", "f")
    with pytest.raises(LorachainsError, match=r"data.columns has kind: choose of task, instruction"):
        find_columns(_ALPACA, {"kind": "x"}, "stem", "f")
    with pytest.raises(LorachainsError, match=r"f: the columns are instruction, .* but data.columns.input is 'x'"):
        find_columns(_ALPACA, {"input": "x"}, "stem", "f")


def test_a_column_that_only_some_rows_have_is_found() -> None:
    rows = [Row({"instruction": "a", "output": "x"}, "f:1"), Row(_ALPACA, "f:2")]
    assert [record.request for record in records(rows, {}, "stem", "f")] == ["a", "Add.\n1 2"]


def _task_file(folder: Path, **changes: Any) -> Path:
    instances = [{"id": "1", "input": "a", "output": ["b", "c"]}, {"input": " ", "output": ["x"]}]
    path = folder / "task1_x.json"
    path.write_text(json.dumps({"Definition": ["Do", "it."], "Instances": instances, **changes}))
    return path


@pytest.mark.parametrize(("definition", "request_"), [(True, "Do\nit.\na"), (False, "a")])
def test_superni_instances_with_and_without_the_definition(definition: bool, request_: str, tmp_path: Path) -> None:
    path = _task_file(tmp_path)
    [record] = map(Columns().record, superni_rows(path, definition))  # the other instance has no input
    assert (record.task, record.request, record.answers) == ("task1_x", request_, ("b", "c"))
    assert record.source == f"{path}/Instances[0]"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"Instances": 3}, "task1_x.json: field 'Instances' is 3, expected a list of objects"),
        ({"Instances": [3]}, r"task1_x.json: field 'Instances\[0\]' is 3, expected an object"),
        ({"Instances": [{"input": "x"}]}, r"task1_x.json/Instances\[0\]: field 'output' is missing"),
        ({"Definition": [1]}, r"task1_x.json: field 'Definition' is \[1\]"),
    ],
)
def test_bad_task_files_are_named(changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    definition = "Definition" in changes
    with pytest.raises(LorachainsError, match=fault):
        list(map(Columns().record, superni_rows(_task_file(tmp_path, **changes), definition)))
