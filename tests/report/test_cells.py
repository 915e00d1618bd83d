"""Rows and columns of runs; what validation chooses, and that nothing else does."""

import json
import random
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from lorachains.errors import LorachainsError
from lorachains.report.cells import Cell, choose, make_cells
from lorachains.report.layout import Layout, natural
from lorachains.report.reading import read_runs
from lorachains.report.statistics import spread
from tests.report.folders import make_grid, make_run


def cells_of(root: Path, **layout: Any) -> dict[tuple[str, str], Cell]:
    runs, _ = read_runs([root])
    return {(cell.row, cell.column): cell for cell in make_cells(runs, Layout(**layout))[0]}


def on_the_test_set(cell: Cell, candidate: str) -> float:
    return mean(run.result("test", cell.metric) or 0.0 for run in cell.candidates[candidate].runs.values())


def test_mean_and_spread_over_seeds_of_the_chosen_rate(tmp_path: Path) -> None:
    """Against a loop over the files themselves."""
    cells = cells_of(make_grid(tmp_path))
    assert len(cells) == 6
    for (method, task), cell in cells.items():
        by_rate = {}
        for lr in (1e-3, 5e-4, 1e-4):
            files = [tmp_path / f"{method}-{task}-{lr}-{seed}" / "metrics.json" for seed in range(5)]
            by_rate[lr] = [json.loads(file.read_text()) for file in files]
        best = max(by_rate, key=lambda lr: mean(m["val/accuracy"] for m in by_rate[lr]))
        assert cell.chosen == f"optim.lr={best}"
        for split in ("test", "test_last"):
            values = [m[f"{split}/accuracy"] for m in by_rate[best]]
            ours = list(cell.results(split).values())
            assert [mean(ours), spread(ours)] == pytest.approx([mean(values), stdev(values)])
        assert (cell.asked, cell.complete) == (5, True)


def test_what_is_chosen_never_looks_at_the_test_set(tmp_path: Path) -> None:
    before = {place: cell.chosen for place, cell in cells_of(make_grid(tmp_path)).items()}
    draws = random.Random(0)
    for file in tmp_path.rglob("metrics.json"):
        metrics = json.loads(file.read_text())
        file.write_text(json.dumps(metrics | {key: draws.random() for key in metrics if key.startswith("test")}))
    after = cells_of(tmp_path)
    assert {place: cell.chosen for place, cell in after.items()} == before
    # What looking at the test set would choose: other settings, so that this test can fail.
    best = {place: max(cell.candidates, key=partial(on_the_test_set, cell)) for place, cell in after.items()}
    assert best != before


def test_choosing() -> None:
    two = {"a": [(0.5, 0.9), (0.7, 0.9)], "b": [(0.6, 0.2), (0.5, 0.2)]}
    assert choose(two) == "a"
    assert choose(two, "loss") == "b"
    assert choose(two, lower=True) == "b"
    equal = {"a": [(0.1, 0.9), (0.2, 0.9), (0.3, 0.9)], "b": [(0.3, 0.8), (0.2, 0.8), (0.1, 0.9)]}
    assert choose(equal) == "b"  # the lower loss decides
    assert choose({"lr=0.01": [(0.5, 0.5)], "lr=0.001": [(0.5, 0.5)]}) == "lr=0.001"  # the first in order


def test_what_is_missing_is_marked(tmp_path: Path) -> None:
    for method in ("lora", "cola"):
        for seed in range(3):
            make_run(tmp_path / f"{method}{seed}", method, seed)
    make_run(tmp_path / "other", "cola", 0, lr=1e-4, val=0.4)
    make_run(tmp_path / "begun", "cola", 1, None, lr=1e-4)
    make_run(tmp_path / "task", "cola", 0, lr=1e-3, task="cb")
    cells = cells_of(tmp_path)
    assert {place: (len(cell.runs), cell.asked, cell.complete) for place, cell in cells.items()} == {
        ("lora", "rte"): (3, 3, True),
        ("cola", "rte"): (3, 3, False),  # of the other rate one is finished
        ("cola", "cb"): (1, 3, False),
    }
    other = cells["cola", "rte"].candidates["optim.lr=0.0001"]
    assert (len(other.runs), other.unfinished) == (1, 1)
    assert cells_of(tmp_path, n_seeds=5)["lora", "rte"].complete is False
    assert cells_of(tmp_path, n_seeds=1)["cola", "rte"].complete is True


def test_rows_are_what_differs(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "lora", more=["adapter.r=4"])
    make_run(tmp_path / "b", "lora", more=["adapter.r=8"])
    make_run(tmp_path / "c", "cola", more=["knots._target_=lorachains.knots.Even", "knots.links=2"])
    make_run(tmp_path / "d", "cola", more=["knots._target_=lorachains.knots.Every", "knots.links=2"])
    make_run(tmp_path / "e", "zero_shot", task="cb", more=["data.max_new_tokens=5"])
    rows = {row for row, _ in cells_of(tmp_path)}
    assert rows == {"lora adapter.r=4", "lora adapter.r=8", "cola knots=even", "cola knots=every", "zero_shot"}


def test_rows_and_columns_as_they_are_asked_for(tmp_path: Path) -> None:
    for method, links in (("lora", 1), ("cola", 2), ("cola", 3)):
        make_run(tmp_path / str(links), method, also={"train/links": links}, more=[f"knots.links={links}"])
    labels = {"train/links=1": "length = 1"}
    cells = cells_of(tmp_path, rows=["train/links"], labels=labels, ignore=["knots.links"])
    assert list(cells) == [("length = 1", "rte"), ("train/links=2", "rte"), ("train/links=3", "rte")]
    columns = cells_of(tmp_path, rows=["optim.optimizer", "method"], columns=["knots.links"])
    assert ("adamw cola", "knots.links=3") in columns


def test_no_mean_over_other_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "a", more=["adapter.r=4"])
    make_run(tmp_path / "b", seed=1, more=["adapter.r=8"])
    with pytest.raises(LorachainsError, match=r"the runs of lora, rte differ in adapter\.r: name it"):
        cells_of(tmp_path, rows=["method"])
    assert len(cells_of(tmp_path, rows=["method"], ignore=["adapter.r"])["lora", "rte"].runs) == 2
    assert cells_of(tmp_path, rows=["method"], over=["adapter.r"])["lora", "rte"].chosen == "adapter.r=4"
    with pytest.raises(LorachainsError, match=r"no run has the setting adaptor\.r"):
        cells_of(tmp_path, rows=["adaptor.r"])


def test_choosing_needs_validation(tmp_path: Path) -> None:
    for name, lr in (("a", 1e-3), ("b", 1e-4)):
        metrics = make_run(tmp_path / name, lr=lr) / "metrics.json"
        left = {k: v for k, v in json.loads(metrics.read_text()).items() if not k.startswith("val/")}
        metrics.write_text(json.dumps(left))
    with pytest.raises(LorachainsError, match=r"metrics\.json has no val/accuracy and val/loss, by which to choose"):
        cells_of(tmp_path)
    assert len(cells_of(tmp_path, rows=["optim.lr"])) == 2


def test_a_run_without_the_columns_metric_is_left_out(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"{seed}", seed=seed, metric="f1")
    other = make_run(tmp_path / "other", seed=2)
    cells, left_out = make_cells(read_runs([tmp_path])[0], Layout())
    assert [(cell.metric, len(cell.runs)) for cell in cells] == [("f1", 2)]
    assert left_out == {other: "metrics.json has no test/f1"}
    cells, left_out = make_cells(read_runs([tmp_path])[0], Layout(metric="loss"))
    assert ([(cell.metric, len(cell.runs)) for cell in cells], left_out) == ([("loss", 3)], {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"by": "test"}, "choose metric or loss"), ({"n_seeds": 0}, "1 or more"), ({"columns": []}, "columns is empty")],
)
def test_a_layout_that_can_not_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LorachainsError, match=message):
        Layout(**wrong)


def test_numbers_in_labels_sort_as_numbers() -> None:
    assert sorted(["r=16", "r=8", "lr=0.001", "lr=1e-04", "r=4"], key=natural) == [
        "lr=1e-04",
        "lr=0.001",
        "r=4",
        "r=8",
        "r=16",
    ]
