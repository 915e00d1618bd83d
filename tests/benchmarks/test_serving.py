"""Generation by many adapters: all sides give the same texts before their speed is told."""

import measuring
import pytest
import serving

from lorachains.errors import LorachainsError


def test_serving_many_adapters() -> None:
    found = serving.serving("tiny", rows=6, adapters=3, new=5)
    assert found["same_texts"] == {"ours, swapped": 1.0, "PEFT, mixed": 1.0}
    speed = {side: found[side]["tokens_per_second"] for side in ("ours, mixed", "ours, swapped", "PEFT, mixed")}
    assert all(speed[side] * found[side]["seconds"] == pytest.approx(6 * 5) for side in speed)
    assert found["ratios"]["ours, mixed / PEFT, mixed"] == speed["ours, mixed"] / speed["PEFT, mixed"]


def test_different_texts_are_not_compared() -> None:
    with pytest.raises(LorachainsError, match="the sides generate differently: 1 of 2 texts, first 1"):
        measuring.check_same_texts(["a", "b"], ["a", "c"])
