"""`python -m lorachains.statistics`: the table and its numbers."""

import json
import sys
from pathlib import Path

import pytest

from lorachains.statistics import main


def test_a_task_a_row_and_the_sums_below(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"task": t, "input": f"{i:06}", "output": "abc"} for t in ("x", "y") for i in range(len(t) * 10)]
    rows += [{"task": "y", "input": f"{i:06}", "output": "abc"} for i in range(10, 3000)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        sys, "argv", ["statistics", "model=tiny", "data=instructions", "data.path=rows.jsonl", "output=counts.json"]
    )
    main()
    table = [[c.strip() for c in line.split("│")[1:-1]] for line in capfd.readouterr().out.splitlines() if "│" in line]
    assert table == [
        ["x", "6", "2", "2", "66 (44)", "7/7", "4/4"],  # with the line's end and the answer's
        ["y", "1800", "600", "600", "0.02M (0.01M)", "7/7", "4/4"],
        ["all", "1806", "602", "602", "0.02M (0.01M)", "", ""],
    ]
    of_x, of_y = json.loads(Path("counts.json").read_text())
    assert of_x["tokens"] == [66, 22, 22]
    assert of_y["rows"] == [1800, 600, 600]
