import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import PreTrainedTokenizerFast

from lorachains.data.prompts import TASKS
from lorachains.data.rows import Row
from lorachains.data.superglue import ORIGINS
from lorachains.data.tokens import encode_eval
from lorachains.errors import LorachainsError

from .pinned import PINNED
from .pinned_questions import PINNED_QUESTIONS
from .stub import score

_BOOL = ["False", "True"]
_ENTAILMENT = {"premise": "P.", "hypothesis": "H"}
_WIC = {"word": "w", "sentence1": "A w.", "sentence2": "Two w.", "start1": 2, "start2": 4, "end1": 3, "end2": 5}
_SPANS = {"span1_text": "The cat", "span2_text": "It", "span1_index": 2, "span2_index": 5}
_COPA = {"premise": "It rained. ", "choice1": "I got wet.", "choice2": "The Sun shone.", "question": "effect"}

# task, fields of the official row, its label, fields of the hub's row, its label, the hub's label names, prompt, answer
_SAME_ROWS: list[tuple[str, dict[str, Any], Any, dict[str, Any], int, list[str], str, str]] = [
    (
        "rte",
        *(_ENTAILMENT, "not_entailment", _ENTAILMENT, 1, ["entailment", "not_entailment"]),
        'P.\nDoes this mean that "H" is true? Yes or No?\n',
        "No",
    ),
    (
        "cb",
        *(_ENTAILMENT, "neutral", _ENTAILMENT, 2, ["entailment", "contradiction", "neutral"]),
        'Suppose P. Can we infer that "H"? Yes, No, or Maybe?\n',
        "Maybe",
    ),
    (
        "boolq",
        *({"passage": "P.", "question": "is it"}, True, {"passage": "P.", "question": "is it"}, 1, _BOOL),
        "P. Is it?\n",
        "Yes",
    ),
    (
        "wic",
        *(_WIC, False, _WIC, 0, _BOOL),
        'Does the word "w" have the same meaning in these two sentences? Yes, No?\nA w.\nTwo w.\n',
        "No",
    ),
    (
        "wsc",
        *({"text": "I saw the cat. It ran.", "target": _SPANS}, True),
        *({"text": "I saw the cat. It ran.", **_SPANS, "span1_text": "the cat"}, 1, _BOOL),
        'I saw the cat. It ran.\nIn the previous sentence, does the pronoun "it" refer to the cat? Yes or No?\n',
        "Yes",
    ),
    ("copa", _COPA, 1, _COPA, 1, ["choice1", "choice2"], "It rained so", " the Sun shone."),
    (
        "sst2",
        {"sentence": "so good "},
        "1",
        {"sentence": "so good "},
        1,
        ["negative", "positive"],
        "so good It was",
        " great",
    ),
]


@pytest.mark.parametrize(("name", "line", "prompt", "candidates", "gold"), PINNED)
def test_official_row_becomes_mezo_prompt(
    data_root: Path, name: str, line: int, prompt: str, candidates: tuple[str, ...], gold: int
) -> None:
    task, origin = TASKS[name], ORIGINS[name]
    path = data_root / origin.train[-1]
    example = next(task.read(row) for row in origin.read(path) if row.source == f"{path}:{line}")
    assert (example.prompt, example.candidates, example.gold) == (prompt, candidates, gold)


@pytest.mark.parametrize(("name", "place", "prompt", "answer", "candidates", "accepted"), PINNED_QUESTIONS)
def test_official_question_becomes_mezo_prompt(
    data_root: Path,
    name: str,
    place: str,
    prompt: str,
    answer: str,
    candidates: tuple[str, ...],
    accepted: tuple[str, ...],
) -> None:
    path = data_root / ORIGINS[name].train[-1]
    example = next(TASKS[name].read(row) for row in ORIGINS[name].read(path) if row.source == f"{path}{place}")
    assert (example.prompt, example.answer, example.candidates) == (prompt, answer, candidates)
    assert example.references == accepted


@pytest.mark.parametrize("same", _SAME_ROWS, ids=lambda same: same[0])
def test_hub_row_and_official_row_give_the_same_example(same: tuple[Any, ...]) -> None:
    name, official, label, hub, number, names, prompt, answer = same
    task, origin = TASKS[name], ORIGINS[name]
    types = {key: Value("string" if isinstance(value, str) else "int32") for key, value in hub.items()}
    features = Features({**types, "idx": Value("int32"), "label": ClassLabel(names=names)})
    dataset = Dataset.from_list([{**hub, "idx": 0, "label": number}], features=features)

    from_hub = task.read(next(origin.hub.official(dataset, "train")))
    from_file = task.read(Row({**official, "idx": 0, "label": label}, "f:1"))

    assert (from_hub.prompt, from_hub.answer, from_hub.candidates) == (prompt, answer, from_file.candidates)
    assert (from_file.prompt, from_file.answer) == (prompt, answer)
    assert from_hub.source == f"hub:{origin.hub.repository}/{origin.hub.config}/train#0"


def test_hub_rows_without_a_public_label_are_refused() -> None:
    task, origin = TASKS["rte"], ORIGINS["rte"]
    text = Value("string")
    features = Features(
        {"premise": text, "hypothesis": text, "label": ClassLabel(names=["entailment", "not_entailment"])}
    )
    dataset = Dataset.from_list([{**_ENTAILMENT, "label": -1}], features=features)
    with pytest.raises(LorachainsError, match="hub:aps/super_glue/rte/test#0: field 'label' is null, expected one of"):
        task.read(next(origin.hub.official(dataset, "test")))


def test_wsc_names_what_stands_in_the_text(data_root: Path) -> None:
    task, origin = TASKS["wsc"], ORIGINS["wsc"]
    for [file] in (origin.train, origin.val):
        for row in origin.read(data_root / file):
            text, question = task.read(row).prompt.split("\nIn the previous sentence, ")
            assert question.split(" refer to ")[1].removesuffix("? Yes or No?\n") in text


@pytest.mark.parametrize(("name", "label", "expected"), [("boolq", 1, "true, false"), ("copa", True, "0, 1")])
def test_labels_of_another_type_are_refused(name: str, label: object, expected: str) -> None:
    fields = {"passage": "P", "question": "cause", "premise": "P", "choice1": "A", "choice2": "B"}
    with pytest.raises(LorachainsError, match=f"f:1: field 'label' is {json.dumps(label)}, expected one of {expected}"):
        TASKS[name].read(Row({**fields, "label": label}, "f:1"))


def test_wsc_without_spans_names_the_inner_field() -> None:
    with pytest.raises(LorachainsError, match=r"f:1: field 'target.span1_text' is missing"):
        TASKS["wsc"].read(Row({"text": "T", "target": {}, "label": True}, "f:1"))


@pytest.mark.parametrize(("answer", "right"), [(" Bo ran.", 1), (" B. Bo ran.", 1), (" It ran.", 0)])
def test_record_takes_any_right_entity(answer: str, right: float) -> None:
    row = {"passage": "P\n@highlight\nQ", "query": "@placeholder ran.", "entities": ["It", "Bo", "B. Bo", "Bo"]}
    example = TASKS["record"].read(Row({**row, "answers": ["Bo", "B. Bo"]}, "f:1"))
    assert (example.prompt, example.answer) == ("P\n- Q\n-", " B. Bo ran.")
    assert example.candidates == (" B. Bo ran.", " Bo ran.", " It ran.")
    assert score(TASKS["record"], answer, example) == right


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"query": "It ran."}, "field 'query' has no @placeholder"),
        ({"answers": ["Bob"]}, "an answer is none of the entities (' Bob ran.')"),
        ({"answers": []}, r"field 'answers' is [], expected a list of texts, at least one"),
        ({"entities": ["Bo", 3]}, r"field 'entities' is ['Bo', 3], expected a list of texts"),
    ],
)
def test_faults_of_a_record_row_are_named(change: dict[str, Any], fault: str) -> None:
    row = {"passage": "P", "query": "@placeholder ran.", "entities": ["It", "Bo"], "answers": ["Bo"]}
    with pytest.raises(LorachainsError) as error:
        TASKS["record"].read(Row({**row, **change}, "f:1"))
    assert f"f:1: {fault}" in str(error.value)


@pytest.mark.parametrize("name", ["squad", "drop"])
def test_what_is_cut_of_a_long_prompt_is_never_the_question(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    answers = {"answers": {"text": ["B"]}, "answers_spans": {"spans": ["B"]}}
    row = Row({"title": "T", "context": "c " * 99, "passage": "c " * 99, "question": " Which one? ", **answers}, "f:1")
    [encoded] = encode_eval(tokenizer, [TASKS[name].read(row)], 0, max_length=50)
    assert encoded.prompt is not None
    assert str(tokenizer.decode(encoded.prompt.input_ids)).endswith("c \nQuestion: Which one?\nAnswer:")
    assert str(tokenizer.decode(encoded.choices[0].input_ids)).endswith("Question: Which one?\nAnswer: B\n<eos>")
