"""A model's pass by kernels of our own is the plain one. Where Triton doesn't work PyTorch's are used: it is said."""

import importlib
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains import kernels
from lorachains.batch import pack
from lorachains.chain import Chain
from lorachains.kernels import usable
from lorachains.packing import hard_route
from lorachains.scoring import answer_losses
from tests.adapters import config, randomise
from tests.batches import texts_of
from tests.tiny import tiny_model


def test_a_kernel_is_tried_out_once(empty: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_works", None)
    assert kernels._triton_works(empty)
    monkeypatch.setattr(kernels, "_try", lambda _: False)
    assert kernels._triton_works(empty)


@pytest.mark.usefixtures("empty")
def test_why_triton_does_not_work_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nSee elsewhere.")

    monkeypatch.setattr(kernels, "_works", None)
    monkeypatch.setattr("lorachains.triton_lora.down", fail)
    with caplog.at_level(logging.WARNING):
        assert not kernels._triton_works(torch.empty(0))
        assert not kernels._triton_works(torch.empty(0))
    said = "Triton doesn't work here, so PyTorch's own kernels are used, which are slower: Failed to find C compiler."
    assert caplog.messages == [said]


def test_without_triton_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_works", None)
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    assert not kernels._triton_works(torch.empty(0))


def test_a_cpu_has_none() -> None:
    assert not usable(torch.empty(0, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_they_are_for_half_precision() -> None:
    assert usable(torch.empty(0, dtype=torch.bfloat16, device="cuda"))
    assert not usable(torch.empty(0, device="cuda"))


@pytest.mark.parametrize(
    ("arch", "fields"), [("llama", {"head_dim": 16}), ("qwen2", {"head_dim": 16}), ("opt", {"hidden_size": 64})]
)
def test_a_training_pass_by_kernels_is_the_plain_one(
    arch: str, fields: dict[str, int], empty: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients of three adapters in a stream, with a knot tied, by attention and LoRAs together."""
    if empty.is_cuda:
        pytest.skip("kernels take half precision there: see test_graphs.py")
    model = tiny_model(arch, torch.float32, **fields)
    chain = Chain(model, config(arch), seeds=[0, 1, 2])
    randomise(chain)
    chain.tie(1)
    chain.extend()
    randomise(chain)
    batch = pack(texts_of((9, 1), (5, 2), (40, 4), (2, 1)), [0, 1, 1, 2])
    chain.route = hard_route(model, batch)
    calls: list[str] = []

    def passed() -> tuple[Tensor, ...]:
        losses = answer_losses(model, batch)
        return losses, *chain.differentiate(losses.sum())

    plain = passed()
    for name, of in (("segment_attention", "packing"), ("stream_lora", "routing")):
        function = getattr(importlib.import_module(f"lorachains.{of}"), name)

        def noted(*given: Any, name: str = name, function: Any = function) -> Tensor:
            calls.append(name)
            return function(*given)

        monkeypatch.setattr(f"lorachains.{of}.{name}", noted)
    monkeypatch.setattr("lorachains.packing.one_kernel", lambda _: True)
    monkeypatch.setattr("lorachains.packing.takes", lambda *_: True)
    monkeypatch.setattr("lorachains.routing.usable", lambda _: True)
    for one, other in zip(passed(), plain, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()
    assert set(calls) == {"segment_attention", "stream_lora"}
