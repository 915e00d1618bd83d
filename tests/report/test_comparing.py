"""Rows against their baselines, and the paper's word on the two."""

from pathlib import Path

import pytest
from scipy import stats

from lorachains.errors import LorachainsError
from lorachains.report.cells import Cell, make_cells
from lorachains.report.comparing import compare_rows, verdict
from lorachains.report.layout import Layout
from lorachains.report.published import Published
from lorachains.report.reading import read_runs
from tests.report.folders import make_grid, make_run


def cells_of(root: Path, *rows: str) -> list[Cell]:
    return make_cells(read_runs([root])[0], Layout(rows=rows or None))[0]


def value(row: str, number: float | None) -> Published:
    status = "missing" if number is None else "printed"
    return Published("", "1", row, "RTE", number, "%", status, "", 1)


def test_seeds_are_paired_and_tasks_are_one_family(tmp_path: Path) -> None:
    cells = cells_of(make_grid(tmp_path))
    by_place = {(cell.row, cell.column): cell for cell in cells}
    for split in ("test", "test_last"):
        found = compare_rows(cells, {"method": "lora"}, split)
        assert [(c.cell.row, c.baseline.row, c.paired and c.paired.n) for c in found] == [("cola", "lora", 5)] * 3
        raw = [
            stats.ttest_rel(
                *(list(by_place[row, c.cell.column].results(split).values()) for row in ("cola", "lora"))
            ).pvalue
            for c in found
        ]
        worst = sorted(raw)
        holm = {p: max(min(1, (3 - j) * worst[j]) for j in range(i + 1)) for i, p in enumerate(worst)}
        assert [c.t for c in found] == [pytest.approx(holm[p]) for p in raw]


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    for seed in range(4):
        make_run(tmp_path / f"a{seed}", "lora", seed, 0.5)
        make_run(tmp_path / f"b{seed}", "cola", seed + 1, 0.5 + seed / 10)
    [found] = compare_rows(cells_of(tmp_path), {"method": "lora"})
    assert found.paired is not None
    assert [found.paired.n, found.paired.difference] == pytest.approx([3, 0.1])


def test_rows_without_a_seed_in_common(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "lora", 0)
    make_run(tmp_path / "b", "cola", 1)
    [found] = compare_rows(cells_of(tmp_path), {"method": "lora"})
    assert found.paired is None


def test_the_baseline_shares_the_rows_other_settings(tmp_path: Path) -> None:
    """As in COLA Table 5: with SGD against LoRA with SGD."""
    for optimizer in ("SGD", "Adagrad"):
        for method in ("lora", "cola"):
            more = [f"optim.optimizer._target_=torch.optim.{optimizer}"]
            make_run(tmp_path / f"{method}{optimizer}", method, more=more)
    found = compare_rows(cells_of(tmp_path, "optim.optimizer", "method"), {"method": "lora"})
    assert {(c.cell.row, c.baseline.row) for c in found} == {("sgd cola", "sgd lora"), ("adagrad cola", "adagrad lora")}


def test_a_baseline_that_is_none_or_several(tmp_path: Path) -> None:
    for r in (4, 8):
        make_run(tmp_path / f"{r}", more=[f"adapter.r={r}"])
    make_run(tmp_path / "c", "cola", more=["adapter.r=16"])
    cells = cells_of(tmp_path)
    with pytest.raises(LorachainsError, match=r"no row has method=full; the rows are cola; lora adapter\.r=4"):
        compare_rows(cells, {"method": "full"})
    with pytest.raises(LorachainsError, match=r"could each be that of cola: name more"):
        compare_rows(cells, {"method": "lora"})
    found = compare_rows(cells, {"method": "lora", "adapter.r": 8})
    assert {c.baseline.row for c in found} == {"lora adapter.r=8"}


@pytest.mark.parametrize(
    ("lora", "cola", "said"),
    [(70.0, 74.0, "yes"), (74.0, 70.0, "no"), (70.0, 70.0, "the paper's are equal"), (None, 74.0, "")],
)
def test_the_papers_claim(tmp_path: Path, lora: float | None, cola: float, said: str) -> None:
    for seed in range(5):
        make_run(tmp_path / f"a{seed}", "lora", seed, 0.5)
        make_run(tmp_path / f"b{seed}", "cola", seed, 0.7 + seed / 1000)
    [found] = compare_rows(cells_of(tmp_path), {"method": "lora"})
    assert verdict(found, [value("LoRA", lora), value("COLA", cola)]) == said


def test_a_claim_that_was_not_tested_or_not_seen(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", "lora", seed, 0.5)
        make_run(tmp_path / f"b{seed}", "cola", seed, 0.51 + (seed == 1) / 3)
    published = [value("LoRA", 70.0), value("COLA", 74.0)]
    [found] = compare_rows(cells_of(tmp_path), {"method": "lora"})
    assert verdict(found, published) == "same sign, not significant"
    for seed in (1, 2):
        (tmp_path / f"b{seed}" / "metrics.json").unlink()
    [found] = compare_rows(cells_of(tmp_path), {"method": "lora"})
    assert verdict(found, published) == "same sign, not tested"
