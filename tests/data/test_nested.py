"""Official files that nest their rows give what the hub does, which has them flat."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from lorachains.data.prompts import TASKS
from lorachains.data.superglue import ORIGINS
from lorachains.errors import LorachainsError

_TEXT, _TEXTS, _INT = Value("string"), List(Value("string")), Value("int32")

# task, the official file, the place of the row in it, the hub's columns, its row
_MULTIRC = {
    "idx": 7,
    "passage": {
        "text": "P. ",
        "questions": [
            {"question": "Q1?", "idx": 0, "answers": [{"text": "one", "idx": 0, "label": 1}]},
            {"question": "Q2?", "idx": 1, "answers": [{"text": "A", "label": 1}, {"text": "B", "idx": 2, "label": 0}]},
        ],
    },
}
_RECORD = {
    "passage": {"text": "Al met Bo.\n@highlight\nBo", "entities": [{"start": 7, "end": 8}, {"start": 0, "end": 1}]},
    "qas": [{"query": "@placeholder came", "idx": 0, "answers": [{"start": 7, "end": 8, "text": "Bo"}] * 2}],
}
_SQUAD_ANSWERS = [{"text": "B", "answer_start": 1}, {"text": "A", "answer_start": 0}, {"text": "B", "answer_start": 1}]
_SQUAD = {
    "version": "1.1",
    "data": [
        {"title": "T", "paragraphs": [{"context": "C", "qas": [{"question": " Q?", "answers": _SQUAD_ANSWERS}]}]},
    ],
}
_NOTHING = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
_DROP_QUESTIONS = [
    {"question": "Q?", "answer": {**_NOTHING, "number": "3"}, "validated_answers": [{**_NOTHING, "spans": ["B"]}]},
]
_DROP = {"nfl_1": {"passage": "P", "qa_pairs": _DROP_QUESTIONS}}
_SAME: list[tuple[str, Any, str, dict[str, Any], dict[str, Any]]] = [
    (
        *("multirc", _MULTIRC, ":1/passage.questions[1]/answers[1]"),
        {"paragraph": _TEXT, "question": _TEXT, "answer": _TEXT, "label": ClassLabel(names=["False", "True"])},
        {"paragraph": "P. ", "question": "Q2?", "answer": "B", "label": 0},
    ),
    (
        *("record", _RECORD, ":1/qas[0]"),
        {"passage": _TEXT, "query": _TEXT, "entities": _TEXTS, "answers": _TEXTS},
        {
            "passage": "Al met Bo.\n@highlight\nBo",
            "query": "@placeholder came",
            "entities": ["Bo", "Al"],
            "answers": ["Bo"],
        },
    ),
    (
        *("squad", _SQUAD, "/data[0]/paragraphs[0]/qas[0]"),
        {"title": _TEXT, "context": _TEXT, "question": _TEXT, "answers": {"text": _TEXTS, "answer_start": List(_INT)}},
        {
            "title": "T",
            "context": "C",
            "question": " Q?",
            "answers": {"text": ["B", "A", "B"], "answer_start": [1, 0, 1]},
        },
    ),
    (
        *("drop", _DROP, "/nfl_1/qa_pairs[0]"),
        {"passage": _TEXT, "question": _TEXT, "answers_spans": {"spans": _TEXTS, "types": _TEXTS}},
        {"passage": "P", "question": "Q?", "answers_spans": {"spans": ["3", "B"], "types": ["number", "span"]}},
    ),
]


def _written(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    path = folder / Path(ORIGINS[name].train[0]).name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("name", "official", "place", "columns", "hub"), _SAME, ids=lambda part: str(part)[:7])
def test_the_hubs_row_and_the_official_one_give_the_same_example(
    tmp_path: Path, name: str, official: dict[str, Any], place: str, columns: dict[str, Any], hub: dict[str, Any]
) -> None:
    path = _written(tmp_path, name, official)
    [row] = [row for row in ORIGINS[name].read(path) if row.source == f"{path}{place}"]
    from_file = TASKS[name].read(row)
    dataset = Dataset.from_list([hub], features=Features(columns))
    from_hub = TASKS[name].read(next(ORIGINS[name].hub.official(dataset, "train")))
    for part in ("prompt", "answer", "candidates", "references", "passage"):
        assert getattr(from_file, part) == getattr(from_hub, part)


def test_every_answer_to_every_question_of_multirc_is_a_row(tmp_path: Path) -> None:
    rows = [TASKS["multirc"].read(row) for row in ORIGINS["multirc"].read(_written(tmp_path, "multirc", _MULTIRC))]
    assert [(row.answer, '"A"' in row.prompt, "Q2?" in row.prompt) for row in rows] == [
        ("Yes", False, False), ("Yes", True, True), ("No", False, True),
    ]  # fmt: skip


def _drop_references(tmp_path: Path, *answers: dict[str, Any]) -> tuple[str, ...]:
    question = {"question": "Q?", "answer": answers[0], "validated_answers": list(answers[1:])}
    path = _written(tmp_path, "drop", {"nfl_1": {"passage": "P", "qa_pairs": [question]}})
    [row] = ORIGINS["drop"].read(path)
    return TASKS["drop"].read(row).references


def test_answers_to_drop_are_numbers_spans_or_dates(tmp_path: Path) -> None:
    assert _drop_references(
        tmp_path,
        {**_NOTHING, "spans": ["Jones", "Slaton"]},
        {**_NOTHING, "number": "0"},
        {**_NOTHING, "date": {"day": "", "month": "May", "year": "1802"}},
        _NOTHING,  # an annotator without an answer
    ) == ("Jones and Slaton", "0", "May 1802")


def test_drop_is_also_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"passage": "P", "question": "Q?", "answers": ["4", "four"]}))
    [row] = ORIGINS["drop"].read(path)
    example = TASKS["drop"].read(row)
    assert (example.prompt, example.answer) == ("Passage: P\nQuestion: Q?\nAnswer:", " 4\n")
    assert (example.references, example.source) == (("4", "four"), f"{path}:1")


def _without(content: Any, *place: str | int) -> dict[str, Any]:
    copied = json.loads(json.dumps(content))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return dict(copied)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (
            "multirc",
            _without(_MULTIRC, "passage", "questions"),
            ":1: field 'passage.questions' is missing, expected a list",
        ),
        (
            "multirc",
            _without(_MULTIRC, "passage", "questions", 0, "answers", 0, "label"),
            ":1/passage.questions[0]/answers[0]: field 'label' is missing, expected one of 0, 1",
        ),
        (
            "record",
            {**_RECORD, "passage": {"text": "Al", "entities": [{"start": 0, "end": 2}]}},
            ":1/passage.entities[0]: field 'end' is 2, expected a whole number from 0 to 1",
        ),
        ("squad", {"data": 3}, ": field 'data' is 3, expected a list of objects"),
        ("squad", {"data": ["x"]}, ": field 'data[0]' is 'x', expected an object"),
        (
            "squad",
            {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"question": "Q", "answers": []}]}]}]},
            "/data[0]/paragraphs[0]/qas[0]: field 'answers.text' is [], expected a list of texts, at least one",
        ),
        ("drop", _without(_DROP, "nfl_1", "passage"), "/nfl_1: field 'passage' is missing, expected text"),
        ("drop", {"nfl_1": 1}, ": field 'nfl_1' is 1, expected an object"),
    ],
)
def test_a_fault_is_named_by_its_place(tmp_path: Path, name: str, content: dict[str, Any], fault: str) -> None:
    path = _written(tmp_path, name, content)
    with pytest.raises(LorachainsError) as error:
        list(map(TASKS[name].read, ORIGINS[name].read(path)))
    assert f"{path}{fault}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "fault"), [(b'{"data": [', "not JSON"), (b"[1]", "is no JSON object"), (b'"\xff"', "not JSON")]
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "train-v1.1.json"
    path.write_bytes(content)
    with pytest.raises(LorachainsError, match=f"train-v1.1.json: .*{fault}"):
        list(ORIGINS["squad"].read(path))
