import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lorachains.data.prompts import TASKS
from lorachains.data.protocol import Sizes
from lorachains.data.rows import Row, read_file
from lorachains.data.superglue import ORIGINS, SuperGlue
from lorachains.errors import LorachainsError

from .pinned import PINNED
from .pinned_questions import PINNED_QUESTIONS
from .stub import score

_SIZES = Sizes(train=2, val=1, test=1)
_METRICS = {"squad": ["f1", "exact_match"], "drop": ["f1", "exact_match"]}
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
        for row in read_file(data_root / file):
            text, question = task.read(row).prompt.split("\nIn the previous sentence, ")
            assert question.split(" refer to ")[1].removesuffix("? Yes or No?\n") in text


@pytest.mark.parametrize("name", TASKS)
def test_official_files_load(data_root: Path, name: str) -> None:
    task, splits = SuperGlue(str(data_root)).load(name, Sizes(train=20, val=10, test=30), seed=1)
    assert (task.name, list(task.metrics)) == (name, _METRICS.get(name, ["accuracy"]))
    assert [len(splits.train), len(splits.val), len(splits.test)] == [20, 10, 30]
    assert all("/train" in example.source for example in splits.train + splits.val)
    assert not any("/train" in example.source for example in splits.test)
    assert all(score(task, example.answer, example) == 1 for example in splits.test)
    assert all(
        score(task, other, example) == 0
        for example in splits.test
        for other in set(example.candidates) - set(example.references)
    )


def _write(root: Path, *lines: str | bytes) -> None:
    folder = root / "superglue" / "RTE"
    folder.mkdir(parents=True)
    good = json.dumps({"premise": "P", "hypothesis": "H", "label": "entailment"})
    (folder / "val.jsonl").write_text(good + "\n")
    encoded = [line.encode() if isinstance(line, str) else line for line in (good, *lines)]
    (folder / "train.jsonl").write_bytes(b"\n".join(encoded) + b"\n")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"premise": "P"', r"not JSON \(Expecting ',' delimiter at column 16\)"),
        ("[1]", r"\[1\] is no JSON object"),
        (b'{"premise": "\xff"}', "byte 13 is not UTF-8"),
        ('{"premise": "P", "label": "entailment"}', "field 'hypothesis' is missing, expected text"),
        ('{"premise": 3, "hypothesis": "H", "label": "entailment"}', "field 'premise' is 3, expected text"),
        ('{"premise": null, "hypothesis": "H", "label": "entailment"}', "field 'premise' is null, expected text"),
        (
            '{"premise": "P", "hypothesis": "H", "label": "maybe"}',
            "field 'label' is 'maybe', expected one of 'entailment', 'not_entailment'",
        ),
        ('{"premise": "P", "hypothesis": "H", "label": 1}', "field 'label' is 1, expected one of 'entailment'"),
    ],
)
def test_bad_row_is_named_by_file_line_and_field(tmp_path: Path, line: str | bytes, fault: str) -> None:
    _write(tmp_path, "", line)  # the empty line counts, but is no row
    with pytest.raises(LorachainsError, match=f"train.jsonl:3: {fault}") as error:
        SuperGlue(str(tmp_path)).load("rte", _SIZES, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "label", "expected"), [("boolq", 1, "true, false"), ("copa", True, "0, 1")])
def test_labels_of_another_type_are_refused(name: str, label: object, expected: str) -> None:
    fields = {"passage": "P", "question": "cause", "premise": "P", "choice1": "A", "choice2": "B"}
    with pytest.raises(LorachainsError, match=f"f:1: field 'label' is {json.dumps(label)}, expected one of {expected}"):
        TASKS[name].read(Row({**fields, "label": label}, "f:1"))


def test_wsc_without_spans_names_the_inner_field() -> None:
    with pytest.raises(LorachainsError, match=r"f:1: field 'target.span1_text' is missing"):
        TASKS["wsc"].read(Row({"text": "T", "target": {}, "label": True}, "f:1"))


def test_tsv_row_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\ngood\t1\nbad\n")
    rows = read_file(path)
    assert next(rows).values == {"sentence": "good", "label": "1"}
    with pytest.raises(LorachainsError, match=r"train.tsv:3: 1 tab-separated fields, expected 2 \(sentence, label\)"):
        next(rows)


def test_missing_root_names_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(
        LorachainsError, match=r"none/glue/SST-2/train.tsv: no such file; data.root=.*glue/SST-2/dev.tsv"
    ):
        SuperGlue(str(tmp_path / "none")).load("sst2", _SIZES, seed=0)


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "superglue" / "RTE" / "val.jsonl").write_text("")
    with pytest.raises(LorachainsError, match="'rte' has 1 rows to train on and 0 to test on"):
        SuperGlue(str(tmp_path)).load("rte", _SIZES, seed=0)


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(
        LorachainsError,
        match=r"data.task is 'rtee': known tasks are rte, .*copa, multirc, record, sst2, squad, drop",
    ):
        SuperGlue(None).load("rtee", _SIZES, seed=0)


def test_without_network_the_error_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(LorachainsError, match=r"data.root=DIR, .*DIR/superglue/RTE/train.jsonl.* data=reasoning_gym"):
        SuperGlue(None).load("rte", _SIZES, seed=0)
