"""Tokens are drawn with the probabilities that transformers gives them."""

from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lorachains.errors import LorachainsError
from lorachains.generation import Sampling

SETTINGS = [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 6, "top_p": 0.7}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_tokens_are_drawn_with_transformers_probabilities(settings: dict[str, Any]) -> None:
    """Numbers that lie evenly in [0, 1) give each token its share of them."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    wanted = TemperatureLogitsWarper(settings.get("temperature", 1.0))(None, logits)
    if "top_k" in settings:
        wanted = TopKLogitsWarper(settings["top_k"])(None, wanted)
    wanted = TopPLogitsWarper(settings.get("top_p", 1.0))(None, wanted).softmax(-1)[0]
    numbers = (torch.arange(10_000).unsqueeze(1) + 0.5) / 10_000
    drawn = Sampling([0], **settings).draw(logits.expand(10_000, -1), numbers)
    shares = drawn.flatten().bincount(minlength=12) / 10_000
    assert torch.allclose(shares, wanted, atol=2e-4)
    assert not shares[wanted == 0].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": None},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LorachainsError, match=next(iter(settings))):
        Sampling([0], **settings)
