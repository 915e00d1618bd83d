"""Segments side by side attend as each would alone."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from lorachains.padded_attention import attend, grouped

LENGTHS = (5, 17, 1, 0, 33, 16, 18, 2)
"""Of three groups; one segment has nothing."""
BEFORE = (0, 0, 5, 0, 0, 17, 1, 33)
"""How much of the stream's beginning each attends to as well."""


def alone(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """One segment by the formula, `(heads, seq, dim)`."""
    before = k.shape[1] - q.shape[1]
    behind = torch.arange(q.shape[1]).unsqueeze(1) + before - torch.arange(k.shape[1])
    hidden = (behind < 0) | (behind >= (window or k.shape[1]))
    return (q @ k.mT * 0.3).masked_fill(hidden, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("pairs", [1 << 24, 1000, 1])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_attention_and_its_gradients_are_those_of_each_segment_alone(
    shared: bool, window: int | None, pairs: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr("lorachains.padded_attention.PAIRS", pairs)
    torch.manual_seed(0)
    given = [torch.randn(3, sum(LENGTHS), 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    q, k, v = given
    starts = [0, *accumulate(LENGTHS)]
    places = [
        torch.cat([torch.arange(before if shared else 0), torch.arange(start, start + length)])
        for before, start, length in zip(BEFORE, starts, LENGTHS, strict=False)
    ]
    own = [torch.arange(start, start + length) for start, length in zip(starts, LENGTHS, strict=False)]
    theirs = [
        alone(q[:, rows], k[:, keys], v[:, keys], window).transpose(0, 1)
        for rows, keys in zip(own, places, strict=True)
    ]
    groups = grouped(
        LENGTHS, [len(keys) for keys in places], torch.cat(places).to(device) if shared else None, torch.device(device)
    )
    assert len(groups.groups) == {1 << 24: 3, 1000: 6 if shared else 4, 1: 7}[pairs]
    assert all(pairs == 1 or group.behind.numel() <= pairs or len(group.behind) == 1 for group in groups.groups)
    ours = attend(q.to(device), k.to(device), v.to(device), groups, 0.3, window=window).cpu()
    assert torch.allclose(ours, torch.cat(theirs), rtol=0, atol=1e-12)
    weights = torch.randn_like(ours)
    for mine, its in zip(
        torch.autograd.grad((ours * weights).sum(), given),
        torch.autograd.grad((torch.cat(theirs) * weights).sum(), given),
        strict=True,
    ):
        assert torch.allclose(mine, its, rtol=0, atol=1e-12)
