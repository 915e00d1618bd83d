"""A run's curves, also of one that was resumed."""

from pathlib import Path

from lorachains.report.curves import read_curve
from tests.report.folders import make_log


def test_what_was_done_again_is_the_later_starts(tmp_path: Path) -> None:
    make_log(tmp_path, 2, [{"step": 20, "val/loss": 0.2}, {"step": 30, "val/loss": 0.1}])
    make_log(tmp_path, 10, [{"step": 30, "val/loss": 0.3}, {"step": 30, "train/loss": 5}])
    make_log(tmp_path, 1, [{"step": 10, "val/loss": 0.5}, {"step": 20, "val/loss": 0.9}])
    assert read_curve(tmp_path, "val/loss") == {10: 0.5, 20: 0.2, 30: 0.3}
    assert read_curve(tmp_path, "train/loss") == {30: 5.0}
    make_log(tmp_path, 11, [{"step": 31, "val/loss": 0.1, "run/seconds": 5, "test/loss": 0.2}])  # the results
    assert read_curve(tmp_path, "val/loss") == {10: 0.5, 20: 0.2, 30: 0.3}
    assert read_curve(tmp_path, "val/accuracy") == read_curve(tmp_path / "none", "val/loss") == {}
