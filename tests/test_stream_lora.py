"""The kernels' LoRAs are those of a float64 formula, token by token, and so are their gradients."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from lorachains.batch import BLOCK
from lorachains.stream_lora import _backward, _lora, stream_lora

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def drawn(blocks: list[int], rank: int, width: int, height: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tokens, factors, the adapter of each block and where adapters end."""
    torch.manual_seed(0)
    experts = len(blocks)
    sizes = [(sum(blocks) * BLOCK, width), (experts, rank, width), (experts, height, rank)]
    x, a, b = (torch.randn(size, device="cuda").to(dtype).requires_grad_() for size in sizes)
    adapters = torch.arange(experts).repeat_interleave(torch.tensor(blocks)).cuda()
    return x, a, b, adapters, BLOCK * torch.tensor([*accumulate(blocks)], dtype=torch.int32, device="cuda")


def reference(x: Tensor, a: Tensor, b: Tensor, adapters: Tensor, active: Tensor | None) -> Tensor:
    own = adapters.repeat_interleave(BLOCK)
    hidden = torch.einsum("tk,trk->tr", x.double(), a.double()[own])
    if active is not None:
        hidden = hidden * active.unsqueeze(1)
    return torch.einsum("tr,tnr->tn", hidden, b.double()[own])


@pytest.mark.parametrize("served", ["all", "some"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("blocks", "rank", "width", "height"),
    [
        ([3, 1, 0, 7, 2], 8, 96, 80),
        ([40], 64, 64, 64),
        ([9, 11], 72, 40, 200),
        ([1] * 300, 3, 48, 130),
        ([900, 1], 8, 64, 64),
    ],
    ids=["one-absent", "square", "many-ranks", "many", "in-parts"],
)
def test_the_kernels_compute_the_formula(
    blocks: list[int], rank: int, width: int, height: int, dtype: torch.dtype, served: str
) -> None:
    x, a, b, adapters, ends = drawn(blocks, rank, width, height, dtype)
    active = None if served == "all" else torch.rand(len(x), device="cuda") > 0.3
    out, right = stream_lora(x, a, b, adapters, ends, active), reference(x, a, b, adapters, active)
    given = torch.randn_like(right).to(dtype)
    ours = (out, *torch.autograd.grad(out, (x, a, b), given))
    theirs = (right, *torch.autograd.grad(right, (x, a, b), given.double()))
    for name, one, other in zip(("out", "x", "a", "b"), ours, theirs, strict=True):
        assert (one.double() - other).norm() < 1e-2 * other.double().norm(), name


def test_what_is_not_finite_stays_with_its_adapter() -> None:
    x, a, b, adapters, ends = drawn([2, 3, 4], 8, 64, 64, torch.bfloat16)
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


def test_the_operations_are_what_they_say_of_themselves() -> None:
    """To the compiler: shapes, strides and gradients."""
    x, a, b, adapters, ends = drawn([2, 0, 3], 8, 64, 48, torch.bfloat16)
    active = torch.rand(len(x), device="cuda") > 0.3
    torch.library.opcheck(_lora, (x, a, b, adapters, ends, active))
    x, a, b = (tensor.detach() for tensor in (x, a, b))
    out, hidden = _lora(x, a, b, adapters, ends, active)
    torch.library.opcheck(_backward, (x, a, b, hidden, torch.randn_like(out), adapters, ends, active))
