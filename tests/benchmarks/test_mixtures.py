"""MoA beside one LoRA and X-LoRA: the same losses and texts, whatever the number of experts."""

import json
from pathlib import Path

import measuring
import mixtures
import pytest

from lorachains.errors import LorachainsError


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WINDOW", 2)
    monkeypatch.setattr(mixtures, "REPEATS", 1)


def test_moa_beside_one_lora(tmp_path: Path) -> None:
    output = tmp_path / "moa.json"
    found = mixtures.moa("tiny", str(output), experts=[2, 4], rows=4, seq=16, new=4, steps=6, xlora=2)
    assert json.loads(output.read_text())["parts"].keys() == {"2 experts", "4 experts"}
    part = found["2 experts"]
    losses = [part[side]["loss"] for side in ("lora", "moa", "xlora", "xlora_trained")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    ratios, speeds = part["ratios"], {side: part[side]["generation"] for side in ("lora", "moa", "xlora")}
    assert ratios["step, moa / lora"] == part["moa"]["step_seconds"] / part["lora"]["step_seconds"]
    moa, xlora = speeds["moa"]["tokens_per_second"], speeds["xlora"]["tokens_per_second"]
    assert ratios["generation, moa / xlora"] == moa / xlora
    assert found["4 experts"].keys() == {"lora", "moa", "ratios"}  # X-LoRA's part is left out, as asked for


def test_what_xlora_cannot_do_is_said() -> None:
    def fails() -> measuring.Figures:
        raise ValueError("Got unexpected keys!\nmore")

    assert measuring.or_why(fails) == {"not_measured": "ValueError: Got unexpected keys!"}


def test_experts_share_rows_evenly(tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match="rows=4 can't be shared evenly by 3 experts"):
        mixtures.moa("tiny", str(tmp_path / "moa.json"), experts=[3], rows=4)
