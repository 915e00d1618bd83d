"""`python -m lorachains.report`: folders first, then settings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lorachains.report.__main__ import main
from tests.cli.conftest import Call, Done
from tests.report.folders import make_run

Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, call: Call, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    for method, score in (("lora", 0.5), ("cola", 0.625)):
        make_run(Path("runs/lr=0.1") / method, method, test=score)

    return partial(call, main)


def test_tables_are_printed_and_files_are_written(command: Command) -> None:
    done = command("runs", "baseline={method:lora}", "labels={cola: COLA}", "output=out/report", "title=Two runs")
    assert done.code == 0, done.err
    assert "50.00 (1)" in done.out
    assert "25.00%" in done.out
    assert {file.name for file in Path("out/report").iterdir()} == {
        "report.html", "report.md", "report.tex", "cells.csv", "runs.csv", "comparisons.csv", "figures",
    }  # fmt: skip
    assert "# Two runs" in Path("out/report/report.md").read_text()
    assert "COLA & 62.50 (1)" in Path("out/report/report.tex").read_text()


def test_an_earlier_report_does_not_shine_through(command: Command) -> None:
    assert command("runs", "baseline={method:lora}", "output=out", "columns=[model]").code == 0
    assert Path("out/figures/scores-1-some-model.svg").is_file()
    assert command("runs", "output=out").code == 0
    assert {file.name for file in Path("out").rglob("*.*")} == {
        "report.html", "report.md", "report.tex", "cells.csv", "runs.csv", "scores-1-rte.png", "scores-1-rte.svg",
    }  # fmt: skip


def test_a_folder_may_be_named_like_a_setting(command: Command) -> None:
    done = command("runs/lr=0.1/lora", "runs/lr=0.1/cola", "select.over=[]", "also=[]")
    assert done.code == 0, done.err
    assert "62.50 (1)" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([], "no folder is given: no finished run there"),
        (["runs", "baseline={method:full}"], "no row has method=full"),
        (["runs", "select.by=test"], "select.by is 'test': choose metric or loss"),
        (["runs", "rows=[knots.lnks]"], "no run has the setting knots.lnks"),
        (["runs", "published=none.csv"], "published is 'none.csv', which is no file"),
        (["runs", "baseline=lora"], "baseline is 'lora': give settings, as {method: lora}"),
        (["runs", "labels=[a]"], "labels is ['a']: give labels and what to write, as {cola: COLA}"),
        (["runs", "split_tasks=maybe"], "split_tasks is 'maybe': give true or false"),
        (["runs", "metric=nope"], "metrics.json has no test/nope, nor has any other run: see metrics.json for what"),
        (["runs", "rows=method"], "rows is 'method': give a list, as [method]"),
        (["runs", "also=[train/flop]"], "no run has train/flop, which also or x asks for"),
        (["runs", "x=knots.lnks"], "no run has knots.lnks, which also or x asks for"),
        (["runs", "also=3"], "also is 3: give a list"),
        (["runs", "select.over=optim.lr"], "select.over is 'optim.lr': give a list"),
    ],
)
def test_one_line_says_what_is_wrong(command: Command, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1
