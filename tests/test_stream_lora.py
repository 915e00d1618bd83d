"""The kernels' LoRAs are those of a float64 formula, token by token, and so are their gradients."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from lorachains.batch import BLOCK
from lorachains.stream_lora import _backward, _lora, add_lora, stream_lora


def drawn(blocks: list[int], rank: int, width: int, height: int, empty: Tensor) -> tuple[Tensor, ...]:
    """Tokens, factors, the adapter of each block and where adapters end."""
    torch.manual_seed(0)
    experts = len(blocks)
    sizes = [(sum(blocks) * BLOCK, width), (experts, rank, width), (experts, height, rank)]
    x, a, b = (torch.randn(size).to(empty).requires_grad_() for size in sizes)
    adapters = torch.arange(experts).repeat_interleave(torch.tensor(blocks)).to(empty.device)
    ends = BLOCK * torch.tensor([*accumulate(blocks)], dtype=torch.int32, device=empty.device)
    return x, a, b, adapters, ends


def reference(x: Tensor, a: Tensor, b: Tensor, adapters: Tensor, active: Tensor | None) -> Tensor:
    own = adapters.repeat_interleave(BLOCK)
    hidden = torch.einsum("tk,trk->tr", x.double(), a.double()[own])
    if active is not None:
        hidden = hidden * active.unsqueeze(1)
    return torch.einsum("tr,tnr->tn", hidden, b.double()[own])


@pytest.mark.parametrize("served", ["all", "some"])
@pytest.mark.parametrize(
    ("blocks", "rank", "width", "height"),
    [
        ([3, 1, 0, 7, 2], 8, 96, 80),
        ([40], 64, 64, 64),
        ([9, 11], 72, 40, 200),
        ([1] * 50, 3, 48, 130),
        ([300, 1], 8, 64, 64),
    ],
    ids=["one-absent", "square", "many-ranks", "many", "in-parts"],
)
def test_the_kernels_compute_the_formula(
    blocks: list[int], rank: int, width: int, height: int, served: str, empty: Tensor
) -> None:
    x, a, b, adapters, ends = drawn(blocks, rank, width, height, empty)
    active = None if served == "all" else torch.rand(len(x)).to(empty.device) > 0.3
    out, right = stream_lora(x, a, b, adapters, ends, active), reference(x, a, b, adapters, active)
    given = torch.randn(right.shape).to(empty)
    ours = (out, *torch.autograd.grad(out, (x, a, b), given))
    theirs = (right, *torch.autograd.grad(right, (x, a, b), given.double()))
    tolerance = 1e-5 if empty.dtype == torch.float32 else 1e-2
    for name, one, other in zip(("out", "x", "a", "b"), ours, theirs, strict=True):
        assert (one.double() - other).norm() < tolerance * other.double().norm(), name


@pytest.mark.parametrize("block", [1, 8, 64, 128])
def test_blocks_of_other_sizes(block: int, empty: Tensor) -> None:
    adapters = torch.tensor([0, 0, 1, 3]).to(empty.device)
    ends = block * torch.tensor([2, 3, 3, 4], dtype=torch.int32, device=empty.device)
    x, a, b = (torch.randn(size).to(empty) for size in [(4 * block, 32), (4, 8, 32), (4, 48, 8)])
    own = adapters.repeat_interleave(block)
    right = torch.einsum("tk,trk,tnr->tn", x.double(), a.double()[own], b.double()[own])
    tolerance = 1e-5 if empty.dtype == torch.float32 else 1e-2
    assert (stream_lora(x, a, b, adapters, ends).double() - right).norm() < tolerance * right.norm()


@pytest.mark.parametrize("rank", [3, 8, 64])
@pytest.mark.parametrize(("tokens", "width", "height"), [(1, 576, 192), (5, 96, 80), (40, 300, 600)])
def test_a_lora_is_added_in_one_launch(tokens: int, width: int, height: int, rank: int, empty: Tensor) -> None:
    torch.manual_seed(0)
    sizes = [(3, tokens, height), (3, tokens, width), (3, rank, width), (3, height, rank)]
    y, x, a, b = (torch.randn(size).to(empty) for size in sizes)
    right = y.double() + x.double() @ a.double().mT @ b.double().mT
    add_lora(y, x, a, b)
    assert (y.double() - right).norm() < (1e-5 if empty.dtype == torch.float32 else 1e-2) * right.norm()


def test_what_is_added_to_one_group_is_its_own(empty: Tensor) -> None:
    y, x, a, b = (torch.ones(size).to(empty) for size in [(3, 2, 48), (3, 2, 64), (3, 4, 64), (3, 48, 4)])
    x[1, 0], a[1], b[1] = float("nan"), float("inf"), float("nan")
    add_lora(y, x, a, b)
    assert y[[0, 2]].isfinite().all()
    assert not y[1].isfinite().any()


def test_what_is_not_finite_stays_with_its_adapter(empty: Tensor) -> None:
    """Also in programs that serve tokens of two."""
    x, a, b, adapters, ends = drawn([2, 3, 4], 8, 64, 64, empty)
    with torch.no_grad():
        a[1], b[1], x[32:80] = float("nan"), float("inf"), float("nan")
    out = stream_lora(x, a, b, adapters, ends)
    of_x, of_a, of_b = torch.autograd.grad(out.nansum(), (x, a, b))
    for tensor in (out, of_x):
        assert not tensor[32:80].isfinite().any()
        assert tensor[:32].isfinite().all()
        assert tensor[80:].isfinite().all()
    for tensor in (of_a, of_b):
        assert tensor[[0, 2]].isfinite().all()


def test_the_operations_are_what_they_say_of_themselves(empty: Tensor) -> None:
    """To the compiler: shapes, strides and gradients."""
    x, a, b, adapters, ends = drawn([2, 0, 3], 8, 64, 48, empty)
    active = torch.rand(len(x)).to(empty.device) > 0.3
    torch.library.opcheck(_lora, (x, a, b, adapters, ends, active))
    x, a, b = (tensor.detach() for tensor in (x, a, b))
    out, hidden = _lora(x, a, b, adapters, ends, active)
    torch.library.opcheck(_backward, (x, a, b, hidden, torch.randn_like(out), adapters, ends, active))
