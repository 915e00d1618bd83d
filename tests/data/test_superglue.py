import json
from pathlib import Path

import datasets
import pytest

from lorachains.data.prompts import TASKS
from lorachains.data.protocol import Sizes
from lorachains.data.rows import read_file
from lorachains.data.superglue import SuperGlue
from lorachains.errors import LorachainsError

from .stub import score

_SIZES = Sizes(train=2, val=1, test=1)
_METRICS = {"squad": ["f1", "exact_match"], "drop": ["f1", "exact_match"]}


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
