"""Commands that need a GPU, or two, say so in one line where there is none."""

import sys

import knot_memory
import pytest
import torch
import two_devices


@pytest.mark.parametrize("visible", [0, 1])
def test_two_devices(visible: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(sys, "argv", ["two_devices.py"])
    with pytest.raises(SystemExit):
        two_devices.main()
    assert f"{visible} GPUs are visible: two are needed, or --accelerator cpu" in capsys.readouterr().err


def test_the_memory_of_knots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: no GPU is visible"):
        knot_memory.main()
