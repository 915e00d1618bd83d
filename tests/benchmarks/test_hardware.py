"""Commands that need a GPU, or two, say so in one line where there is none."""

import sys

import knot_memory
import pytest
import torch
import two_devices

from lorachains.chain import Chain
from lorachains.errors import LorachainsError


@pytest.mark.parametrize("visible", [0, 1])
def test_two_devices(visible: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(sys, "argv", ["two_devices.py"])
    with pytest.raises(SystemExit):
        two_devices.main()
    assert f"{visible} GPUs are visible: two are needed, or --accelerator cpu" in capsys.readouterr().err


def test_the_memory_of_knots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LorachainsError, match="no GPU is visible"):
        knot_memory.memory("tiny")


@pytest.mark.parametrize("mode", knot_memory.MODES)
def test_each_mode_is_measured_from_plain_lora_on(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, bool]] = []

    def peak(chain: Chain, *_: object) -> int:
        lengths.append((len(chain.ranks), chain.merged))
        return 100 + len(chain.ranks)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(knot_memory, "peak", peak)
    monkeypatch.setattr(knot_memory, "MODES", (mode,))
    found = knot_memory.memory("tiny", rows=2, seq=8, links=3)[mode]
    merged = mode == "merge"
    assert lengths == [(0, False), (0, False), (1, merged), (2, merged), (0, False)]
    assert found["chain length 3"] == {"bytes": 102, "ratio": 1.02}
    assert found["chain length 1 again"]["ratio"] == 1
