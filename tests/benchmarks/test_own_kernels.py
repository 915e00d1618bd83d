"""Kernels are compared at work that both sides do alike."""

from types import SimpleNamespace

import own_kernels
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lorachains.errors import LorachainsError


def grouped(x: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
    starts = [0, *offs.tolist()]
    return torch.cat([x[a:b] @ w for a, b, w in zip(starts, starts[1:], weights, strict=False)])


def one_by_one(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *_: object, **__: object) -> Tensor:
    length = int(bounds[1])
    q, k, v = (tensor.unflatten(0, (-1, length)).transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's sizes, and plain formulas for PyTorch's kernels, on the CPU."""
    testing = pytest.importorskip("triton.testing", reason="Triton isn't installed")
    if torch.cuda.is_available():
        pytest.skip("kernels run on the CUDA device")
    sizes = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, hidden_size=64)
    monkeypatch.setattr(own_kernels, "_config", lambda _: sizes)
    monkeypatch.setattr(own_kernels, "_drawn", lambda *size: torch.randn(size).requires_grad_())
    monkeypatch.setattr(own_kernels, "varlen_attn", one_by_one)
    monkeypatch.setattr(F, "grouped_mm", grouped)
    monkeypatch.setattr(testing, "do_bench_cudagraph", lambda run, return_mode: len(run()) / 1e3)


@pytest.mark.usefixtures("interpreted")
def test_both_sides_do_the_same() -> None:
    found = own_kernels.attention("any", tokens=[16, 48], stream=100)
    assert {"texts of 16", "texts of 48"} < found.keys()
    found = own_kernels.lora("any", adapters=[2, 3], stream=100)
    assert found["3 adapters"]["PyTorch's / ours, forward and backward"] == 1


@pytest.mark.usefixtures("interpreted")
def test_a_comparison_of_different_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_kernels, "varlen_attn", lambda *given, **more: 1.1 * one_by_one(*given, **more))
    with pytest.raises(LorachainsError, match=r"the two differ by .* of their norm"):
        own_kernels.attention("any", tokens=[16], stream=100)


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device")
    with pytest.raises(LorachainsError, match="no GPU is visible"):
        own_kernels.attention("tiny")
