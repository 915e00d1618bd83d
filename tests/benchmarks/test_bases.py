"""Bases that aren't plain, with trainer.compile and without: the same losses, and why passes aren't replayed."""

import json
import logging
from pathlib import Path

import bases
import measuring
import pytest
from transformers.utils.import_utils import is_bitsandbytes_available


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WINDOW", 2)


def test_each_base_both_ways(tmp_path: Path) -> None:
    output = tmp_path / "graphs.json"
    found = bases.graphs("tiny", str(output), rows=2, seq=16, steps=6)
    assert json.loads(output.read_text())["parts"] == found
    for kind in ("plain", "checkpointing"):
        assert found[kind]["compile=auto"]["first_loss"] == pytest.approx(found["plain"]["compile=false"]["first_loss"])
        if measuring.DEVICE == "cpu":
            assert found[kind]["compile=auto"]["why_not"] == "the model is not on a CUDA device"
    if not is_bitsandbytes_available():
        assert "needs bitsandbytes" in found["nf4"]["not_measured"]
    else:
        assert found["nf4"]["compile=auto"]["first_loss"] > 0


def test_what_the_log_warns_of_is_told() -> None:
    with bases._warned() as found:
        logging.getLogger("lorachains.methods.passes").warning("not compiled: %s", "a reason")
    assert found == ["not compiled: a reason"]
