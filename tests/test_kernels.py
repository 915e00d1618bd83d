"""Where Triton doesn't work, PyTorch's own kernels do, and it is said."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from lorachains import kernels
from lorachains.kernels import usable


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
