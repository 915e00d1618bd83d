"""Numbers as they are shown, what a paper says beside what came out, and what is missing."""

from pathlib import Path

import pytest

from lorachains.report.assembly import make_report
from lorachains.report.layout import Layout
from lorachains.report.reading import read_runs
from lorachains.report.tables import Table, mean_and_spread, number, other_unit, probability, scale, unit
from tests.report.folders import make_run

PAPER = """table,row,column,value,unit,status,note
1,COLA,CB,76.42,%,printed,
1,COLA,RTE,74.15,%,printed,
1,LoRA,RTE,72.49,%,derived,Table 3
1,LoRA,SST-2,,%,missing,not in our copy
1,Finetune,RTE,71.62,%,suspect,why
"""


def tables(root: Path, **settings: object) -> dict[str, Table]:
    layout = settings.pop("layout", Layout())
    assert isinstance(layout, Layout)
    made = make_report(*read_runs([root]), layout, **settings)  # type: ignore[arg-type]
    return {table.name: table for table in made.tables}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for method, base in (("lora", 0.5), ("cola", 0.6)):
        for seed in range(2):
            make_run(tmp_path / "runs" / f"{method}{seed}", method, seed, base + seed / 10, last=0.4)
    make_run(tmp_path / "runs" / "cb", "cola", 0, 0.9, task="cb")
    make_run(tmp_path / "runs" / "begun", "cola", 1, None, task="cb")
    return tmp_path / "runs"


def test_shares_are_told_in_per_cent(runs: Path) -> None:
    made = tables(runs)
    assert made["test"].header == ["", "cb, accuracy %", "rte, accuracy %"]
    assert made["test"].rows == [["cola", "90.00 (1 of 2)*", "65.00 ± 7.07 (2)"], ["lora", "—", "55.00 ± 7.07 (2)"]]
    assert made["test-last"].rows[1] == ["lora", "—", "40.00 ± 0.00 (2)"]
    assert "begun and not finished: 1" in made["test"].notes
    assert made["missing"].rows == [[str(runs / "begun"), "not finished"]]


def test_paper_and_ours(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "paper.csv").write_text(PAPER)
    made = tables(runs, published=tmp_path / "paper.csv", baseline={"method": "lora"}, table="1")
    assert made["paper"].rows == [
        ["COLA", "CB", "%", "76.42", "90.00 (1 of 2)*", "13.58"],
        ["COLA", "RTE", "%", "74.15", "65.00 ± 7.07 (2)", "−9.15"],
        ["LoRA", "RTE", "%", "72.49 (derived)", "55.00 ± 7.07 (2)", "−17.49"],
        ["LoRA", "SST-2", "%", "not printed", "not run", "—"],
        ["Finetune", "RTE", "%", "71.62 (suspect)", "not run", "—"],
    ]
    assert "LoRA, SST-2: missing: not in our copy" in made["paper"].notes
    assert [row[0] for row in made["test"].rows] == ["cola", "lora"]  # in the paper's order
    assert made["test"].header[1:] == ["cb, accuracy %", "rte, accuracy %"]
    [row] = made["against-baseline"].rows
    assert row == [
        "cola",
        "rte",
        "lora",
        "2",
        "10.00",
        "18.18%",
        "—",
        "—",
        "n too small",
        "n too small",
        "same sign, not tested",
    ]


def test_a_value_in_another_unit_is_not_ours(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "paper.csv").write_text(PAPER.splitlines()[0] + "\n1,COLA,CB,3.6e11,FLOPs,printed,\n")
    [first, *rest] = tables(runs, published=tmp_path / "paper.csv")["paper"].rows
    assert first == ["COLA", "CB", "FLOPs", "3.60e+11", "—", "—"]
    assert ["cola", "cb", "%", "—", "90.00 (1 of 2)*", "—"] in rest


def test_the_baseline_comes_first(runs: Path) -> None:
    assert [row[0] for row in tables(runs, baseline={"method": "lora"})["test"].rows] == ["lora", "cola"]


def test_numbers() -> None:
    assert [number(v) for v in (1.005, -0.001, -1.0, 0.0)] == ["1.00", "0.00", "−1.00", "0.00"]
    assert mean_and_spread([1.0]) == "1.00"
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_spread([1e12, 3e12]) == "2.00e+12 ± 1.41e+12"
    assert mean_and_spread([1e-5, 1e-5]) == "1.00e-05 ± 0.00e+00"


def test_no_probability_is_nothing() -> None:
    assert [probability(p) for p in (1.0, 0.04, 0.00005, 0.000049)] == ["1.0000", "0.0400", "0.0001", "< 0.0001"]


def test_units() -> None:
    assert [(unit(m), scale(m)) for m in ("f1", "rte/accuracy", "loss")] == [("%", 100), ("%", 100), ("nats", 1)]
    assert [other_unit(k) for k in ("run/seconds", "train/flops_6n", "run/peak_memory_bytes", "train/links")] == [
        "s", "FLOPs", "bytes", "",
    ]  # fmt: skip
