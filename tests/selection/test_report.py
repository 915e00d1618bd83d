"""Figures of a selection against torchmetrics'."""

import json
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_f1_score

from lorachains.selection.report import Confusion, calibration_error, top_k

TASKS = ["a", "b", "c", "d"]
SCORES = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GOLD = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(1))
CHOSEN = SCORES.argmax(1)


def test_figures_are_torchmetrics() -> None:
    confusion = Confusion(TASKS, GOLD.tolist(), CHOSEN.tolist())
    assert (confusion.counts[:, :4] == multiclass_confusion_matrix(CHOSEN, GOLD, 4).numpy()).all()
    assert confusion.accuracy == pytest.approx(float(multiclass_accuracy(CHOSEN, GOLD, 4, average="micro")))
    f1 = multiclass_f1_score(CHOSEN, GOLD, 4, average="none").tolist()
    assert list(confusion.f1().values()) == pytest.approx(f1)
    recall = multiclass_accuracy(CHOSEN, GOLD, 4, average="none").tolist()
    assert list(confusion.recall().values()) == pytest.approx(recall)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_top_k_is_torchmetrics(k: int) -> None:
    expected = multiclass_accuracy(SCORES, GOLD, 4, average="micro", top_k=min(k, 4))
    assert top_k(SCORES, GOLD.tolist(), k) == pytest.approx(float(expected))


def test_the_calibration_error_is_the_formula() -> None:
    """Of a selector that is sure of nothing: as far from its accuracy as its probability; of one that is right, 0."""
    probabilities = SCORES.softmax(1)
    surest, chosen = probabilities.max(1)
    expected = 0.0
    for low in range(15):
        inside = (surest > low / 15) & (surest <= (low + 1) / 15)
        if inside.any():
            apart = (surest[inside].mean() - (chosen == GOLD)[inside].double().mean()).abs()
            expected += float(inside.double().mean() * apart)
    assert calibration_error(SCORES, GOLD.tolist()) == pytest.approx(expected)
    sure = torch.eye(4, dtype=torch.float64)[GOLD] * 1e3
    assert calibration_error(sure, GOLD.tolist()) == pytest.approx(0)
    assert calibration_error(SCORES[:0], []) == 0


def test_no_selection_counts_as_wrong() -> None:
    confusion = Confusion(["a", "b"], [0, 0, 1], [0, -1, -1])
    assert confusion.counts.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert confusion.accuracy == pytest.approx(1 / 3)
    assert confusion.f1() == pytest.approx({"a": 2 / 3, "b": 0.0})


def test_it_is_written_as_numbers_and_as_a_picture(tmp_path: Path) -> None:
    Confusion(["a", "b"], [0, 1], [0, -1]).write(tmp_path / "new")
    table = json.loads((tmp_path / "new" / "confusion.json").read_text())
    assert table == {"tasks": ["a", "b"], "choices": ["a", "b", None], "counts": [[1, 0, 0], [0, 0, 1]]}
    assert (tmp_path / "new" / "confusion.png").read_bytes().startswith(b"\x89PNG")
