"""A line through what was measured, and its pictures."""

import json
from pathlib import Path

import linearity
import pytest

from lorachains.errors import LorachainsError


def told(path: Path, points: dict[int, float]) -> str:
    parts = {str(n): {"step_seconds": seconds} for n, seconds in points.items()}
    path.write_text(json.dumps({"device": "CPU", **parts, "seconds_per_run": {}, "peft, one adapter": {"seconds": 1}}))
    return str(path)


def test_points_on_a_line(tmp_path: Path) -> None:
    runs = told(tmp_path / "a.json", {n: 0.5 + 0.25 * n for n in (1, 5, 25)})
    adapters = told(tmp_path / "b.json", {1: 1.0, 2: 1.0, 3: 2.5})
    found = linearity.linearity("tiny", runs, adapters, str(tmp_path / "line"))
    line = found["side_by_side"]
    assert (line["constant_seconds"], line["seconds_for_each_more"]) == pytest.approx((0.5, 0.25))
    assert line["furthest_from_the_line"] == pytest.approx(0)
    assert found["mixed"]["furthest_from_the_line"] == pytest.approx(0.5)  # the least squares' line is 0.75 n
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
    assert "runs side by side" in (tmp_path / "line.svg").read_text()


def test_two_points_are_always_on_a_line(tmp_path: Path) -> None:
    two = told(tmp_path / "a.json", {1: 1.0, 2: 2.0})
    with pytest.raises(LorachainsError, match="has 2 points: measure three or more"):
        linearity.linearity("tiny", two, two, str(tmp_path / "line"))
