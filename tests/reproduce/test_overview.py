"""The overview counts what the folders hold, and reckons from the pace so far."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lorachains.reproduce.overview import Overview
from lorachains.reproduce.runs import Cell, Table
from lorachains.reproduce.sweeps import load
from tests.reproduce.folders import begin, fail, finish, run


def test_counts_lines_and_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("lorachains.reproduce.overview.time.monotonic", lambda: now[0])
    sweep = load("cola-table3", "smoke")
    runs = [run(tmp_path, name) for name in "abcdefgh"]
    finish(runs[0])  # by an earlier command
    begin(runs[1])
    table = Table(sweep, [Cell(sweep.rows[0], sweep.columns[0], None, runs)])
    out = io.StringIO()
    with Overview([table, table], 60, Console(file=out, width=100)) as overview:
        assert overview.count(overview.runs) == {"done": 1, "running": 0, "failed": 0, "waiting": 7}
        assert "about 52 min left" in out.getvalue()  # 7 of 8 runs, of 60 minutes
        overview.show()
        assert out.getvalue().count("\n") == 1
        begin(runs[1])
        finish(runs[2])
        finish(runs[3])
        fail(runs[4], "reason")
        now[0] += 20
        assert overview.count(overview.runs) == {"done": 3, "running": 1, "failed": 1, "waiting": 3}
        assert overview.left(overview.count(overview.runs)) == "about 40 s left"  # 4 runs, at 10 s each
    assert out.getvalue().splitlines()[-1].endswith("3 done, 1 failed of 8 runs; about 40 s left")


def test_a_table_in_a_terminal(tmp_path: Path) -> None:
    sweep = load("cola-table3", "smoke")
    one = run(tmp_path, "a")
    table = Table(sweep, [Cell(sweep.rows[0], sweep.columns[0], None, [one])])
    out = io.StringIO()
    with Overview([table], 1, Console(file=out, width=100, force_terminal=True)):
        finish(one)
    shown = out.getvalue().rpartition("cola-table3")[2]
    assert "nothing left to do" in shown
